"""Find out what keeps kernels from being built and run here, and mend what apt can mend.

Package names are those of AMD's repository for Ubuntu (ROCm 6 and 7) and of Ubuntu's own; only what apt knows here is
installed.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from . import env, frames
from .stdio import Channel

PACKAGES = {
    "hipcc": ("hipcc", "hip-dev", "libamdhip64-dev"),
    "profiler": ("rocprofiler-sdk", "rocprofiler"),
    "zstd": ("zstd",),
}
_SOURCE = (
    "#include <hip/hip_runtime.h>\n__global__ void k(float* a) { a[threadIdx.x] *= 2.0f; }\nint main() { return 0; }\n"
)
_COMPILE_TIMEOUT_S = 60.0
_APT_TIMEOUT_S = 900.0
_APT_LOCK_S = 300
_LONGEST = 400
_CONTAINER = re.compile(r"(?:docker|containerd|podman|libpod)[-/](?:scope/)?([0-9a-f]{12})[0-9a-f]*")


def compiles(environment: Mapping[str, str]) -> str | None:
    """Compile a kernel for this GPU's architecture; return None when that works, else what the compiler said."""
    hipcc = shutil.which("hipcc", path=environment.get("PATH", os.defpath))
    if hipcc is None:
        return "there is no hipcc"
    with tempfile.TemporaryDirectory(prefix="chisel-doctor-") as scratch:
        source = os.path.join(scratch, "kernel.hip")
        with open(source, "w", encoding="ascii") as out:
            out.write(_SOURCE)
        target = environment.get("CHISEL_GPU_ARCH", "gfx942")
        command = [hipcc, f"--offload-arch={target}", "-c", source, "-o", os.path.join(scratch, "kernel.o")]
        try:
            ended = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, env=dict(environment),
                timeout=_COMPILE_TIMEOUT_S, check=False,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            return f"hipcc does not run ({type(error).__name__})"
    said = ended.stderr.decode("utf-8", "replace").strip()
    return None if ended.returncode == 0 else said[-_LONGEST:] or f"hipcc ended with status {ended.returncode}"


def gpu_holders() -> list[str]:
    """Name the programs that hold the GPU open, those in a container with it: some images start one."""
    if env.is_played():
        return []
    names = _container_names()
    found = []
    for entry in sorted(glob.glob("/sys/class/kfd/kfd/proc/[0-9]*")):
        pid = os.path.basename(entry)
        with suppress(OSError):
            program = _read(f"/proc/{pid}/comm").strip()
            container = _CONTAINER.search(_read(f"/proc/{pid}/cgroup"))
            inside = f" in container {names.get(container[1], container[1])}" if container else ""
            found.append(f"{program}{inside}")
    return sorted(set(found))


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as source:
        return source.read()


def _container_names() -> dict[str, str]:
    docker = shutil.which("docker")
    if docker is None:
        return {}
    with suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(
            [docker, "ps", "--format", "{{.ID}} {{.Names}}"], capture_output=True, text=True, timeout=10, check=True
        )
        pairs = (line.split(maxsplit=1) for line in listed.stdout.splitlines())
        return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
    return {}


def main(channel: Channel, request: dict[str, Any]) -> int:
    """Install what apt has for the parts that the request names; answer with what it installed and what went wrong."""
    wanted = [package for part in request.get("parts") or [] for package in PACKAGES.get(str(part), ())]
    apt, cache = shutil.which("apt-get"), shutil.which("apt-cache")
    if env.is_played() or apt is None or cache is None:
        channel.send_json(frames.Kind.REPLY, {"installed": [], "error": "there is no apt here"})
        return 0
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    lock = f"DPkg::Lock::Timeout={_APT_LOCK_S}"
    error = _said([apt, "-q", "-o", lock, "update"], quiet)
    known = [package for package in wanted if _has_candidate(cache, package, quiet)]
    if known:
        error = _said([apt, "-q", "-y", "-o", lock, "install", "--no-install-recommends", *known], quiet)
    channel.send_json(frames.Kind.REPLY, {"installed": known if not error else [], "error": error})
    return 0


def _has_candidate(cache: str, package: str, environment: Mapping[str, str]) -> bool:
    with suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(
            [cache, "policy", package], capture_output=True, text=True, env=dict(environment), timeout=60, check=False
        )
        return "Candidate:" in told.stdout and "Candidate: (none)" not in told.stdout
    return False


def _said(command: list[str], environment: Mapping[str, str]) -> str | None:
    """Run a command; return None when it succeeds, else the end of what it said."""
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=dict(environment),
            timeout=_APT_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return f"{os.path.basename(command[0])} does not run ({type(error).__name__})"
    if ended.returncode == 0:
        return None
    return (ended.stderr or ended.stdout).strip()[-_LONGEST:] or f"status {ended.returncode}"
