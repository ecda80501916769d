"""Let several pulls into one directory agree before any of them writes: no name may come from two droplets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import anyio

from chisel.errors import UsageError
from chisel.sync.wanted import folded

DEADLINE_S = 900.0
_SHOWN = 3


class Meeting:
    """Collect what each droplet offers; all are answered when the last one has come or left."""

    def __init__(self, hosts: Iterable[str]) -> None:
        self._waited_for = set(hosts)
        self._owners: dict[str, tuple[str, str]] = {}
        self._twice: list[str] = []
        self._is_over = anyio.Event()

    async def agree(self, host: str, paths: Sequence[str]) -> None:
        """Wait for the others; raises UsageError for all when two droplets offer one name."""
        for path in paths:
            key = folded(path)
            first = self._owners.setdefault(key, (host, path))
            if first[0] != host:
                self._twice.append(f"`{path}` (`{first[0]}`, `{host}`)")
        self.leave(host)
        try:
            with anyio.fail_after(DEADLINE_S):
                await self._is_over.wait()
        except TimeoutError as error:
            raise UsageError("not all droplets said in time what they have") from error
        if self._twice:
            more = f" and {len(self._twice) - _SHOWN:,} more" if len(self._twice) > _SHOWN else ""
            raise UsageError(
                f"several droplets have {', '.join(self._twice[:_SHOWN])}{more}",
                hint="without --flat each gets a directory of its own",
            )

    def leave(self, host: str) -> None:
        """Do not wait for a droplet any more."""
        self._waited_for.discard(host)
        if not self._waited_for:
            self._is_over.set()
