"""A droplet watched from the client: figures while a command runs, and no droplet that could fail or delay it."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from hypothesis import given, settings
from hypothesis import strategies as st

from chisel.errors import HostUnreachable, RemoteError
from chisel.figures import Sample, Telemetry
from chisel.node.frames import Decoder, Kind, encode, encode_json
from chisel.profile.telemetry import MOST_SAMPLES, Watch, cause_of_slowness, watching
from chisel.sandbox.processes import processes_of
from tests.sync.conftest import Bench, bench  # noqa: F401 - a fixture

LEAVE_S = 2.0


def root_of(bench: Bench) -> Path:  # noqa: F811
    return bench.home.parent.parent


def roles(bench: Bench) -> list[int]:  # noqa: F811
    """Return the processes of the role on the droplet."""
    found = []
    for pid in processes_of([root_of(bench)]):
        try:
            if b"\0telemetry" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


async def until(holds: Callable[[], object]) -> None:
    with anyio.fail_after(15):
        while not await to_thread.run_sync(holds):  # noqa: ASYNC110 - another process's state sends no event
            await anyio.sleep(0.02)


def set_readings(bench: Bench, **readings: Any) -> None:  # noqa: F811
    place = root_of(bench) / "etc/chisel-standin.json"
    place.write_text(json.dumps(readings))


# -- against a droplet


async def test_figures_come_while_the_block_runs(bench: Bench) -> None:  # noqa: F811
    set_readings(bench, sclk_mhz=1259, power_w=749, hotspot_c=89)
    raw = bench.home / "raw"
    raw.mkdir()
    async with watching(bench.connection, raw="~/raw", interval_s=0.05) as watch:
        assert watch.telemetry() == Telemetry(), "entering waits for nothing"
        await until(lambda: len(watch.telemetry().samples) > 2)
        (raw / "x.db").write_bytes(b"x" * 4096)
        await until(lambda: watch.raw_bytes >= 4096)
    telemetry = watch.telemetry()
    assert telemetry.source == "amd-smi"
    assert (telemetry.power_cap_w, telemetry.sclk_max_mhz) == ({0: 750.0}, {0: 2100.0})
    assert telemetry.samples[0].at_s == 0.0, "instants count from the first look"
    assert [sample.at_s for sample in telemetry.samples] == sorted({sample.at_s for sample in telemetry.samples})
    assert {(one.sclk_mhz, one.power_w, one.hotspot_c) for one in telemetry.samples} == {(1259.0, 749.0, 89.0)}
    [note] = telemetry.notes
    assert note.startswith("GPU 0 was held back by its power limit")
    facts = watch.fingerprint()
    assert list(facts)[:3] == ["ROCm", "amdgpu driver", "kernel"]
    assert facts["hipcc"] == "7.2.0-sandbox-standin"
    await until(lambda: not roles(bench))


@pytest.mark.parametrize("bench", ["5.7"], indirect=True)
async def test_an_older_droplet_is_watched_too(bench: Bench) -> None:  # noqa: F811
    async with watching(bench.connection, raw=None, interval_s=0.05) as watch:
        await until(lambda: watch.telemetry().samples)
    assert watch.telemetry().source == "rocm-smi"
    assert watch.fingerprint()["ROCm"] == "5.7.1-sandbox-standin"


async def test_a_block_that_is_over_at_once_still_learns_who_the_droplet_is(bench: Bench) -> None:  # noqa: F811
    await bench.connection.ask("status", {})  # the program is there, as after any sync
    async with watching(bench.connection, raw=None) as watch:
        await until(lambda: roles(bench))
    assert watch.fingerprint()["ROCm"] == "7.2.0-sandbox-standin"
    assert watch.telemetry().notes == ()


async def test_the_blocks_own_exception_passes_as_it_is(bench: Bench) -> None:  # noqa: F811
    async def divide() -> None:
        async with watching(bench.connection, raw=None) as watch:
            await until(watch.fingerprint)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await divide()
    await until(lambda: not roles(bench))


@pytest.mark.parametrize("stage", ["at once", "started", "sampling"])
async def test_cancelled_it_leaves_nothing(bench: Bench, stage: str) -> None:  # noqa: F811
    began_at = 0.0
    with anyio.move_on_after(60) as scope:
        async with watching(bench.connection, raw=None, interval_s=0.05) as watch:
            if stage == "started":
                await until(lambda: roles(bench))
            elif stage == "sampling":
                await until(lambda: watch.telemetry().samples)
            began_at = time.monotonic()
            scope.cancel()
            await anyio.sleep_forever()
    assert time.monotonic() - began_at < LEAVE_S + 0.5
    await until(lambda: not roles(bench))
    await until(lambda: not bench.connection._links[0].raw._channels)
    assert bench.connection._links[0].sessions == 0
    assert await bench.connection.ask("status", {}), "the connection serves on"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_role_that_dies_or_hangs_costs_a_note(bench: Bench, number: int) -> None:  # noqa: F811
    async with watching(bench.connection, raw=None, interval_s=0.05) as watch:
        await until(lambda: watch.telemetry().samples)
        [pid] = roles(bench)
        os.kill(pid, number)
        began_at = time.monotonic()
    try:
        assert time.monotonic() - began_at < LEAVE_S
        assert watch.telemetry().samples
        said = "did not end its telemetry in time" if number == signal.SIGSTOP else "ended early"
        assert said in watch.telemetry().notes[-1]
    finally:
        if number == signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
    await until(lambda: not roles(bench))


async def test_a_hanging_tool_delays_nothing(bench: Bench) -> None:  # noqa: F811
    set_readings(bench, tools={"amd-smi": "hangs", "rocm-smi": "hangs"})
    async with watching(bench.connection, raw=None) as watch:
        await until(watch.fingerprint)
        began_at = time.monotonic()
    assert time.monotonic() - began_at < LEAVE_S
    assert replace(watch.telemetry(), notes=()) == Telemetry(), "on a busy machine it may say that it was late"
    assert watch.fingerprint()["kernel"] == "6.8.0-sandbox-standin"
    await until(lambda: not [pid for pid in processes_of([root_of(bench)]) if b"smi" in command_of(pid)])


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


# -- against droplets that lie


class Liar:
    """A connection whose droplet says what a test writes, and then nothing more; or does not answer at all."""

    def __init__(self, *answers: bytes, refuses: Exception | None = None, is_deaf: bool = False) -> None:
        self.answers = b"".join(answers)
        self.refuses = refuses
        self.is_deaf = is_deaf
        self.is_open = False

    @asynccontextmanager
    async def node(self, role: str, request: dict[str, Any]) -> AsyncIterator[Liar]:
        assert role == "telemetry"
        if self.refuses is not None:
            raise self.refuses
        if self.is_deaf:
            await anyio.sleep_forever()
        self.is_open = True
        try:
            yield self
        finally:
            self.is_open = False

    async def receive(self) -> list[Any]:
        frames = Decoder().feed(self.answers)
        self.answers = b""
        return frames

    async def send(self, kind: int, payload: bytes = b"") -> None:
        raise HostUnreachable("gone", host="liar")

    def done(self) -> None:
        return


async def watched(liar: Liar) -> Watch:
    began_at = time.monotonic()
    async with watching(liar, raw=None) as watch:
        await anyio.lowlevel.checkpoint()
    assert time.monotonic() - began_at < LEAVE_S
    assert not liar.is_open
    return watch


@pytest.mark.parametrize(
    ("liar", "said"),
    [
        (Liar(refuses=HostUnreachable("`one` is gone", host="one")), "no telemetry: `one` is gone"),
        (Liar(refuses=RemoteError("no", host="one", code="x")), "no telemetry: no"),
        (Liar(refuses=RuntimeError("bug")), "makes no sense (RuntimeError)"),
        (Liar(is_deaf=True), "did not end its telemetry in time"),
        (Liar(), "ended early"),
        (Liar(encode_json(Kind.ERROR, {"code": "no-role", "message": "no role `telemetry`"})), "no role `telemetry`"),
        (Liar(encode(Kind.ERROR, b"[]")), "makes no sense (FrameError)"),
        (Liar(encode(Kind.PROGRESS, b"{")), "makes no sense (FrameError)"),
        (Liar(encode(Kind.PROGRESS, b"[" * 100_000)), "makes no sense"),
        (Liar(encode(200 % 22, b"x"), encode_json(Kind.STDOUT, {})), "ended early"),
        (Liar(encode_json(Kind.PROGRESS, {"source": 7, "samples": {"gpu": 0}, "fingerprint": [1]})), "ended early"),
    ],
)
async def test_a_droplet_that_lies_gives_a_note(liar: Liar, said: str) -> None:
    watch = await watched(liar)
    [note] = watch.telemetry().notes
    assert said in note
    assert watch.telemetry() == Telemetry(notes=(note,))
    assert watch.raw_bytes == 0
    assert watch.fingerprint() == {}


@pytest.mark.parametrize(
    ("told", "telemetry"),
    [
        ({"source": "amd-smi"}, Telemetry(source="amd-smi")),
        ({"source": "<script>"}, Telemetry()),
        (
            {"power_cap_w": {"0": 750, "1": "750", "x": 1, "-1": 2, "²": 3, "2": math.nan, "100": 5}},
            Telemetry(power_cap_w={0: 750.0}),
        ),
        ({"sclk_max_mhz": {"3": 2100.5, "4": True, "5": -1, "6": 10**400}}, Telemetry(sclk_max_mhz={3: 2100.5})),
        (
            {"samples": [{"at_s": 5, "gpu": 1, "sclk_mhz": 1259, "power_w": "749", "busy": -3, "mclk_mhz": None}]},
            Telemetry(samples=(Sample(0.0, 1, sclk_mhz=1259.0),)),
        ),
        ({"samples": [{"gpu": 0}, {"at_s": 1}, {"at_s": 1, "gpu": True}, {"at_s": 1, "gpu": 64}, 7]}, Telemetry()),
    ],
)
def test_what_does_not_fit_is_left_out(told: dict[str, Any], telemetry: Telemetry) -> None:
    watch = Watch()
    watch.take(told)
    assert watch.telemetry() == telemetry


def test_texts_are_bounded_and_carry_no_control_characters() -> None:
    watch = Watch()
    watch.take({"fingerprint": {f"label {n}": "x\x1b[31m\n" * 1000 for n in range(100)}, "raw_bytes": True})
    watch.take({"fingerprint": {"one more": "y", 3: "z"}, "raw_bytes": -5})
    watch.note(*(["\x07bell " * 1000] * 50), 7)
    facts, notes = watch.fingerprint(), watch.telemetry().notes
    assert (len(facts), len(notes), watch.raw_bytes) == (32, 20, 0)
    for text in (*facts.values(), *notes):
        assert len(text) <= 300
        assert text.isprintable()


@pytest.mark.parametrize("gpus", [1, 8])
def test_long_watches_are_thinned_out_evenly(gpus: int) -> None:
    watch = Watch()
    looks = 20_000
    for look in range(looks):
        watch.take({"samples": [{"at_s": look, "gpu": gpu, "sclk_mhz": look} for gpu in range(gpus)]})
    samples = watch.telemetry().samples
    assert MOST_SAMPLES / 2 - gpus <= len(samples) <= MOST_SAMPLES
    times = [sample.at_s for sample in samples if sample.gpu == 0]
    assert len({later - earlier for earlier, later in pairwise(times)}) == 1
    assert times[-1] >= looks * 0.99 - 100
    assert {sample.gpu for sample in samples} == set(range(gpus))


def test_time_does_not_run_backwards() -> None:
    watch = Watch()
    for at_s in (1.0, 3.0, 2.0, 4.0):
        watch.take({"samples": [{"at_s": at_s, "gpu": 0}]})
    assert [sample.at_s for sample in watch.telemetry().samples] == [0.0, 2.0, 3.0]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["source", "samples", "at_s", "gpu", "raw_bytes", "fingerprint", "power_cap_w", "0"]), inner
        )
    ),
    max_leaves=20,
)


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(["source", "samples", "raw_bytes", "fingerprint", "power_cap_w"]), JSON))
def test_nonsense_raises_nothing(told: dict[str, Any]) -> None:
    watch = Watch()
    watch.take(told)
    watch.take(told)
    assert watch.raw_bytes >= 0
    cause_of_slowness(watch.telemetry(), [watch.telemetry()])


# -- the cause


def load(
    mhz: float | None, watts: float | None = 600, celsius: float | None = 70, *, cap: float | None = 750,
    idle: int = 0, busy: float | None = 99, gpu: int = 0, looks: int = 5,
) -> Telemetry:  # fmt: skip
    """A GPU under load, with idle looks before."""
    samples = [
        Sample(float(n), gpu, 132.0, 900.0, 150.0, 40.0, 35.0, None if busy is None else 0.0) for n in range(idle)
    ]
    samples += [Sample(float(idle + n), gpu, mhz, 1300.0, watts, celsius, 60.0, busy) for n in range(looks)]
    return Telemetry("amd-smi", tuple(samples), {} if cap is None else {gpu: cap}, {gpu: 2100.0})


AT_CAP = "at its power cap: 749 of 750 W"
HEALTHY = (load(2071), load(2065, 612, 72))


@pytest.mark.parametrize(
    ("one", "others", "cause"),
    [
        (load(1259, 749, 89), HEALTHY, "at its power cap: 749 of 750 W, 1259 MHz where the others run 2068"),
        (load(1259, 749, 89, idle=50), HEALTHY, "at its power cap: 749 of 750 W, 1259 MHz where the others run 2068"),
        (load(1259, 749, idle=50, busy=None), HEALTHY[:1], f"{AT_CAP}, 1259 MHz where the others run 2071"),
        (load(1259, 749), [load(2071, idle=90, busy=None)], f"{AT_CAP}, 1259 MHz where the others run 2071"),
        (load(2070, 749), HEALTHY, None),  # at the cap, and as fast as the others
        (load(1259, 749), [load(1270, 749), load(1255, 748)], None),  # all are
        (load(1259, 749), [], "at its power cap: 749 of 750 W, 1259 of 2100 MHz"),
        (load(2050, 749), [], None),
        (load(None, 749), [load(None, 600)], "at its power cap: 749 of 750 W"),
        (load(None, 749), [load(None, 749)], None),
        (load(1600, 500, 101), HEALTHY, "hot: 101 C, 1600 MHz where the others run 2068 at 71 C"),
        (load(2071, 500, 101), HEALTHY, None),  # hot, and as fast as the others
        (load(None, 500, 101), [load(None, 500, 80)], "hot: 101 C where the others are at 80"),
        (load(None, 500, 101), [load(None, 500, 99)], None),  # all are hot
        (load(1600, 500, 75), HEALTHY, "at a lower clock: 1600 MHz where the others run 2068"),
        (load(1600, None, None, cap=None), HEALTHY, "at a lower clock: 1600 MHz where the others run 2068"),
        (load(2040, 600, 75), HEALTHY, None),
        (load(1600, 500, 75), [], None),
        (load(1600, 500, 75), [Telemetry()], None),
        (Telemetry(), HEALTHY, None),
        (Telemetry(samples=(Sample(0.0, 0),)), HEALTHY, None),
    ],
)  # fmt: skip
def test_the_cause_is_named_where_the_samples_show_one(
    one: Telemetry, others: Sequence[Telemetry], cause: str | None
) -> None:
    assert cause_of_slowness(one, others) == cause


def test_of_several_gpus_the_one_that_is_held_back_is_named() -> None:
    parts = [load(2071), load(1259, 749, gpu=1), load(2060, gpu=2)]
    one = Telemetry(
        "amd-smi",
        tuple(sample for part in parts for sample in part.samples),
        dict.fromkeys(range(3), 750.0),
        dict.fromkeys(range(3), 2100.0),
    )
    expected = "GPU 1 at its power cap: 749 of 750 W, 1259 MHz where the others run 2068"
    assert cause_of_slowness(one, HEALTHY) == expected
