"""The droplet's telemetry: what the tools of many versions say, and the role that asks them, as a process."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chisel.node.frames import Kind
from chisel.node.sensors import Look, json_within, number, read_amd_smi, read_rocm_smi
from chisel.sandbox.processes import processes_of
from chisel.sandbox.standins import install_standins
from tests.node.session import Session

ROLE = "telemetry"
ONE_PYTHON = pytest.mark.parametrize("python", ["current"], indirect=True)  # what is slow need not be slow twice


def told(value: float, unit: str = "MHz") -> dict[str, Any]:
    return {"value": value, "unit": unit}


# -- what the tools say


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (749, 749.0),
        (749.5, 749.5),
        ({"value": 749, "unit": "W"}, 749.0),
        ({"value": "749", "unit": "W"}, 749.0),
        ({"value": "N/A", "unit": "W"}, None),
        ({"unit": "W"}, None),
        ("(1259Mhz)", 1259.0),
        ("89.0", 89.0),
        ("1300 MHz", 1300.0),
        ("N/A", None),
        ("", None),
        (None, None),
        (True, None),
        ([749], None),
        (math.nan, None),
        (math.inf, None),
        ("1e999", None),
        (10**400, None),
        ("9" * 400, None),
    ],
)
def test_figures_are_read_however_they_are_written(value: object, expected: float | None) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', {"a": 1}),
        ("WARNING: not in the render group\n[1, 2]\n", [1, 2]),
        ('WARNING: {curly}\n{broken\n  {"a": 1}\nEnd of log', {"a": 1}),
        ("", None),
        ("no JSON at all", None),
        ("[" * 100_000, None),
    ],
)
def test_json_is_found_among_warnings(text: str, expected: object) -> None:
    assert json_within(text) == expected


MI300X_7 = {  # as captured on an MI300X of ROCm 7: no edge sensor, no clock of the eighth die
    "gpu": 0,
    "usage": {"gfx_activity": told(97, "%"), "umc_activity": told(3, "%"), "mm_activity": "N/A"},
    "power": {"socket_power": told(749, "W"), "gfx_voltage": "N/A", "throttle_status": "N/A"},
    "clock": {
        "gfx_0": {"clk": told(1250), "min_clk": told(132), "max_clk": told(2100), "deep_sleep": "DISABLED"},
        "gfx_1": {"clk": told(1268), "min_clk": told(132), "max_clk": told(2100)},
        "gfx_2": {"clk": "N/A", "min_clk": "N/A", "max_clk": "N/A"},
        "mem_0": {"clk": told(1300), "min_clk": told(900), "max_clk": told(1300)},
        "vclk_0": {"clk": told(29)},
    },
    "temperature": {"edge": "N/A", "hotspot": told(89, "C"), "mem": told(70, "C")},
    "throttle": {
        "accumulation_counter": 5, "ppt_violation_status": "ACTIVE", "ppt_violation_activity": told(90, "%"),
        "prochot_violation_status": "NOT ACTIVE", "hbm_thermal_violation_status": "N/A",
    },
    "perf_level": "AMDSMI_DEV_PERF_LEVEL_AUTO",
}  # fmt: skip
CAPPED = {
    "sclk_mhz": 1259.0, "mclk_mhz": 1300.0, "power_w": 749.0, "hotspot_c": 89.0, "memory_c": 70.0, "busy": 97.0,
}  # fmt: skip
NO_DATA = {"gpu_data": []}


def limited(**limits: Any) -> list[dict[str, Any]]:
    return [{"gpu": 0, "limit": limits}]


@pytest.mark.parametrize(
    ("found", "looks"),
    [
        ({"gpu_data": [MI300X_7]}, [(0, CAPPED, None, 2100.0, ("ppt",))]),
        ([MI300X_7], [(0, CAPPED, None, 2100.0, ("ppt",))]),
        # ROCm 6.2: a list, one clock of each kind, power under another name; bare figures in some builds
        (
            [
                {"gpu": 1, "power": {"average_socket_power": 90}, "clock": {"gfx": {"clk": 500}, "mem": "N/A"}},
                {"gpu": 0, "power": {"current_socket_power": "100 W"}, "temperature": {"junction": 40}},
            ],
            [
                (1, {"power_w": 90.0, "sclk_mhz": 500.0}, None, None, ()),
                (0, {"power_w": 100.0, "hotspot_c": 40.0}, None, None, ()),
            ],
        ),
        (
            {"gpu_data": [{"gpu": 0, "clock": {"gfx_clock": told(2450), "mem_clock": told(1100)}}]},
            [(0, {"sclk_mhz": 2450.0, "mclk_mhz": 1100.0}, None, None, ())],
        ),
        # a clock of 0 is none; a Radeon's highest clock is told as 0
        (
            [{"gpu": 0, "clock": {"gfx_0": {"clk": told(0), "max_clk": told(0)}}, "usage": "N/A"}],
            [(0, {}, None, None, ())],
        ),
        # limits: 7.2 below ppt0, before it beside each other; a cap of 0 means that none is set
        (limited(ppt0={"max_power_limit": told(750), "socket_power_limit": told(600)}), [(0, {}, 600.0, None, ())]),
        (limited(ppt0={"socket_power_limit": "N/A"}, ppt1={"socket_power_limit": told(1)}), [(0, {}, None, None, ())]),
        (limited(max_power=told(750), min_power=told(0), socket_power=told(650)), [(0, {}, 650.0, None, ())]),
        (limited(max_power=told(550), socket_power=told(0)), [(0, {}, 550.0, None, ())]),
        (NO_DATA, []),
        ([{"gpu": "N/A"}, {"gpu": -1}, {"gpu": 10**9}, {}, 7, None], []),
        ({"gpu_data": {"gpu": 0}}, []),
        (None, []),
    ],
)  # fmt: skip
def test_amd_smi_of_many_versions(found: object, looks: list[tuple[Any, ...]]) -> None:
    assert [tuple(look)[:5] for look in read_amd_smi("WARNING: x\n" + json.dumps(found))] == looks


def test_amd_smi_names_what_the_figures_depend_on() -> None:
    static = {
        "gpu": 0,
        "asic": {"market_name": "AMD Instinct MI300X VF", "device_id": "0x74b5", "vendor_id": "0x1002"},
        "driver": {"name": "amdgpu", "version": "6.16.6"},
        "partition": {"accelerator_partition": "SPX", "memory_partition": "NPS1", "partition_id": "0"},
    }
    assert read_amd_smi(json.dumps([static]))[0].facts == {
        "GPU": "AMD Instinct MI300X VF (0x74b5)", "amdgpu driver": "6.16.6", "partition": "SPX/NPS1",
    }  # fmt: skip
    older = {"gpu": 0, "asic": {"market_name": "N/A", "device_id": "0x74b5"}, "partition": {"compute_partition": "CPX"}}
    assert read_amd_smi(json.dumps([older]))[0].facts == {"GPU": "0x74b5", "partition": "CPX"}
    assert read_amd_smi(json.dumps([MI300X_7]))[0].facts == {
        "clock range": "132 to 2100 MHz", "performance level": "auto",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("card", "look"),
    [
        (  # captured on an MI300X of ROCm 7.2
            {
                "Temperature (Sensor junction) (C)": "89.0", "Temperature (Sensor memory) (C)": "70.0",
                "Max Graphics Package Power (W)": "750.0", "Current Socket Graphics Package Power (W)": "749.0",
                "GPU use (%)": "97", "mclk clock speed:": "(1300Mhz)", "mclk clock level:": "3",
                "sclk clock speed:": "(1259Mhz)", "sclk clock level:": "1",
            },
            Look(0, CAPPED, 750.0),
        ),
        (  # an MI250X of ROCm 5: the older name of power, sensors of the stacks
            {
                "Average Graphics Package Power (W)": "128.0", "Temperature (Sensor HBM 0) (C)": "40.0",
                "Temperature (Sensor HBM 1) (C)": "44.0", "sclk clock speed:": "(0Mhz)", "GPU use (%)": "N/A",
            },
            Look(0, {"power_w": 128.0, "memory_c": 44.0}),
        ),
        (  # an APU: only an edge sensor
            {"Temperature (Sensor edge) (C)": "31.0", "Device Name": "Phoenix3", "Device ID": "0x1900"},
            Look(0, {"hotspot_c": 31.0}, facts={"GPU": "Phoenix3 (0x1900)"}),
        ),
    ],
)  # fmt: skip
def test_rocm_smi_of_many_cards(card: dict[str, str], look: Look) -> None:
    text = "WARNING: AMD GPU device(s) is/are in a low-power state\n\n" + json.dumps(
        {"card0": card, "system": {"x": 1}}
    )
    assert read_rocm_smi(text) == [look]


KEYS = [
    "gpu_data", "gpu", "clock", "gfx_0", "clk", "power", "socket_power", "limit", "ppt0", "throttle", "asic", "value",
    "ppt_violation_status", "card0", "sclk clock speed:", "temperature", "partition", "perf_level",
]  # fmt: skip
LEAVES = (
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | st.sampled_from(["N/A", "ACTIVE"])
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=60)
@given(JSON)
def test_nonsense_raises_nothing(found: object) -> None:
    for look in [*read_amd_smi(json.dumps(found)), *read_rocm_smi(json.dumps(found))]:
        assert all(math.isfinite(value) and value >= 0 for value in look.values.values())


# -- the role


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a droplet's root with its own interpreter on the path."""
    path = tmp_path / "droplet"
    (path / "usr/local/bin").mkdir(parents=True)
    (path / "usr/local/bin/python3").symlink_to(sys.executable)
    return path


class Droplet:
    """Start the role on a droplet that plays some ROCm."""

    def __init__(self, root: Path, start: Callable[..., Any]) -> None:
        self.root = root
        self._start = start

    def installed(self, generation: str = "7.2", **readings: Any) -> Droplet:
        install_standins(self.root, generation)
        self.set(**readings)
        return self

    def set(self, **readings: Any) -> None:
        (self.root / "etc").mkdir(exist_ok=True)
        (self.root / "etc/new").write_text(json.dumps(readings))
        (self.root / "etc/new").rename(self.root / "etc/chisel-standin.json")

    def watch(self, interval_s: object = 0.05, raw: str | None = None) -> Any:
        path = f"{self.root}/opt/rocm/bin:{self.root}/usr/local/bin:/usr/bin:/bin"
        request = {"interval_s": interval_s, "raw": raw}
        return self._start(ROLE, request, CHISEL_DROPLET_ROOT=str(self.root), PATH=path)


@pytest.fixture
def droplet(root: Path, start: Callable[..., Any]) -> Droplet:
    return Droplet(root, start)


def progress(session: Session, key: str) -> dict[str, Any]:
    """Return the next object that tells something, passing over the others."""
    while True:
        found = session.until(Kind.PROGRESS).json()
        if key in found and found[key] not in ([], {}):
            return found


def ended(session: Session) -> dict[str, Any]:
    session.send(Kind.END)
    return session.until(Kind.REPLY).json()


@pytest.mark.parametrize(("generation", "source"), [("7.2", "amd-smi"), ("6.4", "amd-smi"), ("5.7", "rocm-smi")])
def test_the_role_asks_what_the_droplet_has(droplet: Droplet, generation: str, source: str) -> None:
    readings = {"sclk_mhz": 1259, "power_w": 700, "hotspot_c": 89, "gpus": 2, "gpu": {"1": {"power_cap_w": 600}}}
    with droplet.installed(generation, **readings).watch() as session:
        first = session.until(Kind.PROGRESS).json()
        samples = progress(session, "samples")["samples"]
        again = progress(session, "samples")["samples"]
        assert ended(session) == {"notes": []} or generation != "5.7"
    assert first["source"] == source
    assert first["power_cap_w"] == {"0": 750.0, "1": 600.0}
    assert [sample["gpu"] for sample in samples] == [0, 1]
    for sample in samples:
        assert (sample["sclk_mhz"], sample["power_w"], sample["hotspot_c"]) == (1259.0, 700.0, 89.0)
    assert 0 < samples[0]["at_s"] < again[0]["at_s"]
    facts = first["fingerprint"]
    assert facts["ROCm"].startswith(generation)
    assert facts["kernel"] == "6.8.0-sandbox-standin"
    assert facts["amdgpu driver"] == "6.16.6-sandbox-standin"
    assert facts["GPU"] == "2 x AMD Instinct MI300X (sandbox stand-in) (0x74b5)"
    assert facts["partition"] == "2 x SPX/NPS1"
    assert facts["performance level"] == "2 x auto"
    if source == "amd-smi":
        assert first["sclk_max_mhz"] == {"0": 2100.0, "1": 2100.0}
        assert facts["clock range"] == "2 x 132 to 2100 MHz"


def test_the_compiler_follows_because_it_is_slow(droplet: Droplet) -> None:
    with droplet.installed().watch() as session:
        assert "hipcc" not in session.until(Kind.PROGRESS).json()["fingerprint"]
        assert progress(session, "fingerprint")["fingerprint"] == {"hipcc": "7.2.0-sandbox-standin"}


def test_what_throttles_is_said_at_the_end(droplet: Droplet) -> None:
    with droplet.installed(sclk_mhz=1259, power_w=749).watch() as session:
        for _ in range(3):
            progress(session, "samples")
        [note] = ended(session)["notes"]
    assert note.startswith("GPU 0 was held back by its power limit in ")
    counts = [int(word) for word in note.split() if word.isdigit()]
    assert counts[1] == counts[2] >= 3


@pytest.mark.parametrize("refused", [["--violation"], ["--usage", "--power", "--clock", "--temperature", "--asic"]])
def test_an_option_that_is_unknown_there_costs_no_telemetry(droplet: Droplet, refused: list[str]) -> None:
    # Refused options are sections that this amd-smi has not got at all: with the second list it tells nothing.
    with droplet.installed(refuses=refused, sclk_mhz=1700).watch() as session:
        first = session.until(Kind.PROGRESS).json()
        samples = progress(session, "samples")["samples"]
    assert first["source"] == ("amd-smi" if refused == ["--violation"] else "rocm-smi")
    assert samples[0]["sclk_mhz"] == 1700.0


def test_a_clock_that_only_rocm_smi_tells_is_taken_from_there(droplet: Droplet) -> None:
    with droplet.installed(refuses=["--clock", "--limit"], sclk_mhz=1700).watch() as session:
        first = session.until(Kind.PROGRESS).json()
        assert progress(session, "samples")["samples"][0]["sclk_mhz"] == 1700.0
    assert first["source"] == "rocm-smi"
    assert first["power_cap_w"] == {"0": 750.0}


@pytest.mark.parametrize("how", ["fails", "nonsense"])
def test_a_tool_that_fails_is_replaced(droplet: Droplet, how: str) -> None:
    with droplet.installed(tools={"amd-smi": how}).watch() as session:
        assert session.until(Kind.PROGRESS).json()["source"] == "rocm-smi"
        assert progress(session, "samples")


@ONE_PYTHON
def test_a_tool_that_hangs_is_killed_and_replaced(droplet: Droplet) -> None:
    began_at = time.monotonic()
    with droplet.installed(tools={"amd-smi": "hangs"}).watch() as session:
        assert session.until(Kind.PROGRESS).json()["source"] == "rocm-smi"
        assert not [pid for pid in processes_of([droplet.root]) if b"amd-smi" in line_of(pid)]
    assert 5.0 < time.monotonic() - began_at < 12.0


def line_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@ONE_PYTHON
def test_a_source_that_dries_up_is_given_up_after_three_failures(droplet: Droplet) -> None:
    with droplet.installed().watch() as session:
        progress(session, "samples")
        droplet.set(tools={"amd-smi": "fails"}, sclk_mhz=1500)
        assert progress(session, "source")["source"] == "rocm-smi"
        assert progress(session, "samples")["samples"][0]["sclk_mhz"] == 1500.0
        assert ended(session)["notes"] == ["`amd-smi` gave no readings 3 times in a row and was given up"]


def sysfs(root: Path) -> None:
    card = root / "sys/class/drm/card1/device"
    monitor = card / "hwmon/hwmon3"
    monitor.mkdir(parents=True)
    (root / "sys/class/drm/card1-DP-1/device").mkdir(parents=True)
    other = root / "sys/class/drm/card0/device"
    other.mkdir(parents=True)
    (other / "vendor").write_text("0x1a03\n")  # the server's own graphics
    files = {
        "vendor": "0x1002\n", "device": "0x74b5\n", "gpu_busy_percent": "99\n",
        "pp_dpm_sclk": "0: 132Mhz\n1: 1259Mhz *\n2: 2100Mhz\n", "power_dpm_force_performance_level": "auto\n",
    }  # fmt: skip
    values = {
        "power1_input": 749_000_000, "power1_cap": 750_000_000, "freq1_input": 1_259_000_000,
        "freq2_input": 1_300_000_000, "temp1_input": 60_000, "temp2_input": 89_000, "temp3_input": 70_000,
    }  # fmt: skip
    for name, text in files.items():
        (card / name).write_text(text)
    for name, value in values.items():
        (monitor / name).write_text(f"{value}\n")
    for number_, label in enumerate(("edge", "junction", "mem"), 1):
        (monitor / f"temp{number_}_label").write_text(label + "\n")


def test_without_tools_the_kernel_is_asked(droplet: Droplet) -> None:
    sysfs(droplet.root)
    with droplet.watch() as session:
        first = session.until(Kind.PROGRESS).json()
        [sample] = progress(session, "samples")["samples"]
    assert first["source"] == "sysfs"
    assert (first["power_cap_w"], first["sclk_max_mhz"]) == ({"0": 750.0}, {"0": 2100.0})
    assert first["fingerprint"] == {"GPU": "0x74b5", "clock range": "132 to 2100 MHz", "performance level": "auto"}
    assert {name: sample[name] for name in CAPPED} == {**CAPPED, "busy": 99.0}


def test_without_anything_the_files_are_followed_all_the_same(droplet: Droplet, tmp_path: Path) -> None:
    raw = tmp_path / "raw/host"
    with droplet.watch(raw=str(tmp_path / "raw")) as session:
        first = session.until(Kind.PROGRESS).json()
        assert (first["source"], first["power_cap_w"], first["fingerprint"]) == (None, {}, {})
        assert session.until(Kind.PROGRESS).json() == {"samples": [], "raw_bytes": 0}
        raw.mkdir(parents=True)
        (raw / "x.db").write_bytes(b"x" * 1000)
        (raw / "link").symlink_to("/bin/bash")
        while not (size := progress(session, "raw_bytes")["raw_bytes"]):
            pass
        assert 1000 <= size < 2000
        (raw / "x.db-journal").write_bytes(b"x" * 5000)
        while progress(session, "raw_bytes")["raw_bytes"] < 6000:
            pass
        assert ended(session)["notes"] == ["nothing on the droplet tells the GPUs' clocks and power"]


@pytest.mark.parametrize("way", ["END", "end of input"])
def test_the_end_comes_at_once_whatever_a_tool_does(droplet: Droplet, way: str) -> None:
    with droplet.installed(tools={"amd-smi": "hangs", "rocm-smi": "hangs"}).watch() as session:
        while not [pid for pid in processes_of([droplet.root]) if b"amd-smi" in line_of(pid)]:
            assert session.process.poll() is None
        began_at = time.monotonic()
        if way == "END":
            session.send(Kind.END)
        else:
            session.process.stdin.close()
        assert session.until(Kind.PROGRESS).json()["fingerprint"]["ROCm"] == "7.2.0-sandbox-standin"
        session.until(Kind.REPLY)
        session.process.wait(5)
        assert time.monotonic() - began_at < 2.0
        assert not [pid for pid in processes_of([droplet.root]) if b"-smi" in line_of(pid)]


@pytest.mark.parametrize("interval_s", ["soon", None, -1, 1e99, float("nan")])
def test_a_senseless_interval_is_none(droplet: Droplet, interval_s: object) -> None:
    with droplet.installed().watch(interval_s) as session:
        assert progress(session, "samples")
        assert ended(session) == {"notes": []}


SLOW_TOOL = """#!/bin/sh
echo "begin" >>"$CHISEL_DROPLET_ROOT/log"
sleep 0.1
echo "end" >>"$CHISEL_DROPLET_ROOT/log"
echo '[{"gpu": 0, "power": {"socket_power": 1}, "clock": {"gfx": 2}}]'
"""


@ONE_PYTHON
def test_tools_run_one_at_a_time_and_a_quarter_of_the_time_at_most(droplet: Droplet) -> None:
    tools = droplet.root / "opt/rocm/bin"
    tools.mkdir(parents=True)
    (tools / "amd-smi").write_text(SLOW_TOOL)
    (tools / "amd-smi").chmod(0o755)
    with droplet.watch(0.05) as session:
        times = [progress(session, "samples")["samples"][0]["at_s"] for _ in range(4)]
        ended(session)
    assert all(later - earlier >= 0.4 for earlier, later in pairwise(times[1:]))
    lines = (droplet.root / "log").read_text().split()
    assert lines[: len(lines) // 2 * 2] == ["begin", "end"] * (len(lines) // 2)
