"""Find out whether a droplet truly answers: its address, a nonce its shell computes, the facts its node finds."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any, Protocol

import anyio

from chisel import guard
from chisel.cloud.base import Cloud, exists
from chisel.errors import HostUnreachable, NotFoundError, RemoteError
from chisel.model import Droplet, DropletId, Host

_FIRST_POLL_S, _SLOWEST_POLL_S = 0.25, 5.0
_NONCE_TIMEOUT_S = 10.0


class Connection(Protocol):
    """What readiness needs of a connection."""

    async def shell(self, line: str, *, timeout_s: float) -> Any:
        """Run a line in the remote shell and return its status and output."""

    async def ask(self, role: str, request: dict[str, Any]) -> dict[str, Any]:
        """Return the one answer of a role of the node program."""


class Addresses:
    """Poll the droplets that have no address yet with one listing for all (250 requests a minute are allowed).

    A droplet that was accepted may come to nothing: one that was listed, or is older than `settle_after_s`, and is
    neither listed nor found by its id any more has vanished. One that is off is started.
    """

    def __init__(self, cloud: Cloud, waiting: set[DropletId], *, settle_after_s: float = 60.0) -> None:
        self._cloud = cloud
        self._waiting = waiting
        self._settle_at = anyio.current_time() + settle_after_s
        self._listed: set[DropletId] = set()
        self._started: set[DropletId] = set()
        self._seen: dict[DropletId, Droplet] = {}
        self._vanished: set[DropletId] = set()
        self._news = anyio.Event()

    async def poll(self) -> None:
        """Poll until every droplet has an address."""
        pause = _FIRST_POLL_S
        while self._waiting:
            listed = {droplet.id: droplet for droplet in await self._cloud.list_droplets(tag=guard.TAG)}
            for id in list(self._waiting):
                await self._judge(id, listed.get(id))
            self._news.set()
            self._news = anyio.Event()
            if self._waiting:
                await anyio.sleep(pause)
                pause = min(pause * 1.3, _SLOWEST_POLL_S)

    async def _judge(self, id: DropletId, droplet: Droplet | None) -> None:
        if droplet is None:
            if (id in self._listed or anyio.current_time() > self._settle_at) and not await exists(self._cloud, id):
                self._vanished.add(id)
                self._waiting.discard(id)
            return
        self._listed.add(id)
        if droplet.address is not None and droplet.status == "active":
            self._seen[id] = droplet
            self._waiting.discard(id)
        elif droplet.status == "off" and id not in self._started:
            self._started.add(id)
            await self._cloud.power_on(id)

    async def wait(self, id: DropletId) -> Droplet:
        """Wait until this droplet is active and has an address; raises NotFoundError when it has vanished."""
        while id not in self._seen:
            if id in self._vanished:
                raise NotFoundError(f"droplet `{id}` was accepted and then came to nothing")
            await self._news.wait()
        return self._seen[id]


async def probe(connection: Connection, host: Host, *, compiles: bool = False) -> dict[str, Any]:
    """Return what the node program finds on a droplet: cloud-init, GPUs, profiler, ROCm; a kernel `compiles` or not."""
    nonce = secrets.token_hex(16)
    facts = await connection.ask("probe", {"nonce": nonce, "compiles": compiles})
    if facts.pop("nonce_sha256", "") != hashlib.sha256(nonce.encode()).hexdigest():
        raise HostUnreachable(f"`{host.name}` did not answer the probe", host=host.name)
    return facts


async def computes_nonce(connection: Connection) -> bool:
    """Ask the remote shell for a product that only a shell which runs commands can know."""
    left, right = secrets.randbelow(10**6), secrets.randbelow(10**6)
    answer = await connection.shell(f"echo chisel-$(({left} * {right}))", timeout_s=_NONCE_TIMEOUT_S)
    return bool(answer.status == 0 and answer.stdout.strip() == f"chisel-{left * right}".encode())


def missing_parts(facts: Mapping[str, Any]) -> list[str]:
    """Name what kernel work needs and the droplet does not have."""
    profiler = facts.get("profiler") or {}
    parts = {
        "a GPU": facts.get("gpu"),
        "a profiler (rocprofv3)": profiler.get("rocprofv3") or profiler.get("rocprof"),
        "a HIP compiler (hipcc)": facts.get("hipcc"),
    }
    missing = [name for name, found in parts.items() if not found]
    return missing + (
        ["a compiler that compiles a kernel"] if facts.get("compile_error") and facts.get("hipcc") else []
    )


def parts_to_install(facts: Mapping[str, Any]) -> list[str]:
    """Name what is missing that apt may have, by the node program's words."""
    profiler = facts.get("profiler") or {}
    found = {
        "hipcc": not facts.get("compile_error"),
        "profiler": profiler.get("rocprofv3") or profiler.get("rocprof"),
        "zstd": facts.get("zstd"),
    }
    return [name for name, is_there in found.items() if not is_there]


async def mend(connection: Connection, parts: list[str]) -> dict[str, Any]:
    """Let apt install parts on the droplet; returns `installed` packages and an `error` or None."""
    try:
        return await connection.ask("mend", {"parts": parts})
    except (HostUnreachable, RemoteError) as error:
        return {"installed": [], "error": str(error)}


def summary(facts: Mapping[str, Any]) -> str:
    """Say in a few words what the droplet has."""
    gpus = facts.get("gpu") or []
    found = f"{len(gpus)} x {gpus[0]}" if gpus else "no GPU found"
    return f"{found}, ROCm {facts['rocm']}" if facts.get("rocm") else found
