"""Watch a profile: clocks, power and temperatures of the GPUs, and how its files grow: the `telemetry` role.

The conversation: REQUEST `{"interval_s": 1.0, "raw": "~/.chisel/profiles/<id>/raw" or null}`; PROGRESS frames with an
object each: first `source`, `power_cap_w`, `sclk_max_mhz` (by GPU number) and `fingerprint` (label to text), then every
interval `samples` and `raw_bytes` (the size of the files below `raw`), once more a `fingerprint` with what took its
time; END or the end of the input; REPLY `{"notes"}`. Instants count from the role's beginning, in seconds.

One process of a tool at a time, which never takes more than a quarter of the time; amd-smi where it tells the clock,
else rocm-smi, else sysfs. Standard library only, Python 3.10.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from . import env, frames, sysfs
from .sensors import Look, number, read_amd_smi, read_rocm_smi
from .stdio import Channel

TOOL_DEADLINE_S = 5.0
FAILURES = 3
_SHORTEST_S, _LONGEST_S = 0.05, 60.0
_IDLE_PER_WORK = 3.0
_LARGEST_ANSWER = 4 << 20
_MOST_FILES = 50_000
_CHUNK = 1 << 16
_NICE = 10

_LOOK = ("--usage", "--power", "--clock", "--temperature")
# What a version or a virtual machine does not know, its argparse refuses as a whole: ask for less, at last for all.
_AMD_METRIC = (
    ("amd-smi", "metric", *_LOOK, "--violation", "--perf-level", "--json"),
    ("amd-smi", "metric", *_LOOK, "--json"),
    ("amd-smi", "metric", "--json"),
)
_AMD_STATIC = (
    ("amd-smi", "static", "--asic", "--limit", "--driver", "--partition", "--json"),
    ("amd-smi", "static", "--json"),
)
_ROCM_LOOK = ("rocm-smi", "--showpower", "--showclocks", "--showtemp", "--showuse", "--json")
_ROCM_FACTS = ("rocm-smi", "--showmaxpower", "--showproductname", "--showperflevel", "--json")
_ROCM_PARTITION = ("rocm-smi", "--showcomputepartition", "--showmemorypartition", "--json")
_REASONS = {
    "ppt": "its power limit",
    "socket_thermal": "the temperature of the socket",
    "hbm_thermal": "the temperature of its memory",
    "vr_thermal": "the temperature of its voltage regulators",
    "prochot": "PROCHOT (too hot)",
}


class Over(Exception):
    """The client wants no more."""


class Input:
    """Watch for the end: END, or the end of the input."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.fileno = channel.fileno_in
        self._judge(list(channel.waiting))

    def read(self) -> None:
        """Take what has come; raises Over when it is the end."""
        data = os.read(self.fileno, _CHUNK)
        if not data:
            raise Over
        self._judge(self._channel.decoder.feed(data))

    def wait(self, seconds: float) -> None:
        """Wait so long; raises Over as soon as the end comes."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([self.fileno], [], [], left)[0]:
                self.read()

    def _judge(self, found: list[frames.Frame]) -> None:
        if any(frame.kind == frames.Kind.END for frame in found):
            raise Over


class Tools:
    """Run tools one at a time, within their deadline; the end of the conversation ends them too."""

    def __init__(self, channel_input: Input, environment: Mapping[str, str]) -> None:
        self._input = channel_input
        self._environment = dict(environment)
        self.took_s = 0.0

    def has(self, tool: str) -> bool:
        """Say whether there is such a tool."""
        return shutil.which(tool, path=self._environment.get("PATH", os.defpath)) is not None

    def run(self, words: tuple[str, ...], deadline_s: float = TOOL_DEADLINE_S) -> str | None:
        """Return what a tool prints, None when it is not there or was not ready in time; raises Over."""
        program = shutil.which(words[0], path=self._environment.get("PATH", os.defpath))
        if program is None:
            return None
        began_at = time.monotonic()
        try:
            process = subprocess.Popen(
                [program, *words[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=self._environment, start_new_session=True,
            )  # fmt: skip
        except OSError:
            return None
        try:
            return self._output(process, began_at + deadline_s)
        finally:
            _end(process)
            self.took_s += time.monotonic() - began_at

    def _output(self, process: subprocess.Popen[bytes], until: float) -> str | None:
        assert process.stdout is not None
        said = bytearray()
        answer = process.stdout.fileno()
        while (left := until - time.monotonic()) > 0 and len(said) < _LARGEST_ANSWER:
            ready = select.select([answer, self._input.fileno], [], [], left)[0]
            if self._input.fileno in ready:
                self._input.read()
            if answer in ready:
                data = os.read(answer, _CHUNK)
                if not data:
                    return said.decode("utf-8", "replace")
                said += data
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a tool with its children, and reap it."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


class Source:
    """One way to look at the GPUs; `failures` counts looks in a row that gave nothing."""

    def __init__(self, name: str, look: Callable[[], list[Look]]) -> None:
        self.name = name
        self._look = look
        self.failures = 0

    def look(self) -> list[Look]:
        """Look once; an empty list is a failure."""
        found = [look for look in self._look() if look.values]
        self.failures = 0 if found else self.failures + 1
        return found


class Watcher:
    """One watch from its beginning to its end."""

    def __init__(self, channel: Channel, request: dict[str, Any]) -> None:
        self._channel = channel
        self._interval_s = min(max(number(request.get("interval_s")) or 1.0, _SHORTEST_S), _LONGEST_S)
        raw = request.get("raw")
        self._raw = env.expand(str(raw)) if raw else None
        self._began_at = time.monotonic()
        self._sources: list[Source] = []
        self._looks = 0
        self._throttled: Counter[tuple[int, str]] = Counter()
        self._was_told = False
        self._fingerprint = quick_facts()
        self.notes: list[str] = []

    def run(self) -> None:
        """Watch until the client wants no more."""
        try:
            channel_input = Input(self._channel)
            tools = Tools(channel_input, env.command_environment({}))
            first = self._choose(tools)
            at_s = self._now_s()
            self._tell(first, *_facts_of(tools, self._source_name()))
            self._send_samples(first, at_s)
            self._send_compiler(tools)
            self._go_on(channel_input, tools)
        except Over:
            if not self._was_told:
                self._tell([], {}, {}, {})

    def _choose(self, tools: Tools) -> list[Look]:
        """Take the first source that tells clock and power, else the one that tells most; return its look."""
        best: list[Look] = []
        chosen: Source | None = None
        possible = _possible(tools)
        for source in possible:
            found = source.look()
            if found and (chosen is None or _richness(found) > _richness(best)):
                chosen, best = source, found
            if _richness(best) == len(_WANTED):
                break
        if chosen is None:
            self.notes.append("nothing on the droplet tells the GPUs' clocks and power")
        else:
            self._sources = [chosen, *(source for source in possible if source is not chosen)]
        return best

    def _source_name(self) -> str | None:
        return self._sources[0].name if self._sources else None

    def _tell(self, looks: list[Look], caps: dict[int, float], tops: dict[int, float], facts: dict[str, str]) -> None:
        own_caps = {look.gpu: look.power_cap_w for look in looks if look.power_cap_w}
        own_tops = {look.gpu: look.sclk_max_mhz for look in looks if look.sclk_max_mhz}
        told = {**_gathered(looks), **facts}
        self._fingerprint.update({name: text for name, text in told.items() if name not in self._fingerprint})
        self._was_told = True
        self._send(
            source=self._source_name(),
            power_cap_w={str(gpu): watts for gpu, watts in {**own_caps, **caps}.items()},
            sclk_max_mhz={str(gpu): mhz for gpu, mhz in {**tops, **own_tops}.items()},
            fingerprint=self._fingerprint,
        )

    def _go_on(self, channel_input: Input, tools: Tools) -> None:
        at = time.monotonic()
        while True:
            at = max(at + self._interval_s, time.monotonic() + _IDLE_PER_WORK * tools.took_s)
            channel_input.wait(at - time.monotonic())
            tools.took_s = 0.0
            looks = self._look()
            self._send_samples(looks, self._now_s())

    def _now_s(self) -> float:
        return round(time.monotonic() - self._began_at, 3)

    def _look(self) -> list[Look]:
        if not self._sources:
            return []
        source = self._sources[0]
        found = source.look()
        if source.failures >= FAILURES:
            self._sources.pop(0)
            self.notes.append(f"`{source.name}` gave no readings {FAILURES} times in a row and was given up")
            self._send(source=self._source_name())
        return found

    def _send_samples(self, looks: list[Look], at_s: float) -> None:
        self._looks += bool(looks)
        self._throttled.update((look.gpu, reason) for look in looks for reason in look.throttled)
        samples = [
            {"at_s": at_s, "gpu": look.gpu, **{name: round(value, 1) for name, value in look.values.items()}}
            for look in looks
        ]
        self._send(samples=samples, raw_bytes=size_below(self._raw))

    def _send_compiler(self, tools: Tools) -> None:
        said = tools.run(("hipcc", "--version")) or ""
        version = next((line.partition(":")[2].strip() for line in said.splitlines() if "HIP version" in line), "")
        if version:
            self._send(fingerprint={"hipcc": version})

    def _send(self, **facts: Any) -> None:
        self._channel.send_json(frames.Kind.PROGRESS, facts)

    def all_notes(self) -> list[str]:
        """Return what is to be known besides the figures."""
        held = [
            f"GPU {gpu} was held back by {_REASONS.get(reason, reason)} in {count} of {self._looks} looks"
            for (gpu, reason), count in sorted(self._throttled.items())
        ]
        return [*held, *self.notes]


_WANTED = ("sclk_mhz", "power_w")


def _richness(looks: list[Look]) -> int:
    """Say how much of what matters most, clock and power, a source tells."""
    return sum(any(name in look.values for look in looks) for name in _WANTED)


def _possible(tools: Tools) -> list[Source]:
    found = []
    if tools.has("amd-smi"):
        found.append(Source("amd-smi", _AmdSmi(tools)))
    if tools.has("rocm-smi"):
        found.append(Source("rocm-smi", lambda: read_rocm_smi(tools.run(_ROCM_LOOK) or "")))
    return [*found, Source("sysfs", sysfs.looks)]


class _AmdSmi:
    """Ask amd-smi, by the fullest question that it answers."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._questions = list(_AMD_METRIC)

    def __call__(self) -> list[Look]:
        for skipped, question in enumerate(self._questions):
            said = self._tools.run(question)
            if said is None:
                break  # it hangs: other words would not help
            found = read_amd_smi(said)
            if any(look.values for look in found):
                self._questions = self._questions[skipped:]
                return found
        return []


def _facts_of(tools: Tools, source: str | None) -> tuple[dict[int, float], dict[int, float], dict[str, str]]:
    """Return power caps and highest clocks by GPU, and texts, from whatever tells them; asked once."""
    looks: list[Look] = []
    if source == "amd-smi":
        for question in _AMD_STATIC:
            looks = read_amd_smi(tools.run(question) or "")
            if looks:
                break
    caps = {look.gpu: look.power_cap_w for look in looks if look.power_cap_w}
    if source == "rocm-smi" or (source == "amd-smi" and not caps):
        # An MI300X in a virtual machine was seen to tell its cap to rocm-smi only.
        told = read_rocm_smi(tools.run(_ROCM_FACTS) or "")
        caps = {look.gpu: look.power_cap_w for look in told if look.power_cap_w}
        looks = looks or [*told, *read_rocm_smi(tools.run(_ROCM_PARTITION) or "")]
    below = sysfs.looks()
    tops = {look.gpu: look.sclk_max_mhz for look in below if look.sclk_max_mhz}
    caps = caps or {look.gpu: look.power_cap_w for look in below if look.power_cap_w}
    return caps, tops, _gathered(looks)


def _gathered(looks: list[Look]) -> dict[str, str]:
    """Return the GPUs' texts, equal ones said once."""
    found: dict[str, list[str]] = {}
    for look in looks:
        for name, text in look.facts.items():
            found.setdefault(name, []).append(text)
    return {name: _counted(texts) for name, texts in found.items()}


def _counted(texts: list[str]) -> str:
    counts = Counter(texts)
    if len(counts) == 1 and len(texts) > 1:
        return f"{len(texts)} x {texts[0]}"
    return ", ".join(counts)


def quick_facts() -> dict[str, str]:
    """Return the texts that files tell: ROCm, the driver, the kernel; what is not there is left out."""
    places = {
        "ROCm": "/opt/rocm/.info/version",
        "amdgpu driver": "/sys/module/amdgpu/version",
        "kernel": "/proc/sys/kernel/osrelease",
    }
    found = {label: sysfs.text_of(env.system_path(path)) for label, path in places.items()}
    return {label: text for label, text in found.items() if text}


def size_below(directory: str | None) -> int:
    """Return how many bytes the files below a directory have; links are not followed, what vanishes counts as none."""
    total = seen = 0
    for place, _, names in os.walk(directory) if directory else ():
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
        seen += len(names)
        if seen > _MOST_FILES:
            break
    return total


def main(channel: Channel, request: dict[str, Any]) -> int:
    """Watch until the input ends or END comes; return 0."""
    with suppress(OSError):
        os.nice(_NICE)  # the profile comes first
    watcher = Watcher(channel, request)
    watcher.run()
    channel.send_json(frames.Kind.REPLY, {"notes": watcher.all_notes()})
    return 0
