"""No droplet is ever unaccounted for: every way that a create, a wait or a destruction can end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import anyio
import pytest

from chisel import guard
from chisel.errors import CloudError, HostKeyMismatch, OutcomeUnknown
from chisel.lifecycle.offer import no_offer, offers
from chisel.lifecycle.records import map_cloud, with_record
from chisel.model import CreateRequest, Droplet
from chisel.sandbox.cloud import Knobs
from chisel.ssh.keys import generate_keypair
from chisel.state import CloudState, StateStore, host_of
from tests.lifecycle.conftest import World, a_size, a_world, wish

pytestmark = pytest.mark.timeout(60)


async def until(holds: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not holds():  # noqa: ASYNC110 - the cloud's threads send no events
            await anyio.sleep(0.005)


async def change_record(world: World, name: str, **changes: object) -> None:
    def change(mine: CloudState) -> CloudState:
        return with_record(mine, replace(mine.pools["bench"][name], **changes))  # type: ignore[arg-type]

    await StateStore(world.file).update(lambda state: map_cloud(state, world.url, change))


# -- up


async def test_what_is_missing_is_created_and_the_rest_reused(world: World) -> None:
    first = await world.chisel().up(wish(2))
    assert [record.name for record in first] == ["bench-1", "bench-2"] == world.alive
    assert all(record.is_ready and record.facts["gpu"] for record in first)
    assert world.sink.stages("bench-1")[-1] == "ready"
    again = await world.chisel().up(wish(3))
    assert [record.id for record in again[:2]] == [record.id for record in first]
    assert world.alive == ["bench-1", "bench-2", "bench-3"]
    assert world.sink.stages("bench-1")[-1] == "reused"
    assert world.cloud.created == 3
    assert len(await world.chisel().up(wish(1))) == 3, "never destroys"
    assert (await world.state()).intents == {}


async def test_the_intent_is_on_disk_before_the_request_and_its_tag_in_it(world: World) -> None:
    async def answer(request: CreateRequest) -> Droplet:
        intents = (await world.state()).intents
        named = [
            one.name
            for attempt, one in intents.items()
            if guard.attempt_tag(attempt, one.next_host_key) in request.tags
        ]
        assert named == [request.name]
        assert world.key.private_openssh not in request.user_data
        return await world.cloud.create(request)

    world.cloud.answer = answer
    await world.chisel().up(wish(2))


async def test_several_ups_at_once_create_what_one_would(world: World) -> None:
    results: list[list[int]] = []

    async def one() -> None:
        results.append([record.id for record in await world.chisel().up(wish(3))])

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(one)
    assert len(world.alive) == world.cloud.created == 3
    assert len({tuple(sorted(ids)) for ids in results}) == 1


async def test_a_lost_answer_is_settled_by_the_attempts_tag(world: World) -> None:
    async def loses_the_answer(request: CreateRequest) -> Droplet:
        await world.cloud.create(request)
        raise OutcomeUnknown("creating: no answer")

    world.cloud.answer = loses_the_answer
    (record,) = await world.chisel().up(wish(1))
    assert (record.is_ready, world.alive, world.cloud.created) == (True, ["bench-1"], 1)
    assert (await world.state()).intents == {}


async def test_a_request_that_was_lost_is_waited_out_and_never_sent_again(world: World) -> None:
    async def loses_the_request(request: CreateRequest) -> Droplet:
        raise OutcomeUnknown("creating: no answer")

    world.cloud.answer = loses_the_request
    with pytest.raises(OutcomeUnknown):
        await world.chisel(settle_after_s=0.5).up(wish(1))
    assert (world.cloud.created, world.alive) == (1, [])
    assert (await world.state()).intents == {}


async def test_a_late_droplet_is_found_by_the_next_command(tmp_path: Path) -> None:
    async with a_world(tmp_path, Knobs(list_lag_s=1.0)) as world:

        async def loses_the_answer(request: CreateRequest) -> Droplet:
            await world.cloud.create(request)
            raise OutcomeUnknown("creating: no answer")

        world.cloud.answer = loses_the_answer
        with anyio.move_on_after(0.5):
            await world.chisel().up(wish(1))
        assert len((await world.state()).intents) == 1
        await world.chisel().settle()
        assert await world.names() == ["bench-1"]
        assert (await world.state()).intents == {}


async def test_a_clear_refusal_leaves_neither_droplet_nor_intent(tmp_path: Path) -> None:
    async with a_world(tmp_path, Knobs(droplet_limit=1)) as world:
        with pytest.raises(CloudError, match="droplet limit"):
            await world.chisel().up(wish(3))
        assert len(world.alive) == 1
        assert await world.names() == world.alive
        assert (await world.state()).intents == {}


@pytest.mark.parametrize("moment", ["before", "during", "after", "booting"])
async def test_cancelled_at_any_moment_every_droplet_is_on_record(world: World, moment: str) -> None:
    arrived = anyio.Event()

    async def answer(request: CreateRequest) -> Droplet:
        if moment == "before":
            arrived.set()
            await anyio.sleep(0.05)
        if moment == "during":
            arrived.set()
        droplet = await world.cloud.create(request)
        if moment == "after":
            arrived.set()
            await anyio.sleep(0.05)
        return droplet

    world.cloud.answer = answer
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.chisel().up, wish(2))
        if moment == "booting":
            await until(lambda: "booting" in world.sink.stages("bench-2"))
        else:
            await arrived.wait()
        tasks.cancel_scope.cancel()
    world.cloud.answer = world.cloud.create
    mine = await world.state()
    known = {*(await world.names()), *(intent.name for intent in mine.intents.values())}
    assert set(world.alive) <= known
    lifecycle = world.chisel(settle_after_s=0.5)
    await lifecycle.settle()
    records = [record for pool in (await world.state()).pools.values() for record in pool.values()]
    assert all(bill.error is None for bill in await lifecycle.down(records))
    assert (world.alive, await world.names()) == ([], [])


async def test_a_process_that_died_after_its_request_leaves_enough_to_find_it(world: World) -> None:
    class Died(BaseException):
        pass

    async def dies(request: CreateRequest) -> Droplet:
        await world.cloud.create(request)
        raise Died

    world.cloud.answer = dies
    with pytest.raises(BaseExceptionGroup):
        await world.chisel().up(wish(1))
    world.cloud.answer = world.cloud.create
    assert (await world.names(), len((await world.state()).intents)) == ([], 1)
    (record,) = await world.chisel().up(wish(1))
    assert record.is_ready
    assert (world.alive, world.cloud.created) == (["bench-1"], 1)


async def test_another_hosts_key_is_refused_at_once_and_the_droplet_stays_on_record(world: World) -> None:
    (record,) = await world.chisel().up(wish(1))
    world.connector.forget(host_of(record))
    await change_record(world, "bench-1", host_key=generate_keypair("x").public_openssh)
    with pytest.raises(HostKeyMismatch), anyio.fail_after(10):
        await world.chisel().up(wish(1))
    assert await world.names() == ["bench-1"]


async def test_a_young_droplet_that_is_not_visible_yet_is_not_forgotten(world: World) -> None:
    (record,) = await world.chisel().up(wish(1))
    droplet = world.played.droplets.pop(record.id)
    kept = await world.chisel()._still_there("bench")
    assert [one.id for one in kept] == [record.id]
    forgotten = await world.chisel(settle_after_s=0)._still_there("bench")
    assert forgotten == []
    world.played.droplets[record.id] = droplet


async def test_a_larger_size_is_not_chosen_unasked_and_what_is_offered_is_named() -> None:
    sizes = [a_size("gpu-mi300x1-192gb"), a_size("gpu-mi325x1-256gb", "nyc2", model="amd_mi325x")]
    assert offers(sizes, wish()) == []
    refused = no_offer(sizes, wish())
    assert "cannot be created now" in refused.message
    assert "gpu-mi325x1-256gb ($1.99/h, nyc2): chisel up --size gpu-mi325x1-256gb" in str(refused.hint)
    both = wish(sizes=("gpu-mi300x1-192gb", "gpu-mi325x1-256gb"))
    assert offers(sizes, both) == [(sizes[1], "nyc2")]
    assert offers(sizes, replace(both, region="atl1")) == []
    assert "in `atl1`" in no_offer(sizes, replace(both, region="atl1")).message


# -- down


async def test_down_destroys_confirms_and_bills(world: World) -> None:
    records = await world.chisel().up(wish(2))
    world.played.clock.advance(3600)
    bills = await world.chisel().down(records)
    assert [bill.error for bill in bills] == [None, None]
    assert all(bill.usd >= Decimal("0.03") for bill in bills)
    assert (world.alive, await world.names()) == ([], [])
    assert "gone" not in world.sink.stages("bench-1"), "that word is for droplets that others destroyed"


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        (lambda tags: [tag for tag in tags if tag != "chisel"], "does not carry the tag"),
        (lambda tags: ["chisel-owner:0000000000000000" if "owner" in tag else tag for tag in tags], "owner tag says"),
        (lambda tags: ["chisel-attempt:0" if "attempt" in tag else tag for tag in tags], "attempt tag is not"),
    ],
)
async def test_what_is_not_provably_ours_is_left(
    world: World, tags: Callable[[list[str]], list[str]], said: str
) -> None:
    (record,) = await world.chisel().up(wish(1))
    played = world.played.droplets[record.id]
    played.tags = tags(played.tags)
    (bill,) = await world.chisel().down([record])
    assert said in str(bill.error)
    assert bill.usd == 0
    assert (world.alive, await world.names()) == (["bench-1"], ["bench-1"])


async def test_one_droplets_trouble_does_not_keep_the_others(world: World) -> None:
    records = await world.chisel().up(wish(3))
    world.played.droplets[records[1].id].tags = []
    bills = await world.chisel().down(records)
    assert [bill.error is None for bill in bills] == [True, False, True]
    assert world.alive == await world.names() == ["bench-2"]


async def test_a_droplet_that_others_destroyed_is_forgotten_not_an_error(world: World) -> None:
    (record,) = await world.chisel().up(wish(1))
    world.played.destroy(record.id)
    (bill,) = await world.chisel(settle_after_s=0).down([record])
    assert bill.error is None
    assert await world.names() == []
    assert world.sink.stages("bench-1")[-1] == "gone"


async def test_a_swept_droplet_is_judged_again_before_it_goes(world: World) -> None:
    (record,) = await world.chisel().up(wish(1, ttl=timedelta(hours=1)))
    owner = (await StateStore(world.file).read()).owner
    droplets = await world.cloud.list_droplets(tag="chisel")
    now = datetime.now(UTC)
    known = {record.id: guard.Known(record.name, record.attempt, is_ready=True)}
    assert not guard.sweep_items(droplets, known, owner=owner, now=now)[0].is_selected
    (item,) = guard.sweep_items(droplets, known, owner=owner, now=now + timedelta(hours=2))
    assert item.is_selected
    assert "past its limit" in item.reason
    (wrong,) = await world.chisel().destroy_swept([replace(item, name="renamed")])
    assert wrong.error is not None
    assert world.alive == ["bench-1"]
    (bill,) = await world.chisel().destroy_swept([item])
    assert (bill.error, world.alive, await world.names()) == (None, [], [])
