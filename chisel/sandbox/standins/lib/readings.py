"""Make up what sensors show: an MI300X in a virtual machine under load, or whatever a test writes for a droplet.

`/etc/chisel-standin.json` below the droplet's root, or the same JSON in `CHISEL_STANDIN_READINGS`, overrides readings
by name, for every GPU or, below `gpu`, for one: `{"sclk_mhz": 1259, "power_w": 749, "gpu": {"1": {"hotspot_c": 95}}}`.
`"gpus": 2` says how many there are. `"tools": {"amd-smi": "hangs"}` lets a tool hang, fail (`fails`), print something
else than JSON (`nonsense`) or go away (`missing`); `"refuses": ["--violation"]` has amd-smi know no such option.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from typing import Any

from .identity import NOTICE, gpu_count, note

VARIABLE = "CHISEL_STANDIN_READINGS"
FILE = "etc/chisel-standin.json"
# Healthy under load. What a DigitalOcean MI300X VF was seen at when it was not: 1259 of 2100 MHz, 749 of 750 W, 89 C.
_READINGS = {
    "sclk_mhz": 2071,
    "sclk_max_mhz": 2100,
    "mclk_mhz": 1300,
    "power_w": 612,
    "power_cap_w": 750,
    "hotspot_c": 71,
    "memory_c": 58,
    "busy": 97,
}
_JITTER = {"sclk_mhz": 9, "power_w": 5, "hotspot_c": 1}
_HANG_S = 600


def overrides() -> dict[str, Any]:
    """Return what the droplet's file and the environment say; an empty object where they say nothing."""
    root = os.path.abspath(os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "..", ".."))
    found: dict[str, Any] = {}
    try:
        with open(os.path.join(root, FILE), encoding="utf-8") as file:
            found.update(json.load(file))
    except FileNotFoundError:
        pass
    found.update(json.loads(os.environ.get(VARIABLE, "{}")))
    return found


def readings() -> list[dict[str, float]]:
    """Return the readings of each GPU; those that nobody set move a little from second to second."""
    said = overrides()
    count = int(said.get("gpus", gpu_count()))
    own = said.get("gpu", {})
    return [_of_one(index, {**said, **own.get(str(index), {})}) for index in range(count)]


def _of_one(index: int, said: dict[str, Any]) -> dict[str, float]:
    second = int(time.monotonic())
    found = {}
    for name, usual in _READINGS.items():
        width = _JITTER.get(name, 0)
        moved = usual + zlib.crc32(f"{name}/{index}/{second}".encode()) % (2 * width + 1) - width
        found[name] = said.get(name, moved)
    return found


def misbehave(tool: str) -> int | None:
    """Do what a test wants of this tool instead of its work: return its exit status, None when it is to work."""
    wanted = overrides().get("tools", {}).get(tool)
    if wanted == "hangs":
        note(tool)
        time.sleep(_HANG_S)
        return 0
    if wanted in ("fails", "missing"):
        note(tool, f"ERROR: no driver ({NOTICE})")
        return 127 if wanted == "missing" else 1
    if wanted == "nonsense":
        sys.stdout.write(f"{{{NOTICE}\n")
        return 0
    return None
