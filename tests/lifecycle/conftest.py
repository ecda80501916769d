from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from chisel.cloud.digitalocean import open_digitalocean
from chisel.events import DropletStage, Event
from chisel.lifecycle import Lifecycle, Wish
from chisel.model import CreateRequest, Droplet, DropletId, Secret, Size, SshKey
from chisel.sandbox.cloud import Cloud as Played
from chisel.sandbox.cloud import Knobs
from chisel.sandbox.faults import Schedule
from chisel.sandbox.server import Settings, running_cloud
from chisel.ssh.connector import Connector, open_connector
from chisel.ssh.keys import KeyPair, generate_keypair
from chisel.state import CloudState, StateStore

Answer = Callable[[CreateRequest], Any]


class Recorder:
    """A sink that keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    async def drain(self) -> None:
        return

    def stages(self, host: str) -> list[str]:
        return [event.stage for event in self.events if isinstance(event, DropletStage) and event.host == host]


class Unreliable:
    """A cloud whose creates go through `answer`, where a test can lose one or its reply; the rest is passed on."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.answer: Answer = real.create_droplet
        self.create = real.create_droplet
        self.created = 0

    async def create_droplet(self, request: CreateRequest) -> Droplet:
        self.created += 1
        droplet: Droplet = await self.answer(request)
        return droplet

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@dataclass
class World:
    """One cloud, one user's state, and as many chisels as a test wants."""

    url: str
    played: Played
    cloud: Unreliable
    connector: Connector
    key: KeyPair
    file: Path
    schedule: Schedule
    sink: Recorder = field(default_factory=Recorder)

    def chisel(self, *, settle_after_s: float = 60.0) -> Lifecycle:
        return Lifecycle(
            self.cloud, StateStore(self.file), self.connector, self.sink, api_url=self.url,
            public_key=self.key.public_openssh, settle_after_s=settle_after_s,
        )  # fmt: skip

    async def state(self) -> CloudState:
        return (await StateStore(self.file).read()).clouds.get(self.url) or CloudState()

    async def names(self) -> list[str]:
        return sorted(name for pool in (await self.state()).pools.values() for name in pool)

    @property
    def alive(self) -> list[str]:
        return sorted(droplet.name for droplet in self.played.droplets.values())


@asynccontextmanager
async def a_world(tmp_path: Path, knobs: Knobs) -> AsyncIterator[World]:
    key = generate_keypair("me")
    async with (
        running_cloud(Settings(tmp_path / "cloud", knobs=knobs)) as server,
        open_digitalocean(Secret(server.token), api_url=server.url) as real,
        open_connector(key) as connector,
    ):
        yield World(
            server.url, server.cloud, Unreliable(real), connector, key, tmp_path / "state.json", server.schedule
        )


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path, Knobs()) as made:
        yield made


def wish(count: int = 1, pool: str = "bench", **changes: Any) -> Wish:
    chosen: dict[str, Any] = {"sizes": ("gpu-mi300x1-192gb",), "region": None, "image": "gpu-amd-base", **changes}
    return Wish(pool=pool, count=count, project="p-1", **chosen)


def a_size(slug: str, *regions: str, model: str = "amd_mi300x") -> Size:
    return Size(slug, Decimal("1.99"), regions, is_available=True, gpu_model=model, gpu_count=1, vram_gib=192)


__all__ = ["DropletId", "SshKey", "World", "a_size", "a_world", "wish"]
