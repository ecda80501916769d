"""Droplets pass on to each other what all of them need; whatever goes wrong on the way, the trees are exact."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from chisel.errors import ChiselError
from chisel.events import Notice
from chisel.model import SyncResult
from chisel.sync.there import Known
from tests.support import until
from tests.sync.conftest import REMOTE
from tests.sync.fleet import Fleet, Held, kill, running_fleet
from tests.sync.test_push import snapshot, write

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.blocking_allowed,
    pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.0/8 is all ours on Linux only"),
]


@pytest.fixture
async def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path, request.param) as fleet:
        yield fleet


def fill(root: Path, files: int = 30, size: int = 100_000, seed: int = 1) -> None:
    for number in range(files):
        write(root / f"d{number % 3}" / f"f{number}", random.Random(seed * 1000 + number).randbytes(size))


async def until_async(holds: Callable[[], object], *, what: str) -> None:
    await to_thread.run_sync(partial(until, holds, what=what, deadline_s=60.0))


def exact(fleet: Fleet, numbers: Iterable[int]) -> bool:
    here = snapshot(fleet.local)
    return all(snapshot(fleet.remote(number)) == here for number in numbers)


def good(found: Mapping[str, SyncResult | ChiselError]) -> dict[str, SyncResult]:
    assert all(isinstance(one, SyncResult) for one in found.values()), found
    return {name: one for name, one in found.items() if isinstance(one, SyncResult)}


def notices(fleet: Fleet) -> list[str]:
    return [event.message for event in fleet.sink.all if isinstance(event, Notice)]


@pytest.mark.parametrize("fleet", [9], indirect=True)
async def test_the_uplink_carries_what_one_droplet_needs(fleet: Fleet) -> None:
    fill(fleet.local)
    begun = fleet.uplink_bytes()
    alone = good(await fleet.sync("on", [8]))
    once = fleet.uplink_bytes() - begun
    before = fleet.uplink_bytes()
    found = good(await fleet.sync("on", range(8)))
    spent = fleet.uplink_bytes() - before
    assert exact(fleet, range(9))
    assert once > 3_000_000
    assert spent <= 1.05 * once
    assert alone["d8"].relayed_bytes == 0
    assert sorted(one.sent_bytes > 0 for one in found.values()) == [False] * 7 + [True]
    assert sum(one.sent_bytes for one in found.values()) == alone["d8"].sent_bytes
    assert len({one.relayed_bytes for one in found.values() if not one.sent_bytes}) == 1
    assert not notices(fleet)


@pytest.mark.parametrize("fleet", [4], indirect=True)
async def test_a_change_of_much_is_relayed_too_and_one_of_little_is_not(fleet: Fleet) -> None:
    fill(fleet.local)
    good(await fleet.sync("off"))
    fill(fleet.local / "more", seed=2)
    found = good(await fleet.sync("on"))
    assert sum(one.relayed_bytes > 0 for one in found.values()) == 3
    write(fleet.local / "d0" / "f0", b"one edit")
    found = good(await fleet.sync("on"))
    assert exact(fleet, range(4))
    assert not any(one.relayed_bytes for one in found.values())


@pytest.mark.parametrize("fleet", [4], indirect=True)
async def test_what_was_taken_to_be_there_and_is_not_is_relayed(fleet: Fleet) -> None:
    """Nothing had to be sent, as far as was known: somebody has removed the working copies."""
    fill(fleet.local)
    good(await fleet.sync("on"))
    for number in range(4):
        shutil.rmtree(fleet.remote(number))
    found = good(await fleet.sync("on"))
    assert exact(fleet, range(4))
    assert sum(one.relayed_bytes > 0 for one in found.values()) == 3


@pytest.mark.parametrize("fleet", [5], indirect=True)
async def test_who_cannot_be_reached_is_sent_to_directly(fleet: Fleet) -> None:
    fill(fleet.local)
    fleet.hosts[0] = replace(fleet.hosts[0], private_address=None)
    fleet.hosts[1] = replace(fleet.hosts[1], region="elsewhere")
    fleet.hosts[3] = replace(fleet.hosts[3], private_address="192.0.2.1")
    found = good(await fleet.sync("on"))
    assert exact(fleet, range(5))
    assert found["d0"].sent_bytes
    assert found["d1"].sent_bytes
    assert sum(one.relayed_bytes > 0 for one in found.values()) in {1, 2}


def uplink(fleet: Fleet, bytes_per_s: float) -> float:
    """Put a rate in the place of those that were measured, and return the best of them."""
    known, best = Known(fleet.place / "index" / "one"), 0.0
    for host in fleet.hosts:
        there = known.of(f"{host.droplet_id}:{REMOTE}")
        best = max(best, there.bytes_per_s)
        known.remember(f"{host.droplet_id}:{REMOTE}", replace(there, bytes_per_s=bytes_per_s))
    return best


@pytest.mark.parametrize("fleet", [3], indirect=True)
async def test_auto_measures_before_it_builds_a_tree(fleet: Fleet) -> None:
    fill(fleet.local, files=3)
    found = good(await fleet.sync("auto"))
    assert not any(one.relayed_bytes for one in found.values())
    fill(fleet.local, files=120)
    found = good(await fleet.sync("auto"))  # 12 MB, at the 20 Mbit/s that are assumed
    assert exact(fleet, range(3))
    assert sum(one.relayed_bytes > 0 for one in found.values()) == 2
    assert await to_thread.run_sync(uplink, fleet, 1e9) > 0, "the uplink was measured"
    fill(fleet.local / "more", files=120, seed=2)
    found = good(await fleet.sync("auto"))  # what was measured counts: a fast uplink needs no relay
    assert exact(fleet, range(3))
    assert not any(one.relayed_bytes for one in found.values())


@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("fleet", [7], indirect=True)
async def test_a_killed_neighbour_costs_nobody_else_anything(fleet: Fleet, killed: int) -> None:
    fill(fleet.local)
    found: dict[str, SyncResult | ChiselError] = {}
    throttle = Held(1_500_000, 2_000_000)

    async def sync() -> None:
        found.update(await fleet.sync("on", throttle=throttle))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sync)
        await until_async(lambda: len(fleet.staged(6)) > 3, what="the first files at the last droplet")
        kill(fleet.receivers(killed))
        throttle.let_go.set()
    failed = {name for name, one in found.items() if not isinstance(one, SyncResult)}
    assert len(failed) == 1
    others = [number for number in range(7) if f"d{number}" not in failed]
    assert exact(fleet, others)
    await until_async(lambda: not any(fleet.staged(number) for number in others), what="no stage left")
    await until_async(lambda: all(fleet.is_clean(number) for number in range(7)), what="no process left")
    good(await fleet.sync("on"))
    assert exact(fleet, range(7))


@pytest.mark.parametrize("fleet", [6], indirect=True)
async def test_a_cancelled_sync_leaves_nothing_running(fleet: Fleet) -> None:
    fill(fleet.local)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(fleet.sync, "on", throttle=Held(1_500_000, 2_000_000)))
        await until_async(
            lambda: min(len(fleet.staged(number)) for number in range(6)) > 3, what="the first files everywhere"
        )
        tasks.cancel_scope.cancel()
    await until_async(lambda: all(fleet.is_clean(number) for number in range(6)), what="no process left")
    assert not any(snapshot(fleet.remote(number)) for number in range(6))
    found = good(await fleet.sync("on"))
    assert exact(fleet, range(6))
    assert all(one.sent_bytes + one.relayed_bytes < 2_900_000 for one in found.values()), found
