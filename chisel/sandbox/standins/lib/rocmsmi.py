"""Play `rocm-smi`: show the GPUs that are not there, as text or `--json`.

Keys are those of rocm_smi_lib's python_smi_tools of ROCm 6 and 7 (seen on an MI300X: no edge sensor, socket power);
when 5.7 is played power has its older name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from .identity import ARCHITECTURE, DEVICE, DEVICE_ID, GENERATION, NOTICE, ROCM_VERSION, note, say
from .readings import misbehave, readings

_POWER = "Average Graphics Package Power (W)" if GENERATION == "5.7" else "Current Socket Graphics Package Power (W)"
_PRODUCT = {
    "Card Series": DEVICE,
    "Card Model": DEVICE_ID,
    "Card Vendor": "Advanced Micro Devices, Inc. [AMD/ATI] (sandbox stand-in)",
    "Card SKU": "stand-in",
    "GFX Version": ARCHITECTURE,
}
_MEMORY_USE = {"GPU Memory Allocated (VRAM%)": "0"}
_RULE = "=" * 26
_OPTIONS = {
    "--showproductname": "product", "--showuse": "use", "-u": "use", "--showmemuse": "memory", "--showpower": "power",
    "-P": "power", "--showclocks": "clocks", "-c": "clocks", "--showtemp": "temperature", "-t": "temperature",
    "--showmaxpower": "limit", "-M": "limit", "--showperflevel": "level", "-p": "level",
    "--showdriverversion": "driver", "--showcomputepartition": "partition",
    "--showmemorypartition": "memory partition",
}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Print what was asked for, as text or `--json`; 2 for an option the stand-in does not know."""
    failed = misbehave("rocm-smi")
    if failed is not None:
        return failed
    options = list(argv[1:])
    unknown = [word for word in options if word not in (*_OPTIONS, "--json", "--version", "-V", "--showall", "-a")]
    if unknown:
        note("rocm-smi", f"error: unrecognized arguments: {' '.join(unknown)} ({NOTICE})")
        return 2
    if "--version" in options or "-V" in options:
        say(f"ROCM-SMI version: {ROCM_VERSION}")
        return 0
    wanted = list(dict.fromkeys(_OPTIONS[word] for word in options if word in _OPTIONS))
    if "-a" in options or "--showall" in options:
        wanted = list(dict.fromkeys(_OPTIONS.values()))
    note("rocm-smi", NOTICE)
    if "--json" in options:
        _show_json(wanted or ["product", "use"])
    else:
        _show_text(wanted)
    return 0


def _sections(reading: dict[str, float]) -> dict[str, dict[str, str]]:
    return {
        "product": _PRODUCT,
        "use": {"GPU use (%)": f"{reading['busy']:.0f}"},
        "memory": _MEMORY_USE,
        "power": {_POWER: f"{reading['power_w']:.1f}"},
        "limit": {"Max Graphics Package Power (W)": f"{reading['power_cap_w']:.1f}"},
        "clocks": {
            "mclk clock speed:": f"({reading['mclk_mhz']:.0f}Mhz)",
            "mclk clock level:": "3",
            "sclk clock speed:": f"({reading['sclk_mhz']:.0f}Mhz)",
            "sclk clock level:": "1",
        },
        "temperature": {
            "Temperature (Sensor junction) (C)": f"{reading['hotspot_c']:.1f}",
            "Temperature (Sensor memory) (C)": f"{reading['memory_c']:.1f}",
        },
        "level": {"Performance Level": "auto"},
        "partition": {"Compute Partition": "SPX"},
        "memory partition": {"Memory Partition": "NPS1"},
    }


def _show_json(wanted: list[str]) -> None:
    shown: dict[str, Any] = {}
    for index, reading in enumerate(readings()):
        sections = _sections(reading)
        facts = {key: value for name in wanted for key, value in sections.get(name, {}).items()}
        shown[f"card{index}"] = {**facts, "stand-in": NOTICE}
    if "driver" in wanted:
        shown["system"] = {"Driver version": "6.16.6-sandbox-standin"}
    sys.stdout.write(json.dumps(shown) + "\n")


def _show_text(wanted: list[str]) -> None:
    say(f"{_RULE} ROCm System Management Interface ({NOTICE}) {_RULE}")
    if not wanted:
        say("Device  Node  IDs      Temp    Power  Partitions    SCLK  MCLK  Fan  Perf  PwrCap  VRAM%  GPU%")
        say(f"0       1     {DEVICE_ID}   N/A     N/A    SPX, NPS1     N/A   N/A   0%   auto  N/A     0%     0%")
        say(f"0: {DEVICE}")
    for index, reading in enumerate(readings()):
        for name in wanted:
            for key, value in _sections(reading).get(name, {}).items():
                say(f"GPU[{index}]\t\t: {key}: \t\t{value}")
    say(f"{_RULE} End of ROCm SMI Log (sandbox stand-in) {_RULE}")
