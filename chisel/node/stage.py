"""Take what a client sends, beside the working copy: contents into files named by their hash, orders remembered.

The records of a stream, in this order of meaning: paths of sources are those before anything is moved.

    ["move", old, new]                 a file or a directory of the manifest, with all of it that is below
    ["delete", path]                   what the manifest has at a path and below
    ["release", path]                  it belongs to the droplet from now on
    ["extra", path]                    removed although it was never pushed
    ["dir", path, mode]  ["link", path, target]  ["mode", path, mode]
    ["put", path, mode, size, mtime_ns], bytes..., ["end", check]
    ["patch", path, mode, size, mtime_ns, source], bytes... or ["from", offset, length]..., ["end", check]
    ["copy", path, mode, size, mtime_ns, digest, source]   a content that another path there holds
    ["have", path, mode, size, mtime_ns, digest]           a content that is staged
    ["end", ""] instead                                    the client could not read it whole: the put is void

`check` are the first 16 digits of the content's sha256. Standard library only, Python 3.10.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from . import stdio, tree, unpacking
from .tree import DIRECTORY, FILE, LINK, Directories, Item

_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_INCOMING = "incoming"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PIECE = 1 << 18
_HOLE = 1 << 16
_OWNER_CAN = 0o600


@dataclass(slots=True)
class Orders:
    """What a client wants changed, decoded; the contents of `puts` are staged or named in `sources`."""

    moves: list[tuple[str, str]] = field(default_factory=list)
    deletes: list[str] = field(default_factory=list)
    releases: list[str] = field(default_factory=list)
    extras: list[str] = field(default_factory=list)
    directories: dict[str, Item] = field(default_factory=dict)
    links: dict[str, Item] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    puts: dict[str, Item] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Say whether nothing is to be done."""
        return not any(getattr(self, name) for name in Orders.__slots__)


class Stage:
    """The place beside one working copy where contents arrive; what is there stays until the next sync is through."""

    def __init__(self, path: str, directories: Directories) -> None:
        self.path = path
        self._directories = directories
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        self.handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        for name in os.listdir(self.handle):
            if not _DIGEST.fullmatch(name):  # what a killed receiver was about
                os.unlink(name, dir_fd=self.handle)
        self.orders = Orders()
        self._sources: dict[str, list[str]] = {}
        self._unpacker: tree.Unpacker = tree.ZlibUnpacker()
        self._records = tree.Records(unpacker=self._unpacker)
        self._item: Item | None = None
        self._blob: int | None = None
        self._source: int | None = None
        self._content = hashlib.sha256()
        self._size = 0
        self._arrived: dict[str, tuple[int, int] | None] = {}

    def close(self) -> None:
        """Close what is open; contents that came whole stay, an empty place goes."""
        self._drop_blob()
        self._stop_unpacker()
        os.close(self.handle)
        with contextlib.suppress(OSError):
            os.rmdir(self.path)

    def remove(self) -> None:
        """Close, and remove the place with all that is in it."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def contents(self) -> list[str]:
        """Return the digests of the contents that are here."""
        return sorted(name for name in os.listdir(self.handle) if _DIGEST.fullmatch(name))

    # -- streams

    def expect(self, codec: str) -> None:
        """Begin a stream; raises DamagedStream for a codec that is not known here."""
        self._stop_unpacker()
        self._unpacker = unpacking.open_unpacker(codec)
        self._records = tree.Records(unpacker=self._unpacker)

    def feed(self, data: bytes) -> None:
        """Take a piece of the stream. Raises DamagedStream, UnsafePath, OSError."""
        self._take(self._records.feed(data))

    def end(self) -> None:
        """Check that everything came; raises DamagedStream."""
        self._take(self._records.rest())
        self._records.end()
        if self._item is not None:
            raise tree.DamagedStream("a content has no end")

    def start_over(self) -> None:
        """Forget the orders, keep the contents."""
        self._drop_blob()
        self.orders = Orders()
        self._sources = {}

    def _stop_unpacker(self) -> None:
        stop = getattr(self._unpacker, "close", None)
        if stop is not None:
            stop()

    def _take(self, records: Iterable[list[Any] | bytes]) -> None:
        for record in records:
            if isinstance(record, bytes):
                self._add(record)
            else:
                try:
                    self._obey(record)
                except (IndexError, TypeError, AttributeError) as error:
                    raise tree.DamagedStream(f"`{str(record[0])[:40]}` has fields that make no sense") from error

    # -- orders

    def _obey(self, record: list[Any]) -> None:
        order, orders = record[0], self.orders
        if order == "end":
            self._finish(str(record[1]))
        elif self._item is not None and order != "from":
            raise tree.DamagedStream("an order came within a content")
        elif order == "from":
            self._add_from_source(int(record[1]), int(record[2]))
        elif order in ("put", "patch"):
            self._begin(_file(record), tree.check_path(record[5]) if order == "patch" else None)
        elif order in ("copy", "have"):
            item = _file(record, digest=str(record[5]))
            orders.puts[item.path] = item
            if order == "copy":
                self._sources.setdefault(item.digest, []).append(tree.check_path(record[6]))
        elif order == "move":
            orders.moves.append((tree.check_path(record[1]), tree.check_path(record[2])))
        elif order in ("delete", "release", "extra"):
            named = {"delete": orders.deletes, "release": orders.releases, "extra": orders.extras}
            named[order].append(tree.check_path(record[1]))
        elif order == "dir":
            item = tree.decode_item([order, record[1], DIRECTORY, record[2], "", 0, 0])
            orders.directories[item.path] = item
        elif order == "link":
            item = tree.decode_item([order, record[1], LINK, 0, record[2], 0, 0])
            orders.links[item.path] = item
        elif order == "mode":
            orders.modes[tree.check_path(record[1])] = int(record[2]) & tree.PERMISSIONS
        else:
            raise tree.DamagedStream(f"`{str(order)[:40]}` is no order")

    # -- contents

    def _begin(self, item: Item, source: str | None) -> None:
        self._drop_blob()
        self._item = item
        self._blob = os.open(_INCOMING, _NEW_FILE, 0o600, dir_fd=self.handle)
        self._content = hashlib.sha256()
        self._size = 0
        if source is not None:
            try:
                self._source = tree.open_file(self._directories, source)
            except OSError:
                raise stdio.Refused("moved", f"`{source}` is no longer there to be patched") from None

    def _add(self, data: bytes | memoryview) -> None:
        if self._blob is None:
            raise tree.DamagedStream("content came without a beginning")
        self._content.update(data)
        write_sparsely(self._blob, data)
        self._size += len(data)

    def _add_from_source(self, offset: int, length: int) -> None:
        if self._source is None or offset < 0 or length < 0:
            raise tree.DamagedStream("there is nothing to take that from")
        buffer = memoryview(bytearray(min(length, _PIECE)))
        while length > 0:
            size = os.preadv(self._source, [buffer[: min(length, _PIECE)]], offset)
            if not size:
                raise stdio.Refused("moved", "the file to be patched is shorter than it was")
            self._add(buffer[:size])
            offset += size
            length -= size

    def _finish(self, check: str) -> None:
        """Name a received content by its hash; an empty `check` means that the client could not read it whole."""
        if self._blob is None or self._item is None:
            raise tree.DamagedStream("a content ended without a beginning")
        item, digest, size = self._item, self._content.hexdigest(), self._size
        if not check:
            self._drop_blob()
            return
        if digest[: tree.CHECK_DIGITS] != check[: tree.CHECK_DIGITS]:
            if self._source is not None:
                raise stdio.Refused("moved", f"the patched `{item.path}` is not what it should be")
            raise tree.DamagedStream(f"`{item.path}` arrived damaged")
        self._keep(digest, item)
        self.orders.puts[item.path] = item._replace(digest=digest, size=size)

    def _keep(self, digest: str, item: Item | None = None) -> None:
        """Name what has come, with the mode and time of its path where that leaves it readable here."""
        assert self._blob is not None
        if self._size >= _HOLE:
            os.ftruncate(self._blob, self._size)
        self._arrived[digest] = None
        if item is not None and item.mode & _OWNER_CAN == _OWNER_CAN:
            os.utime(self._blob, ns=(item.mtime_ns, item.mtime_ns))
            os.fchmod(self._blob, item.mode & tree.PERMISSIONS)
            self._arrived[digest] = _dress(item)
        os.rename(_INCOMING, digest, src_dir_fd=self.handle, dst_dir_fd=self.handle)
        self._close_blob()

    def _drop_blob(self) -> None:
        if self._blob is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_INCOMING, dir_fd=self.handle)
        self._close_blob()

    def _close_blob(self) -> None:
        self._item = None
        for handle in (self._source, self._blob):
            if handle is not None:
                os.close(handle)
        self._source = self._blob = None

    # -- getting ready

    def complete(self) -> Orders:
        """Return the orders, every put with its content staged; raises Refused for a content that is not there."""
        for digest in sorted({item.digest for item in self.orders.puts.values()}):
            if not self._has(digest) and not any(
                self._copy(source, digest) for source in self._sources.get(digest, ())
            ):
                raise stdio.Refused("moved", f"content {digest} is no longer on the droplet")
        return self.orders

    def prepare(self, item: Item, name: str, *, is_last: bool, is_exchanged: bool = False) -> str:
        """Make one staged content ready, with its mode and time, and return its name: `name`, or what it has already.

        The last user takes the file itself. What will be exchanged for another must have `name`: nothing else may be
        called after a content.
        """
        if is_last and not is_exchanged and self._arrived.get(item.digest) == _dress(item):
            return item.digest
        if is_last:
            os.rename(item.digest, name, src_dir_fd=self.handle, dst_dir_fd=self.handle)
        else:
            self._duplicate(item.digest, name)
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.handle)
        try:
            os.utime(handle, ns=(item.mtime_ns, item.mtime_ns))
            os.fchmod(handle, item.mode & tree.PERMISSIONS)
        finally:
            os.close(handle)
        return name

    def _has(self, digest: str) -> bool:
        if digest in self._arrived:
            return True
        if not _DIGEST.fullmatch(digest):
            raise tree.DamagedStream(f"`{digest[:80]}` names no content")
        try:
            os.stat(digest, dir_fd=self.handle, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _copy(self, source: str, digest: str) -> bool:
        """Stage a content from a file of the working copy; False when that no longer holds it."""
        try:
            handle = tree.open_file(self._directories, source)
        except OSError:
            return False
        try:
            self._begin(Item(source, FILE), None)
            for data in tree.read_chunks(handle, sys.maxsize):
                self._add(data)
        finally:
            os.close(handle)
        if self._content.hexdigest() != digest:
            self._drop_blob()
            return False
        self._keep(digest)
        return True

    def _duplicate(self, name: str, other: str) -> None:
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.handle)
        try:
            target = os.open(other, _NEW_FILE, 0o600, dir_fd=self.handle)
            try:
                for data in tree.read_chunks(source, sys.maxsize):
                    write_sparsely(target, data)
                os.ftruncate(target, os.fstat(source).st_size)
            finally:
                os.close(target)
        finally:
            os.close(source)


def _dress(item: Item) -> tuple[int, int]:
    """Return what a file has beside its content."""
    return item.mode & tree.PERMISSIONS, item.mtime_ns


def _file(record: list[Any], digest: str = "") -> Item:
    """Decode path, mode, size and time of a file."""
    path, mode, size, mtime_ns = record[1:5]
    return tree.decode_item([record[0], path, FILE, mode, digest, size, mtime_ns])


def write_sparsely(handle: int, data: bytes | memoryview) -> None:
    """Append a piece; runs of zeros become holes, the last of which only `ftruncate` makes. Raises OSError."""
    view = memoryview(data)
    for start in range(0, len(data), _HOLE):
        piece = view[start : start + _HOLE]
        if len(piece) == _HOLE and not piece[0] and piece.tobytes() == _ZEROS:  # views are compared item by item: slow
            os.lseek(handle, _HOLE, os.SEEK_CUR)
            continue
        while piece:
            piece = piece[os.write(handle, piece) :]


_ZEROS = bytes(_HOLE)
