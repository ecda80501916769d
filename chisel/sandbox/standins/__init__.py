"""Install stand-ins for what a laptop has not got: `hipcc`, `rocm-smi`, `amd-smi`, `rocminfo`, and ROCm's profilers.

They are standard-library scripts for Python 3.10 and newer, and say that they are stand-ins in everything they print
or write. Whatever they show of a GPU is made up. Which profilers there are is a matter of the ROCm that is played:

7.2  rocprofv3 (rocpd by default, `--version`), the `rocpd` tool, amd-smi, rocm-smi
6.4  rocprofv3 without `--version` and rocpd (csv by default), rocprof v1, amd-smi, rocm-smi
5.7  rocprof v1 and rocm-smi only
"""

from __future__ import annotations

import shutil
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_ALWAYS = frozenset({"hipcc", "rocm-smi", "rocminfo"})
GENERATIONS: dict[str, tuple[str, frozenset[str]]] = {
    "7.2": ("7.2.0-sandbox-standin", _ALWAYS | {"rocprofv3", "rocpd", "amd-smi"}),
    "6.4": ("6.4.1-sandbox-standin", _ALWAYS | {"rocprofv3", "rocprof", "amd-smi"}),
    "5.7": ("5.7.1-sandbox-standin", _ALWAYS | {"rocprof"}),
}
"""What each ROCm that can be played calls itself, and its programs (release notes of ROCm 5.7, 6.4 and 7.2)."""
DEFAULT_GENERATION = "7.2"
VERSION = GENERATIONS[DEFAULT_GENERATION][0]

# What the kernel of the droplet that is played tells of itself, below the droplet's own root.
_SYSTEM_FILES = {
    "sys/module/amdgpu/version": "6.16.6-sandbox-standin",
    "proc/sys/kernel/osrelease": "6.8.0-sandbox-standin",
}


def install_standins(root: Path, generation: str = DEFAULT_GENERATION) -> None:
    """Copy the stand-ins into `root`/opt/rocm and write its version file; may be called again for the same root.

    Copies, not links: what runs on a sandbox droplet cannot write into the installed package through them. Programs of
    another generation that stood there go. Raises ValueError for a generation that cannot be played.
    """
    if generation not in GENERATIONS:
        raise ValueError(f"`{generation}` is no ROCm that the sandbox plays: {', '.join(GENERATIONS)}")
    version, programs = GENERATIONS[generation]
    rocm = root / "opt" / "rocm"
    for folder in ("bin", "lib", ".info"):
        (rocm / folder).mkdir(parents=True, exist_ok=True)
    for script in _files("bin", ""):
        place = rocm / "bin" / script.name
        if script.name in programs:
            shutil.copyfile(script, place)
            place.chmod(0o755)
        else:
            place.unlink(missing_ok=True)
    for module in _files("lib", ".py"):
        shutil.copyfile(module, rocm / "lib" / module.name)
    (rocm / ".info" / "version").write_text(version + "\n", encoding="ascii")
    for name, text in _SYSTEM_FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n", encoding="ascii")


def _files(folder: str, suffix: str) -> list[Path]:
    return sorted(path for path in (_HERE / folder).iterdir() if path.is_file() and path.suffix == suffix)
