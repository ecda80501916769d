"""Watch a droplet's clocks, power and temperatures while a command is profiled there, and say what slowed it.

Nothing here may fail or delay a profile: what goes wrong becomes a note of the Telemetry.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, Protocol

import anyio

from chisel.errors import ChiselError
from chisel.figures import Sample, Telemetry
from chisel.node.frames import Frame, Kind
from chisel.ssh.refusal import remote_error

MOST_SAMPLES = 4000
"""A longer watch keeps every second look, then every fourth, and so on."""
_LEAVE_S = 1.2
_LEAVE_UNGREETED_S = 0.4
_MOST_GPUS = 64
_MOST_FACTS, _LONGEST_LABEL, _LONGEST_FACT = 32, 64, 300
_MOST_NOTES = 20
_LARGEST = 1e7
_SOURCES = frozenset({"amd-smi", "rocm-smi", "sysfs"})
_FIGURES = ("sclk_mhz", "mclk_mhz", "power_w", "hotspot_c", "memory_c", "busy")


class Connection(Protocol):
    """What watching needs of a connection."""

    def node(self, role: str, request: dict[str, Any]) -> Any:
        """Start a role of the node program: an async context manager of a channel."""


class Watch:
    """What a droplet has told so far; `raw_bytes` is the size of the profiler's files, which a user may follow."""

    def __init__(self) -> None:
        self.raw_bytes = 0
        self._source: str | None = None
        self._looks: list[list[Sample]] = []
        self._count = 0
        self._seen = 0
        self._stride = 1
        self._caps: dict[int, float] = {}
        self._tops: dict[int, float] = {}
        self._facts: dict[str, str] = {}
        self._notes: list[str] = []

    def telemetry(self) -> Telemetry:
        """Return the samples so far, at most `MOST_SAMPLES`, their instants counted from the first."""
        first_s = self._looks[0][0].at_s if self._looks else 0.0
        samples = tuple(
            Sample(round(sample.at_s - first_s, 3), sample.gpu, *(getattr(sample, name) for name in _FIGURES))
            for look in self._looks
            for sample in look
        )
        return Telemetry(self._source, samples, dict(self._caps), dict(self._tops), tuple(self._notes))

    def fingerprint(self) -> Mapping[str, str]:
        """Return what the droplet says of itself, by label: ROCm, driver, GPU, ..."""
        return dict(self._facts)

    def take(self, told: Mapping[str, Any]) -> None:
        """Take one object of the droplet's, believing nothing: what does not fit is left out."""
        if "source" in told:
            source = told["source"]
            self._source = source if isinstance(source, str) and source in _SOURCES else self._source
        self._caps.update(_by_gpu(told.get("power_cap_w")))
        self._tops.update(_by_gpu(told.get("sclk_max_mhz")))
        self._facts.update(_texts(told.get("fingerprint"), _MOST_FACTS - len(self._facts)))
        size = told.get("raw_bytes")
        if type(size) is int and 0 <= size < 1 << 63:
            self.raw_bytes = size
        samples = told.get("samples")
        if isinstance(samples, list):
            self._add([one for one in map(_sample, samples[:_MOST_GPUS]) if one is not None])

    def _add(self, look: list[Sample]) -> None:
        if not look or (self._looks and look[0].at_s < self._looks[-1][0].at_s):
            return
        self._seen += 1
        if (self._seen - 1) % self._stride:
            return
        self._looks.append(look)
        self._count += len(look)
        if self._count > MOST_SAMPLES:
            self._looks = self._looks[::2]
            self._stride *= 2
            self._count = sum(map(len, self._looks))

    def note(self, *notes: object) -> None:
        """Add notes, as many as there is room for."""
        texts = (_clean(note, _LONGEST_FACT) for note in notes if isinstance(note, str))
        self._notes = [*self._notes, *(text for text in texts if text)][:_MOST_NOTES]


def _clean(text: str, longest: int) -> str:
    return "".join(letter for letter in text[:longest] if letter.isprintable()).strip()


def _texts(found: Any, room: int) -> Iterator[tuple[str, str]]:
    for label, text in list(found.items())[: max(room, 0)] if isinstance(found, dict) else ():
        if isinstance(label, str) and isinstance(text, str) and _clean(label, _LONGEST_LABEL):
            yield _clean(label, _LONGEST_LABEL), _clean(text, _LONGEST_FACT)


def _figure(value: Any) -> float | None:
    if type(value) not in (int, float):
        return None
    try:
        figure = float(value)
    except OverflowError:
        return None
    return figure if math.isfinite(figure) and 0 <= figure <= _LARGEST else None


def _by_gpu(found: Any) -> Iterator[tuple[int, float]]:
    for gpu, value in list(found.items())[:_MOST_GPUS] if isinstance(found, dict) else ():
        figure = _figure(value)
        if isinstance(gpu, str) and gpu.isascii() and gpu.isdecimal() and len(gpu) < 3 and figure is not None:
            yield int(gpu), figure


def _sample(found: Any) -> Sample | None:
    if not isinstance(found, dict):
        return None
    at_s, gpu = _figure(found.get("at_s")), found.get("gpu")
    if at_s is None or type(gpu) is not int or not 0 <= gpu < _MOST_GPUS:
        return None
    return Sample(at_s, gpu, *(_figure(found.get(name)) for name in _FIGURES))


@asynccontextmanager
async def watching(connection: Connection, *, raw: str | None, interval_s: float = 1.0) -> AsyncIterator[Watch]:
    """Watch a droplet while the block runs; `raw` is the directory there whose growth is told.

    Entering waits for nothing. Leaving waits for the droplet's last word, two seconds at most; a droplet that refuses,
    dies, hangs or lies gives what it gave until then, and a note. The block's own exceptions pass as they are.
    Cancelled, it leaves no task and no channel; the role there ends with its channel.
    """
    watch = Watch()
    follower = _Follower(connection, {"interval_s": interval_s, "raw": raw}, watch)
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follower.run)
        try:
            yield watch
        except Exception as error:  # noqa: BLE001 - raised below, outside the group, which would wrap it
            failure = error
        await follower.leave()
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


class _Follower:
    """Follow the role from its start to its last word."""

    def __init__(self, connection: Connection, request: dict[str, Any], watch: Watch) -> None:
        self._connection = connection
        self._request = request
        self._watch = watch
        self._channel: Any = None
        self._is_leaving = False
        self._has_ended = anyio.Event()

    async def run(self) -> None:
        """Take what comes; everything that goes wrong becomes a note."""
        try:
            async with self._connection.node("telemetry", self._request) as channel:
                self._channel = channel
                try:
                    await self._follow(channel)
                finally:
                    channel.done()  # nothing more is waited for: the role sees the end of its input
        except ChiselError as error:
            self._watch.note(f"no telemetry: {error.message}")
        except Exception as error:  # noqa: BLE001 - the task's boundary: it becomes a note
            self._watch.note(f"no telemetry: the droplet's answer makes no sense ({type(error).__name__})")
        finally:
            self._has_ended.set()

    async def leave(self) -> None:
        """Ask for the last word, and wait for it a little."""
        self._is_leaving = True
        with anyio.move_on_after(_LEAVE_S if self._channel is not None else _LEAVE_UNGREETED_S):
            if self._channel is not None:
                with suppress(ChiselError):  # it ends by itself then, and says why
                    await self._channel.send(Kind.END)
            await self._has_ended.wait()
        if not self._has_ended.is_set():
            self._watch.note("the droplet did not end its telemetry in time")

    async def _follow(self, channel: Any) -> None:
        if self._is_leaving:
            await channel.send(Kind.END)
        while frames := await channel.receive():
            if any([self._is_last(frame) for frame in frames]):  # noqa: C419 - every frame is taken
                return
        self._watch.note("the droplet's telemetry ended early")

    def _is_last(self, frame: Frame) -> bool:
        if frame.kind == Kind.PROGRESS:
            self._watch.take(frame.json())
        elif frame.kind == Kind.ERROR:
            self._watch.note(f"no telemetry: {remote_error(frame, 'the droplet').message}")
        elif frame.kind == Kind.REPLY:
            notes = frame.json().get("notes")
            self._watch.note(*(notes if isinstance(notes, list) else ())[:_MOST_NOTES])
        return frame.kind in {Kind.ERROR, Kind.REPLY}


class _Load(NamedTuple):
    """One GPU under load: medians; None where nothing was told."""

    gpu: int
    sclk_mhz: float | None
    power_w: float | None
    hotspot_c: float | None
    power_cap_w: float | None
    sclk_max_mhz: float | None

    @property
    def is_at_cap(self) -> bool:
        return bool(self.power_w and self.power_cap_w and self.power_w >= _AT_CAP * self.power_cap_w)


_AT_CAP = 0.98
_LOWER = 0.97
"""A clock below 97 % of the others' is a cause: healthy MI300X under the same load differ by a percent or so."""
_FAR_BELOW_TOP = 0.9
_HOT_C, _HOTTER_C = 90.0, 10.0
_BUSY = 50.0


def cause_of_slowness(one: Telemetry, others: Sequence[Telemetry]) -> str | None:
    """Say what in a droplet's telemetry may have slowed its kernels: power cap, temperature, clock; None for nothing.

    It is compared with the other droplets' GPUs under load. Without others only a power cap with a clock far below the
    highest is named.
    """
    loads = _loads(one)
    if not loads:
        return None
    compared = [load for other in others for load in _loads(other)]
    usual_mhz = _median(load.sclk_mhz for load in compared)
    usual_c = _median(load.hotspot_c for load in compared)
    slowest = min(loads, key=lambda load: load.sclk_mhz if load.sclk_mhz is not None else math.inf)
    candidates = [slowest, *(load for load in loads if load is not slowest)]
    for load in candidates:
        cause = _capped(load, compared, usual_mhz) or _hot(load, usual_mhz, usual_c) or _slow(load, usual_mhz)
        if cause:
            return f"GPU {load.gpu} {cause}" if len(loads) > 1 else cause
    return None


def _capped(load: _Load, others: Sequence[_Load], usual_mhz: float | None) -> str | None:
    if not load.is_at_cap:
        return None
    figures = f"at its power cap: {load.power_w:.0f} of {load.power_cap_w:.0f} W"
    if load.sclk_mhz is not None and usual_mhz is not None:
        is_lower = load.sclk_mhz < _LOWER * usual_mhz
        return f"{figures}, {load.sclk_mhz:.0f} MHz where the others run {usual_mhz:.0f}" if is_lower else None
    if others:
        return None if any(other.is_at_cap for other in others) else figures
    if load.sclk_mhz is not None and load.sclk_max_mhz and load.sclk_mhz < _FAR_BELOW_TOP * load.sclk_max_mhz:
        return f"{figures}, {load.sclk_mhz:.0f} of {load.sclk_max_mhz:.0f} MHz"
    return None


def _hot(load: _Load, usual_mhz: float | None, usual_c: float | None) -> str | None:
    if load.hotspot_c is None or usual_c is None:
        return None
    if load.hotspot_c < _HOT_C or load.hotspot_c < usual_c + _HOTTER_C:
        return None
    if load.sclk_mhz is None or usual_mhz is None:
        return f"hot: {load.hotspot_c:.0f} C where the others are at {usual_c:.0f}"
    if load.sclk_mhz >= _LOWER * usual_mhz:
        return None
    clocks = f"{load.sclk_mhz:.0f} MHz where the others run {usual_mhz:.0f} at {usual_c:.0f} C"
    return f"hot: {load.hotspot_c:.0f} C, {clocks}"


def _slow(load: _Load, usual_mhz: float | None) -> str | None:
    if load.sclk_mhz is None or usual_mhz is None or load.sclk_mhz >= _LOWER * usual_mhz:
        return None
    return f"at a lower clock: {load.sclk_mhz:.0f} MHz where the others run {usual_mhz:.0f}"


def _loads(telemetry: Telemetry) -> list[_Load]:
    """Return each GPU's medians while it worked: idle looks before and after would hide what held it back."""
    by_gpu: dict[int, list[Sample]] = {}
    for sample in telemetry.samples:
        by_gpu.setdefault(sample.gpu, []).append(sample)
    found = []
    for gpu, samples in sorted(by_gpu.items()):
        working = _working(samples)
        sclk_mhz = _median(sample.sclk_mhz for sample in working)
        power_w = _median(sample.power_w for sample in working)
        hotspot_c = _median(sample.hotspot_c for sample in working)
        cap_w, top_mhz = telemetry.power_cap_w.get(gpu), telemetry.sclk_max_mhz.get(gpu)
        found.append(_Load(gpu, sclk_mhz, power_w, hotspot_c, cap_w, top_mhz))
    return found


def _working(samples: Sequence[Sample]) -> Sequence[Sample]:
    most_w = max((sample.power_w for sample in samples if sample.power_w is not None), default=0.0)

    def works(sample: Sample) -> bool:
        if sample.busy is not None:
            return sample.busy >= _BUSY
        return sample.power_w is None or sample.power_w >= most_w / 2

    return [sample for sample in samples if works(sample)] or samples


def _median(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
