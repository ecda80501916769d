"""Write one file of a push as it comes: into a part beside its place, which a later push goes on with."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from . import contents, tree
from .contents import ContentHash
from .pushed import Journal
from .tree import Directories

if TYPE_CHECKING:
    from .store import Wish

_SYNC_EVERY = 256 << 20
_PART = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Arriving:
    """One file on its way into its part; one that was not opened takes everything and does nothing."""

    def __init__(self, wish: Wish, directories: Directories, journal: Journal) -> None:
        self.wish = wish
        self._directories = directories
        self._journal = journal
        self._known = list(journal.blocks)
        self._content = ContentHash(wish.size)
        self._noted = 0
        self._unsynced = 0
        self._out: int | None = None
        self._file: int | None = None

    @property
    def is_open(self) -> bool:
        """Say whether it is being written."""
        return self._out is not None

    def open(self) -> None:
        """Open the part. Raises OSError, EISDIR also for a directory in the file's place."""
        there = self._directories.look(self.wish.path)
        if there is not None and stat.S_ISDIR(there.st_mode):
            raise IsADirectoryError(errno.EISDIR, "a directory is in the way")
        parent, _ = self._directories.of(self.wish.path, create=True)
        self._out = os.open(self._journal.part, _PART, 0o600, dir_fd=parent)
        if there is not None and stat.S_ISREG(there.st_mode):
            self._file = tree.open_file(self._directories, self.wish.path)

    def write(self, data: bytes) -> None:
        """Take the next bytes. Raises DamagedStream, OSError."""
        self._check_room(len(data))
        if self._out is None:
            self._content.length += len(data)
            return
        view, offset = memoryview(data), self._content.length
        while view:
            written = os.pwrite(self._out, view, offset)
            view, offset = view[written:], offset + written
        self._content.update(data)
        self._note()
        self._unsynced += len(data)
        if self._unsynced >= _SYNC_EVERY:
            # In small portions, so that the last one does not take minutes.
            os.fdatasync(self._out)
            self._unsynced = 0

    def hole(self, count: int) -> None:
        """Leave a hole, or zeros where an earlier push left something."""
        self._check_room(count)
        start = self._content.length
        if self._out is None:
            self._content.length += count
            return
        stop = min(start + count, os.fstat(self._out).st_size)
        zeros = bytes(1 << 16)
        for offset in range(start, stop, len(zeros)):
            os.pwrite(self._out, zeros[: stop - offset], offset)
        self._content.zeros(count)
        if self._content.length > os.fstat(self._out).st_size:
            os.ftruncate(self._out, self._content.length)
        self._note()

    def keep(self, count: int) -> None:
        """Take the next blocks from what is here: the part, else the file. Raises DamagedStream, OSError."""
        for _ in range(count):
            start, index = self._content.length, len(self._content.blocks)
            length = min(self._content.block, self.wish.size - start)
            if length <= 0:
                raise tree.DamagedStream("more is to be kept than there is")
            if self._out is None:
                self._content.length += length
            elif index < len(self._known):
                self._content.add(self._known[index], length)
            elif self._file is not None:
                for data in contents.read_range(self._file, start, length):
                    self.write(data)
            else:
                raise tree.DamagedStream("what is to be kept is not here")
        self._note()

    def move_in(self, digest: str, mtime_ns: int) -> None:
        """Verify it, make it durable and give it its name. Raises DamagedStream, OSError."""
        assert self._out is not None
        if self._content.length != self.wish.size or self._content.hexdigest() != digest:
            self._journal.rewrite([])
            raise tree.DamagedStream(f"`{self.wish.path}` arrived damaged")
        os.ftruncate(self._out, self.wish.size)
        os.fchmod(self._out, self.wish.mode | stat.S_IRUSR)
        os.utime(self._out, ns=(mtime_ns, mtime_ns))
        if self.wish.size > contents.SMALL:
            os.fsync(self._out)
        parent, name = self._directories.of(self.wish.path, create=True)
        os.rename(self._journal.part, name, src_dir_fd=parent, dst_dir_fd=parent)
        self._close()

    def leave(self) -> None:
        """Stop here: the part and its journal stay, where there is a block to go on from."""
        if self._out is not None and not self._journal.blocks:
            with suppress(OSError):
                parent, _ = self._directories.of(self.wish.path)
                os.unlink(self._journal.part, dir_fd=parent)
        self._close()

    def _close(self) -> None:
        for handle in (self._out, self._file):
            if handle is not None:
                os.close(handle)
        self._out = self._file = None

    def _check_room(self, count: int) -> None:
        if self._content.length + count > self.wish.size:
            raise tree.DamagedStream(f"`{self.wish.path}` is longer than it was said to be")

    def _note(self) -> None:
        """Note the blocks that are whole now; where an earlier push's are overwritten, from the first that differs."""
        fresh = self._content.blocks[self._noted :]
        if not fresh:
            return
        noted = self._journal.blocks
        stop = self._noted + len(fresh)
        if noted[self._noted : stop] != fresh:
            if len(noted) > self._noted:
                self._journal.rewrite(self._content.blocks[: self._noted])
            self._journal.add(fresh)
        self._noted = stop
