"""Read a droplet's user data as cloud-init would, as far as the sandbox acts on it: a cloud-config in JSON.

JSON is valid YAML, so this is a part of what cloud-init takes; anything else is kept and does nothing, as a broken
user data does on a real droplet.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from chisel.sandbox.base import WriteFile

HEADER = "#cloud-config"
MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class UserData:
    """What a first boot does: the host key it installs (OpenSSH PEM) and the files it writes."""

    host_private_key: str | None = None
    write_files: tuple[WriteFile, ...] = ()


def read_user_data(text: str | None) -> UserData:
    """Return what a user data asks for; nothing for one that is no cloud-config in JSON."""
    header, _, body = (text or "").partition("\n")
    if header.strip() != HEADER:
        return UserData()
    try:
        found = json.loads(body)
    except ValueError:
        return UserData()
    if not isinstance(found, dict):
        return UserData()
    keys = found.get("ssh_keys")
    private = keys.get("ed25519_private") if isinstance(keys, dict) else None
    entries = found.get("write_files")
    files = tuple(_file(entry) for entry in entries if _is_file(entry)) if isinstance(entries, list) else ()
    return UserData(private if isinstance(private, str) else None, files)


def _is_file(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("path"), str)
        and isinstance(entry.get("content", ""), str)
        and "encoding" not in entry
    )


def _file(entry: dict[str, Any]) -> WriteFile:
    return WriteFile(entry["path"], entry.get("content", ""), int(str(entry.get("permissions", "0644")), 8) & 0o777)
