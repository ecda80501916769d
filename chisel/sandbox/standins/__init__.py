"""Install stand-ins for what a laptop has not got: `hipcc`, `rocm-smi`, `rocminfo`, `rocprofv3`.

They are standard-library scripts for Python 3.10 and newer, and say that they are stand-ins in everything they print
or write. Whatever they show of a GPU is made up.
"""

from __future__ import annotations

import shutil
from pathlib import Path

_HERE = Path(__file__).resolve().parent
VERSION = "7.2.0-sandbox-standin"


def install_standins(root: Path) -> None:
    """Copy the stand-ins into `root`/opt/rocm and write its version file; may be called again for the same root.

    Copies, not links: what runs on a sandbox droplet cannot write into the installed package through them.
    """
    rocm = root / "opt" / "rocm"
    for folder in ("bin", "lib", ".info"):
        (rocm / folder).mkdir(parents=True, exist_ok=True)
    for script in _files("bin", ""):
        shutil.copyfile(script, rocm / "bin" / script.name)
        (rocm / "bin" / script.name).chmod(0o755)
    for module in _files("lib", ".py"):
        shutil.copyfile(module, rocm / "lib" / module.name)
    (rocm / ".info" / "version").write_text(VERSION + "\n", encoding="ascii")


def _files(folder: str, suffix: str) -> list[Path]:
    return sorted(path for path in (_HERE / folder).iterdir() if path.is_file() and path.suffix == suffix)
