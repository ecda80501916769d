"""Decide how a droplet's profiler is called. Pure.

Facts as of ROCm 5.7 to 7.2 (documentation, source and runs of the real scripts): rocprofv3 traces kernels only on
`--kernel-trace`; since 7.0 rocpd is its default format and direct CSV is deprecated; without `%pid%` in `-o` processes
overwrite each other's files; temporary files go to the current directory unless `ROCPROF_TMPDIR` says otherwise; the
application stands behind `--`. rocprof v1 evaluates its arguments once more, merges the application's stderr into its
stdout, and puts results where `-o` says, never where `-d` does. What it says of itself goes to our stderr.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chisel.errors import ConfigError, UsageError

Format = Literal["rocpd", "csv", "v1"]
DRIVERS: tuple[Format, ...] = ("rocpd", "csv", "v1")
DEFAULT_TRACES = ("memory", "hip")
_V3_FLAGS = {
    "memory": "--memory-copy-trace",
    "hip": "--hip-runtime-trace",
    "hsa": "--hsa-trace",
    "roctx": "--marker-trace",
    "rccl": "--rccl-trace",
    "sys": "--sys-trace",
}
_V1_FLAGS = {
    "memory": "--hip-trace",  # v1 has no trace of copies alone: they come with HIP's
    "hip": "--hip-trace",
    "hsa": "--hsa-trace",
    "roctx": "--roctx-trace",
    "sys": "--sys-trace",
}
_COSTS = {
    "hsa": "traces every HSA call: launches get slower and the files many times larger",
    "sys": "traces every API there is, HSA too: launches get slower and the files many times larger",
}
_FIRST_ROCM_WITH_ROCPD = (7, 0)
_FIRST_ROCM_WITH_PMC = (6, 3)
_COUNTERS_OPTION = '-i "$d"/counters.txt '
_COUNTER = re.compile(r"[A-Za-z][\w:\[\]=.]*")

# Undoes what the lines below do for v1: its script must not die of Ctrl-C before it has written results, and would
# merge the command's stderr into its stdout. bash cannot unignore a signal; python3 is there, v1 itself needs it.
_V1_START = """import os,signal,sys
signal.signal(signal.SIGINT,signal.SIG_DFL)
try:
 os.dup2(3,1);os.dup2(4,2);os.close(3);os.close(4)
except OSError:
 pass
os.execvp(sys.argv[1],sys.argv[1:])"""


@dataclass(frozen=True, slots=True)
class Driver:
    """One profiler generation as a droplet has it; `version` is the profiler's own, None when it does not tell.

    `rocm` is (major, minor), None when the droplet does not tell.
    """

    tool: str
    version: str | None
    format: Format
    rocm: tuple[int, int] | None = None

    def title(self) -> str:
        """Name profiler, version and format."""
        if self.format == "v1":
            release = f"ROCm {self.rocm[0]}.{self.rocm[1]}" if self.rocm else "version unknown"
            return f"rocprof v1 ({release})"
        return f"{self.tool} {self.version or '(version unknown)'}, {self.format}"

    @property
    def generation(self) -> str:
        """Name what may be compared with what: times of different profilers differ by up to 20 % for the same code."""
        return "rocprof v1" if self.format == "v1" else f"{self.tool}/{self.format}"


def choose_driver(facts: Mapping[str, Any], forced: str | None = None) -> Driver:
    """Choose by what the droplet's probe found, or take the `forced` one.

    Raises ConfigError when the droplet has no profiler, or not that one; UsageError for a driver nobody knows.
    """
    found = facts.get("profiler")
    profiler: Mapping[str, Any] = found if isinstance(found, dict) else {}
    rocm = _release(facts.get("rocm"))
    said = profiler.get("version")
    version = str(said) if said else None
    # `rocprofv3 --version` came with 7.0: whoever answers it writes rocpd.
    has_rocpd = rocm >= _FIRST_ROCM_WITH_ROCPD if rocm else version is not None
    usable = _usable(profiler, has_rocpd)
    if forced is not None and forced not in DRIVERS:
        raise UsageError(f"`{forced}` is no driver", hint=f"known: {', '.join(DRIVERS)}")
    if not usable:
        raise ConfigError("the droplet has no profiler", hint="chisel up --image gpu-amd-base: its ROCm has one")
    if forced is not None and forced not in usable:
        raise ConfigError(f"the droplet's ROCm cannot do `--driver {forced}`", hint=f"it can: {', '.join(usable)}")
    chosen = next(name for name in DRIVERS if name == (forced or usable[0]))
    return Driver("rocprof" if chosen == "v1" else "rocprofv3", version if chosen != "v1" else None, chosen, rocm)


def _usable(profiler: Mapping[str, Any], has_rocpd: bool) -> list[Format]:
    usable: list[Format] = []
    if profiler.get("rocprofv3"):
        usable += ["rocpd", "csv"] if has_rocpd else ["csv"]
    if profiler.get("rocprof"):
        usable.append("v1")
    return usable


def _release(text: object) -> tuple[int, int] | None:
    found = re.match(r"(\d+)(?:\.(\d+))?", str(text or ""))
    return (int(found[1]), int(found[2] or 0)) if found else None


def check_traces(traces: Sequence[str] | None) -> tuple[str, ...]:
    """Return the traces to take besides kernels; None means copies and HIP calls. Raises UsageError for others."""
    if traces is None:
        return DEFAULT_TRACES
    for name in traces:
        if name not in _V3_FLAGS:
            raise UsageError(f"`{name}` is no trace", hint=f"known: {', '.join(_V3_FLAGS)}")
    return tuple(dict.fromkeys(traces))


def check_counters(counters: Sequence[str]) -> tuple[str, ...]:
    """Return hardware counters to collect; raises UsageError for what cannot be the name of one."""
    for name in counters:
        if not _COUNTER.fullmatch(name):
            raise UsageError(f"`{name}` is no counter", hint="chisel run rocprofv3-avail list --pmc")
    return tuple(dict.fromkeys(counters))


def cost_of(traces: Sequence[str], counters: Sequence[str]) -> list[str]:
    """Say what asked-for traces and counters cost."""
    said = [f"--trace {name} {_COSTS[name]}" for name in traces if name in _COSTS]
    if counters:
        said.append("--pmc lets one kernel run at a time: times beside it are no measure of the program")
    return said


@dataclass(frozen=True, slots=True)
class Asked:
    """What a profiler is to do besides tracing kernels: `more` are words for itself, `kernel` limits counters."""

    traces: Sequence[str] = DEFAULT_TRACES
    counters: Sequence[str] = ()
    kernel: str | None = None
    more: Sequence[str] = ()


def command_line(driver: Driver, line: str, asked: Asked, directory: str) -> str:
    """Return the shell line that profiles a user's line, leaving `raw/` in `directory` (a path, `~/` allowed).

    The user's line reaches the profiler as a script, byte for byte: no profiler's own parsing can change it. Raises
    UsageError for a trace that the driver does not have.
    """
    place = f'"$HOME"/{shlex.quote(directory[2:])}' if directory.startswith("~/") else shlex.quote(directory)
    made = (
        f'd={place}; (umask 077; mkdir -p "$d"/raw "$d"/tmp) && printf \'%s\\n\' {shlex.quote(line)} > "$d"/command.sh'
    )
    return f"{made} && {_v1(asked) if driver.format == 'v1' else _v3(driver, asked)}"


def _v3(driver: Driver, asked: Asked) -> str:
    words = ["--kernel-trace", *(_V3_FLAGS[name] for name in asked.traces)]
    words += ["--stats"] if driver.format == "csv" else []  # without effect on rocpd
    before = ""
    if asked.counters and driver.rocm is not None and driver.rocm < _FIRST_ROCM_WITH_PMC:
        before = _counters_file(asked.counters)
    elif asked.counters:
        words += ["--pmc", *asked.counters]
    if asked.counters and asked.kernel:
        words += ["--kernel-include-regex", asked.kernel]
    shown = shlex.join([*words, "-f", driver.format, *asked.more])
    places = f'{_COUNTERS_OPTION if before else ""}-d "$d"/raw -o %pid%'
    return f'{before}ROCPROF_TMPDIR="$d"/tmp exec {driver.tool} {shown} {places} -- bash "$d"/command.sh'


def _v1(asked: Asked) -> str:
    missing = [name for name in asked.traces if name not in _V1_FLAGS]
    if missing:
        raise UsageError(f"rocprof v1 has no trace `{missing[0]}`", hint=f"it has: {', '.join(_V1_FLAGS)}")
    if asked.counters:  # it takes counters or traces; the times of dispatches come with the counters
        before, words = _counters_file(asked.counters), ["--timestamp", "on"]
    else:
        before = ""
        words = list(dict.fromkeys(["--hip-trace", *(_V1_FLAGS[name] for name in asked.traces), "--stats"]))
    shown = shlex.join([*words, *asked.more])
    places = f'{_COUNTERS_OPTION if before else ""}-t "$d"/tmp -d "$d"/v1 -o "$d"/raw/results.csv'
    start = f'python3 -SEc {shlex.quote(_V1_START)} bash "$1"'
    return (
        f"{before}printf '%s\\n' {shlex.quote(start)} > \"$d\"/start.sh && trap '' INT && exec 3>&1 4>&2"
        f' && exec rocprof {shown} {places} bash "$d"/start.sh "$d"/command.sh >&2'
    )


def _counters_file(counters: Sequence[str]) -> str:
    return f"printf 'pmc: %s\\n' {shlex.quote(' '.join(counters))} > \"$d\"/counters.txt && "
