"""Play `rocprof` (v1) with the habits of the real script, good and bad.

The application's standard error is merged into standard output (`2>&1 | tee log.txt`), its arguments are put between
double quotes and evaluated by the shell once more, its exit code is propagated, `-o` must end in .csv, results go to
the current directory unless `-o` says otherwise, `-d` holds raw text only and is removed where it is the temporary
directory. Read in ROCm/rocprofiler, bin/rpl_run.sh and bin/tblextr.py, October 2024. A Ctrl-C ends the script with the
application: raw text stays, there are no results.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from .collection import Collected, collected
from .counters import counter_names
from .faults import Delivery, fault, spoiled
from .identity import MARK, ROCM_VERSION, die_like, leave_note
from .motions import COLLECT
from .v1files import write_results
from .v1raw import write_raw

_FLAGS = (
    "--stats", "--roctx-trace", "--hip-trace", "--hsa-trace", "--sys-trace", "--roctx-rename", "--parallel-kernels",
    "--verbose",
)  # fmt: skip
_VALUED = (
    "-i", "-o", "-d", "-t", "-m", "--basenames", "--timestamp", "--ctx-wait", "--ctx-limit", "--heartbeat",
    "--trace-start", "--trace-period", "--flush-rate", "--obj-tracking", "--cmd-qts", "--tool-version",
)  # fmt: skip
_TRACES = {
    "--hip-trace": {"hip"},
    "--hsa-trace": {"hsa"},
    "--roctx-trace": {"marker"},
    "--sys-trace": {"hip", "hsa"},
}


class Refused(Exception):
    """The command line is wrong: the real script says so, prints its usage and ends with 1."""


@dataclass
class Order:
    """What the command line asks for."""

    values: dict[str, str] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    application: list[str] = field(default_factory=list)

    @property
    def traces(self) -> set[str]:
        """Return the traced domains."""
        return {name for flag in self.flags & set(_TRACES) for name in _TRACES[flag]}

    @property
    def has_stats(self) -> bool:
        """Whether a database and statistics are written: any trace does that too."""
        return "--stats" in self.flags or bool(self.traces)


def main(argv: Sequence[str]) -> int:
    """Profile an application; exits as it did, 1 for what the script refuses."""
    stamp = time.strftime("%y%m%d_%H%M%S")
    _say(f"RPL: on '{stamp}' from '{_rocm()}' in '{os.getcwd()}'")
    try:
        order = _parse(list(argv[1:]))
        if order is None:
            _say(f"ROCm version: {ROCM_VERSION}\nROCProfiler version: 2.0")
            return 0
        if not order.application:
            raise Refused("no application")
        name = fault()
        counters = _counters(order.values.get("-i"))
    except (Refused, ValueError) as error:
        _say(f"{argv[0]}: Error: {error}\n")
        _say("Usage:\n  rocprof [-h] [-i <input .txt file>] [-o <output CSV file>] <app command line>")
        return 1
    return _profile(order, stamp, counters, Delivery(name))


def _say(text: str) -> None:
    for line in text.split("\n"):
        sys.stdout.write(f"{line} {MARK}\n")
    sys.stdout.flush()


def _rocm() -> str:
    return os.path.dirname(os.path.dirname(os.path.realpath(__file__)))


def _parse(words: list[str]) -> Order | None:
    """Read options up to the application, None for `--version`; the script stops at the first word it does not know."""
    if not words:
        raise Refused("no arguments")
    order = Order()
    while words and words[0] in (*_FLAGS, *_VALUED, "-h", "--version"):
        word = words.pop(0)
        if word == "--version":
            return None
        if word == "-h":
            raise Refused("help")
        if word in _FLAGS:
            order.flags.add(word)
            continue
        order.values[word] = words.pop(0) if words else ""
        if word == "-o" and not order.values[word].endswith(".csv"):
            raise Refused("file name must have .CSV extension")
    if words and words[0].startswith("-"):
        raise Refused(f"Wrong option '{words[0]}'")
    order.application = words
    return order


def _counters(path: str | None) -> list[str]:
    """Read the `pmc :` lines of an input file."""
    if path is None:
        return []
    if not path.endswith(".txt"):
        raise Refused(f"Bad input file type '{path}'")
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.partition(":")[2] for line in file if re.match(r"\s*pmc\s*:", line)]
    except OSError:
        raise Refused(f"Input file '{path}' not found") from None
    return counter_names(lines)


def _profile(order: Order, stamp: str, counters: list[str], delivery: Delivery) -> int:
    temporary = order.values.get("-t", os.environ.get("CHISEL_DROPLET_ROOT", "") + "/tmp")
    data = order.values.get("-d", temporary)
    output = order.values.get("-o") or os.path.join(os.getcwd(), _base(order.values.get("-i")) + ".csv")
    raw = os.path.join(data, f"rpl_data_{stamp}_{os.getpid()}")
    results = os.path.join(raw, f"input_results_{stamp}")
    os.makedirs(results)
    leave_note(raw, "rocprof")
    line = " ".join(f'"{word}"' for word in order.application)
    _say(f"RPL: profiling '{line}'")
    _say(f"RPL: input file '{order.values.get('-i', '')}'")
    _say(f"RPL: output dir '{raw}'")
    if os.path.exists(output):
        os.unlink(output)
    _say(f"RPL: result dir '{results}'")
    collection = tempfile.mkdtemp(prefix="rocprof-")
    try:
        status = _run(line, collection, results, delivery)
        found = [spoiled(one, delivery.name) for one in collected(collection)]
        write_raw(results, found, order.traces)
        if delivery.was_interrupted and status == 128 + signal.SIGINT:
            return die_like(signal.SIGINT)
        if not os.path.isdir(os.path.dirname(os.path.abspath(output))):
            _say(f"Profiling data corrupted: '{results}'")  # what tblextr.py that cannot open its files leads to
            return 1
        if delivery.name != "no-files":
            _deliver(order, output, found, counters, delivery)
    finally:
        shutil.rmtree(collection, ignore_errors=True)
        if data == temporary:
            shutil.rmtree(raw, ignore_errors=True)
    return status


def _base(path: str | None) -> str:
    return os.path.splitext(os.path.basename(path))[0] if path else "results"


def _run(line: str, collection: str, results: str, delivery: Delivery) -> int:
    """Evaluate the command line as the script does, both streams to our standard output and to log.txt.

    It is a shell script: what else it was handed open, its command is handed as well.
    """
    environment = {**os.environ, COLLECT: collection, "PATH": f".:{os.environ.get('PATH', '')}"}
    evaluated = " ".join(line.split())  # an unquoted $* on the way splits at every space and joins with one

    def interrupted(_number: int, _frame: object) -> None:
        delivery.was_interrupted = True

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupted)
    process = subprocess.Popen(
        ["bash", "-c", 'eval "$1"', "bash", evaluated], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, close_fds=False,
    )  # fmt: skip
    assert process.stdout is not None
    with open(os.path.join(results, "log.txt"), "wb") as log:
        while data := os.read(process.stdout.fileno(), 1 << 16):
            log.write(data)
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    status = process.wait()
    status = status if status >= 0 else 128 - status
    with open(os.path.join(results, "exit.txt"), "w", encoding="ascii") as file:
        file.write(f"exit({status})\n")
    return status


def _deliver(order: Order, output: str, found: list[Collected], counters: list[str], delivery: Delivery) -> None:
    place, name = os.path.split(os.path.abspath(output))
    staged = tempfile.mkdtemp(prefix="rocprof-")
    try:
        written = write_results(
            os.path.join(staged, name[: -len(".csv")]), found, order.traces, counters, has_stats=order.has_stats,
            has_timestamps=order.has_stats or order.values.get("--timestamp") == "on",
        )  # fmt: skip
        leave_note(staged, "rocprof")
        for path in written:
            _say(f"File '{os.path.join(place, os.path.basename(path))}' is generating")
        delivery.bring(staged, place)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
