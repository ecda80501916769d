"""Send files of a droplet to the client: the `send` role.

The conversation: REQUEST `{"cwd", "patterns", "codecs"}`; PROGRESS `{"codec"}`, one of those that the client takes;
DATA frames, one compressed stream of records: an item for every path (`["item", path, kind, mode, digest, size,
mtime_ns]`, a file's content after it as bytes and `["end", digest]`), `["skipped", path, reason]` and `["missing",
pattern]`; DATA_END; REPLY with the counts. A digest is known only after its content was read, so items of files carry
none. Standard library only, Python 3.10.
"""

from __future__ import annotations

import glob
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Any

from . import env, frames, packing, results, stdio, tree
from .tree import DIRECTORY, FILE, LINK, Item

MAX_PATTERNS = 1000


def main(channel: stdio.Channel, request: dict[str, Any]) -> int:
    """Serve one pull; return 0. Raises Refused when there is no such directory."""
    cwd = env.expand(str(request.get("cwd") or "~"))
    patterns = [str(pattern) for pattern in request.get("patterns") or []]
    if not os.path.isdir(cwd):
        raise stdio.Refused("no-cwd", f"there is no directory `{request.get('cwd')}` on the droplet")
    if not 0 < len(patterns) <= MAX_PATTERNS:
        raise stdio.Refused("bad-request", f"{len(patterns)} patterns")
    sender = Sender(cwd)
    packer = packing.open_packer([str(codec) for codec in request.get("codecs") or []])
    try:
        channel.send_json(frames.Kind.PROGRESS, {"codec": packer.codec})
        _send(channel, packer, sender.records(patterns))
    finally:
        packer.close()
    channel.send(frames.Kind.DATA_END)
    channel.send_json(frames.Kind.REPLY, {"files": sender.files, "bytes": sender.bytes})
    results.remember_pulled(sender.sent)
    return 0


def _send(channel: stdio.Channel, packer: packing.Packer, records: Iterable[bytes]) -> None:
    waiting = bytearray()
    for record in records:
        waiting += packer.compress(record)
        while len(waiting) >= tree.CHUNK:
            channel.send(frames.Kind.DATA, bytes(waiting[: tree.CHUNK]))
            del waiting[: tree.CHUNK]
    waiting += packer.flush()
    for start in range(0, len(waiting), tree.CHUNK):
        channel.send(frames.Kind.DATA, bytes(waiting[start : start + tree.CHUNK]))


class Sender:
    """Give the records for what patterns name below a directory; each path once."""

    def __init__(self, cwd: str) -> None:
        self._cwd = cwd
        self._seen: set[str] = set()
        self.files = 0
        self.bytes = 0
        self.sent: dict[str, list[int]] = {}

    def records(self, patterns: list[str]) -> Iterator[bytes]:
        """Give the stream's records, pattern by pattern."""
        for pattern in patterns:
            found = list(self._matches(pattern))
            if not found:
                yield tree.pack(["missing", pattern])
            for name, place in found:
                yield from self._path(name, place)

    def _matches(self, pattern: str) -> Iterator[tuple[str, str]]:
        """Give what a pattern names: the path it gets at the client, and where it is.

        A relative pattern keeps its path; an absolute one, or one from the home, is known by its last component.
        """
        is_outside = pattern.startswith(("/", "~/"))
        whole = env.expand(pattern) if pattern.startswith("~/") else os.path.join(self._cwd, pattern)
        places = sorted(glob.glob(whole, recursive=True)) if glob.has_magic(pattern) else [whole]
        for place in places:
            place = os.path.normpath(place)
            if not os.path.lexists(place):
                continue
            if is_outside:
                yield os.path.basename(place), place
            elif place == self._cwd:
                yield "", place
            elif place.startswith(self._cwd.rstrip("/") + "/"):
                yield os.path.relpath(place, self._cwd), place
            else:
                raise stdio.Refused("outside", f"`{pattern}` leads out of the working copy; name it from `/` or `~/`")

    def _path(self, name: str, place: str) -> Iterator[bytes]:
        if place in self._seen:
            return
        self._seen.add(place)
        try:
            status = os.stat(place) if name == "" else os.lstat(place)
            if stat.S_ISDIR(status.st_mode):
                yield from self._directory(name, place)
            elif stat.S_ISLNK(status.st_mode):
                yield tree.pack(["item", *Item(name, LINK, 0, os.readlink(place))])
            elif stat.S_ISREG(status.st_mode):
                yield from self._file(name, place)
            else:
                yield tree.pack(["skipped", name, "neither a file, a directory nor a link"])
        except OSError as error:
            yield tree.pack(["skipped", name, error.strerror or "it cannot be read"])

    def _directory(self, name: str, place: str) -> Iterator[bytes]:
        entries = sorted(os.listdir(place))
        if name:
            yield tree.pack(["item", *Item(name, DIRECTORY)])
        for entry in entries:
            yield from self._path(f"{name}/{entry}" if name else entry, os.path.join(place, entry))

    def _file(self, name: str, place: str) -> Iterator[bytes]:
        """Send a file as it is while it is read: one that grows is cut where it ended at the start."""
        handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            before = os.fstat(handle)
            mode = before.st_mode & tree.PERMISSIONS
            yield tree.pack(["item", *Item(name, FILE, mode, "", before.st_size, before.st_mtime_ns)])
            content = hashlib.sha256()
            for data in tree.read_chunks(handle, before.st_size):
                content.update(data)
                self.bytes += len(data)
                yield tree.pack_bytes(data)
            yield tree.pack(["end", content.hexdigest()])
            self.files += 1
            if not tree.same_file_state(before, os.fstat(handle)):
                yield tree.pack(["skipped", name, "it changed while it was read: pull it again"])
            else:
                self.sent[place] = [before.st_size, before.st_mtime_ns]
        finally:
            os.close(handle)
