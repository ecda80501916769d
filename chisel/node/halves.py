"""Do large work in two processes: a fork reads the second half of a file, or does every other kernel's figures.

Forking is safe only where there is one thread: the droplet's role and the laptop's worker process are so.
Standard library only, Python 3.10.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pickle
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

from .statistics import Series
from .tally import FormatError, Kernel, Tally

Answer = TypeVar("Answer")

SMALLEST = 16 << 20
"""A file below this many bytes is read by one process: a fork costs about 10 ms."""

_PIPE_BYTES = 1 << 20
_GIVE_BACK_BYTES = 2 << 20

Part = Callable[[int, Tally], None]


def can_fork() -> bool:
    """Say whether a second process can be had."""
    return hasattr(os, "fork") and sys.platform != "win32"


def both(part: Callable[[int], Answer]) -> tuple[Answer, Answer]:
    """Return `part(0)`, done here, and `part(1)`, done in a fork where there is one.

    `part` must leave everything usable when it is called twice in one process only if there is no fork.
    """
    if not can_fork():
        return part(0), part(1)
    with _fork(lambda out: _send(out, part(1))) as source:
        first = part(0)
        return first, _load(source)


def read_halves(part: Part, tally: Tally) -> None:
    """Call `part(0, ...)` here and `part(1, ...)` in a fork, and add both; what either raises is raised here.

    The fork's dispatches come kernel by kernel, so that neither process holds them twice.
    """
    if not can_fork():
        part(0, tally)
        part(1, tally)
        return
    with _fork(lambda out: _read_and_send(part, out)) as source:
        part(0, tally)
        _receive(source, tally)


@contextmanager
def _fork(serve: Callable[[BinaryIO], None]) -> Iterator[BinaryIO]:
    """Run something in a fork that writes; give what it writes, and wait for its end."""
    reading, writing = os.pipe()
    _widen(writing)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            with open(writing, "wb") as out:
                serve(out)
            status = 0
        finally:
            os._exit(status)  # whatever happens: nothing of the parent's is run twice
    os.close(writing)
    source = open(reading, "rb")  # noqa: SIM115 - closed below, before the fork is waited for
    try:
        yield source
    finally:
        source.close()  # a fork that still writes ends by it
        os.waitpid(child, 0)


def _widen(pipe: int) -> None:
    """Let more of what is sent wait in the pipe, where the system can (Linux; Python 3.10 knows the number)."""
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # type: ignore[attr-defined, unused-ignore]  # Linux only
    except (OSError, AttributeError):
        return


def _read_and_send(part: Part, out: BinaryIO) -> None:
    found = Tally()
    failure: str | None = None
    try:
        part(1, found)
    except (FormatError, OSError, ValueError) as error:
        failure = str(error)
    waiting, give_back = 0, _giver_back()
    # The largest first: their memory goes back to the system while the other process takes them in.
    for key in sorted(found.series, key=lambda key: -len(found.series[key])):
        series = found.series.pop(key)
        _send(out, (*key, len(series), series.durations.typecode))
        for column in (series.starts, series.durations):
            out.write(memoryview(column))
        waiting += series.starts.itemsize * len(series)
        del series, column
        if waiting > _GIVE_BACK_BYTES:
            give_back()
            waiting = 0
    _send(out, (failure, found))


def _giver_back() -> Callable[[], object]:
    """Return what gives freed memory back to the system: glibc keeps it otherwise."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return lambda: None
    return lambda: trim(0)


def _send(out: BinaryIO, value: object) -> None:
    pickle.dump(value, out, protocol=pickle.HIGHEST_PROTOCOL)


def _load(source: BinaryIO) -> Any:
    """Return what our own fork wrote: nothing foreign is unpickled."""
    try:
        return pickle.load(source)
    except (EOFError, pickle.UnpicklingError) as error:
        raise OSError("the second process ended before it had answered") from error


def _receive(source: BinaryIO, tally: Tally) -> None:
    while len(found := _load(source)) == 5:
        kernel, process, gpu, count, typecode = found
        more = Series(durations=array(typecode))
        more.starts.fromfile(source, count)
        more.durations.fromfile(source, count)
        tally.add_series(Kernel(*kernel), process, gpu, more)
    failure, rest = found
    tally.add(rest)
    if failure is not None:
        raise FormatError(failure)
