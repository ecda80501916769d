"""Decide how a droplet's profiler is called. Pure.

Facts as of ROCm 6.2 to 7.2 (documentation and source of rocprofv3): kernels are traced only on `--kernel-trace`; since
7.0 rocpd is the default format and direct CSV is deprecated; without `%pid%` in `-o` processes overwrite each other's
files; temporary files go to the current directory unless `ROCPROF_TMPDIR` says otherwise; the application stands
behind `--`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chisel.errors import ConfigError, UsageError

Format = Literal["rocpd", "csv"]
DEFAULT_TRACES = ("memory", "hip")
_FLAGS = {
    "memory": "--memory-copy-trace",
    "hip": "--hip-runtime-trace",
    "hsa": "--hsa-trace",
    "roctx": "--marker-trace",
}
_FIRST_ROCM_WITH_ROCPD = 7


@dataclass(frozen=True, slots=True)
class Driver:
    """One profiler generation as a droplet has it; `version` is the profiler's own, None when it does not tell."""

    tool: str
    version: str | None
    format: Format

    def title(self) -> str:
        """Name profiler, version and format: figures of different ones must not be compared."""
        return f"{self.tool} {self.version or '(version unknown)'}, {self.format}"


def choose_driver(facts: Mapping[str, Any]) -> Driver:
    """Choose by what the droplet's probe found; raises ConfigError when it has no rocprofv3."""
    found = facts.get("profiler")
    profiler: Mapping[str, Any] = found if isinstance(found, dict) else {}
    if not profiler.get("rocprofv3"):
        hint = "chisel up --image gpu-amd-base: its ROCm has one"
        if profiler.get("rocprof"):
            hint = "it has rocprof v1 only, which chisel does not drive; choose an image with ROCm 6.2 or newer"
        raise ConfigError("the droplet has no `rocprofv3`", hint=hint)
    version = profiler.get("version")
    rocm = re.match(r"(\d+)", str(facts.get("rocm") or ""))
    # `rocprofv3 --version` came with 7.0: whoever answers it writes rocpd.
    has_rocpd = int(rocm[1]) >= _FIRST_ROCM_WITH_ROCPD if rocm else version is not None
    return Driver("rocprofv3", str(version) if version else None, "rocpd" if has_rocpd else "csv")


def check_traces(traces: Sequence[str] | None) -> tuple[str, ...]:
    """Return the traces to take besides kernels; None means copies and HIP calls. Raises UsageError for others."""
    if traces is None:
        return DEFAULT_TRACES
    for name in traces:
        if name not in _FLAGS:
            raise UsageError(f"`{name}` is no trace", hint=f"known: {', '.join(_FLAGS)}")
    return tuple(dict.fromkeys(traces))


def command_line(driver: Driver, line: str, traces: Sequence[str], directory: str) -> str:
    """Return the shell line that profiles a user's line, leaving `raw/` in `directory` (a path, `~/` allowed).

    The user's line reaches the profiler as a script, byte for byte: no profiler's own parsing can change it.
    """
    place = f'"$HOME"/{shlex.quote(directory[2:])}' if directory.startswith("~/") else shlex.quote(directory)
    flags = ["--kernel-trace", *(_FLAGS[name] for name in traces)]
    formats = ["-f", driver.format]
    stats = ["--stats"] if driver.format == "csv" else []  # without effect on rocpd
    words = [*flags, *stats, *formats]
    return (
        f'd={place}; (umask 077; mkdir -p "$d"/raw "$d"/tmp) && printf \'%s\\n\' {shlex.quote(line)} > "$d"/command.sh'
        f' && ROCPROF_TMPDIR="$d"/tmp exec {driver.tool} {shlex.join(words)} -d "$d"/raw -o %pid%'
        f' -- bash "$d"/command.sh'
    )
