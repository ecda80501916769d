"""Play `amd-smi`: `metric`, `static`, `version` and `list`, with readings that are made up.

The JSON is that of ROCm 7 (`{"gpu_data": [...]}`, limits below `ppt0`) or, when 6.4 is played, a bare list with limits
of other names (amdsmi's amdsmi_commands.py; outputs of both in public issues and tests, 2025 and 2026).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .identity import ARCHITECTURE, DEVICE, DEVICE_ID, GENERATION, MARK, NOTICE, ROCM_VERSION, note
from .readings import misbehave, overrides, readings

_HAS_WRAPPER = GENERATION == "7.2"
_DRIVER = "6.16.6-sandbox-standin"
_AT_CAP = 0.985

Section = Callable[[dict[str, float]], Any]


def main(argv: Sequence[str]) -> int:
    """Print what was asked for; 2 for what argparse refuses."""
    failed = misbehave("amd-smi")
    if failed is not None:
        return failed
    options = _parser().parse_args(list(argv[1:]))
    note("amd-smi", NOTICE)
    if options.command in ("metric", "static"):
        sections = _METRIC if options.command == "metric" else _STATIC
        chosen = [name for name in sections if getattr(options, name, False)] or list(sections)
        refused = overrides().get("refuses", [])
        chosen = [name for name in chosen if f"--{name}" not in refused]
        found = [_gpu(index, one, {name: sections[name] for name in chosen}) for index, one in enumerate(readings())]
        _show({"gpu_data": found} if _HAS_WRAPPER else found, is_json=options.json)
    elif options.command == "list":
        _show([{"gpu": index, "stand-in": NOTICE} for index in range(len(readings()))], is_json=options.json)
    else:
        versions = {"tool": "AMDSMI Tool", "version": f"26.2.0 {MARK}", "rocm_version": ROCM_VERSION}
        _show([versions], is_json=options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    refused = overrides().get("refuses", [])
    parser = argparse.ArgumentParser("amd-smi", description=NOTICE)
    verbs = parser.add_subparsers(dest="command")
    for verb, sections in (("metric", _METRIC), ("static", _STATIC), ("version", {}), ("list", {})):
        one = verbs.add_parser(verb, description=NOTICE, allow_abbrev=False)
        one.add_argument("--json", action="store_true")
        one.add_argument("-g", "--gpu", nargs="+", default=[])
        for name in sections:
            flag = f"--{name.replace('_', '-')}"
            if flag not in refused:
                one.add_argument(*_SHORT.get(flag, ()), flag, action="store_true", dest=name)
    return parser


def _gpu(index: int, reading: dict[str, float], sections: dict[str, Section]) -> dict[str, Any]:
    found: dict[str, Any] = {"gpu": index, "stand-in": NOTICE}
    for name, section in sections.items():
        found["throttle" if name == "violation" else name] = section(reading)
    return found


def _with(value: float, unit: str) -> dict[str, Any]:
    return {"value": value, "unit": unit}


def _usage(reading: dict[str, float]) -> Any:
    return {"gfx_activity": _with(reading["busy"], "%"), "umc_activity": _with(31, "%"), "mm_activity": "N/A"}


def _power(reading: dict[str, float]) -> Any:
    rest = {"gfx_voltage": "N/A", "soc_voltage": "N/A", "mem_voltage": "N/A", "throttle_status": "N/A"}
    return {"socket_power": _with(reading["power_w"], "W"), **rest, "power_management": "ENABLED"}


def _clock(reading: dict[str, float]) -> Any:
    none = {"clk": "N/A", "min_clk": "N/A", "max_clk": "N/A", "clk_locked": "N/A", "deep_sleep": "N/A"}
    own = {"clk_locked": "DISABLED", "deep_sleep": "DISABLED"}
    top = _with(reading["sclk_max_mhz"], "MHz")
    gfx = {"clk": _with(reading["sclk_mhz"], "MHz"), "min_clk": _with(132, "MHz"), "max_clk": top, **own}
    memory = {"clk": _with(reading["mclk_mhz"], "MHz"), "min_clk": _with(900, "MHz"), "max_clk": _with(1300, "MHz")}
    clocks = {f"gfx_{number}": gfx for number in range(8)}
    return {**clocks, "mem_0": {**memory, **own}, "vclk_0": none, "dclk_0": none}


def _temperature(reading: dict[str, float]) -> Any:
    return {"edge": "N/A", "hotspot": _with(reading["hotspot_c"], "C"), "mem": _with(reading["memory_c"], "C")}


def _violation(reading: dict[str, float]) -> Any:
    is_capped = reading["power_w"] >= _AT_CAP * reading["power_cap_w"]
    found: dict[str, Any] = {"accumulation_counter": 1000}
    for name in ("prochot", "ppt", "socket_thermal", "vr_thermal", "hbm_thermal"):
        is_active = name == "ppt" and is_capped
        found[f"{name}_accumulated"] = 900 if is_active else 0
        found[f"{name}_violation_status"] = "ACTIVE" if is_active else "NOT ACTIVE"
        found[f"{name}_violation_activity"] = _with(90 if is_active else 0, "%")
    return found


def _asic(_reading: dict[str, float]) -> Any:
    return {
        "market_name": DEVICE, "vendor_id": "0x1002", "vendor_name": f"AMD {MARK}", "device_id": DEVICE_ID,
        "rev_id": "0x00", "asic_serial": "0x0000", "oam_id": 0, "num_compute_units": 304,
        "target_graphics_version": ARCHITECTURE,
    }  # fmt: skip


def _limit(reading: dict[str, float]) -> Any:
    top, low = _with(reading["power_cap_w"], "W"), _with(0, "W")
    if not _HAS_WRAPPER:
        return {
            "max_power": top,
            "min_power": low,
            "socket_power": top,
            "slowdown_hotspot_temperature": _with(100, "C"),
        }
    none = {"max_power_limit": "N/A", "min_power_limit": "N/A", "socket_power_limit": "N/A"}
    return {"ppt0": {"max_power_limit": top, "min_power_limit": low, "socket_power_limit": top}, "ppt1": none}


def _partition(_reading: dict[str, float]) -> Any:
    name = "accelerator_partition" if _HAS_WRAPPER else "compute_partition"
    return {name: "SPX", "memory_partition": "NPS1", "partition_id": "0"}


_METRIC: dict[str, Section] = {
    "usage": _usage,
    "power": _power,
    "clock": _clock,
    "temperature": _temperature,
    "violation": _violation,
    "perf_level": lambda _reading: "AMDSMI_DEV_PERF_LEVEL_AUTO",
}
_STATIC: dict[str, Section] = {
    "asic": _asic,
    "driver": lambda _reading: {"name": "amdgpu", "version": _DRIVER},
    "limit": _limit,
    "partition": _partition,
}
_SHORT = {
    "--usage": ("-u",), "--power": ("-p",), "--clock": ("-c",), "--temperature": ("-t",), "--violation": ("-v",),
    "--perf-level": ("-l",), "--asic": ("-a",), "--driver": ("-d",), "--limit": ("-l",), "--partition": ("-p",),
}  # fmt: skip


def _show(found: Any, *, is_json: bool) -> None:
    if is_json:
        sys.stdout.write(json.dumps(found, indent=4) + "\n")
        return
    for one in found["gpu_data"] if isinstance(found, dict) else found:
        for name, value in one.items():
            if isinstance(value, dict):
                sys.stdout.write(f"    {name.upper()}: {MARK}\n")
                for key, inner in value.items():
                    sys.stdout.write(f"        {key.upper()}: {_plain(inner)} {MARK}\n")
            else:
                sys.stdout.write(f"{name.upper()}: {_plain(value)} {MARK}\n")


def _plain(value: Any) -> str:
    return f"{value['value']} {value['unit']}" if isinstance(value, dict) and "unit" in value else str(value)
