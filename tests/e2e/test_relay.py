"""Several droplets pass on what all of them need, as their users see it: in words, in JSON, and in the trees."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import User, running_sandbox, until

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.0/8 is all ours on Linux only"),
]


def fill(root: Path) -> None:
    (root / "data").mkdir()
    for number in range(20):
        (root / "data" / f"f{number}").write_bytes(random.Random(number).randbytes(100_000))


def hashes(user: User) -> set[str]:
    """Return what the droplets' trees come to: one hash when they are equal."""
    ended = user.does("run", "--json", "--pool", "wide", "--all", "cat data/* | sha256sum")
    return {event["text"] for event in ended.of("output")}


def test_a_sync_and_a_run_are_relayed(user: User) -> None:
    user.does("up", "--pool", "wide", "-n", "3")
    fill(user.cwd)
    ended = user.does("sync", "--pool", "wide", "--all", "--relay", "on", "--json")
    results = [event["result"] for event in ended.of("sync_ended")]
    assert sorted(one["relayed_bytes"] > 0 for one in results) == [False, True, True]
    assert sorted(one["sent_bytes"] > 0 for one in results) == [False, False, True]
    assert len(hashes(user)) == 1
    for number in range(10):
        (user.cwd / "data" / f"more{number}").write_bytes(random.Random(100 + number).randbytes(300_000))
    said = user.does("sync", "--pool", "wide", "--all", "--relay", "on").err
    assert said.count("from other droplets") == 2
    off = user.does("sync", "--pool", "wide", "--all", "--relay", "off", "--json")
    assert not any(event["result"]["relayed_bytes"] for event in off.of("sync_ended"))
    for number in range(80):
        (user.cwd / "data" / f"many{number}").write_bytes(random.Random(200 + number).randbytes(300_000))
    ran = user.does("run", "-s", "--json", "--pool", "wide", "--all", "cat data/* | sha256sum")
    assert len({event["text"] for event in ran.of("output")}) == 1


@pytest.mark.parametrize("make_user", ["off"], indirect=True, ids=["alone"])
def test_a_closed_private_network_is_said_once(tmp_path: Path, make_user: Callable[[dict[str, str]], User]) -> None:
    with running_sandbox(tmp_path / "sandbox", closes_private_network=True) as cloud:
        user = make_user(cloud)
        user.does("up", "--pool", "wide", "-n", "3")
        fill(user.cwd)
        ended = user.does("sync", "--pool", "wide", "--all", "--relay", "on", "--json")
        results = [event["result"] for event in ended.of("sync_ended")]
        assert [one["relayed_bytes"] for one in results] == [0, 0, 0]
        assert all(one["sent_bytes"] > 2_000_000 for one in results)
        assert len([event for event in ended.of("notice") if "by its neighbours" in event["message"]]) == 1
        assert len(hashes(user)) == 1


def processes_at_home_in(place: Path) -> list[str]:
    """Return the droplets' processes: those whose home lies in a sandbox."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"HOME={place}/".encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if " receive " in line or " store " in line]


@pytest.mark.parametrize("make_user", ["off"], indirect=True, ids=["alone"])
@pytest.mark.parametrize("words", [["sync"], ["push", "data", "--to", "~/data"]], ids=["sync", "push"])
def test_a_killed_client_leaves_nothing_on_any_droplet(
    tmp_path: Path, make_user: Callable[[dict[str, str]], User], words: list[str]
) -> None:
    place = tmp_path / "sandbox"
    with running_sandbox(place) as cloud:
        user = make_user(cloud)
        user.does("up", "--pool", "wide", "-n", "3")
        fill(user.cwd)
        before = len(processes_at_home_in(place))
        with user.start(*words, "--pool", "wide", "--all", "--relay", "on", "--bwlimit", "500k") as process:
            until(lambda: len(processes_at_home_in(place)) >= before + 3, what="all three to be at it")
            until(lambda: len(list(place.rglob(".chisel-*"))) > 2, what="something to have come everywhere")
            process.kill()
            process.communicate()
        until(lambda: len(processes_at_home_in(place)) <= before, what="no process left")
        ended = user.does(*words, "--pool", "wide", "--all", "--relay", "on", "--json")
        kind = f"{words[0]}_ended"
        assert [event["result"]["error"] for event in ended.of(kind)] == [None] * 3
        if words[0] == "sync":
            assert len(hashes(user)) == 1
        else:
            here = {path.name: path.read_bytes() for path in (user.cwd / "data").iterdir()}
            there = [path.parent for path in place.rglob("data/data/f0")]
            assert [{path.name: path.read_bytes() for path in one.iterdir()} for one in there] == [here] * 3
