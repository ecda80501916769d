"""One SSH connection as a place for sessions: how many it has, and how closely its life is watched."""

from __future__ import annotations

from typing import Any

import anyio
import asyncssh

MOST_SESSIONS = 8
"""sshd's MaxSessions is 10 by default (sshd_config(5)); two are left for whoever else uses the connection."""

FOLLOWED_INTERVAL_S, FOLLOWED_COUNT = 1.0, 2
"""While a command runs a dead peer is to be named within 3.5 s."""


class Link:
    """One connection; `sessions` counts what is open on it now."""

    def __init__(self, raw: asyncssh.SSHClientConnection, keepalive_s: float, keepalive_count: int) -> None:
        self.raw = raw
        self.sessions = 0
        self._keepalive = keepalive_s, keepalive_count
        self._followed = 0

    @property
    def is_lost(self) -> bool:
        """Say whether the connection has ended."""
        return self.raw.is_closed()

    @property
    def has_room(self) -> bool:
        """Say whether another session may be opened."""
        return self.sessions < MOST_SESSIONS and not self.is_lost

    def leave(self) -> None:
        """Give back a session's place."""
        self.sessions -= 1

    def follow(self) -> None:
        """Watch closely while a command is followed."""
        self._followed += 1
        if self._followed == 1 and not self.is_lost:
            self.raw.set_keepalive(FOLLOWED_INTERVAL_S, FOLLOWED_COUNT)

    def unfollow(self) -> None:
        """Watch as before when no command is followed any more."""
        self._followed -= 1
        if not self._followed and not self.is_lost:
            self.raw.set_keepalive(*self._keepalive)


async def answers(raw: Any, within_s: float) -> bool:
    """Ask the peer for a sign of life: a request that sshd refuses, as any (RFC 4254, 4)."""
    if raw.is_closed():
        return False
    ask = raw._make_global_request  # noqa: SLF001 - there is no public way to ask for one
    with anyio.move_on_after(within_s):
        try:
            await ask(b"keepalive@openssh.com")
        except (OSError, asyncssh.Error):
            return False
        return not raw.is_closed()
    return False
