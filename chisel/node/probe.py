"""Say what a droplet has: first boot done or not, GPUs, ROCm, profiler, compiler."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from . import doctor, env, frames
from .stdio import Channel

_TIMEOUT_S = 20.0
_MARKETING_NAME = re.compile(r"^\s*Marketing Name:\s*(.+?)\s*$", re.MULTILINE)
_DEVICE_TYPE = re.compile(r"^\s*Device Type:\s*(\w+)", re.MULTILINE)
_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)?[\w.-]*")


def main(channel: Channel, request: dict[str, Any]) -> int:
    """Answer with the facts and with the hash of the caller's nonce, which proves that this program computed it."""
    nonce = str(request.get("nonce", ""))
    environment = env.command_environment({})
    facts = {"nonce_sha256": hashlib.sha256(nonce.encode()).hexdigest(), **find_facts(environment)}
    if request.get("compiles"):
        facts["compile_error"] = doctor.compiles(environment)
    channel.send_json(frames.Kind.REPLY, facts)
    return 0


def find_facts(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the facts; what cannot be found is null or empty."""
    path = environment.get("PATH", os.defpath)
    return {
        "cloud_init": cloud_init_state(),
        "gpu": gpu_names(environment),
        "gpu_held_by": doctor.gpu_holders(),
        "rocm": _first_line(env.system_path("/opt/rocm/.info/version")),
        "profiler": {
            **{name: shutil.which(name, path=path) for name in ("rocprofv3", "rocprof", "rocpd")},
            "version": _profiler_version(environment),
        },
        "hipcc": shutil.which("hipcc", path=path),
        "zstd": shutil.which("zstd", path=path),
        "has_apt": not env.is_played() and shutil.which("apt-get") is not None,
        "python": platform.python_version(),
        "boot_id": _first_line("/proc/sys/kernel/random/boot_id"),
    }


def cloud_init_state() -> str:
    """Return `done`, `running`, `error` or `absent`, from the files cloud-init itself writes (22.1 and newer)."""
    directory = env.system_path("/run/cloud-init")
    result = _json(os.path.join(directory, "result.json"))
    if result is not None:
        return "error" if result.get("v1", {}).get("errors") else "done"
    if _json(os.path.join(directory, "status.json")) is not None or os.path.isdir(directory):
        return "running"
    return "absent"


def gpu_names(environment: Mapping[str, str]) -> list[str]:
    """Return the marketing name of each GPU that rocminfo lists."""
    said = _output(["rocminfo"], environment)
    names = []
    for block in re.split(r"^\*{3,}\s*$\n^Agent \d+", said, flags=re.MULTILINE)[1:]:
        name, kind = _MARKETING_NAME.search(block), _DEVICE_TYPE.search(block)
        if kind and kind[1] == "GPU":
            names.append(name[1] if name else "unknown GPU")
    return names


def _profiler_version(environment: Mapping[str, str]) -> str | None:
    found = _VERSION.search(_output(["rocprofv3", "--version"], environment))
    return found.group() if found else None


def _output(command: list[str], environment: Mapping[str, str]) -> str:
    program = shutil.which(command[0], path=environment.get("PATH", os.defpath))
    if program is None:
        return ""
    try:
        ended = subprocess.run(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=dict(environment),
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return (ended.stdout or ended.stderr).decode("utf-8", "replace")


def _first_line(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as source:
            return source.readline().strip() or None
    except (OSError, ValueError):
        return None


def _json(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as source:
            found = json.load(source)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
