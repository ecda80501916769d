"""The worst days: no room, droplets that vanish, addresses that change hands, a host key whose maker dies."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from chisel import guard
from chisel.errors import CapacityError, CloudError, HostKeyMismatch
from chisel.events import DropletStage, Notice
from chisel.lifecycle import rotation
from chisel.lifecycle.offer import offers
from chisel.lifecycle.records import map_cloud
from chisel.model import CreateRequest
from chisel.sandbox.cloud import Knobs
from chisel.sandbox.faults import read_fault
from chisel.ssh.connector import open_connector
from chisel.ssh.keys import generate_keypair
from chisel.state import CloudState, DropletRecord, StateStore, host_of
from tests.lifecycle.conftest import World, a_size, a_world, wish
from tests.support import until

pytestmark = pytest.mark.timeout(90)


def turn(world: World, **knobs: Any) -> None:
    world.played.knobs = world.played.knobs.changed(knobs)


def said(world: World) -> str:
    return "\n".join(event.message for event in world.sink.events if isinstance(event, Notice))


# -- room


async def test_where_there_is_no_room_the_next_region_is_tried(world: World) -> None:
    turn(world, sold_out=["gpu-mi300x1-192gb@atl1"])
    (record,) = await world.chisel().up(wish(1))
    assert record.region == "nyc2"
    assert world.cloud.created == 2
    assert "no room for gpu-mi300x1-192gb in atl1; trying on" in said(world)
    assert (await world.state()).intents == {}


async def test_a_pool_is_filled_from_several_places(world: World) -> None:
    turn(world, capacity=1, sold_out=["gpu-mi300x1-192gb@nyc2"])
    with pytest.raises(CapacityError, match="cannot be created now") as caught:
        await world.chisel().up(wish(2))
    assert "--wait" in str(caught.value.hint)
    (first,) = world.alive  # both are asked for at once: which of the two gets the place is the cloud's choice
    assert (await world.names(), (await world.state()).intents) == ([first], {})
    turn(world, capacity=2)
    assert sorted(record.name for record in await world.chisel().up(wish(2))) == ["bench-1", "bench-2"]


async def test_another_size_is_taken_only_when_allowed(world: World) -> None:
    turn(world, sold_out=["gpu-mi300x1-192gb@atl1", "gpu-mi300x1-192gb@nyc2"])
    with pytest.raises(CapacityError, match="cannot be created") as caught:
        await world.chisel().up(wish(1))
    assert "gpu-mi325x1-256gb" in str(caught.value.hint)
    (record,) = await world.chisel().up(wish(1, takes_any=True))
    assert record.size == "gpu-mi325x1-256gb"


def test_offers_come_in_the_order_of_preference() -> None:
    sizes = [
        a_size("small", "r1", "r2"),
        replace(a_size("dear", "r3", model="amd_mi325x"), usd_per_hour=Decimal(9)),
        a_size("cheap", "r4", model="amd_mi325x"),
        replace(a_size("eight", "r5"), gpu_count=8),
        a_size("other", "r6", model="nvidia_h100"),
        a_size("nowhere", model="amd_mi300x"),
    ]
    found = [(size.slug, region) for size, region in offers(sizes, wish(sizes=("small",), takes_any=True))]
    assert found == [("small", "r1"), ("small", "r2"), ("cheap", "r4"), ("dear", "r3")]
    assert [size.slug for size, _ in offers(sizes, wish(sizes=("eight", "small"), region="r1"))] == ["small"]


async def test_it_hunts_until_there_is_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chisel.lifecycle.making._FIRST_HUNT_S", 0.05)
    turn(world, capacity=0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.chisel().up, wish(1, wait_s=30.0))
        with anyio.fail_after(20):
            while "looking again" not in said(world):  # noqa: ASYNC110 - a sink has no event to wait for
                await anyio.sleep(0.01)
        assert world.alive == []
        turn(world, capacity=None)
    assert world.alive == ["bench-1"]


# -- droplets that go


async def test_a_droplet_that_vanishes_after_it_was_accepted_is_made_again(world: World) -> None:
    turn(world, vanishing=[1])
    records = await world.chisel(settle_after_s=1.0).up(wish(2))
    assert [record.name for record in records] == world.alive == await world.names()
    assert len(world.alive) == 2
    assert world.cloud.created == 3
    gone = [event for event in world.sink.events if isinstance(event, DropletStage) and event.stage == "gone"]
    assert len(gone) == 1


async def test_a_droplet_that_never_stays_is_an_error_and_no_loop(world: World) -> None:
    turn(world, vanishing=list(range(1, 20)))
    with pytest.raises(CloudError, match="0 of 1"):
        await world.chisel(settle_after_s=0.5).up(wish(1))
    assert world.cloud.created == 3
    assert (world.alive, await world.names()) == ([], [])


async def test_a_droplet_that_is_taken_back_while_it_boots_is_made_again(world: World) -> None:
    turn(world, banner_s=3600.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.chisel(settle_after_s=0.5).up, wish(1))
        with anyio.fail_after(20):
            while "preparing" not in world.sink.stages("bench-1"):  # noqa: ASYNC110
                await anyio.sleep(0.01)
        turn(world, banner_s=0.0)
        world.played.destroy(next(iter(world.played.droplets)))
    assert world.alive == await world.names() == ["bench-1"]


async def test_the_banner_of_a_first_boot_is_not_taken_for_ready(world: World) -> None:
    turn(world, banner_s=1.5)
    (record,) = await world.chisel().up(wish(1))
    stages = world.sink.stages("bench-1")
    assert "preparing" in stages
    assert record.is_rotated
    connection = await world.connector.connect(host_of(record))
    assert (await connection.shell("echo $((6 * 7))", timeout_s=10)).stdout == b"42\n"


async def test_a_droplet_that_is_off_is_started_again(world: World) -> None:
    (record,) = await world.chisel().up(wish(1))
    await world.chisel().power_off([record])
    assert next(iter(world.played.droplets.values())).is_off
    (again,) = await world.chisel().up(wish(1))
    assert again.id == record.id
    assert not next(iter(world.played.droplets.values())).is_off


# -- addresses that change hands


async def test_a_reused_address_is_recognised_as_a_replaced_droplet(world: World) -> None:
    turn(world, reuses_addresses=True)
    (first,) = await world.chisel().up(wish(1))
    world.connector.forget(host_of(first))
    world.played.destroy(first.id)
    (stranger,) = await world.chisel().up(wish(1, pool="other"))
    assert (stranger.address, stranger.port) == (first.address, first.port)
    (second,) = await world.chisel(settle_after_s=0).up(wish(1))
    assert second.id != first.id
    assert world.alive == ["bench-1", "other-1"]


async def test_a_new_address_is_followed(world: World) -> None:
    (record,) = await world.chisel().up(wish(1))
    (other,) = await world.chisel().up(wish(1, pool="other"))
    await change(world, record, port=other.port)
    (again,) = await world.chisel().up(wish(1))
    assert (again.id, again.port) == (record.id, record.port)
    assert "its address is" in said(world)


async def change(world: World, record: DropletRecord, **changes: Any) -> None:
    await world.chisel()._desk.revise(record, **changes)


# -- the host key


async def test_the_key_of_the_user_data_is_worth_nothing_once_the_droplet_is_ready(world: World) -> None:
    boot_keys: list[str] = []

    async def watched(request: Any) -> Any:
        boot_keys.extend(intent.host_key for intent in (await world.state()).intents.values())
        return await world.cloud.create(request)

    world.cloud.answer = watched
    (record,) = await world.chisel().up(wish(1))
    assert record.is_rotated
    assert record.next_host_key is None
    assert record.host_key != boot_keys[0]
    assert guard.attempt_tag(record.attempt, record.host_key) in next(iter(world.played.droplets.values())).tags
    async with open_connector(world.key) as fresh:
        with pytest.raises(HostKeyMismatch):
            await fresh.connect(replace(host_of(record), host_key=boot_keys[0]))
        await fresh.connect(host_of(record))


@pytest.mark.parametrize("moment", ["before the install", "after the install", "before the last word", "twice"])
async def test_whoever_dies_while_the_key_changes_leaves_a_droplet_that_can_be_verified(
    world: World, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        pass

    install, see = rotation._install, rotation._see

    async def dying_install(*words: Any) -> None:
        if moment in {"after the install", "twice"}:
            await install(*words)
        raise Died

    async def dying_see(*words: Any) -> None:
        await see(*words)
        raise Died

    name, dying = ("_see", dying_see) if moment == "before the last word" else ("_install", dying_install)
    monkeypatch.setattr(rotation, name, dying)
    with pytest.raises(BaseExceptionGroup):
        await world.chisel().up(wish(1))
    monkeypatch.undo()
    if moment == "twice":  # the second one had seen the first key still, and never came to install its own
        (record,) = (await world.state()).pools["bench"].values()
        await change(world, record, next_host_key=generate_keypair("lost").public_openssh)
    async with open_connector(world.key) as fresh:
        world.connector = fresh
        (record,) = await world.chisel().up(wish(1))
        assert record.is_rotated
        await fresh.connect(host_of(record))
    assert world.cloud.created == 1


async def test_several_at_once_replace_the_key_once(world: World) -> None:
    found: list[DropletRecord] = []

    async def one() -> None:
        async with open_connector(world.key) as own:
            mine = replace(world, connector=own)
            found.extend(await mine.chisel().up(wish(1)))

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(one)
    assert len({record.host_key for record in found}) == 1
    assert world.cloud.created == 1


# -- what is left behind, lost, or lives on


async def test_down_takes_the_attempts_tag_along(world: World) -> None:
    (record,) = await world.chisel().up(wish(1))
    assert any("attempt" in tag for tag in world.played.tags)
    await world.chisel().down([record])
    assert not any("attempt" in tag for tag in world.played.tags)


async def test_a_lost_state_is_rebuilt_from_tags_and_the_droplets_are_verified(world: World, tmp_path: Path) -> None:
    before = await world.chisel().up(wish(2, ttl=timedelta(hours=8)))
    owner = (await StateStore(world.file).read()).owner
    shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
    world.file.unlink()
    assert await world.chisel().recover() == []
    assert await world.chisel().owners() == {owner: 2}
    found = await world.chisel().recover(owner)
    assert sorted(record.name for record in found) == ["bench-1", "bench-2"]
    assert {record.id for record in found} == {record.id for record in before}
    assert all(record.until is not None and record.is_rotated for record in found)
    assert await world.chisel().recover() == []
    async with open_connector(world.key) as fresh:
        world.connector = fresh
        after = await world.chisel().up(wish(2))
    assert [record.host_key for record in after] == [record.host_key.rpartition(" ")[0] for record in before]
    assert world.cloud.created == 2
    assert all(bill.error is None for bill in await world.chisel().down(after))
    assert world.alive == []


async def test_keep_moves_the_limit_on_the_droplet_and_in_the_state(world: World) -> None:
    (record,) = await world.chisel().up(wish(1, ttl=timedelta(hours=1)))
    assert record.until is not None
    later = await world.chisel().extend([record], timedelta(hours=5))
    droplet = next(iter(world.played.droplets.values()))
    label = guard.read_label(droplet.tags)
    assert label.until == later["bench-1"].replace(microsecond=0)
    assert label.until > record.until + timedelta(hours=3)
    assert len(guard.limit_tags(droplet.tags)) == 1
    again = await world.chisel().extend([record], timedelta(minutes=1))
    assert again["bench-1"] == label.until, "a shorter time takes nothing away"


async def test_a_clock_that_is_ahead_ends_no_droplet(world: World) -> None:
    """The laptop's clock jumps two days forward: what the cloud's clock says is what counts."""
    (record,) = await world.chisel().up(wish(1, ttl=timedelta(seconds=1)))
    end = record.until
    assert end is not None
    await to_thread.run_sync(lambda: until(lambda: datetime.now(UTC) > end, what="the end of its time"))
    turn(world, clock_behind_s=2 * 86400)
    assert await world.chisel().not_kept([record]) == []
    turn(world, clock_behind_s=0)
    assert await world.chisel().not_kept([record]) == [record]
    turn(world, clock_behind_s=2 * 86400)
    (late,) = await world.chisel().up(wish(1, pool="late", ttl=timedelta(hours=8)))
    assert late.until is not None
    by_its_clock = late.until - datetime.now(UTC) + timedelta(days=2)
    assert timedelta(hours=7, minutes=55) < by_its_clock < timedelta(hours=8, minutes=5)
    (bill,) = await world.chisel().down([late])
    assert bill.seconds < 3600, "nobody pays for two days that were none"


async def test_a_clock_that_jumps_after_a_create_loses_no_droplet(world: World) -> None:
    """The laptop dies in the create and wakes up two days ahead, before the API's list knows the droplet."""
    turn(world, list_lag_s=3.0)
    world.schedule.add(read_fault("create-then-reset"))
    with anyio.move_on_after(1.0):
        await world.chisel().up(wish(1))
    (intent,) = (await world.state()).intents.values()
    assert await world.names() == []
    turn(world, clock_behind_s=2 * 86400)
    early = replace(intent, started_at=intent.started_at - timedelta(days=2))  # when it was, by the cloud's clock

    def backdated(mine: CloudState) -> CloudState:
        return replace(mine, intents={intent.attempt: early})

    await StateStore(world.file).update(lambda state: map_cloud(state, world.url, backdated))
    await world.chisel(settle_after_s=30.0).settle()
    assert await world.names() == ["bench-1"]
    assert world.cloud.created == 1


async def test_a_young_droplet_is_not_given_up_by_a_clock_that_is_ahead(world: World) -> None:
    """The API does not know it yet: that proves nothing, however old the laptop takes it to be."""
    turn(world, clock_behind_s=2 * 86400)
    (record,) = await world.chisel().up(wish(1))
    turn(world, get_lag_s=3600, list_lag_s=3600)
    (again,) = await world.chisel().up(wish(1))
    assert (again.id, world.cloud.created) == (record.id, 1)


async def test_a_budget_is_a_limit_in_time(world: World) -> None:
    records = await world.chisel().up(wish(2, max_usd=Decimal("3.98"), ttl=timedelta(hours=9)))
    for record in records:
        assert record.until is not None
        assert abs((record.until - datetime.now(UTC)).total_seconds() - 3600) < 60


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path, Knobs(list_lag_s=0.5, get_lag_s=0.5, delete_lag_s=0.5, page_size=3)) as made:
        yield made


@pytest.mark.parametrize(
    "fault",
    [
        "create-then-504",
        "create-then-reset",
        "create-504",
        "list-503x2",
        "get-429x2+1",
        "destroy-then-500",
        "list-html",
    ],
)
async def test_up_and_down_end_right_whatever_fails(strict: World, fault: str, schedule: Callable[[str], None]) -> None:
    schedule(fault)
    chisel = strict.chisel(settle_after_s=2.0)
    try:
        records = await chisel.up(wish(4))
    except CloudError:
        records = await chisel.up(wish(4))
    assert [record.name for record in records] == [f"bench-{number}" for number in range(1, 5)]
    assert sorted(strict.alive) == await strict.names()
    bills = await chisel.down(records)
    assert [bill.error for bill in bills] == [None] * 4
    assert (strict.alive, await strict.names(), (await strict.state()).intents) == ([], [], {})
    assert strict.played.creates == 4


@pytest.fixture
def schedule(strict: World) -> Callable[[str], None]:
    return lambda text: strict.schedule.add(read_fault(text))


async def test_a_slow_process_does_not_put_its_droplet_over_anothers_record(world: World) -> None:
    """Others settled its intent and filled the name anew before it came to record its answer."""
    (old,) = await world.chisel().up(wish(1))
    await world.chisel().down([old])
    (new,) = await world.chisel().up(wish(1))
    assert new.name == old.name
    await world.chisel(settle_after_s=0)._maker._record(old)
    assert [one.id for pool in (await world.state()).pools.values() for one in pool.values()] == [new.id]
    extra = await world.cloud.create(_like(world, new))
    await world.chisel(settle_after_s=0)._maker._record(replace(old, id=extra.id))
    assert list(world.played.droplets) == [new.id], "one too many is not forgotten"


def _like(world: World, record: DropletRecord) -> CreateRequest:
    played = world.played.droplets[record.id]
    return CreateRequest(record.name, record.region, record.size, record.image, (), tuple(played.tags), "")
