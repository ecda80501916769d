"""Hold the values of a profile: what kernels took, on which GPU, under which clocks, and how two sets compare.

Plain values: no I/O, standard library only. All times are in ns; `share` is from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from chisel.model import RunResult

QUANTILES = 64
"""`KernelStats.quantiles` are the quantiles 0, 1/64, ..., 1 of a kernel's durations: 65 values."""

SLICES = 48
"""`KernelStats.drift` cuts a kernel's dispatches, in the order they were launched, into at most 48 parts."""

Verdict = Literal["faster", "slower", "can't tell"]


@dataclass(frozen=True, slots=True)
class Launch:
    """What a kernel asks of the GPU, as its most frequent launch does; None where the format does not say.

    `grid` and `workgroup` count work-items along x, y and z; `grids` says how many different grids there were.
    """

    workgroup: tuple[int, int, int] | None = None
    grid: tuple[int, int, int] | None = None
    grids: int = 0
    vgprs: int | None = None
    agprs: int | None = None
    sgprs: int | None = None
    lds_bytes: int | None = None
    scratch_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class KernelStats:
    """One kernel's dispatches taken together; `share` is of all real kernels' time.

    None stands where the profiler's file holds sums only; `std_ns` is the sample's standard deviation, None for one
    call. `quantiles` are `QUANTILES` + 1 values, ascending; `drift` holds calls and median of each part of the run (see
    `SLICES`); both are empty where they are not known, and for kernels far down the ranking. `counters` holds the mean
    of each hardware counter per dispatch.
    """

    name: str
    calls: int
    total_ns: int
    mean_ns: float
    p50_ns: float | None
    p99_ns: float | None
    min_ns: float | None
    max_ns: float | None
    share: float
    std_ns: float | None = None
    launch: Launch | None = None
    quantiles: tuple[float, ...] = ()
    drift: tuple[tuple[int, float], ...] = ()
    counters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """What one process or one GPU spent in kernels: `kernels` are its hottest ones as (name, calls, total_ns)."""

    kind: Literal["process", "gpu"]
    name: str
    calls: int
    total_ns: int
    kernels: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Copies:
    """All memory copies in one direction; `bytes` is None where the format does not say."""

    name: str
    calls: int
    total_ns: int
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """What a profiler's files hold, kernels in rank order (by total time), pseudo rows such as barriers apart.

    `source` names the kind of file that was ranked, `files` how many of the kind, `dispatches` how many launches of
    real kernels. `parts` is filled where there are several processes or GPUs. `rest` counts kernels (and their time)
    that rank behind those listed. `notes` say what was wrong with which file, `unfinished` names files that a killed
    profiler left behind, `filtered` counts the dispatches that were left out because they were not asked for.
    """

    kernels: tuple[KernelStats, ...] = ()
    pseudo: tuple[KernelStats, ...] = ()
    parts: tuple[Part, ...] = ()
    copies: tuple[Copies, ...] = ()
    source: str | None = None
    files: int = 0
    dispatches: int = 0
    rest: int = 0
    rest_ns: int = 0
    notes: tuple[str, ...] = ()
    stand_in: str | None = None
    filtered: int = 0
    unfinished: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at one GPU while the command ran: `at_s` counts from the first look; None where nothing was told.

    Clocks in MHz (`sclk` of the compute units, `mclk` of the memory), power in W, temperatures in degrees Celsius,
    `busy` in per cent.
    """

    at_s: float
    gpu: int
    sclk_mhz: float | None = None
    mclk_mhz: float | None = None
    power_w: float | None = None
    hotspot_c: float | None = None
    memory_c: float | None = None
    busy: float | None = None


@dataclass(frozen=True, slots=True)
class Telemetry:
    """The GPUs' clocks, power and temperatures during a run, and the bounds they lived in.

    `source` is the tool that answered (`amd-smi`, `rocm-smi`), None when none did. `power_cap_w` and the highest
    `sclk_max_mhz` are by GPU number. `notes` say what throttled where the tool tells.
    """

    source: str | None = None
    samples: tuple[Sample, ...] = ()
    power_cap_w: Mapping[int, float] = field(default_factory=dict)
    sclk_max_mhz: Mapping[int, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a profile's figures depend on; empty texts where it is not known.

    `facts` are labelled, in the order they are to be shown: ROCm, driver, profiler, image, GPU, clock range, tree hash,
    command, ...
    """

    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProfileResult:
    """One droplet's profile: what was ranked, under which clocks, where the files are.

    `tool` names profiler, version and format as the droplet told them (`generation` is what may be compared with what:
    profiler and format). `status` is the profiled command's own. `is_partial` says that the command was interrupted.
    `host` is empty for files that were ranked here.
    """

    host: str
    status: int
    ranking: Ranking = field(default_factory=Ranking)
    tool: str = ""
    generation: str = ""
    telemetry: Telemetry = field(default_factory=Telemetry)
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    out: Path | None = None
    run: RunResult | None = None
    is_partial: bool = False
    error: str | None = None

    @property
    def kernels(self) -> tuple[KernelStats, ...]:
        """Return the kernels in rank order."""
        return self.ranking.kernels

    @property
    def pseudo(self) -> tuple[KernelStats, ...]:
        """Return the rows that are no kernels."""
        return self.ranking.pseudo


@dataclass(frozen=True, slots=True)
class KernelVerdict:
    """How one kernel's time changed from side A to side B, over several profiling sessions each.

    `ratio` is B's time over A's (above 1: slower) with the interval `low` to `high`; `detectable` is the smallest
    relative change that these sessions could have shown (0.05: five per cent). `p50_a_ns` and `p50_b_ns` are medians
    over sessions of the sessions' medians. A kernel on one side only has no ratio, and `missing` names the side.
    """

    name: str
    verdict: Verdict
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    detectable: float | None = None
    p50_a_ns: float | None = None
    p50_b_ns: float | None = None
    calls_a: int = 0
    calls_b: int = 0
    missing: Literal["a", "b"] | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sets of profiling sessions, kernel by kernel in the order of their time; `label_*` name the sides."""

    label_a: str
    label_b: str
    sessions_a: int
    sessions_b: int
    verdicts: tuple[KernelVerdict, ...] = ()
    notes: tuple[str, ...] = ()
    host: str = ""


@dataclass(frozen=True, slots=True)
class Spread:
    """One kernel over the droplets of a pool: medians by droplet, `spread` the slowest's over the fastest's less one.

    `outlier` names a droplet that stands apart, `cause` what its telemetry says of that.
    """

    name: str
    calls: int
    total_ns: int
    share: float
    p50_ns: Mapping[str, float]
    spread: float
    outlier: str | None = None
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """Everything one `profile` found.

    `results` are the sessions in the order they ended, of all droplets; of `--ab` those of side A stand in `before`.
    `ranking` takes all of `results` together. `trace` is what a viewer is to be shown, `window_ns` where in it the
    hottest kernel's longest dispatch lies. `regressions` are what `--fail-if-slower` fails on.
    """

    results: tuple[ProfileResult, ...]
    before: tuple[ProfileResult, ...] = ()
    ranking: Ranking = field(default_factory=Ranking)
    spreads: tuple[Spread, ...] = ()
    comparison: Comparison | None = None
    regressions: tuple[KernelVerdict, ...] = ()
    out: Path | None = None
    trace: Path | None = None
    window_ns: tuple[int, int] | None = None
