"""Tell a peer that is slow from one that says nothing: a login may take its time as long as bytes come."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import asyncssh

_LOOK_S = 0.25


class Listening(asyncssh.SSHClient):
    """Note when the peer was last heard while a connection is being made; `heard_at` is None before there is one."""

    def __init__(self) -> None:
        self.heard_at: float | None = None

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        """Listen in: whatever arrives is a sign of life."""
        self.heard_at = time.monotonic()
        inner: Any = conn
        take = inner.data_received

        def data_received(data: bytes, datatype: asyncssh.DataType = None) -> None:
            self.heard_at = time.monotonic()
            take(data, datatype)

        inner.data_received = data_received
        self._inner = inner

    def done(self) -> None:
        """Listen no more."""
        if self.heard_at is not None:
            del self._inner.data_received

    async def cancel_when_silent(
        self, limits_s: tuple[float, float], scope: anyio.CancelScope, lives: Callable[[], Awaitable[bool]] | None
    ) -> None:
        """Cancel when the peer has not taken the connection after so long, or has been silent on it for so long.

        Where there is another way to know that the peer lives, `lives` says so: then it is only busy.
        """
        started_at = time.monotonic()
        while True:
            began = time.monotonic()
            await anyio.sleep(_LOOK_S)
            own_s = time.monotonic() - began - _LOOK_S
            if own_s > _LOOK_S:  # this process was held up, the peer may have spoken meanwhile
                started_at += own_s
                self.heard_at = self.heard_at + own_s if self.heard_at is not None else None
            since, limit_s = (started_at, limits_s[0]) if self.heard_at is None else (self.heard_at, limits_s[1])
            if time.monotonic() - since > limit_s and not (lives is not None and await lives()):
                scope.cancel()
                return
