"""Say to OpenSSH's own client what chisel knows: the pinned host key, the right key, no check switched off.

Host keys are known by an alias made of the droplet's id (`HostKeyAlias`, ssh_config(5)): addresses come back on other
droplets. Nothing here imports asyncssh.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from chisel.errors import UsageError
from chisel.model import Host

_FORWARD = re.compile(r"(?:(?P<local>\d+):)?(?P<remote>\d+)")
_TOP_PORT = 65535


def known_hosts(hosts: Sequence[Host]) -> str:
    """Return a known_hosts file with the keys that these hosts may show, and no others."""
    lines = [f"{_alias(host)} {' '.join(key.split()[:2])}\n" for host in hosts for key in _keys(host)]
    return "".join(lines)


def ssh_config(hosts: Sequence[Host], *, key: Path, known: Path) -> str:
    """Return Host blocks for `ssh`, `scp`, `rsync` and editors; a droplet goes by its name."""
    blocks = ["# Written by `chisel ssh --config`, and again by chisel whenever droplets come or go.\n"]
    for host in hosts:
        options = {"HostName": host.address, "Port": str(host.port), "User": host.user, **_options(host, key, known)}
        blocks.append(f"\nHost {host.name}\n" + "".join(f"  {name} {value}\n" for name, value in options.items()))
    return "".join(blocks)


def ssh_arguments(
    host: Host,
    command: Sequence[str],
    *,
    key: Path,
    known: Path,
    forwards: Sequence[str] = (),
    more: Sequence[str] = (),
) -> list[str]:
    """Return the arguments of an `ssh` to a host; raises UsageError for a forward that is none.

    A forward is a port of this machine's loopback and one of the droplet's: `8888`, `8080:8888`, or as in ssh(1).
    """
    words = ["ssh", *more]
    for name, value in _options(host, key, known).items():
        words += ["-o", f"{name}={value}"]
    for forward in forwards:
        words += ["-L", _forward(forward)]
    return [*words, "-p", str(host.port), "-l", host.user, "--", host.address, *command]


def _options(host: Host, key: Path, known: Path) -> dict[str, str]:
    return {
        "IdentityFile": _quoted(key),
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "UserKnownHostsFile": _quoted(known),
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": _alias(host),
        "StrictHostKeyChecking": "yes",
        "CheckHostIP": "no",
        "UpdateHostKeys": "no",
        "PasswordAuthentication": "no",
    }


def _quoted(path: Path) -> str:
    """Return a path as a configuration's value: `%` is the beginning of a token there, a blank would end it."""
    text = str(path).replace("%", "%%")
    return f'"{text}"' if " " in text else text


def _forward(text: str) -> str:
    found = _FORWARD.fullmatch(text)
    if found is None:
        if text.count(":") not in (2, 3):
            raise UsageError(f"`{text}` is no port to forward", hint="-L 8888, or -L 8080:8888")
        return text
    local, remote = int(found["local"] or found["remote"]), int(found["remote"])
    if not 0 < local <= _TOP_PORT or not 0 < remote <= _TOP_PORT:
        raise UsageError(f"`{text}` is no port to forward: ports go to {_TOP_PORT}")
    return f"127.0.0.1:{local}:127.0.0.1:{remote}"


def _keys(host: Host) -> list[str]:
    return [key for key in (host.host_key, host.next_host_key) if key is not None]


def _alias(host: Host) -> str:
    return f"chisel-droplet-{host.droplet_id}"
