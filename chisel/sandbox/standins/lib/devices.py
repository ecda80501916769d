"""Play `rocm-smi` and `rocminfo`: show the GPU that is not there."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from .identity import ARCHITECTURE, DEVICE, DEVICE_ID, NOTICE, ROCM_VERSION, note, say

_PRODUCT = {
    "Card Series": DEVICE,
    "Card Model": DEVICE_ID,
    "Card Vendor": "Advanced Micro Devices, Inc. [AMD/ATI] (sandbox stand-in)",
    "Card SKU": "stand-in",
    "GFX Version": ARCHITECTURE,
}
_USE = {"GPU use (%)": "0"}
_MEMORY_USE = {"GPU Memory Allocated (VRAM%)": "0"}
_SECTIONS = {
    "--showproductname": _PRODUCT,
    "--showuse": _USE,
    "-u": _USE,
    "--showmemuse": _MEMORY_USE,
}
_RULE = "=" * 26


def rocm_smi(argv: Sequence[str]) -> int:
    """Print what was asked for, as text or `--json`; 2 for an option the stand-in does not know."""
    options = list(argv[1:])
    unknown = [word for word in options if word not in (*_SECTIONS, "--json", "--version", "-V", "--showall", "-a")]
    if unknown:
        note("rocm-smi", f"error: unrecognized arguments: {' '.join(unknown)} ({NOTICE})")
        return 2
    if "--version" in options or "-V" in options:
        say(f"ROCM-SMI version: {ROCM_VERSION}")
        return 0
    chosen = [_SECTIONS[word] for word in options if word in _SECTIONS]
    if "-a" in options or "--showall" in options:
        chosen = [_PRODUCT, _USE, _MEMORY_USE]
    note("rocm-smi", NOTICE)
    if "--json" in options:
        facts = {name: value for section in chosen or [_PRODUCT, _USE] for name, value in section.items()}
        sys.stdout.write(json.dumps({"card0": {**facts, "stand-in": NOTICE}}) + "\n")
    else:
        _show_text(chosen)
    return 0


def _show_text(sections: list[dict[str, str]]) -> None:
    say(f"{_RULE} ROCm System Management Interface ({NOTICE}) {_RULE}")
    if not sections:
        say("Device  Node  IDs      Temp    Power  Partitions    SCLK  MCLK  Fan  Perf  PwrCap  VRAM%  GPU%")
        say(f"0       1     {DEVICE_ID}   N/A     N/A    SPX, NPS1     N/A   N/A   0%   auto  N/A     0%     0%")
        say(f"0: {DEVICE}")
    for section in sections:
        for name, value in section.items():
            say(f"GPU[0]\t\t: {name}: \t\t{value}")
    say(f"{_RULE} End of ROCm SMI Log (sandbox stand-in) {_RULE}")


_AGENTS = (
    (("Name", "CPU (sandbox stand-in)"), ("Marketing Name", "CPU (sandbox stand-in)"), ("Device Type", "CPU")),
    (
        ("Name", ARCHITECTURE),
        ("Uuid", "GPU-stand-in"),
        ("Marketing Name", DEVICE),
        ("Vendor Name", "AMD (sandbox stand-in)"),
        ("Device Type", "GPU"),
        ("Compute Unit", "304"),
        ("Wavefront Size", "64(0x40)"),
    ),
)


def rocminfo(argv: Sequence[str]) -> int:
    """Print the agents: a CPU and the played GPU; arguments are ignored, as the real one ignores them."""
    note("rocminfo", NOTICE)
    say(f"ROCk module is not loaded ({NOTICE})")
    say("=====================\nHSA System Attributes\n=====================")
    say(f"Runtime Version:         {ROCM_VERSION}")
    say("==========\nHSA Agents\n==========")
    for number, agent in enumerate(_AGENTS, 1):
        say(f"*******\nAgent {number}\n*******")
        for name, value in agent:
            say(f"  {name + ':':<24} {value}")
    say(f"    Name:                    amdgcn-amd-amdhsa--{ARCHITECTURE}:sramecc+:xnack-")
    say("*** Done ***")
    return 0
