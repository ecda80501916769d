"""Read one large file in two processes: the second half is read by a fork, which sends what it found.

Forking is safe only where there is one thread: the droplet's role and the laptop's worker process are so.
Standard library only, Python 3.10.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable

from .statistics import Series
from .tally import FormatError, Kernel, Tally

SMALLEST = 16 << 20
"""A file below this many bytes is read by one process: a fork costs about 10 ms."""

Part = Callable[[int, Tally], None]


def read_halves(part: Part, tally: Tally) -> None:
    """Call `part(0, ...)` here and `part(1, ...)` in a fork, and add both; what either raises is raised here.

    The fork's dispatches come kernel by kernel, so that neither process holds them twice.
    """
    if not hasattr(os, "fork") or sys.platform == "win32":
        part(0, tally)
        part(1, tally)
        return
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _serve(part, writing)
    os.close(writing)
    try:
        part(0, tally)
        with open(reading, "rb", closefd=False) as source:
            _receive(source, tally)
    finally:
        os.close(reading)  # a fork that still writes ends by it
        os.waitpid(child, 0)


def _serve(part: Part, writing: int) -> None:
    """Do the fork's part and end the process, whatever happens."""
    status = 1
    try:
        found = Tally()
        failure: str | None = None
        try:
            part(1, found)
        except (FormatError, OSError, ValueError) as error:
            failure = str(error)
        with open(writing, "wb") as out:
            while found.series:
                key, series = found.series.popitem()
                _send(out, (key, series.starts.tobytes(), series.durations.tobytes()))
            _send(out, (failure, found))
        status = 0
    finally:
        os._exit(status)


def _send(out: object, value: object) -> None:
    pickle.dump(value, out, protocol=pickle.HIGHEST_PROTOCOL)  # type: ignore[arg-type]  # a binary file


def _receive(source: object, tally: Tally) -> None:
    while True:
        try:
            # Our own fork wrote it: nothing foreign is unpickled.
            found = pickle.load(source)  # type: ignore[arg-type]
        except (EOFError, pickle.UnpicklingError) as error:
            raise OSError("the second reading process ended before it had answered") from error
        if len(found) == 2:
            failure, rest = found
            tally.add(rest)
            if failure is not None:
                raise FormatError(failure)
            return
        (kernel, process, gpu), starts, durations = found
        series: Series = tally.series_of(Kernel(*kernel), process, gpu)
        series.starts.frombytes(starts)
        series.durations.frombytes(durations)
