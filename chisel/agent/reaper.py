"""Look after money while nobody types: droplets whose time is over are destroyed, those that vanished are noticed.

What is over is judged from the state and, over the connections that are open anyway, by the droplets. The cloud is
asked only when there is something to do, at most once a minute, by a process of its own (`chisel agent look`): that
reads the token and ends with it, and what it needs 30 MB for is not in this one's memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import anyio

import chisel
from chisel.agent.warm import Warm, now_s
from chisel.client.care import needs_care, what_is_over
from chisel.errors import ChiselError
from chisel.events import Notice

MISSED_AFTER_S = 20.0
_LONGEST_PAUSE_S = 900.0
_LOOK_DEADLINE_S = 300.0
_MOST_NOTICES = 20
_PROGRAM = "import sys; from chisel.entry import main; main(['agent', 'look', '--json'])"


class Reaper:
    """Look every `look_every_s`, by default a minute; `notices` is what the user has not read yet."""

    def __init__(self, warm: Warm, environ: dict[str, str], look_every_s: float, say: Callable[[str], None]) -> None:
        self._warm = warm
        self._environ = environ
        self._look_every_s = look_every_s
        self._say = say
        self._asked_about: dict[str, tuple[float, float]] = {}
        self.notices: list[Notice] = []
        self.has_charge = False
        self.looks = 0

    async def look_after(self) -> None:
        """Look for ever."""
        while True:
            await anyio.sleep(self._look_every_s)
            await self.look()

    async def look(self) -> None:
        """Look once; nothing raises, what fails is tried by the next look."""
        try:
            warm = self._warm
            async with chisel.open(
                environ=self._environ, cwd="/", connector=warm.connector, store=warm.store
            ) as client:
                records = [record for pool in (await client.recorded()).values() for record in pool]
                self.has_charge = any(map(needs_care, records))
                over = await what_is_over(client)
            missed = self._missed()
            if over or missed:
                names = sorted({*(record.name for record in over), *missed})
                self._say(f"the cloud is asked about {', '.join(names)}")
                await self._have_it_done()
        except (ChiselError, OSError, TimeoutError) as error:
            self._say(f"looking failed: {error}")
        self.looks += 1

    def take_notices(self) -> list[Notice]:
        """Return what the user is to read; it is read then."""
        found, self.notices = self.notices, []
        return found

    def _missed(self) -> list[str]:
        """Name droplets that have not answered for some time; one that goes on so is asked about less often."""
        now, found = now_s(), []
        for name, since in self._warm.lost.items():
            next_at, pause_s = self._asked_about.get(name, (0.0, self._look_every_s))
            if now - since >= MISSED_AFTER_S and now >= next_at:
                self._asked_about[name] = now + pause_s, min(2 * pause_s, _LONGEST_PAUSE_S)
                found.append(name)
        for name in self._asked_about.keys() - self._warm.lost.keys():
            del self._asked_about[name]
        return found

    async def _have_it_done(self) -> None:
        command = [sys.executable, "-P", "-c", _PROGRAM]
        environ = {**self._environ, "CHISEL_AGENT": "off"}
        with anyio.fail_after(_LOOK_DEADLINE_S):
            ended = await anyio.run_process(command, env=environ, cwd="/", check=False, stderr=None)
        for line in ended.stdout.splitlines():
            self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        if event["event"] == "notice" and event["level"] != "info":
            notice = Notice(host=event["host"], level="warning", message=event["message"], hint=event["hint"])
            self.notices = [*self.notices, notice][-_MOST_NOTICES:]
        elif event["event"] == "billed":
            bill = event["bill"]
            said = bill["error"] or f"destroyed by the agent; it cost ${bill['usd']}"
            self.notices = [*self.notices, Notice(host=bill["host"], level="warning", message=said)][-_MOST_NOTICES:]
        elif event["event"] == "error":
            self._say(f"the cloud was not asked: {event['message']}")
        if event["event"] in {"notice", "billed"}:
            self._say(json.dumps({key: event[key] for key in event if key in {"host", "message", "bill"}}))
