"""Draw what moves on a terminal: a few lines at the bottom of stderr, redrawn at a fixed rate, erased before output."""

from __future__ import annotations

import time
from typing import Any

from chisel import events
from chisel.render.clean import clean
from chisel.render.screen import STDERR, STDOUT, Look, Screen
from chisel.render.writer import Writer

FRAMES_PER_S = 8
_SHOW_AFTER_S = 0.4
_MOST_LINES = 16
_FINAL_STAGES = {"ready", "reused", "destroyed", "gone", "failed"}


class LiveScreen(Screen):
    """Add moving lines to the plain screen: one for each droplet on its way and each transfer under way."""

    def __init__(self, writer: Writer, look: Look) -> None:
        super().__init__(writer, look)
        self._moving: dict[tuple[str | None, str], tuple[float, events.Event]] = {}
        self._drawn_lines = 0
        self._at_line_start = True
        self._spinner: Any = None

    async def tick(self) -> None:
        """Redraw the moving lines; called at a fixed rate by the output's owner."""
        now = time.monotonic()
        shown = [event for since, event in self._moving.values() if now - since >= _SHOW_AFTER_S][:_MOST_LINES]
        if not self._at_line_start or (not shown and not self._drawn_lines):
            return
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        from chisel.render import tables

        self._spinner = self._spinner or Spinner("dots")
        grid = Table.grid(padding=(0, 1), expand=False)
        for event in shown:
            grid.add_row(*self._cells(event, now))
        if len(shown) > 1:
            for whole, said in self._pace.sums():
                grid.add_row("", Text("all", style="bold"), Text(whole.task), self._bar(whole), Text(said))
        text = tables.to_text(grid, width=self._look.width, colour=self._look.colour_stderr) if shown else ""
        self._writer.write(STDERR, self._erasing() + text.encode())
        self._drawn_lines = text.count("\n")

    def finish(self) -> None:
        """Erase the moving lines, then write what belongs at the end."""
        self._moving.clear()
        super().finish()
        self._erase()

    def _cells(self, event: events.Event, now: float) -> tuple[Any, ...]:
        from rich.text import Text

        host = Text(clean(event.host or ""), style="bold")
        if isinstance(event, events.Progress):
            return self._spinner.render(now), host, Text(event.task), self._bar(event), Text(self._pace.text(event))
        detail = clean(getattr(event, "detail", ""))
        return self._spinner.render(now), host, Text(getattr(event, "stage", "")), Text(detail, style="dim"), Text("")

    @staticmethod
    def _bar(event: events.Progress) -> Any:
        from rich.progress_bar import ProgressBar

        return ProgressBar(total=event.total, completed=event.done, width=24, pulse=event.total is None)

    def _put(self, descriptor: int, data: bytes) -> None:
        if not data:
            return
        self._erase()
        super()._put(descriptor, data)
        if descriptor == STDERR or self._look.stdout_is_terminal:
            self._at_line_start = data.endswith(b"\n")

    def _erase(self) -> None:
        if self._drawn_lines:
            self._writer.write(STDERR, self._erasing())
            self._drawn_lines = 0

    def _erasing(self) -> bytes:
        return f"\x1b[{self._drawn_lines}F\x1b[J".encode() if self._drawn_lines else b""

    def _stage(self, event: events.DropletStage) -> None:
        key = (event.host, "stage")
        known = self._moving.get(key)
        if event.stage in _FINAL_STAGES:
            self._moving.pop(key, None)
            super()._stage(event)
        elif known is None:
            self._moving[key] = (event.at - _SHOW_AFTER_S, event)
        else:
            self._moving[key] = (known[0], event)

    def _progress(self, event: events.Progress) -> None:
        key = (event.host, event.task)
        self._pace.take(event)
        if event.is_done:
            self._moving.pop(key, None)
        else:
            since = self._moving[key][0] if key in self._moving else event.at
            self._moving[key] = (since, event)


__all__ = ["FRAMES_PER_S", "STDERR", "STDOUT", "LiveScreen"]
