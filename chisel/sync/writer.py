"""Write what a droplet sends below one local directory, and nowhere else.

The droplet is not trusted: no path leads out of the target, nothing is written through a symbolic link, a link whose
own target leads out is left out, set-uid bits never arrive. A file appears whole, by rename, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import posixpath
import secrets
import stat
from pathlib import Path
from typing import Any

from chisel.node import tree
from chisel.node.tree import DIRECTORY, FILE, LINK, Directories, Item
from chisel.sync.codec import open_unpacker

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OWNER_CAN = 0o600


class Writer:
    """Take one stream; blocking, for one thread at a time. `skipped` texts carry their reason.

    `bytes` counts the content of finished files, `received` also what is on its way.
    """

    def __init__(self, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        self._root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._directories = Directories(self._root)
        self._records = tree.Records()
        self._umask = _umask()
        self._item: Item | None = None
        self._out: int | None = None
        self._place: tuple[int, str, str] | None = None
        self._content = hashlib.sha256()
        self.files = 0
        self.bytes = 0
        self.received = 0
        self.missing: list[str] = []
        self.skipped: list[str] = []

    def expect(self, codec: str) -> None:
        """Learn, before the first piece, how the stream is compressed; raises DamagedStream for what is not known."""
        self._records = tree.Records(unpacker=open_unpacker(codec))

    def feed(self, data: bytes) -> None:
        """Take a piece of the stream. Raises DamagedStream, UnsafePath, OSError (disk full)."""
        for record in self._records.feed(data):
            if isinstance(record, bytes):
                self._add(record)
            else:
                self._obey(record)

    def end(self) -> None:
        """Check that the stream is complete; raises DamagedStream."""
        self._records.end()
        if self._item is not None:
            raise tree.DamagedStream("a file has no end")

    def close(self) -> None:
        """Close everything and remove an unfinished file."""
        self._drop()
        self._directories.close()
        os.close(self._root)

    def _obey(self, record: list[Any]) -> None:
        order = record[0]
        if order == "item" and self._item is None:
            self._begin(tree.decode_item(record))
        elif order == "end" and self._item is not None:
            self._finish(self._item, str(record[1]))
        elif order == "skipped":
            self.skipped.append(f"{record[1]}: {record[2]}")
        elif order == "missing":
            self.missing.append(str(record[1]))
        else:
            raise tree.DamagedStream(f"`{str(order)[:40]}` has no place here")

    def _begin(self, item: Item) -> None:
        try:
            if item.kind == DIRECTORY:
                self._directories.get(item.path, create=True)
            elif item.kind == LINK:
                self._link(item)
            elif item.kind == FILE:
                self._item = item
                self._open(item)
        except OSError as error:
            if error.errno not in {errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EINVAL}:
                raise
            self.skipped.append(f"{item.path}: {error.strerror} here")

    def _open(self, item: Item) -> None:
        parent, name = self._directories.of(item.path, create=True)
        there = self._directories.look(item.path)
        if there is not None and stat.S_ISDIR(there.st_mode):
            raise IsADirectoryError(errno.EISDIR, "a directory is in the way")
        temporary = f".chisel-{secrets.token_hex(6)}"
        # The handle of the parent is good until the next item, which comes only after this one's end.
        self._out = os.open(temporary, _NEW_FILE, 0o600, dir_fd=parent)
        self._place = (parent, temporary, name)
        self._content = hashlib.sha256()

    def _add(self, data: bytes) -> None:
        if self._item is None:
            raise tree.DamagedStream("content came without a file")
        self._content.update(data)
        self.received += len(data)
        if self._out is not None:
            view = memoryview(data)
            while view:
                view = view[os.write(self._out, view) :]

    def _finish(self, item: Item, digest: str) -> None:
        self._item = None
        if self._out is None or self._place is None:
            return
        if digest != self._content.hexdigest():
            raise tree.DamagedStream(f"`{item.path}` arrived damaged")
        parent, temporary, name = self._place
        self.bytes += os.fstat(self._out).st_size
        os.fchmod(self._out, (item.mode & ~self._umask) | _OWNER_CAN)
        os.utime(self._out, ns=(item.mtime_ns, item.mtime_ns))
        os.close(self._out)
        self._out = None
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        self._place = None
        self.files += 1

    def _drop(self) -> None:
        if self._out is not None:
            os.close(self._out)
            self._out = None
        if self._place is not None:
            parent, temporary, _ = self._place
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=parent)
            self._place = None

    def _link(self, item: Item) -> None:
        where = posixpath.normpath(posixpath.join(posixpath.dirname(item.path), item.digest))
        if item.digest.startswith("/") or where == ".." or where.startswith("../"):
            self.skipped.append(f"{item.path}: a link that leads out of the directory, to `{item.digest}`")
            return
        parent, name = self._directories.of(item.path, create=True)
        temporary = f".chisel-{secrets.token_hex(6)}"
        os.symlink(item.digest, temporary, dir_fd=parent)
        try:
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except OSError:
            os.unlink(temporary, dir_fd=parent)
            raise
        self.files += 1


def _umask() -> int:
    """Return this process's umask, which can only be read by setting it; where Linux tells, it is asked."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
