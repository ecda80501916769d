"""Choose the renderer once and keep it drawing: the sink that a command hands to the engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from chisel.render.jsonl import JsonLines
from chisel.render.live import FRAMES_PER_S, LiveScreen
from chisel.render.screen import Look, Screen
from chisel.render.writer import open_writer


@asynccontextmanager
async def open_sink(*, json: bool, look: Look) -> AsyncIterator[JsonLines | Screen]:
    """Give the sink: JSON lines, a screen with moving lines on a terminal, or plain lines.

    The caller ends with `finish()`; what is queued is written when the block ends, in bounded time.
    """
    async with open_writer() as writer:
        if json:
            yield JsonLines(writer)
            return
        screen = LiveScreen(writer, look) if look.stderr_is_terminal and not look.quiet else Screen(writer, look)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_draw, screen)
            try:
                yield screen
            finally:
                tasks.cancel_scope.cancel()


async def _draw(screen: Screen) -> None:
    while True:
        await anyio.sleep(1 / FRAMES_PER_S)
        await screen.tick()
