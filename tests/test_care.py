"""Whom a command destroys whose time is over, and whom it leaves: nobody who works there loses a droplet."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chisel.client.care import end_what_is_over
from chisel.events import Event, Notice
from chisel.state import DropletRecord

NOW = datetime.now(UTC)
IDLE = {"idle_s": 1000.0, "runs": [], "busy": []}
LOGGED_IN = {"idle_s": 0.0, "runs": [], "busy": ["`vim` runs in a terminal"]}


@dataclass
class Someone:
    """Stand in for a client with one recorded droplet; `first` and `then` are what the droplet answers."""

    record: DropletRecord
    first: dict[str, Any] | None
    then: dict[str, Any] | None
    cache: Path
    kept: frozenset[str] = frozenset()
    clocks_differ: bool = False
    destroyed: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sink, self.paths = self, SimpleNamespace(cache_dir=self.cache)

    async def recorded(self) -> dict[str, list[DropletRecord]]:
        return {"dev": [self.record]}

    async def ask(self, record: DropletRecord, *, looks_at_gpus: bool = False) -> dict[str, Any] | None:
        assert record == self.record
        return self.then if looks_at_gpus else self.first

    async def lifecycle(self) -> Someone:
        return self

    async def not_kept(self, records: list[DropletRecord]) -> list[DropletRecord]:
        return [record for record in records if record.name not in self.kept]

    def now(self) -> datetime:
        return NOW - timedelta(days=2) if self.clocks_differ else datetime.now(UTC)

    async def down(self, records: list[DropletRecord]) -> None:
        self.destroyed += [record.name for record in records]

    def emit(self, event: Event) -> None:
        assert isinstance(event, Notice)
        self.said.append(event.message)


def a_record(**changed: Any) -> DropletRecord:
    record = DropletRecord(
        id=1, name="dev-1", pool="dev", attempt="ab" * 8, size="s", region="r", created_at=NOW - timedelta(hours=1),
        usd_per_hour=Decimal("1.99"), address="10.0.0.1", port=22, host_key="k", image="i", is_ready=True, idle_s=900,
    )  # fmt: skip
    return replace(record, **changed)


async def cared_for(tmp_path: Path, record: DropletRecord, first: Any, then: Any = None) -> Someone:
    someone = Someone(record, first, then if then is not None else first, tmp_path / "cache")
    await end_what_is_over(someone)  # type: ignore[arg-type]
    return someone


async def test_an_idle_droplet_is_destroyed(tmp_path: Path) -> None:
    assert (await cared_for(tmp_path, a_record(), IDLE)).destroyed == ["dev-1"]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (LOGGED_IN, None),
        (IDLE, LOGGED_IN),
        (IDLE, {**IDLE, "busy": ["GPU card0 works"]}),
        ({**IDLE, "idle_s": 100.0}, None),
        (None, None),
    ],
    ids=["somebody works there", "somebody just began", "its GPU works", "it was used", "it does not answer"],
)
async def test_a_droplet_in_use_is_left(tmp_path: Path, first: Any, then: Any) -> None:
    assert (await cared_for(tmp_path, a_record(), first, then)).destroyed == []


@pytest.mark.parametrize("answer", [LOGGED_IN, {**IDLE, "runs": [{"running": True, "line": "make"}]}, None])
async def test_past_its_time_what_runs_there_keeps_it_unless_told_otherwise(tmp_path: Path, answer: Any) -> None:
    over = a_record(until=NOW - timedelta(minutes=1))
    left = await cared_for(tmp_path / "1", over, answer)
    assert (left.destroyed, left.said[0].startswith("past its limit, and left")) == ([], True)
    told = await cared_for(tmp_path / "2", replace(over, ends_busy=True), answer)
    assert told.destroyed == (["dev-1"] if answer else [])


async def test_a_cache_that_cannot_be_written_keeps_nobody_from_looking(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    assert (await cared_for(tmp_path, a_record(), IDLE)).destroyed == ["dev-1"]


async def test_what_was_given_more_time_from_elsewhere_is_left(tmp_path: Path) -> None:
    someone = Someone(a_record(), IDLE, IDLE, tmp_path / "cache", kept=frozenset({"dev-1"}))
    await end_what_is_over(someone)  # type: ignore[arg-type]
    assert someone.destroyed == []
    assert someone.said == ["it was idle for longer than its limit: it was given more time from elsewhere, and stays"]


async def test_what_is_over_by_this_machines_clock_only_is_left(tmp_path: Path) -> None:
    over = a_record(until=NOW - timedelta(minutes=1))
    someone = Someone(over, IDLE, IDLE, tmp_path / "cache", kept=frozenset({"dev-1"}), clocks_differ=True)
    await end_what_is_over(someone)  # type: ignore[arg-type]
    assert someone.destroyed == []
    assert someone.said == ["its time is over: but not by DigitalOcean's clock, and it stays: is this machine's right?"]
