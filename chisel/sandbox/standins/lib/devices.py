"""Play `rocminfo`: show the GPUs that are not there."""

from __future__ import annotations

from collections.abc import Sequence

from .identity import ARCHITECTURE, DEVICE, NOTICE, ROCM_VERSION, gpu_count, note, say

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
    for number, agent in enumerate((_AGENTS[0], *_AGENTS[1:] * gpu_count()), 1):
        say(f"*******\nAgent {number}\n*******")
        for name, value in agent:
            say(f"  {name + ':':<24} {value}")
    say(f"    Name:                    amdgcn-amd-amdhsa--{ARCHITECTURE}:sramecc+:xnack-")
    say("*** Done ***")
    return 0
