"""Nobody types, and what is over is ended, what is in use stays, what vanished is forgotten: by the agent alone."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from chisel.sandbox.pytest import Sandbox
from tests.agent.conftest import WarmUser
from tests.support import until

pytestmark = pytest.mark.timeout(180)
LOOK_MINUTES = 0.02


@pytest.fixture
def lone(cloud: Sandbox, tmp_path: Path) -> Iterator[WarmUser]:
    """Give somebody whose agent looks every second or so, without a token for droplets to destroy themselves with."""
    for name in ("home/.config/chisel", "work"):
        (tmp_path / name).mkdir(parents=True, mode=0o700)
    user = WarmUser(home=tmp_path / "home", cwd=tmp_path / "work", cloud=cloud.environ)
    configure(user)
    yield user
    user.end_agent()
    for pool in {one["name"].rpartition("-")[0] for one in cloud.droplets if one["is_alive"]} - {"chisel-dev"}:
        user.chisel("down", "--pool", pool, "--all", "--yes", CHISEL_AGENT="off")


def configure(user: WarmUser, more: str = "") -> None:
    config = user.home / ".config/chisel/config.toml"
    config.write_text(f"agent_look_minutes = {LOOK_MINUTES}\n{more}")
    config.chmod(0o600)


def up(user: WarmUser, pool: str, *words: str) -> None:
    """Bring up a pool of one and wait until the agent knows it; the agent is started by the command."""
    user.does("up", "--pool", pool, *words)
    until(lambda: f"{pool}-1" in (user.facts() or {}).get("connected", ()), what="the agent", deadline_s=40)


def looked(user: WarmUser, times: int) -> None:
    """Wait for so many further looks."""
    before = looks(user)
    until(lambda: looks(user) >= before + times, what=f"{times} looks", deadline_s=60)


def looks(user: WarmUser) -> int:
    return int(str((user.facts() or {"looks": 0})["looks"]))


def log(user: WarmUser) -> str:
    file = user.home / ".cache/chisel/agent.log"
    return file.read_text() if file.exists() else ""


def records(user: WarmUser) -> dict[str, dict[str, Any]]:
    found = json.loads((user.home / ".cache/chisel/state.json").read_text())
    return {
        name: one
        for cloud in found["clouds"].values()
        for pool in cloud["pools"].values()
        for name, one in pool.items()
    }


def change_records(user: WarmUser, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what the state says, as time would: written beside it and renamed, for the agent reads it meanwhile."""
    file = user.home / ".cache/chisel/state.json"
    found = json.loads(file.read_text())
    for cloud in found["clouds"].values():
        for pool in cloud["pools"].values():
            for record in pool.values():
                change(record)
    fresh = file.with_name("state.new")
    fresh.write_text(json.dumps(found))
    fresh.chmod(0o600)
    os.replace(fresh, file)


def make_old(record: dict[str, Any]) -> None:
    record["created_at"] = "2026-01-01T00:00:00+00:00"


def request(cloud: Sandbox, method: str, path: str, body: object = None) -> Any:
    """Ask the API as somebody else with the same account does."""
    asked = urllib.request.Request(
        f"{cloud.url}/v2/{path}", method=method, data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {cloud.token}", "Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=10) as answer:
        data = answer.read()
    return json.loads(data) if data else None


def droplet(cloud: Sandbox, name: str) -> dict[str, Any]:
    return next(one for one in cloud.droplets if one["name"] == name and one["is_alive"])


def test_an_idle_pool_is_destroyed_by_the_agent_and_the_next_command_says_so(lone: WarmUser, cloud: Sandbox) -> None:
    up(lone, "idle", "--idle", "3s")
    until(lambda: "idle-1" not in cloud.alive, what="its end", deadline_s=60)
    until(lambda: "idle-1" not in records(lone), what="the state to know", deadline_s=20)
    until(lambda: "it cost $" in log(lone) or "usd" in log(lone), what="the look to end", deadline_s=20)
    up(lone, "other", "--idle", "0")
    ended = lone.does("run", "--pool", "other", "true")
    assert "idle-1: destroyed by the agent; it cost $0.0" in ended.err
    assert "destroyed by the agent" not in lone.does("run", "--pool", "other", "true").err


@pytest.mark.parametrize("way", ["attached", "detached"])
def test_what_runs_there_keeps_it(lone: WarmUser, cloud: Sandbox, way: str) -> None:
    up(lone, way, "--idle", "5s")
    gate = lone.cwd / "gate"
    line = f"echo up; while [ ! -e {gate} ]; do sleep 0.1; done"
    with suppress(ProcessLookupError):
        words = ["run", "--pool", way, *(["-d"] if way == "detached" else []), line]
        with lone.start(*words) as process:
            assert process.stdout
            assert process.stdout.readline()
            change_records(lone, make_old)
            looked(lone, 8)
            assert f"{way}-1" in cloud.alive
            gate.touch()
            assert process.wait(30) == 0
    until(lambda: f"{way}-1" not in cloud.alive, what="its end", deadline_s=60)


def test_more_time_from_another_machine_is_respected(lone: WarmUser, cloud: Sandbox, tmp_path: Path) -> None:
    """The tag is read before acting: here the state says nothing of it."""
    up(lone, "kept", "--idle", "1h")
    file = lone.home / ".cache/chisel/state.json"
    before = file.read_bytes()
    lone.does("keep", "--pool", "kept", "2h", CHISEL_AGENT="off")
    fresh = file.with_name("state.new")
    fresh.write_bytes(before)
    fresh.chmod(0o600)
    os.replace(fresh, file)  # what another machine's command leaves: the tag alone
    assert records(lone)["kept-1"]["kept_until"] is None

    def shorten(record: dict[str, Any]) -> None:
        make_old(record)
        record["idle_s"] = 1

    change_records(lone, shorten)
    until(lambda: records(lone)["kept-1"]["kept_until"] is not None, what="the state to learn of it", deadline_s=60)
    looked(lone, 3)
    assert "kept-1" in cloud.alive
    assert "given more time from elsewhere" in log(lone)


def test_a_droplet_destroyed_behind_its_back_is_forgotten_and_named(lone: WarmUser, cloud: Sandbox) -> None:
    up(lone, "other", "--idle", "0")
    up(lone, "gone", "--idle", "0")
    change_records(lone, make_old)  # of a young one it might just not be listed yet
    before = len(cloud.requests)
    request(cloud, "DELETE", f"droplets/{droplet(cloud, 'gone-1')['id']}")
    until(lambda: "gone-1" not in records(lone), what="the state to forget it", deadline_s=90)
    until(lambda: "gone-1" not in str((lone.facts() or {})["connected"]), what="the agent to forget it", deadline_s=20)
    listings = [
        path for method, path in cloud.requests[before:] if method == "GET" and path.startswith("/v2/droplets?")
    ]
    assert len(listings) <= 3, "one look, and what it settles"
    until(lambda: "has vanished" in log(lone), what="the look to end", deadline_s=20)
    assert "gone-1: droplet" in lone.does("run", "--pool", "other", "true").err
    late = lone.chisel("run", "--pool", "gone", "true")
    assert late.status == 3
    assert "is not up" in late.err


def test_age_and_the_end_of_a_budget_are_said_with_a_warm_command(lone: WarmUser) -> None:
    configure(lone, "warn_after_hours = 0.0001\n")
    up(lone, "dear", "--idle", "0", "--max-usd", "0.20")
    before = lone.served
    said = lone.does("run", "--pool", "dear", "true").err
    assert lone.served == before + 1
    assert "dear-1: its time is over in" in said
    assert "pool `dear`: 1 droplet up for" in said


def test_the_cloud_is_not_asked_while_nothing_is_due(lone: WarmUser, cloud: Sandbox) -> None:
    up(lone, "calm", "--idle", "2h", "--ttl", "3h")
    before = len(cloud.requests)
    looked(lone, 5)
    assert cloud.requests[before:] == []
    lone.does("down", "--pool", "calm", "--all", "--yes")
    until(lambda: not (lone.facts() or {})["connected"], what="the agent to know", deadline_s=20)
    before = len(cloud.requests)
    looked(lone, 5)
    assert cloud.requests[before:] == []
