"""Turn what the cloud and a droplet say of it into its status. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from chisel import guard
from chisel.client.protection import ends_in_s, self_destruct_of
from chisel.model import DropletStatus, RunId, RunningCommand
from chisel.state import DropletRecord


def droplet_status(record: DropletRecord, cloud_status: str, answer: Mapping[str, Any] | None) -> DropletStatus:
    """Return how a droplet is; `answer` is its own (None: it did not answer, or was not asked)."""
    now = datetime.now(UTC)
    age = (now - record.created_at).total_seconds()
    idle = float(answer["idle_s"]) if answer else None
    runs = tuple(running(one) for one in answer["runs"]) if answer else ()
    return DropletStatus(
        host=record.name,
        droplet_id=record.id,
        cloud_status=cloud_status,
        region=record.region,
        size=record.size,
        usd_per_hour=record.usd_per_hour,
        usd_so_far=guard.cost(record.usd_per_hour, age),
        age_s=age,
        is_reachable=answer is not None,
        idle_s=idle,
        until=record.until,
        idle_limit_s=record.idle_s,
        self_destruct=self_destruct_of(record, answer),
        ends_in_s=ends_in_s(record, now, None if any(run.is_running for run in runs) else idle),
        runs=runs,
    )


def running(entry: Mapping[str, Any]) -> RunningCommand:
    """Return an entry of a droplet's registry of runs."""
    return RunningCommand(
        run_id=RunId(str(entry["run_id"])),
        line=str(entry["line"]),
        started_at=datetime.fromtimestamp(float(entry["started_at"]), UTC),
        is_running=bool(entry["running"]),
        status=entry.get("status"),
    )
