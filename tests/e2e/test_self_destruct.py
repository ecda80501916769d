"""Droplets that nobody asks anything of end: by themselves, or by any chisel command of the same machine."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from chisel.sandbox.pytest import Sandbox, sandbox
from tests.support import User, destroy_all, until

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox(tmp_path_factory.mktemp("cloud"), per_minute=10**6, per_hour=10**6) as running:
        yield running


@pytest.fixture
def user(cloud: Sandbox, tmp_path: Path) -> Iterator[User]:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    someone = User(home=home, cwd=work, cloud=cloud.environ)
    yield someone
    destroy_all(cloud.environ)


def armed(user: User, cloud: Sandbox) -> str:
    token = cloud.make_token("droplet:delete")
    user.does("auth", "--self-destruct-token", token)
    user.cloud = {**user.cloud, "CHISEL_SELF_DESTRUCT_TOKEN": token}
    return token


def test_auth_takes_a_token_that_can_only_delete(user: User, cloud: Sandbox) -> None:
    token = cloud.make_token("droplet:delete", "droplet:read")
    said = user.does("auth", "--self-destruct-token", token)
    assert "on; its token may delete droplets, any of the team, and nothing more that was tried" in said.out.decode()
    file = user.home / ".config/chisel/config.toml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert token in file.read_text()


@pytest.mark.parametrize(
    ("scopes", "words"),
    [
        (("droplet:read",), "may not delete"),
        (("droplet:delete", "droplet:create", "tag:create"), "may create droplets"),
    ],
)
def test_auth_refuses_another(user: User, cloud: Sandbox, scopes: tuple[str, ...], words: str) -> None:
    before = len(cloud.droplets)
    ended = user.chisel("auth", "--self-destruct-token", cloud.make_token(*scopes))
    assert (ended.status, words in ended.err) == (5, True)
    assert not (user.home / ".config/chisel/config.toml").exists()
    assert len(cloud.droplets) == before


def test_auth_takes_a_broad_one_when_told_to_and_says_what_it_may_do(user: User, cloud: Sandbox) -> None:
    broad = cloud.make_token("droplet:delete", "droplet:create", "tag:create", "account:read")
    said = user.does("auth", "--self-destruct-token", broad, "--allow-broad-token").out.decode()
    assert "create droplets" in said
    assert "read the account" in said
    revoked = cloud.make_token("droplet:delete")
    cloud.revoke(revoked)
    assert user.chisel("auth", "--self-destruct-token", revoked).status == 3


def test_auth_names_the_scopes_that_are_missing(user: User, cloud: Sandbox) -> None:
    poor = cloud.make_token("account:read", "sizes:read", "droplet:read", "droplet:create", "ssh_key:read")
    said = user.does("auth", CHISEL_DO_TOKEN=poor)
    assert "droplet:delete droplet:update ssh_key:create tag:create tag:delete" in said.out.decode()
    assert "0 others" in said.out.decode()


def test_an_idle_droplet_destroys_itself_and_a_busy_one_does_not(user: User, cloud: Sandbox) -> None:
    token = armed(user, cloud)
    said = user.does("up", "-n", "2", "--idle", "10s")
    assert "self-destruct: on, after 10 s without a request" in said.err
    gate = user.home / "gate"
    line = f"while [ ! -e {gate} ]; do sleep 0.2; done; sleep 4; {cat_all()} | grep -c {token}"
    with user.start("run", "--on", "1", line) as ran:
        until(lambda: cloud.alive == ["chisel-dev-1"], what="the end of the idle one", deadline_s=60)
        until(lambda: "self-destruct: on" in user.does("status").out.decode(), what="the other's watchdog")
        gate.touch()
        out, err = ran.communicate(timeout=60)
    assert (ran.returncode, err) == (0, b"")
    assert int(out) >= 2, "root can read it, and the README says so"
    until(lambda: not cloud.alive, what="the end of the other")


def cat_all() -> str:
    return 'cat "$CHISEL_DROPLET_ROOT"/etc/chisel/*'


def test_keep_reaches_the_droplet(user: User, cloud: Sandbox) -> None:
    armed(user, cloud)
    user.does("up", "--idle", "15s")
    user.does("keep", "1h")
    user.does("up", "--pool", "other", "--idle", "20s")
    until(lambda: "other-1" not in cloud.alive, what="the one that is not kept", deadline_s=60)
    assert "chisel-dev-1" in cloud.alive
    status = user.does("status", "--json").of("status")[0]["pools"]
    assert [one["self_destruct"] for pool in status for one in pool["droplets"] if pool["name"] == "chisel-dev"] == [
        "on"
    ]


def test_a_revoked_token_shows_in_status(user: User, cloud: Sandbox) -> None:
    token = armed(user, cloud)
    user.does("up", "--idle", "4s")
    cloud.revoke(token)
    until(lambda: "failing" in user.does("status").out.decode(), what="the trouble", deadline_s=30)
    assert cloud.alive == ["chisel-dev-1"]


def test_without_a_token_any_command_ends_an_idle_pool(user: User, cloud: Sandbox) -> None:
    assert "off while this laptop is off" in user.does("up", "--idle", "3s").err
    until(lambda: "is destroyed" in said(user), what="its end", deadline_s=30)
    assert cloud.alive == []
    assert json.loads((user.home / ".cache/chisel/state.json").read_text())["clouds"][cloud.url]["pools"] == {}


def test_what_is_past_its_time_is_ended_by_the_next_command_unless_something_runs(user: User, cloud: Sandbox) -> None:
    user.does("up", "--ttl", "3s", "--idle", "0")
    runs = user.start("run", "sleep 8")
    until(lambda: "past its limit, and left: `sleep 8` runs there" in said(user), what="a warning", deadline_s=20)
    assert cloud.alive == ["chisel-dev-1"]
    _, err = runs.communicate(timeout=60)
    assert runs.returncode == 0, err
    until(lambda: said(user) and not cloud.alive, what="its end", deadline_s=20)


def said(user: User) -> str:
    """Return what the next command says that looks for what is over: not all do, at most one in a minute."""
    (user.home / ".cache/chisel/care").unlink(missing_ok=True)
    return user.does("status").err


def test_droplets_that_are_up_for_long_are_named_by_every_command(user: User, cloud: Sandbox) -> None:
    user.does("up", "--idle", "0")
    assert "self-destruct: off: nothing ends this pool but you, at $47.76 a day" in user.does("up", "--idle", "0").err
    file = user.home / ".cache/chisel/state.json"
    state = json.loads(file.read_text())
    record = state["clouds"][cloud.url]["pools"]["chisel-dev"]["chisel-dev-1"]
    record["created_at"] = record["created_at"].replace("2026", "2025")
    file.write_text(json.dumps(state))
    warned = user.does("run", "true").err
    assert warned.count("pool `chisel-dev`: 1 droplet up for 87") == 1
    assert "chisel down --pool chisel-dev" in warned
