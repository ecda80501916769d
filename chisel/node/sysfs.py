"""Look at AMD GPUs through sysfs: what the kernel driver tells where there is no tool, or none that answers.

Files are those of the amdgpu driver (kernel documentation, gpu/amdgpu/thermal): power in microwatts, clocks in hertz,
temperatures in thousandths of a degree; `pp_dpm_sclk` lists clocks. Standard library only, Python 3.10.
"""

from __future__ import annotations

import glob
import os
import re

from . import env
from .sensors import Look, number

_AMD = "0x1002"
_HOTSPOT, _MEMORY = ("junction", "hotspot", "edge"), ("mem", "memory", "hbm")


def text_of(path: str) -> str:
    """Return a small file's text, empty where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as source:
            return source.read(4096).strip()
    except (OSError, ValueError):
        return ""


def looks() -> list[Look]:
    """Return a look at each GPU of AMD's, in the order of the cards."""
    cards = glob.glob(env.system_path("/sys/class/drm/card[0-9]*/device"))
    cards.sort(key=lambda path: int(re.sub(r"\D", "", os.path.basename(os.path.dirname(path))) or 0))
    ours = [card for card in cards if text_of(os.path.join(card, "vendor")) == _AMD and "-" not in card.split("/")[-2]]
    return [_look(index, card) for index, card in enumerate(ours)]


def _look(index: int, card: str) -> Look:
    monitor = next(iter(sorted(glob.glob(os.path.join(card, "hwmon", "hwmon*")))), os.path.join(card, "hwmon"))
    power = _scaled(monitor, "power1_average", 1e-6)
    values = {
        "sclk_mhz": _scaled(monitor, "freq1_input", 1e-6),
        "mclk_mhz": _scaled(monitor, "freq2_input", 1e-6),
        "power_w": power if power is not None else _scaled(monitor, "power1_input", 1e-6),
        "hotspot_c": _temperature(monitor, _HOTSPOT),
        "memory_c": _temperature(monitor, _MEMORY),
        "busy": _scaled(card, "gpu_busy_percent", 1.0),
    }
    levels = [
        float(mhz) for mhz in re.findall(r"(\d+)\s*Mhz", text_of(os.path.join(card, "pp_dpm_sclk")), re.IGNORECASE)
    ]
    facts = {"GPU": text_of(os.path.join(card, "device")), "performance level": _level(card)}
    if len(levels) > 1:
        facts["clock range"] = f"{min(levels):.0f} to {max(levels):.0f} MHz"
    return Look(
        index,
        {name: value for name, value in values.items() if value is not None and value >= 0},
        _scaled(monitor, "power1_cap", 1e-6) or None,
        max(levels, default=None),
        facts={name: text for name, text in facts.items() if text},
    )


def _level(card: str) -> str:
    return text_of(os.path.join(card, "power_dpm_force_performance_level"))


def _scaled(directory: str, name: str, factor: float) -> float | None:
    text = text_of(os.path.join(directory, name))
    try:
        return float(text) * factor
    except ValueError:
        return number(text)


def _temperature(monitor: str, labels: tuple[str, ...]) -> float | None:
    """Return the temperature with the first of these labels."""
    found: dict[str, float] = {}
    for path in sorted(glob.glob(os.path.join(monitor, "temp*_input"))):
        value = _scaled(monitor, os.path.basename(path), 1e-3)
        if value is not None:
            found.setdefault(text_of(path.replace("_input", "_label")).lower() or "edge", value)
    return next((found[label] for label in labels if label in found), None)
