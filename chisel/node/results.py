"""Name the files of working copies that exist only on this droplet: made here, and not pulled as they are now.

What a sync sent and is still as it came is elsewhere, and so is what `pull` fetched and has not changed since.
"""

from __future__ import annotations

import glob
import json
import os
import stat
from contextlib import suppress
from typing import Any

from . import env, frames, locks, manifest, tree
from .stdio import Channel

SHOWN = 5
MOST = 100_000
_PULLED = "pulled.json"


def main(channel: Channel, request: dict[str, Any]) -> int:
    """Answer with the number of such files, their bytes, and the newest of them, for every working copy."""
    del request
    pulled = _pulled()
    copies = [found for root in _roots() if (found := _only_here(root, pulled))["files"]]
    channel.send_json(frames.Kind.REPLY, {"copies": copies})
    return 0


def remember_pulled(sent: dict[str, list[int]]) -> None:
    """Note the files, by absolute path, that a pull fetched with this size and time; raises nothing."""
    if not sent:
        return
    known = {**_pulled(), **sent}
    path = os.path.join(env.own_directory(), _PULLED)
    with suppress(OSError):
        with open(path + ".new", "w", encoding="ascii") as out:
            json.dump(dict(list(known.items())[-MOST:]), out)
        os.replace(path + ".new", path)


def _pulled() -> dict[str, list[int]]:
    with suppress(OSError, ValueError), open(os.path.join(env.own_directory(), _PULLED), encoding="ascii") as source:
        found = json.load(source)
        if isinstance(found, dict):
            return found
    return {}


def _roots() -> list[str]:
    return [path for path in sorted(glob.glob(env.expand("~/chisel/*"))) if os.path.isdir(path)]


def _only_here(root: str, pulled: dict[str, list[int]]) -> dict[str, Any]:
    known = manifest.Manifest.load(locks.directory_for(root, makes=False))
    sent = {path: row.look for path, row in known.rows.items()}
    found: list[tuple[int, str, int]] = []
    for directory, folders, names in os.walk(root):
        folders.sort()
        for name in names:
            place = os.path.join(directory, name)
            with suppress(OSError):
                status = os.lstat(place)
                path = os.path.relpath(place, root)
                is_sent = sent.get(path) == tree.look_of(status)
                is_pulled = pulled.get(place) == [status.st_size, status.st_mtime_ns]
                if stat.S_ISREG(status.st_mode) and not is_sent and not is_pulled:
                    found.append((status.st_mtime_ns, path, status.st_size))
        if len(found) >= MOST:
            break
    newest = [path for _, path, _ in sorted(found, reverse=True)[:SHOWN]]
    return {
        "root": os.path.basename(root),
        "files": len(found),
        "bytes": sum(one[2] for one in found),
        "newest": newest,
    }
