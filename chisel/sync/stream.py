"""Write a plan as one compressed stream, reading contents as it goes: what is hashed is what is sent."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from chisel.node import tree
from chisel.node.tree import FILE, Directories, Item, Look, look_of
from chisel.sync import blocks, codec
from chisel.sync.index import Index, is_settled
from chisel.sync.plan import Plan
from chisel.sync.scan import LocalTree

_LEAST_PROBED = 128 << 10


@dataclass(slots=True)
class Outcome:
    """What a stream turned out to hold: the tree as it was sent, and what could not be read."""

    final: dict[str, Item]
    tree_hash: str = ""
    skipped: list[str] = field(default_factory=list)
    files: dict[str, tuple[Look, str]] = field(default_factory=dict)
    sums: dict[str, bytes] = field(default_factory=dict)


class Stream:
    """Give a plan's records, in two parts: what is worth compressing, and what is not; for a thread.

    `done_bytes` and `done_files` count the contents read so far.
    """

    def __init__(self, local: LocalTree, index: Index, plan: Plan) -> None:
        self._local = local
        self._index = index
        self._plan = plan
        self._hopeless: list[Item] = []
        self._twins_of: dict[str, list[Item]] = {}
        for twin in plan.twins:
            self._twins_of.setdefault(twin.digest, []).append(twin)
        self._root = -1
        self.done_bytes = 0
        self.done_files = 0
        self.outcome = Outcome(dict(plan.final))

    def open(self) -> None:
        """Open the tree; raises OSError."""
        self._root = os.open(self._local.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let the tree go."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    @property
    def read_bytes(self) -> int:
        """Return how many bytes of content are read for it: so many have to be sent at most."""
        return self._plan.read_bytes

    @property
    def has_plain_part(self) -> bool:
        """Say, once the first part is written, whether there is a second one."""
        return bool(self._hopeless)

    def packed_part(self) -> Iterator[bytes]:
        """Give the orders, and the contents that are worth compressing."""
        yield from self._orders()
        directories = Directories(self._root)
        try:
            for item in self._plan.puts:
                if not self._is_hopeless(directories, item):
                    yield from self._content(directories, item)
                    yield from self._twins(directories, item)
        finally:
            directories.close()

    def plain_part(self) -> Iterator[bytes]:
        """Give the contents that are not worth compressing."""
        directories = Directories(self._root)
        try:
            for item in self._hopeless:
                yield from self._content(directories, item)
                yield from self._twins(directories, item)
        finally:
            directories.close()

    def finish(self) -> Outcome:
        """Return what was sent, once all parts are written."""
        if not self.outcome.tree_hash:
            is_as_scanned = self._local.tree_hash and self.outcome.final == self._local.items
            found = self._local.tree_hash if is_as_scanned else tree.tree_hash(self.outcome.final.values())
            self.outcome.tree_hash = found
        return self.outcome

    def _orders(self) -> Iterator[bytes]:
        plan = self._plan
        for old, new in plan.moves:
            yield tree.pack(["move", old, new])
        for order, paths in (("delete", plan.deletes), ("release", plan.releases), ("extra", plan.extras)):
            for path in paths:
                yield tree.pack([order, path])
        for item in plan.directories:
            yield tree.pack(["dir", item.path, item.mode])
        for item in plan.links:
            yield tree.pack(["link", item.path, item.digest])
        for item in plan.modes:
            yield tree.pack(["mode", item.path, item.mode])
        for item, source in plan.copies:
            yield tree.pack(["copy", *_facts(item), item.digest, source])
        for item in plan.staged:
            yield tree.pack(["have", *_facts(item), item.digest])

    def _is_hopeless(self, directories: Directories, item: Item) -> bool:
        if item.size < _LEAST_PROBED or item.path in self._plan.patches:
            return False
        try:
            source = tree.open_file(directories, item.path)
        except OSError:
            return False
        try:
            samples = [os.pread(source, length, at) for at, length in codec.sample_places(item.size)]
        finally:
            os.close(source)
        if codec.is_hopeless(samples):
            self._hopeless.append(item)
            return True
        return False

    def _twins(self, directories: Directories, item: Item) -> Iterator[bytes]:
        """Give the files with the same content; one that changed since the scan has it no more."""
        sent = self.outcome.final.get(item.path)
        for twin in self._twins_of.get(item.digest, ()):
            if sent is not None and sent.digest == twin.digest:
                yield tree.pack(["have", *_facts(twin), twin.digest])
            else:
                yield from self._content(directories, twin)

    def _content(self, directories: Directories, item: Item) -> Iterator[bytes]:
        """Send one content; a file that changed since the scan goes as what it is now, or not at all."""
        try:
            source = tree.open_file(directories, item.path)
        except OSError as error:
            self._give_up(item, error.strerror or "it cannot be read")
            return
        try:
            read_at, before = time.time_ns(), os.fstat(source)
            now = Item(item.path, FILE, before.st_mode & tree.PERMISSIONS, "", before.st_size, before.st_mtime_ns)
            patch = self._plan.patches.get(item.path)
            sums = self._index.sums_of(patch[1].digest) if patch is not None else None
            if patch is not None and sums is not None:
                difference = blocks.Difference(source, before.st_size, sums, patch[1].size)
                yield tree.pack(["patch", *_facts(now), patch[0]])
                yield from self._patch(difference)
                content, length, packed = difference.content, difference.length, difference.sums.packed()
            else:
                content, length, collected = hashlib.sha256(), 0, blocks.Sums(before.st_size)
                wants_sums = before.st_size >= blocks.LEAST_BYTES and not self._has_sums(item)
                yield tree.pack(["put", *_facts(now)])
                for data in tree.read_chunks(source, before.st_size + 1):
                    content.update(data)
                    if wants_sums:
                        collected.add(data)
                    length += len(data)
                    self.done_bytes += len(data)
                    yield tree.pack_bytes(data)
                packed = collected.packed() if wants_sums else b""
            is_whole = length == before.st_size and tree.same_file_state(before, os.fstat(source))
        finally:
            os.close(source)
        digest = content.hexdigest()
        if not is_whole and digest != item.digest:
            yield tree.pack(["end", ""])
            self._give_up(item, "it kept changing while it was read")
            return
        yield tree.pack(["end", digest[: tree.CHECK_DIGITS]])
        self.done_files += 1
        self._note(now._replace(digest=digest, size=length), before, read_at, packed)

    def _has_sums(self, item: Item) -> bool:
        """Say whether the checksums of what a file held at its scan are known: it seldom holds anything else now."""
        return bool(item.digest) and self._index.sums_of(item.digest) is not None

    def _patch(self, difference: blocks.Difference) -> Iterator[bytes]:
        for piece in difference.pieces():
            self.done_bytes += piece[1] if isinstance(piece, tuple) else len(piece)
            yield tree.pack(["from", *piece]) if isinstance(piece, tuple) else tree.pack_bytes(piece)

    def _note(self, item: Item, before: os.stat_result, read_at: int, sums: bytes) -> None:
        outcome = self.outcome
        outcome.final[item.path] = item
        if sums and item.size >= blocks.LEAST_BYTES:
            outcome.sums[item.digest] = sums
        if is_settled(before, read_at):
            outcome.files[item.path] = (look_of(before), item.digest)

    def _give_up(self, item: Item, reason: str) -> None:
        """Leave a path on the droplet as it is."""
        self.outcome.skipped.append(f"{item.path}: {reason}")
        before = self._plan.before.get(item.path)
        if before is None:
            del self.outcome.final[item.path]
        else:
            self.outcome.final[item.path] = before


def _facts(item: Item) -> tuple[str, int, int, int]:
    return item.path, item.mode, item.size, item.mtime_ns
