"""Read kernel names as the profilers write them: endings that name nothing dropped, rows that are no kernel told apart.

Pure; standard library only, Python 3.10: runs on the droplet and on the laptop.
"""

from __future__ import annotations

import re

# rocprof v1 appends `.kd`, rocprofv3's `--mangled-kernels` and LLVM ` [clone .kd]`, rocprof-compute `(.kd)`.
_ENDINGS = re.compile(r"(?:\s*\[clone \.kd\]|\s*\(\.kd\)|\.kd)+\s*$")
_PSEUDO = re.compile(r"<barrier packet>|unknown command type|barrier packet", re.IGNORECASE)


def normalise(name: str) -> str:
    """Return a kernel's name without the endings that differ between tools; `.kd` alone stays what it is."""
    return _ENDINGS.sub("", name).strip() or name


def is_pseudo(name: str) -> bool:
    """Say whether a row is not a kernel: rocprof v1 times barrier packets and what it cannot name as if they were."""
    return bool(_PSEUDO.fullmatch(name.strip()))
