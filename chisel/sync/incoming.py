"""Put one file together from what comes and what is here already, and move it in when it is whole and verified."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from dataclasses import dataclass

from chisel.node import contents, tree
from chisel.node.contents import SMALL, ContentHash
from chisel.node.offer import Entry
from chisel.node.tree import Directories
from chisel.sync.stage import Stage

_OWNER_CAN = 0o600
_KEPT_FROM = 1 << 18
"""Less than this on its way is not worth keeping."""
_ZEROS = bytes(1 << 16)
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Damaged(tree.DamagedStream):
    """What came is not what the droplet says that it sent."""


@dataclass(frozen=True, slots=True)
class Base:
    """What there was of a file when it was asked for: so much of an interrupted pull, and the file itself (bytes).

    `offered_size` is how large it was said to be then.
    """

    part_bytes: int = 0
    file_bytes: int = 0
    offered_size: int = 0

    @property
    def is_empty(self) -> bool:
        """Say whether there was nothing."""
        return not self.part_bytes and not self.file_bytes


class Incoming:
    """One file on its way; blocking. One that was not opened only counts what comes."""

    def __init__(self, entry: Entry, base: Base, directories: Directories, stage: Stage) -> None:
        self.entry = entry
        self.base = base
        self.position = 0
        self._directories = directories
        self._stage = stage
        self._content = ContentHash(entry.size)
        self._out: int | None = None
        self._file: int | None = None
        self._had = 0
        self.content_digest = ""

    @property
    def is_open(self) -> bool:
        """Say whether it is being written."""
        return self._out is not None

    def open(self) -> None:
        """Open what it is written into. Raises OSError, EISDIR also for a directory in its place."""
        there = self._directories.look(self.entry.path)
        if there is not None and stat.S_ISDIR(there.st_mode):
            raise IsADirectoryError(errno.EISDIR, "a directory is in the way")
        self._directories.of(self.entry.path, create=True)
        self._out = self._stage.open_part(self.entry.path, self.entry.size)
        self._had = os.fstat(self._out).st_size
        if self.base.file_bytes:
            self._file = tree.open_file(self._directories, self.entry.path)

    def write(self, data: bytes) -> None:
        """Take the next bytes. Raises DamagedStream, OSError."""
        self._advance(len(data))
        if self._out is not None:
            self._content.update(data)
            _write_all(self._out, data, self.position - len(data))

    def hole(self, count: int) -> None:
        """Leave a hole."""
        start = self.position
        self._advance(count)
        if self._out is None:
            return
        self._content.zeros(count)
        # What an earlier pull left is overwritten: later parts of it may still be wanted.
        for offset in range(start, min(self.position, self._had), len(_ZEROS)):
            _write_all(self._out, _ZEROS[: min(self.position, self._had) - offset], offset)

    def copy(self, count: int, *, from_end: bool) -> None:
        """Take the next bytes from what is here already: at the same place, or as far from the end."""
        start = self.position
        self._advance(count)
        if self._out is None:
            return
        if not from_end and start + count <= self.base.part_bytes:
            source, offset = self._out, start
        elif self._file is not None:
            source, offset = self._file, self.base.file_bytes - count if from_end else start
        else:
            raise tree.DamagedStream("a copy of what is not here")
        if offset < 0:
            raise tree.DamagedStream("a copy of more than is here")
        for data in contents.read_range(source, offset, count):
            self._content.update(data)
            if source != self._out:
                _write_all(self._out, data, start)
            start += len(data)

    def check(self, digest: str, *, may_be_short: bool) -> None:
        """Raise Damaged when it is not what the droplet read; one that shrank there may be short."""
        self.content_digest = self._content.hexdigest()
        if self.content_digest != digest or (self.position != self.entry.size and not may_be_short):
            raise Damaged(f"`{self.entry.path}` arrived damaged")
        if self.entry.size > SMALL:
            self.content_digest = ""

    def move_in(self, mode: int) -> None:
        """Give it its mode and time, and its name. Raises OSError; it is still on its way then."""
        assert self._out is not None
        os.ftruncate(self._out, self.position)
        os.fchmod(self._out, mode | _OWNER_CAN)
        os.utime(self._out, ns=(self.entry.mtime_ns, self.entry.mtime_ns))
        parent, name = self._directories.of(self.entry.path, create=True)
        part = self._stage.part_name(self.entry.path, self.entry.size)
        try:
            os.rename(part, name, src_dir_fd=self._stage.handle, dst_dir_fd=parent)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._copy_in(parent, name, mode)
        self._close()

    def drop(self, *, forget: bool = False) -> None:
        """Stop writing it; `forget` also what there was of it."""
        if self._out is not None:
            os.ftruncate(self._out, 0)
        if forget:
            self._stage.drop_part(self.entry.path, self.entry.size)
        self._close()

    def leave(self) -> str | None:
        """Stop in the middle; return the part's name where there is enough of it to go on with."""
        is_worth_it = self._out is not None and os.fstat(self._out).st_size >= _KEPT_FROM and self.entry.size > SMALL
        self._close()
        return self._stage.part_name(self.entry.path, self.entry.size) if is_worth_it else None

    def _advance(self, count: int) -> None:
        self.position += count
        if self.position > self.entry.size:
            raise tree.DamagedStream(f"`{self.entry.path}` is longer than it was said to be")

    def _copy_in(self, parent: int, name: str, mode: int) -> None:
        """Move it to another file system: a directory of the target is a mount."""
        assert self._out is not None
        temporary = f".chisel-pull-{secrets.token_hex(6)}"
        target = os.open(temporary, _NEW_FILE, 0o600, dir_fd=parent)
        try:
            try:
                for data in contents.read_range(self._out, 0, self.position):
                    _write_all(target, data, None)
                os.fchmod(target, mode | _OWNER_CAN)
                os.utime(target, ns=(self.entry.mtime_ns, self.entry.mtime_ns))
            finally:
                os.close(target)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=parent)
            raise

    def _close(self) -> None:
        for handle in (self._out, self._file):
            if handle is not None:
                os.close(handle)
        self._out = self._file = None


def _write_all(handle: int, data: bytes, offset: int | None) -> None:
    view = memoryview(data)
    while view:
        written = os.write(handle, view) if offset is None else os.pwrite(handle, view, offset)
        view = view[written:]
        offset = None if offset is None else offset + written
