"""Read what amd-smi and rocm-smi say in JSON, of ROCm 5.7 to 7.x: clocks, power, temperatures, what throttles.

Both change between versions: amd-smi's answer is a list, or since ROCm 7 an object with `gpu_data`; its limits moved
below `ppt0` in 7.2; figures are `{"value": 749, "unit": "W"}`, bare, or "N/A"; rocm-smi writes "(1259Mhz)" and "749.0",
and its keys differ by product. Either may put warnings before the JSON. (amdsmi's `amdsmi_commands.py`, rocm_smi_lib's
`rocm_smi.py`, and outputs in public issues, 2024 to 2026.) What is not there is left out; nothing here raises.
Pure; standard library only, Python 3.10.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_LARGEST = 1e7
_ACTIVE = frozenset({"active", "true", "1", "yes"})
_MOST_GPUS = 64


class Look(NamedTuple):
    """What one GPU shows at one time: `values` by the names of `chisel.figures.Sample`; None where nothing was told.

    `throttled` names what holds it back right now, as the tool calls it; `facts` are texts that do not change.
    """

    gpu: int
    values: dict[str, float]
    power_cap_w: float | None = None
    sclk_max_mhz: float | None = None
    throttled: tuple[str, ...] = ()
    facts: Mapping[str, str] = MappingProxyType({})


def number(value: Any) -> float | None:
    """Return a figure however it is written, None for none ("N/A", text without digits, infinity, nonsense)."""
    if isinstance(value, dict):
        value = value.get("value")
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str):
        found = _NUMBER.search(value)
        value = float(found.group()) if found else None
    if not isinstance(value, (int, float)):
        return None
    try:
        figure = float(value)
    except OverflowError:
        return None
    return figure if math.isfinite(figure) and abs(figure) <= _LARGEST else None


def json_within(text: str) -> Any:
    """Return the first JSON object or list that begins a line, None when there is none."""
    decoder = json.JSONDecoder()
    for start in re.finditer(r"^[ \t]*(?=[\[{])", text, re.MULTILINE):
        try:
            return decoder.raw_decode(text, start.end())[0]
        except (ValueError, RecursionError):
            continue
    return None


def read_amd_smi(text: str) -> list[Look]:
    """Read `amd-smi metric --json` or `amd-smi static --json`."""
    return [look for entry in _entries(json_within(text)) if (look := _amd_look(entry)) is not None]


def _entries(found: Any) -> list[dict[str, Any]]:
    if isinstance(found, dict):
        found = found.get("gpu_data", [found])
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _amd_look(entry: dict[str, Any]) -> Look | None:
    gpu = number(entry.get("gpu"))
    if gpu is None or not 0 <= gpu < _MOST_GPUS:
        return None
    clocks = _part(entry, "clock")
    gfx, memory = _clocks(clocks, "gfx"), _clocks(clocks, "mem")
    power, heat, usage = _part(entry, "power"), _part(entry, "temperature"), _part(entry, "usage")
    values = {
        "sclk_mhz": _mean(_figures(gfx, "clk", "cur_clk", "current_frequency")),
        "mclk_mhz": _mean(_figures(memory, "clk", "cur_clk", "current_frequency")),
        "power_w": _first(power, "socket_power", "current_socket_power", "average_socket_power"),
        "hotspot_c": _first(heat, "hotspot", "junction", "edge"),
        "memory_c": _first(heat, "mem", "memory", "hbm_0"),
        "busy": _first(usage, "gfx_activity", "gfx_usage"),
    }
    tops = _figures(gfx, "max_clk")
    throttled = (*_throttled(_part(entry, "throttle")), *_throttled(_part(entry, "violation")))
    return Look(
        int(gpu), _known(values), _cap(_part(entry, "limit")), max(tops, default=None), throttled,
        _amd_facts(entry, gfx),
    )  # fmt: skip


def _part(entry: dict[str, Any], name: str) -> dict[str, Any]:
    found = entry.get(name)
    return {str(key).lower(): value for key, value in found.items()} if isinstance(found, dict) else {}


def _clocks(clocks: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Return the entries of one kind of clock, `gfx_0` to `gfx_7` on an MI300X: one for each die."""
    names = (kind, *({"gfx": ("sys",), "mem": ("mclk",)}[kind]))
    chosen = [value for key, value in clocks.items() if re.sub(r"(_clock)?(_\d+)?$", "", key) in names]
    return [value if isinstance(value, dict) and "value" not in value else {"clk": value} for value in chosen]


def _figures(entries: list[dict[str, Any]], *names: str) -> list[float]:
    """Return the positive figures of these names: a clock of 0 is one that is not told."""
    found = (_first(entry, *names) for entry in entries)
    return [figure for figure in found if figure is not None and figure > 0]


def _first(entry: dict[str, Any], *names: str) -> float | None:
    return next((figure for name in names if (figure := number(entry.get(name))) is not None), None)


def _mean(figures: list[float]) -> float | None:
    return sum(figures) / len(figures) if figures else None


def _known(values: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None and value >= 0}


def _cap(limit: dict[str, Any]) -> float | None:
    """Return the power limit in force: below `ppt0` since ROCm 7.2, before it beside the others; 0 means none."""
    inner = limit.get("ppt0")
    if isinstance(inner, dict):
        limit = inner
    cap = _first(limit, "socket_power_limit", "socket_power", "power_limit")
    return cap or _first(limit, "max_power_limit", "max_power") or None


def _throttled(part: dict[str, Any]) -> Iterator[str]:
    for key, value in part.items():
        name, is_status, _ = key.partition("_violation_status")
        if is_status and str(value).strip().lower() in _ACTIVE:
            yield name


def _amd_facts(entry: dict[str, Any], gfx: list[dict[str, Any]]) -> dict[str, str]:
    asic, driver, partition = _part(entry, "asic"), _part(entry, "driver"), _part(entry, "partition")
    modes = (
        partition.get("accelerator_partition", partition.get("compute_partition")),
        partition.get("memory_partition"),
    )
    lowest, highest = _figures(gfx, "min_clk"), _figures(gfx, "max_clk")
    facts = {
        "GPU": _named(asic.get("market_name"), asic.get("device_id")),
        "amdgpu driver": _text(driver.get("version", driver.get("driver_version"))),
        "partition": "/".join(text for mode in modes if (text := _text(mode))),
        "clock range": f"{min(lowest):.0f} to {max(highest):.0f} MHz" if lowest and highest else "",
        "performance level": _text(entry.get("perf_level")).rpartition("PERF_LEVEL_")[2].lower(),
    }
    return {name: text for name, text in facts.items() if text}


def _named(name: Any, device: Any) -> str:
    return f"{_text(name)} ({_text(device)})" if _text(name) and _text(device) else _text(name) or _text(device)


def _text(value: Any) -> str:
    """Return a text, empty for what tells nothing."""
    text = str(value).strip() if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    return "" if text.upper() in ("N/A", "NONE", "UNKNOWN") else text


def read_rocm_smi(text: str) -> list[Look]:
    """Read `rocm-smi --json` with whichever of its options."""
    found = json_within(text)
    looks = []
    for key, value in found.items() if isinstance(found, dict) else ():
        card = re.fullmatch(r"card(\d{1,3})", str(key))
        if card and isinstance(value, dict) and int(card[1]) < _MOST_GPUS:
            looks.append(_rocm_look(int(card[1]), {str(name).lower(): one for name, one in value.items()}))
    return sorted(looks, key=lambda look: look.gpu)


def _rocm_look(gpu: int, card: dict[str, Any]) -> Look:
    hbm = [figure for key, value in card.items() if "sensor hbm" in key and (figure := number(value)) is not None]
    memory = _first(card, "temperature (sensor memory) (c)", "temperature (sensor mem) (c)")
    values = {
        "sclk_mhz": _first(card, "sclk clock speed:", "sclk clock speed", "current_gfxclk (mhz)") or None,
        "mclk_mhz": _first(card, "mclk clock speed:", "mclk clock speed", "current_uclk (mhz)") or None,
        "power_w": _first(
            card, "current socket graphics package power (w)", "average graphics package power (w)",
            "current graphics package power (w)", "socket power (w)",
        ),
        "hotspot_c": _first(card, "temperature (sensor junction) (c)", "temperature (sensor edge) (c)"),
        "memory_c": memory if memory is not None else max(hbm, default=None),
        "busy": _first(card, "gpu use (%)"),
    }  # fmt: skip
    modes = (_text(card.get("compute partition")), _text(card.get("memory partition")))
    name = _text(card.get("card series")) or _text(card.get("device name"))
    facts = {
        "GPU": _named(name, card.get("card model", card.get("device id"))),
        "partition": "/".join(mode for mode in modes if mode),
        "performance level": _text(card.get("performance level")),
    }
    cap = _first(card, "max graphics package power (w)") or None
    return Look(gpu, _known(values), cap, facts={key: text for key, text in facts.items() if text})
