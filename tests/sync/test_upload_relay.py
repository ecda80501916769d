"""Droplets pass a push on to each other; whatever goes wrong on the way, the files are exact."""

from __future__ import annotations

import random
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from chisel.model import PushResult
from chisel.sync.throttle import Throttle
from tests.sync.fleet import Fleet, Held, kill, running_fleet
from tests.sync.test_push import snapshot, write
from tests.sync.test_relay import notices, until_async

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.blocking_allowed,
    pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.0/8 is all ours on Linux only"),
]
MB = 1 << 20


@pytest.fixture
async def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path, request.param) as fleet:
        yield fleet


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Give a directory of weights, small files, and a hole."""
    write(tmp_path / "here" / "weights.bin", random.Random(1).randbytes(9 * MB + 345))
    for number in range(20):
        write(tmp_path / "here" / "small" / f"f{number}", f"{number}\n" * number)
    with (tmp_path / "here" / "sparse").open("wb") as out:
        out.truncate(3 * MB)
    (tmp_path / "here" / "link").symlink_to("weights.bin")
    return tmp_path / "here"


def exact(fleet: Fleet, data: Path, numbers: range | list[int]) -> bool:
    here = snapshot(data)
    return all(snapshot(fleet.homes[number] / "data" / "here") == here for number in numbers)


def clean(fleet: Fleet) -> bool:
    return not any(fleet.receivers(number) for number in range(len(fleet.hosts)))


@pytest.mark.parametrize("fleet", [7], indirect=True)
async def test_a_push_crosses_the_uplink_once(fleet: Fleet, data: Path) -> None:
    before = fleet.uplink_bytes()
    (alone,) = await fleet.upload([data], "on", [6])
    once = fleet.uplink_bytes() - before
    before = fleet.uplink_bytes()
    found = await fleet.upload([data], "on", range(6))
    spent = fleet.uplink_bytes() - before
    assert [one.error for one in (alone, *found)] == [None] * 7
    assert exact(fleet, data, range(7))
    assert once > 9 * MB
    assert spent <= 1.05 * once
    assert sorted(one.sent_bytes for one in found) == [0] * 5 + [alone.sent_bytes]
    assert all((one.files, one.bytes, one.skipped) == (alone.files, alone.bytes, ()) for one in found)
    again = await fleet.upload([data], "on")
    assert [(one.files, one.unchanged, one.sent_bytes, one.relayed_bytes) for one in again] == [(0, 22, 0, 0)] * 7
    assert not notices(fleet)


@pytest.mark.parametrize("fleet", [3], indirect=True)
async def test_who_lacks_something_else_is_sent_to_directly(fleet: Fleet, data: Path) -> None:
    write(fleet.homes[0] / "data" / "here" / "weights.bin", (data / "weights.bin").read_bytes()[: 5 * MB])
    found = await fleet.upload([data], "on")
    assert [one.error for one in found] == [None] * 3
    assert exact(fleet, data, range(3))
    assert found[0].relayed_bytes == 0
    assert 0 < found[0].sent_bytes < 5 * MB
    assert sum(one.relayed_bytes > 0 for one in found) == 1


@pytest.mark.parametrize("fleet", [3], indirect=True)
async def test_a_closed_network_costs_a_second_push(fleet: Fleet, data: Path) -> None:
    fleet.hosts[1] = replace(fleet.hosts[1], private_address="192.0.2.1")
    found = await fleet.upload([data], "on")
    assert [one.error for one in found] == [None] * 3
    assert exact(fleet, data, range(3))
    assert found[1].sent_bytes > 9 * MB
    assert len(notices(fleet)) == 1


@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("fleet", [6], indirect=True)
async def test_a_killed_neighbour_costs_nobody_else_anything(fleet: Fleet, data: Path, killed: int) -> None:
    found: list[PushResult] = []
    throttle = Held(4e6, 6 * MB)

    async def push() -> None:
        found.extend(await fleet.upload([data], "on", throttle=throttle))

    def has_begun() -> bool:
        parts = (fleet.homes[5] / "data").rglob(".chisel-*")
        return any(part.stat().st_size > 2 * MB for part in parts)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(push)
        await until_async(has_begun, what="a part at the last droplet")
        kill(fleet.receivers(killed))
        throttle.let_go.set()
    failed = [number for number, one in enumerate(found) if one.error is not None]
    assert failed == [killed]
    assert exact(fleet, data, [number for number in range(6) if number != killed])
    await until_async(lambda: clean(fleet), what="no process left")
    again = await fleet.upload([data], "on")
    assert [one.error for one in again] == [None] * 6
    assert exact(fleet, data, range(6))


@pytest.mark.parametrize("fleet", [4], indirect=True)
async def test_a_cancelled_push_leaves_nothing_running(fleet: Fleet, data: Path) -> None:
    async with anyio.create_task_group() as tasks:

        async def push() -> None:
            await fleet.upload([data], "on", throttle=Throttle(4e6))

        tasks.start_soon(push)
        await until_async(lambda: any((fleet.homes[3] / "data").rglob(".chisel-*")), what="a part")
        tasks.cancel_scope.cancel()
    await until_async(lambda: clean(fleet), what="no process left")
    found = await fleet.upload([data], "on")
    assert [one.error for one in found] == [None] * 4
    assert exact(fleet, data, range(4))
