"""What a project's settings do, what `down` says would be lost, and what becomes of a state that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from chisel.sandbox.pytest import Sandbox, sandbox
from tests.support import User, destroy_all

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox(tmp_path_factory.mktemp("cloud"), per_minute=10**6, per_hour=10**6) as running:
        yield running


@pytest.fixture
def user(cloud: Sandbox, tmp_path: Path) -> Iterator[User]:
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    someone = User(home=tmp_path / "home", cwd=tmp_path / "work", cloud=cloud.environ)
    yield someone
    destroy_all(cloud.environ)


def test_setup_runs_once_on_every_droplet_and_again_when_its_text_changes(user: User) -> None:
    (user.cwd / "chisel.toml").write_text('setup = "./setup.sh"\n')
    script = user.cwd / "setup.sh"
    script.write_text("echo set up; echo x >>~/setups\n")
    user.does("up", "-n", "2")
    assert user.does("sync", "--all").out.count(b"set up") == 2
    assert b"set up" not in user.does("sync", "--all").out
    user.does("up", "-n", "3")
    assert user.does("sync", "--all").out.count(b"set up") == 1
    script.write_text("#!/bin/sh\necho other; exit 3\n")
    script.chmod(0o755)
    failed = user.chisel("sync", "--on", "1")
    assert (failed.status, failed.out) == (1, b"other\n")
    assert "setup: `./setup.sh` ended with status 3" in failed.err
    assert user.chisel("sync", "--on", "1").out == b"other\n", "what failed runs again"
    script.unlink()
    gone = user.chisel("sync", "--on", "1")
    assert (gone.status, "`setup` in chisel.toml names" in gone.err) == (3, True)


def test_down_names_what_is_only_there_and_takes_it_along(user: User, cloud: Sandbox) -> None:
    (user.cwd / "a.txt").write_text("a")
    user.does("up")
    user.does("sync")
    user.does("run", "mkdir -p out && echo 1 > out/one && echo 2 > out/two")
    refused = user.chisel("down")
    assert refused.status == 5
    assert "only there, in " in refused.err
    assert "out/two" in refused.err
    assert "a.txt" not in refused.err, "what was sent is here as well"
    user.does("pull", "out/one")
    assert "out/one" not in user.chisel("down").err
    user.does("run", "echo 3 > out/one")
    assert "out/one" in user.chisel("down").err
    missing = user.chisel("down", "--pull", "no/such/file", "--yes")
    assert (missing.status, "nothing was destroyed" in missing.err) == (5, True)
    assert cloud.alive == ["chisel-dev-1"]
    said = user.does("down", "--pull", "out/", "--yes")
    assert "only there" not in said.err
    assert (user.cwd / "out" / "one").read_text() == "3\n"
    assert cloud.alive == []


def test_a_state_that_cannot_be_read_is_rebuilt_from_tags(user: User, cloud: Sandbox) -> None:
    user.does("up", "-n", "2")
    file = user.home / ".cache/chisel/state.json"
    text = file.read_text()
    file.write_text(text[: text.index('"projects"')])
    said = user.does("run", "--all", "echo here")
    assert said.out.count(b"here") == 2
    assert f"the state could not be read and is kept as `{file}.corrupt-1`" in said.err
    assert (file.parent / "state.json.corrupt-1").exists()
    assert "could not be read" not in user.does("status").err
    file.write_text("{")
    user.does("down", "--all", "--yes")
    assert cloud.alive == []


def test_sandbox_start_takes_knobs_and_faults(user: User) -> None:
    alone = User(home=user.home, cwd=user.cwd)
    started = alone.does("sandbox", "start", "--knob", "droplet_limit=1", "--fault", "list-503@1x2", "--json")
    try:
        facts = started.of("facts")[0]["facts"]
        alone.cloud = {"CHISEL_DO_API_URL": facts["url"], "CHISEL_DO_TOKEN": facts["token"]}
        ended = alone.chisel("up", "-n", "2")
        assert (ended.status, "droplet limit" in ended.err) == (4, True)
        assert alone.chisel("sandbox", "start", "--fault", "list-503").status == 2
    finally:
        alone.does("sandbox", "stop")
    wrong = alone.chisel("sandbox", "start", "--fault", "nonsense")
    assert wrong.status != 0
    assert "nonsense" in wrong.err
    assert json.dumps(wrong.err)


def test_a_prepared_droplet_is_baked_and_used_again(user: User, cloud: Sandbox) -> None:
    token = cloud.make_token("droplet:delete")
    user.cloud = {**user.cloud, "CHISEL_SELF_DESTRUCT_TOKEN": token}
    user.does("up", "--idle", "1h")
    user.does("run", "echo prepared > ~/kept")
    said = user.does("down", "--snapshot", "warm", "--yes").err
    assert "snapshot `warm` (31.4 GiB) costs about $1.88 a month" in said
    assert cloud.alive == []
    user.does("up", "--snapshot", "warm", "--idle", "0")
    found = user.does("run", 'ls "$CHISEL_DROPLET_ROOT"/etc/chisel; cat ~/kept')
    assert found.out == b"prepared\n", "neither token nor key of another droplet is in the image"
    whole = user.does("run", f'grep -rlF {token} "$CHISEL_DROPLET_ROOT" --exclude=run.json; true')
    assert whole.out == b""
    wrong = user.chisel("up", "--pool", "other", "--snapshot", "nosuch")
    assert (wrong.status, "there is no snapshot `nosuch`; there are: warm" in wrong.err) == (3, True)
    user.does("up", "-n", "2", "--snapshot", "warm", "--idle", "0")
    assert user.chisel("down", "--all", "--snapshot", "x", "--yes").status == 2
    assert len(cloud.alive) == 2
