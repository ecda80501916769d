"""Run a blocking call under a wall clock, in a daemon thread that nobody has to wait for.

A call to the API can hang for minutes, or for ever on a server that drips a byte at a time, and no timeout of the HTTP
client ends that. Worker threads of the event loop would keep the process from exiting; a daemon thread does not.
This is the one module of chisel that may start threads.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import anyio
from anyio import from_thread
from anyio.lowlevel import current_token

T = TypeVar("T")

DEFAULT_SLOTS = 8


class DeadlinePassed(Exception):
    """The clock ran out; `was_started` says whether the call had begun (it may still end some day, unheard)."""

    def __init__(self, *, was_started: bool) -> None:
        super().__init__("the deadline passed")
        self.was_started = was_started


@dataclass(slots=True)
class _Outcome(Generic[T]):
    """Carry one call's result from its thread to the event loop."""

    done: anyio.Event = field(default_factory=anyio.Event)
    values: tuple[T, ...] = ()
    error: BaseException | None = None

    def take(self) -> T:
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # its traceback holds this frame: break the cycle
        return self.values[0]


class Calls:
    """Make blocking calls, at most `slots` at a time; a further one waits, on its own deadline."""

    def __init__(self, slots: int = DEFAULT_SLOTS) -> None:
        self._slots = anyio.Semaphore(slots)

    async def call(self, function: Callable[[], T], *, ends_at: float) -> T:
        """Return what `function()` returns, or raise what it raises.

        Raises DeadlinePassed at `ends_at` (the event loop's clock, seconds). On that, and on cancellation, the caller
        is freed at once and its slot with it; the thread goes on by itself and its result is dropped.
        """
        outcome: _Outcome[T] = _Outcome()
        was_started = False
        with anyio.CancelScope(deadline=ends_at):
            async with self._slots:
                was_started = True
                tell = _teller(outcome.done)
                threading.Thread(target=_work, args=(function, outcome, tell), name="chisel-cloud", daemon=True).start()
                await outcome.done.wait()
        if not outcome.done.is_set():
            raise DeadlinePassed(was_started=was_started)
        return outcome.take()


def _teller(event: anyio.Event) -> Callable[[], None]:
    """Return what sets an event of this event loop from a thread."""
    token = current_token()

    def tell() -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is gone: nobody listens any more
            from_thread.run_sync(event.set, token=token)

    return tell


def _work(function: Callable[[], T], outcome: _Outcome[T], tell: Callable[[], None]) -> None:
    try:
        outcome.values = (function(),)
    except BaseException as error:  # noqa: BLE001 - handed over: the caller raises it
        outcome.error = error
    tell()
