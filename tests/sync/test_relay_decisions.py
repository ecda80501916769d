"""Whether a relay pays, who is near whom, and who feeds whom: decided from plain values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from chisel.events import NullSink
from chisel.model import DropletId, Host
from chisel.node.frames import Frame, Kind
from chisel.sync.part import Part
from chisel.sync.relay import _GATHER_S, FAN_OUT, Relays, fed_by, neighbourhoods, pays
from chisel.sync.throttle import Throttle

MB = 1_000_000


@pytest.mark.parametrize(
    ("droplets", "content_bytes", "bytes_per_s", "rtt_s", "is_worth"),
    [
        (1, 10_000 * MB, 2.5 * MB, 0.08, False),  # nobody to pass it on to
        (32, 1 * MB, 2.5 * MB, 0.08, True),  # 16 MB against half a megabyte
        (32, 20_000, 2.5 * MB, 0.08, False),  # an edit: the tree takes longer to build
        (2, 4 * MB, 2.5 * MB, 0.08, False),  # it would win a fraction of a second
        (2, 40 * MB, 2.5 * MB, 0.08, True),
        (8, 100 * MB, 1_000 * MB, 0.001, False),  # beside the data centre nothing is to be won
        (8, 10 * MB, 0.0, 0.08, True),  # not measured: 20 Mbit/s
        (8, 4 * MB, 2.5 * MB, 3.0, False),  # round trips that eat what is won
    ],
)
def test_a_relay_is_chosen_where_it_clearly_wins(
    droplets: int, content_bytes: int, bytes_per_s: float, rtt_s: float, is_worth: bool
) -> None:
    assert pays(droplets, content_bytes, bytes_per_s, rtt_s) is is_worth


def host(name: str, region: str, private_address: str | None) -> Host:
    return Host(name, DropletId(1), "203.0.113.1", 22, "root", "key", region=region, private_address=private_address)


def test_near_is_who_shares_a_region_and_has_a_private_address() -> None:
    a, b, c = (host(name, "atl1", f"10.0.0.{name}") for name in "123")
    alone, unknown, nowhere = host("4", "nyc2", "10.1.0.4"), host("5", "atl1", None), host("6", "", "10.0.0.6")
    assert neighbourhoods([a, alone, b, unknown, c, nowhere]) == [[a, b, c]]
    assert neighbourhoods([a, alone]) == []


@pytest.mark.parametrize("count", [*range(1, 40), 64, 85, 86])
def test_everybody_is_fed_once_and_by_an_earlier_one(count: int) -> None:
    feeders = {child: number for number in range(count) for child in fed_by(number, count)}
    assert sorted(feeders) == list(range(1, count))
    assert all(feeder < child for child, feeder in feeders.items())
    assert sum(len(fed_by(number, count)) for number in range(count)) == count - 1
    assert max(len(fed_by(number, count)) for number in range(count)) <= FAN_OUT


async def test_nobody_waits_for_a_droplet_that_waits_for_its_own_commands() -> None:
    """All that it needs has come; whoever needs a stream is not to guess for seconds whether it does."""
    busy, lacking = host("1", "atl1", "10.0.0.1"), host("2", "atl1", "10.0.0.2")
    relays = Relays("on", 2, Throttle(None), NullSink())
    job: Any = SimpleNamespace(relays=relays, sink=NullSink(), remote="~/x")
    stream: Any = object()
    with anyio.fail_after(_GATHER_S[1] / 2):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relays.place, lacking, stream, 10_000 * MB, 1.0 * MB)
            await anyio.wait_all_tasks_blocked()
            channel: Any = None
            assert not await Part(job, busy).take(Frame(Kind.PROGRESS, b'{"waits": ["make"]}'), channel)
