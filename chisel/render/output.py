"""Choose the renderer once and keep it drawing: the sink that a command hands to the engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from chisel.render.jsonl import JsonLines
from chisel.render.live import FRAMES_PER_S, LiveScreen
from chisel.render.screen import Look, Screen
from chisel.render.writer import Writer, open_writer


@asynccontextmanager
async def open_sink(*, json: bool, look: Look, writer: Writer | None = None) -> AsyncIterator[JsonLines | Screen]:
    """Give the sink: JSON lines, a screen with moving lines on a terminal, or plain lines.

    The caller ends with `finish()`; what is queued is written when the block ends, in bounded time. Raises
    BrokenPipeError, and cancels the block, when whoever reads the output goes away.
    """
    is_gone = False
    async with open_writer(writer) as used:
        screen = _screen(used, look, json=json)
        async with anyio.create_task_group() as tasks:

            async def look_for_a_reader() -> None:
                nonlocal is_gone
                await used.broke.wait()
                is_gone = True
                tasks.cancel_scope.cancel()

            tasks.start_soon(look_for_a_reader)
            if isinstance(screen, LiveScreen):
                tasks.start_soon(_draw, screen)
            try:
                yield screen
            finally:
                tasks.cancel_scope.cancel()
        if is_gone:
            raise BrokenPipeError


def _screen(writer: Writer, look: Look, *, json: bool) -> JsonLines | Screen:
    if json:
        return JsonLines(writer)
    return LiveScreen(writer, look) if look.stderr_is_terminal and not look.quiet else Screen(writer, look)


async def _draw(screen: Screen) -> None:
    while True:
        await anyio.sleep(1 / FRAMES_PER_S)
        await screen.tick()
