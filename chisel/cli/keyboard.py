"""Read standard input for remote commands, and lend them the terminal."""

from __future__ import annotations

import os
import signal
import stat
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import anyio
from anyio import to_thread

PIECE_BYTES = 1 << 16
_ESCAPE, _LEAVES = b"~", b"."


async def read_stdin() -> bytes:
    """Return the next piece of standard input, an empty one at its end; other tasks go on meanwhile."""
    mode = os.fstat(0).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(0):
        await anyio.wait_readable(0)
        return _read()
    return await to_thread.run_sync(_read)  # a file is always ready, and no poll takes it


def _read() -> bytes:
    try:
        return os.read(0, PIECE_BYTES)
    except OSError:  # the terminal was closed
        return b""


def may_read() -> bool:
    """Say whether standard input is there for this process: closed, or a terminal that others use, it is not."""
    try:
        mode = os.fstat(0).st_mode
        if os.isatty(0):
            return os.tcgetpgrp(0) == os.getpgrp()  # in the background a read would stop the process (SIGTTIN)
    except OSError:
        return False
    return not stat.S_ISCHR(mode) or os.isatty(0)  # /dev/null says nothing


class Keyboard:
    """Keys as they are typed. `~.` behind a line's end leaves, as in ssh(1); `~~` there is one `~`."""

    def __init__(self) -> None:
        self.left = anyio.Event()
        self._held = b""
        self._is_line_start = True

    async def read(self) -> bytes:
        """Return what was typed, an empty piece when the terminal is gone or the user leaves."""
        while not self.left.is_set():
            data = await read_stdin()
            if not data:
                return b""
            found = self._filtered(data)
            if found:
                return found
        return b""

    def _filtered(self, data: bytes) -> bytes:
        found = b""
        for index in range(len(data)):
            key = data[index : index + 1]
            if self._held:
                self._held = b""
                if key == _LEAVES:
                    self.left.set()
                    return found
                found += key if key == _ESCAPE else _ESCAPE + key
            elif key == _ESCAPE and self._is_line_start:
                self._held = key
                continue
            else:
                found += key
            self._is_line_start = key in (b"\r", b"\n")
        return found


def size() -> tuple[int, int]:
    """Return the terminal's rows and columns."""
    try:
        columns, rows = os.get_terminal_size(0)
    except OSError:
        return 24, 80
    return rows or 24, columns or 80


@contextmanager
def raw_terminal() -> Iterator[None]:
    """Hand keys on untouched, Ctrl-C too; the terminal is as it was afterwards, whatever happens but SIGKILL."""
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)
        yield
    finally:
        with suppress(termios.error):
            termios.tcsetattr(0, termios.TCSADRAIN, before)
        if os.isatty(2):
            sys.stderr.flush()


@asynccontextmanager
async def following_size(control: Any) -> AsyncIterator[None]:
    """Tell the remote terminal every size that this one gets."""

    async def watch() -> None:
        with anyio.open_signal_receiver(signal.SIGWINCH) as changes:
            async for _ in changes:
                control.resize(*size())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        try:
            yield
        finally:
            tasks.cancel_scope.cancel()
