"""See whether a droplet is in use: runs, logins, commands in terminals, GPUs. Reads files only, changes nothing."""

from __future__ import annotations

import glob
import os
import re
import time
from contextlib import suppress

from . import env

GPU_SAMPLES = 20
GPU_PAUSE_S = 0.25
_SSHD = {"sshd", "sshd-session"}
_NODE = b"chisel_node"
_STAT = re.compile(r"(\d+) \((.*)\) (\S) (\d+) (\d+) (\d+) (-?\d+) (-?\d+)", re.DOTALL)


def boot_id() -> str:
    """Return the kernel's name for this boot."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as source:
        return source.read().strip()
    return ""


def on_s() -> float:
    """Return how long the machine has been on, suspension included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def is_first_boot() -> bool:
    """Say whether cloud-init is there and has not finished this boot."""
    place = env.system_path("/run/cloud-init")
    return os.path.isdir(place) and not os.path.exists(os.path.join(place, "result.json"))


def homes() -> list[str]:
    """Return the homes whose users may run commands through chisel."""
    if env.is_played():
        return [env.expand("~")]
    return ["/root", *sorted(glob.glob("/home/*"))]


def marks() -> dict[str, str]:
    """Return the stamps whose change is a request: chisel's own, logins, and what was typed into a terminal."""
    places = [os.path.join(home, ".chisel", "activity") for home in homes()]
    found = {place: _stamp(place, "st_mtime_ns") for place in places}
    if not env.is_played():
        found["wtmp"] = _stamp("/var/log/wtmp", "st_mtime_ns")
        found.update({place: _stamp(place, "st_atime_ns") for place in sorted(glob.glob("/dev/pts/[0-9]*"))})
    return {place: stamp for place, stamp in found.items() if stamp}


def _stamp(path: str, name: str) -> str:
    try:
        return str(getattr(os.stat(path), name))
    except OSError:
        return ""


def last_at() -> float:
    """Return when the last request came by the wall clock, in seconds; 0 when there was none."""
    return max((int(stamp) / 1e9 for stamp in marks().values()), default=0.0)


def busy(*, looks_at_gpus: bool = True) -> tuple[str, ...]:
    """Say in words what is under way; GPUs are looked at for some seconds, and only when nothing else is."""
    found = running_commands()
    if not found and not env.is_played():
        found = session_commands() or (gpu_use() if looks_at_gpus else [])
    return tuple(found)


def running_commands() -> list[str]:
    """Return the runs of chisel whose supervisor holds its lock; the lock itself is not touched."""
    files = [path for home in homes() for path in glob.glob(os.path.join(home, ".chisel", "runs", "*", "lock"))]
    inodes = {}
    for path in files:
        with suppress(OSError):
            if not os.path.exists(os.path.join(os.path.dirname(path), "exit.json")):
                inodes[os.stat(path).st_ino] = os.path.basename(os.path.dirname(path))
    return [f"the command of run {inodes[inode]} runs" for inode in sorted(_locked_inodes() & inodes.keys())]


def _locked_inodes() -> set[int]:
    """Return the inodes that are locked, from the kernel's own list: taking a lock to see would disturb its owner."""
    found = set()
    with suppress(OSError), open("/proc/locks", encoding="ascii") as source:
        for line in source:
            place = re.search(r"FLOCK\s.*\s[0-9a-f]+:[0-9a-f]+:(\d+)\s", line)
            if place and "->" not in line:
                found.add(int(place[1]))
    return found


def session_commands() -> list[str]:
    """Return what runs in the foreground of a terminal, and what was started over SSH without one."""
    processes = _processes()
    found = []
    for pid, (name, parent, group, session, terminal, foreground) in processes.items():
        if terminal and group == foreground and session not in (group, pid):
            found.append(f"`{name}` runs in a terminal")
        elif not terminal and processes.get(parent, ("",))[0] in _SSHD and name not in _SSHD and not _is_ours(pid):
            found.append(f"`{name}` runs over SSH")
    return sorted(set(found))


def _processes() -> dict[int, tuple[str, int, int, int, int, int]]:
    """Return every process by its id: name, parent, group, session, terminal, the terminal's foreground group."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError), open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as source:
                fields = _STAT.match(source.read())
                if fields and fields[3] != "Z":
                    parent, group, session, terminal, foreground = (int(fields[index]) for index in range(4, 9))
                    found[int(entry)] = (fields[2], parent, group, session, terminal, foreground)
    return found


def _is_ours(pid: int) -> bool:
    """Say whether a process is a part of chisel: what that runs is in its registry, and waiting is no work."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as source:
            return _NODE in source.read()
    except OSError:
        return False


def gpu_use() -> list[str]:
    """Return the GPUs that computed while they were watched, by amdgpu's `gpu_busy_percent`."""
    files = sorted(glob.glob("/sys/class/drm/card*/device/gpu_busy_percent"))
    for _ in range(GPU_SAMPLES if files else 0):
        working = [path.split("/")[4] for path in files if _percent(path) > 0]
        if working:
            return [f"GPU {name} works" for name in working]
        time.sleep(GPU_PAUSE_S)
    return []


def _percent(path: str) -> int:
    try:
        with open(path, encoding="ascii") as source:
            return int(source.read())
    except (OSError, ValueError):
        return 0
