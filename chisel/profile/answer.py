"""Ask a droplet for the ranking of what its profiler wrote: the client's side of `chisel.node.aggregate`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio

from chisel.errors import HostUnreachable, RemoteError
from chisel.figures import Ranking
from chisel.node.frames import Frame, FrameError, Kind
from chisel.profile.order import Connection, ProfileOrder
from chisel.profile.rank import decode_ranking
from chisel.ssh.refusal import remote_error

AGGREGATE_DEADLINE_S = 900.0
"""How long a droplet may work at one part of its answer: a million dispatches take it about a second."""

_LARGEST_ANSWER_BYTES = 64 << 20
_LONGEST_TEXT, _MOST_TEXTS = 1000, 1000


@dataclass(frozen=True, slots=True)
class Ready:
    """What a droplet says when its files may be fetched: what it withholds and why, how many bytes there are.

    `notes` say what else went wrong, such as a conversion that failed.
    """

    withheld: tuple[str, ...]
    notes: tuple[str, ...]
    has_pftrace: bool
    raw_bytes: int


@asynccontextmanager
async def asking(connection: Connection, directory: str, order: ProfileOrder) -> AsyncIterator[Answer]:
    """Start the ranking of a profile's directory on the droplet; leaving ends it there."""
    request = {
        "directory": directory,
        "top": order.top,
        "kernel": order.kernel,
        "skip_warmup": order.skip_warmup,
        "secrets": list(order.secrets),
        "convert": order.converts,
    }
    async with (
        connection.node("aggregate", request) as channel,
        aclosing(_frames(channel, connection.host.name)) as frames,
    ):
        yield Answer(frames, connection.host.name)


class Answer:
    """Take a droplet's answer in its three parts, in this order: `table`, `whole`, `ready`.

    Each raises HostUnreachable when the droplet falls silent, RemoteError for what it refuses or what is no answer.
    """

    def __init__(self, frames: AsyncGenerator[Frame, None], host: str) -> None:
        self._frames = frames
        self._host = host
        self._table = Ranking()

    async def table(self) -> Ranking:
        """Return the hottest kernels: some kilobytes, as soon as the droplet knows them."""
        self._table = self._decoded(await self._data())
        return self._table

    async def whole(self) -> Ranking:
        """Return all kernels; the table again where it held them all."""
        data = await self._data()
        return self._decoded(data) if data else self._table

    async def ready(self) -> Ready:
        """Wait until no secret is left in the files and they may be fetched."""
        async for frame in self._frames:
            if frame.kind == Kind.REPLY:
                return self._ready(frame)
        raise self._nonsense("it did not say that its profile is ready")

    def _ready(self, frame: Frame) -> Ready:
        try:
            said = frame.json()
        except FrameError as error:
            raise self._nonsense(str(error)) from error
        raw_bytes = said.get("raw_bytes")
        return Ready(
            withheld=_texts(said.get("withheld")),
            notes=_texts(said.get("notes")),
            has_pftrace=said.get("pftrace") is True,
            raw_bytes=raw_bytes if type(raw_bytes) is int and raw_bytes > 0 else 0,
        )

    async def _data(self) -> bytes:
        data = bytearray()
        async for frame in self._frames:
            if frame.kind == Kind.DATA:
                data += frame.payload
                if len(data) > _LARGEST_ANSWER_BYTES:
                    raise self._nonsense(f"it has more than {_LARGEST_ANSWER_BYTES} bytes")
            elif frame.kind == Kind.DATA_END:
                return bytes(data)
        raise self._nonsense("it has no end")

    def _decoded(self, data: bytes) -> Ranking:
        try:
            return decode_ranking(data)
        except ValueError as error:
            raise self._nonsense(str(error)) from error

    def _nonsense(self, why: str) -> RemoteError:
        return RemoteError(
            f"`{self._host}` sends something that is no ranking: {why}", host=self._host, code="bad-stream"
        )


def _texts(found: object) -> tuple[str, ...]:
    return tuple(str(text)[:_LONGEST_TEXT] for text in found[:_MOST_TEXTS]) if isinstance(found, list) else ()


async def _frames(channel: Any, host: str) -> AsyncGenerator[Frame, None]:
    """Give every frame; one generator for the whole answer, because frames arrive in bunches."""
    while True:
        try:
            with anyio.fail_after(AGGREGATE_DEADLINE_S):
                found = await channel.receive()
        except TimeoutError as error:
            raise HostUnreachable(f"`{host}` did not rank the profile in time", host=host) from error
        if not found:
            raise HostUnreachable(f"`{host}` ended the session while it ranked the profile", host=host)
        for frame in found:
            if frame.kind == Kind.ERROR:
                raise remote_error(frame, host)
            yield frame
