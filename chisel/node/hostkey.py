"""Give the droplet another host key, and let its sshd show it to whoever connects from now on."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from typing import Any

from . import env, frames
from .stdio import Channel, Refused

_PLACE = "/etc/ssh/ssh_host_ed25519_key"
_OTHERS = ("rsa", "ecdsa", "dsa")
_RELOADS = (["systemctl", "reload", "ssh"], ["systemctl", "reload", "sshd"])
_TIMEOUT_S = 15.0
_HEADER = "-----BEGIN OPENSSH PRIVATE KEY-----"


def main(channel: Channel, request: dict[str, Any]) -> int:
    """Install the pair of the request, private half first in a file of its own, and answer when sshd knows it."""
    private, public = str(request.get("private", "")), str(request.get("public", ""))
    if not private.startswith(_HEADER) or not public.startswith("ssh-ed25519 "):
        raise Refused("no-key", "the request holds no ed25519 key pair")
    place = env.system_path(_PLACE)
    try:
        _write(place + ".pub", public.strip() + "\n", 0o644)
        _write(place, private, 0o600)
        for kind in _OTHERS:
            for suffix in ("", ".pub"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(env.system_path(f"/etc/ssh/ssh_host_{kind}_key{suffix}"))
    except OSError as error:
        raise Refused("no-host-key", f"the host key cannot be written: {error.strerror}") from error
    channel.send_json(frames.Kind.REPLY, {"reloaded": _reload()})
    return 0


def _write(path: str, text: str, mode: int) -> None:
    """Replace a file at once, on the disk before it has its name."""
    descriptor = os.open(path + ".new", os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "w", encoding="ascii") as out:
        os.fchmod(out.fileno(), mode)
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(path + ".new", path)


def _reload() -> bool:
    """Let sshd read its keys again: sessions that are open stay. A played droplet sees the file itself."""
    if env.is_played():
        return True
    for command in _RELOADS:
        program = shutil.which(command[0])
        if program is None:
            continue
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            ended = subprocess.run([program, *command[1:]], capture_output=True, timeout=_TIMEOUT_S, check=False)
            if ended.returncode == 0:
                return True
    try:
        with open("/run/sshd.pid", encoding="ascii") as source:
            os.kill(int(source.read()), signal.SIGHUP)
    except (OSError, ValueError):
        return False
    return True
