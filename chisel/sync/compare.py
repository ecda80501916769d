"""Compare what a droplet offers with what is here, and word the answer: what is wanted, and what there is of it."""

from __future__ import annotations

import glob
import os
import stat
import zlib
from collections.abc import Iterator

from chisel.node import contents, tree
from chisel.node.contents import MOST_BLOCKS, SHORT, SMALL, block_size
from chisel.node.offer import Entry
from chisel.sync.incoming import Base
from chisel.sync.wanted import name_matches
from chisel.sync.writer import Writer


def has_something(writer: Writer) -> bool:
    """Say whether something of what the patterns name may be here already; blocking."""
    if writer.stage.has_parts():
        return True
    for directory, pattern in writer.wanted.prefixes():
        try:
            handle = writer.directories.get(directory)
            if not glob.has_magic(pattern):
                os.stat(pattern, dir_fd=handle, follow_symlinks=False)
                return True
            names = os.listdir(handle)
        except OSError:
            continue
        if any(pattern == "**" or name_matches(name, pattern) for name in names if name != writer.stage.name):
            return True
    return False


class Answers:
    """The answer to one listing; blocking. `expected` (bytes) and `wanted` (files) are known when it was given."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._runs: list[list[int]] = []
        self._asked: dict[str, Base] = {}
        self._room = 0
        self.expected_bytes = 0

    def records(self) -> Iterator[bytes]:
        """Give the records of the answer, reading what is here as it goes. Raises OSError, NoRoom."""
        writer = self._writer
        if writer.is_dry:
            yield tree.pack(["dry"])
        for number, entry in enumerate(writer.offered):
            if entry is not None:
                yield from self._one(number, entry)
        yield from (tree.pack(["want", *run]) for run in self._runs)
        writer.asked_for = self._asked
        writer.expected_bytes = self.expected_bytes
        writer.expected_files = len(self._asked)
        if not writer.is_dry:
            writer.check_room(self._room)

    def _one(self, number: int, entry: Entry) -> Iterator[bytes]:
        writer = self._writer
        status = writer.directories.look(entry.path)
        if status is not None and stat.S_ISDIR(status.st_mode):
            writer.say(entry.path, "a directory is in the way here")
            return
        is_file = status is not None and stat.S_ISREG(status.st_mode)
        note = writer.known(entry.path) if is_file else None
        if note is not None and status is not None and note.is_untouched(status) and note.remote == tuple(entry.look):
            writer.keep(entry)
            return
        size = status.st_size if status is not None and is_file else -1
        if size == entry.size and (size <= SMALL or writer.is_dry):
            found = self._hash(entry)
            if found is not None:
                writer.digests[entry.path] = found if size <= SMALL else ""
                self._asked[entry.path] = Base(offered_size=entry.size)
                yield tree.pack(["hash", number, found])
                return
        if writer.is_dry:
            writer.would.append(entry)
            return
        self.expected_bytes += entry.size
        self._room += entry.room
        self._asked[entry.path] = Base(offered_size=entry.size)
        hashes = self._blocks(entry, size) if entry.size > SMALL else None
        if hashes is None:
            self._want(number)
        else:
            is_in_place = not self._asked[entry.path].part_bytes
            yield tree.pack(["blocks", number, hashes[0], is_in_place])
            yield from map(tree.pack_bytes, hashes[1:])

    def _want(self, number: int) -> None:
        if self._runs and self._runs[-1][1] == number:
            self._runs[-1][1] += 1
        else:
            self._runs.append([number, number + 1])

    def _hash(self, entry: Entry) -> str | None:
        try:
            handle = tree.open_file(self._writer.directories, entry.path)
        except OSError:
            return None
        try:
            return contents.hash_open_file(handle, os.fstat(handle), size=entry.size).hexdigest()
        finally:
            os.close(handle)

    def _blocks(self, entry: Entry, file_size: int) -> tuple[int, bytes, bytes] | None:
        """Return the short hashes of what is here of a large file, from its start and from its end; None for nothing.

        What an interrupted pull left comes first, the file that is to be replaced where that ends.
        """
        block = block_size(entry.size)
        part = self._writer.stage.find_part(entry.path, entry.size)
        front: list[bytes] = []
        if part is not None:
            try:
                front = _hashes(part, block, 0, os.fstat(part).st_size // block)
            finally:
                os.close(part)
        part_bytes, tail = len(front) * block, list[bytes]()
        try:
            handle = tree.open_file(self._writer.directories, entry.path) if file_size > SMALL else None
        except OSError:
            handle = None
        if handle is not None:
            try:
                front += _hashes(handle, block, len(front), -(-file_size // block))
                if file_size != entry.size:
                    tail = _hashes_from_end(handle, block, file_size)
            finally:
                os.close(handle)
        if not front:
            return None
        there = max(file_size if handle is not None else 0, 0)
        self._asked[entry.path] = Base(part_bytes, there, entry.size)
        return there or 1, b"".join(front), b"".join(tail)


def _hashes(handle: int, block: int, first: int, stop: int) -> list[bytes]:
    return [contents.hash_range(handle, index * block, block)[:SHORT] for index in range(first, min(stop, MOST_BLOCKS))]


def _hashes_from_end(handle: int, block: int, size: int) -> list[bytes]:
    count = min(size // block, MOST_BLOCKS)
    return [contents.hash_range(handle, size - (index + 1) * block, block)[:SHORT] for index in range(count)]


def pieces(answers: Answers) -> Iterator[bytes]:
    """Give an answer as one compressed stream, in pieces that fit into frames."""
    packer = zlib.compressobj(1)
    waiting = bytearray()
    for record in answers.records():
        waiting += packer.compress(record)
        while len(waiting) >= tree.CHUNK:
            yield bytes(waiting[: tree.CHUNK])
            del waiting[: tree.CHUNK]
    waiting += packer.flush()
    for start in range(0, len(waiting), tree.CHUNK):
        yield bytes(waiting[start : start + tree.CHUNK])
