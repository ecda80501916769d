"""Describe trees, name files safely, and carry them as records in one compressed stream.

Both ends of `sync` and `pull` share this module. Paths are relative, with `/` between components, and hold bytes that
are no UTF-8 as surrogate escapes. Nothing here follows a symbolic link. Standard library only, Python 3.10.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import hashlib
import json
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

FILE = "f"
DIRECTORY = "d"
LINK = "l"
OTHER = "?"

PERMISSIONS = 0o777
CHUNK = 1 << 18
CODEC = "zlib"
CHECK_DIGITS = 16
"""How much of a content's hash goes over the wire beside it; the whole tree's hash goes whole."""

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_NAME = 255
_MAX_TARGET = 4095
_MAX_OBJECT = 1 << 16
_MAX_BYTES = 1 << 20
_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().raw_decode
_RECORD = struct.Struct("!cI")
_OBJECT = b"J"
_BYTES = b"B"


class UnsafePath(ValueError):
    """A path that could lead outside the tree, or that no file can have."""


class DamagedStream(ValueError):
    """The bytes are no stream of records: cut short, too large, or from something else."""


Look = tuple[int, int, int, int, int]
"""Size, modification and change time in ns, inode, mode: what tells that a path was touched."""


class Item(NamedTuple):
    """One path of a tree.

    `digest` is the sha256 (hex) of a file's content (empty while that is not known), the target of a symbolic link,
    empty otherwise. `mode` holds the permission bits of a file or directory (never setuid) and is 0 for everything
    else; `size` and `mtime_ns` belong to files.
    """

    path: str
    kind: str
    mode: int = 0
    digest: str = ""
    size: int = 0
    mtime_ns: int = 0

    def is_like(self, other: Item) -> bool:
        """Say whether both have the same kind, mode and content; times do not count."""
        return self[1:4] == other[1:4]


def check_path(path: str) -> str:
    """Return a relative path as it is; raises UnsafePath for one that is absolute, climbs, or cannot be a name."""
    for name in path.split("/"):
        if name in {"", ".", ".."} or not 0 < _encoded_length(name) <= _MAX_NAME:
            raise UnsafePath(f"{path[:300]!r} is no path inside a tree")
    return path


def _encoded_length(text: str) -> int:
    """Return how many bytes a name or link target has, -1 for what neither can hold."""
    if text.isascii():
        return -1 if "\0" in text else len(text)
    try:
        return -1 if "\0" in text else len(os.fsencode(text))
    except UnicodeEncodeError:
        return -1


def tree_hash(items: Iterable[Item]) -> str:
    """Return one hash of paths, kinds, modes and contents, whatever the order; times do not count."""
    return _hash_of([f"{path}\0{kind}{mode:o}\0{digest}" for path, kind, mode, digest, *_ in items])


def _hash_of(lines: list[str]) -> str:
    lines.sort()
    return hashlib.sha256("\0".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


class TreeHash:
    """Give the tree hash of one tree again and again: only what has changed since is written out anew.

    Items or rows that are the same objects as before are taken to be unchanged.
    """

    def __init__(self) -> None:
        self._known: Mapping[str, Any] = {}
        self._lines: dict[str, str] = {}

    def of_items(self, items: Mapping[str, Item]) -> str:
        """Return `tree_hash` of a tree's items by path."""
        return self._of(items, lambda item: (item[1], item[2], item[3]))

    def of_rows(self, rows: Mapping[str, Any]) -> str:
        """Return the same of rows that begin with kind, mode and digest, by path."""
        return self._of(rows, lambda row: (row[0], row[1], row[2]))

    def _of(self, found: Mapping[str, Any], look: Callable[[Any], tuple[str, int, str]]) -> str:
        known, lines = self._known, self._lines
        for path in [path for path, one in found.items() if known.get(path) is not one]:
            kind, mode, digest = look(found[path])
            lines[path] = f"{path}\0{kind}{mode:o}\0{digest}"
        if len(lines) > len(found):
            for path in lines.keys() - found.keys():
                del lines[path]
        self._known = dict(found)
        return _hash_of(list(lines.values()))


def at_and_below(keys: list[str], path: str) -> list[str]:
    """Return what sorted paths have at a path and below it."""
    at = bisect.bisect_left(keys, path)
    first, last = bisect.bisect_left(keys, f"{path}/", at), bisect.bisect_left(keys, f"{path}0", at)
    return [*keys[at : at + (at < len(keys) and keys[at] == path)], *keys[first:last]]


def relocated(path: str, old: str, new: str) -> str | None:
    """Return where a path is after `old`, a file or a directory, was moved to `new`; None when it is not below it."""
    if path == old:
        return new
    return f"{new}{path[len(old) :]}" if path.startswith(f"{old}/") else None


def expand_home(path: str) -> str:
    """Return a droplet's path with a leading `~` replaced by this user's home; relative ones start there too."""
    home = os.environ.get("HOME") or os.path.expanduser("~")
    if path == "~" or path.startswith("~/"):
        return os.path.join(home, path[2:])
    return os.path.join(home, path)


def look_of(status: os.stat_result) -> Look:
    """Return a path's look."""
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_mode)


def same_file_state(before: os.stat_result, after: os.stat_result) -> bool:
    """Say whether two looks at an open file found it untouched in between."""
    return (before.st_size, before.st_mtime_ns, before.st_ctime_ns, before.st_ino) == (
        after.st_size,
        after.st_mtime_ns,
        after.st_ctime_ns,
        after.st_ino,
    )


# -- handles


class Directories:
    """Reach directories below a root by handle, never through a symbolic link.

    Handles of the directory reached last and of those above it stay open, so that going through a tree in order costs
    one `open` a directory. The root's own handle belongs to the caller. Not for threads.
    """

    def __init__(self, root_fd: int) -> None:
        self._root = root_fd
        self._names: list[str] = []
        self._handles: list[int] = []
        self._reached: str | None = None

    def get(self, path: str, *, create: bool = False) -> int:
        """Return the handle of a directory (`""` is the root), valid until the next call.

        With `create`, missing directories are made. Raises OSError: NotADirectoryError or ELOOP where a component is
        something else, a symbolic link included.
        """
        if path == self._reached:
            return self._handles[-1]
        self._reached = None
        names = path.split("/") if path else []
        common = 0
        while common < min(len(names), len(self._names)) and names[common] == self._names[common]:
            common += 1
        self._keep(common)
        for name in names[common:]:
            above = self._handles[-1] if self._handles else self._root
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=above)
            self._handles.append(os.open(name, _OPEN_DIRECTORY, dir_fd=above))
            self._names.append(name)
        self._reached = path or None
        return self._handles[-1] if self._handles else self._root

    def of(self, path: str, *, create: bool = False) -> tuple[int, str]:
        """Return the handle of the directory that holds `path`, and the last component."""
        parent, _, name = path.rpartition("/")
        return self.get(parent, create=create), name

    def look(self, path: str) -> os.stat_result | None:
        """Return what is at `path` without following links, None when there is nothing or no way to it."""
        try:
            parent, name = self.of(path)
            return os.stat(name, dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                return None
            raise

    def forget(self, path: str) -> None:
        """Drop the handles of `path` and below, because it is about to be replaced."""
        names = path.split("/")
        if self._names[: len(names)] == names:
            self._keep(len(names) - 1)

    def close(self) -> None:
        """Close every handle but the root's."""
        self._keep(0)

    def _keep(self, count: int) -> None:
        self._reached = None
        while len(self._handles) > count:
            self._names.pop()
            os.close(self._handles.pop())


def open_file(directories: Directories, path: str) -> int:
    """Open a regular file for reading; raises OSError, EINVAL for anything that is no regular file."""
    parent, name = directories.of(path)
    handle = os.open(name, _READ, dir_fd=parent)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return handle


def read_chunks(handle: int, size: int) -> Iterator[bytes]:
    """Read an open file to its end, at most `size` bytes: one that grows for ever ends as well."""
    left = size
    while left > 0:
        data = os.read(handle, min(CHUNK, left))
        if not data:
            return
        left -= len(data)
        yield data


def hash_handle(handle: int) -> tuple[str, os.stat_result] | None:
    """Return the sha256 of an open file and its state; None when it changed while it was read."""
    before = os.fstat(handle)
    content = hashlib.sha256()
    left = before.st_size
    while left > 0:
        data = os.read(handle, min(CHUNK, left))
        if not data:
            return None
        content.update(data)
        left -= len(data)
    after = os.fstat(handle)  # one that grew has another size
    return (content.hexdigest(), after) if same_file_state(before, after) else None


def hash_file(directories: Directories, path: str, *, tries: int = 3) -> tuple[str, os.stat_result] | None:
    """Return the sha256 of a file and its state; None when it kept changing. Raises OSError."""
    for _ in range(tries):
        handle = open_file(directories, path)
        try:
            found = hash_handle(handle)
        finally:
            os.close(handle)
        if found is not None:
            return found
    return None


# -- records


def pack(obj: Any) -> bytes:
    """Return one object as a record; raises ValueError above 64 KiB."""
    data = _encode(obj).encode("ascii")
    if len(data) > _MAX_OBJECT:
        raise ValueError(f"an object of {len(data)} bytes does not fit into a record")
    return _RECORD.pack(_OBJECT, len(data)) + data


def pack_bytes(data: bytes) -> bytes:
    """Return a piece of content as a record."""
    return _RECORD.pack(_BYTES, len(data)) + data


def compress(objects: Iterable[Any]) -> Iterator[bytes]:
    """Return objects as one compressed stream, in pieces that fit into frames."""
    packer = zlib.compressobj(1)
    waiting = bytearray()
    for obj in objects:
        waiting += packer.compress(pack(obj))
        if len(waiting) >= CHUNK:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting) + packer.flush()


class Unpacker(Protocol):
    """Decompress one stream in bounded pieces."""

    @property
    def has_more(self) -> bool:
        """Say whether there is more of what was taken."""

    @property
    def is_at_end(self) -> bool:
        """Say whether the stream is complete."""

    @property
    def is_overfull(self) -> bool:
        """Say whether something came after its end."""

    def unpack(self, data: bytes, max_bytes: int) -> bytes:
        """Take a piece of the stream (empty: go on with what was taken) and return at most `max_bytes` of its content.

        Raises DamagedStream.
        """


class PlainUnpacker:
    """Take a stream that is not compressed; it may end anywhere."""

    is_at_end = True
    is_overfull = False

    def __init__(self) -> None:
        self._rest = b""

    @property
    def has_more(self) -> bool:
        """Say whether there is more of what was taken."""
        return bool(self._rest)

    def unpack(self, data: bytes, max_bytes: int) -> bytes:
        """Take a piece and return at most `max_bytes`."""
        whole = self._rest + data if self._rest else data
        self._rest = whole[max_bytes:]
        return whole[:max_bytes]


class ZlibUnpacker:
    """Decompress a zlib stream."""

    def __init__(self) -> None:
        self._unpacker = zlib.decompressobj()

    @property
    def has_more(self) -> bool:
        """Say whether there is more of what was taken."""
        return bool(self._unpacker.unconsumed_tail)

    @property
    def is_at_end(self) -> bool:
        """Say whether the stream is complete."""
        return self._unpacker.eof

    @property
    def is_overfull(self) -> bool:
        """Say whether something came after its end."""
        return bool(self._unpacker.unused_data)

    def unpack(self, data: bytes, max_bytes: int) -> bytes:
        """Take a piece and return at most `max_bytes` of content; raises DamagedStream."""
        try:
            return self._unpacker.decompress(self._unpacker.unconsumed_tail + data, max_bytes)
        except zlib.error as error:
            raise DamagedStream("the stream is damaged") from error


class Records:
    """Cut one compressed stream into records, whatever the chunks, in bounded memory.

    A record is a list (an object) or bytes (content). The sender is not trusted: lengths are checked before they are
    believed and at most `max_bytes` are ever unpacked.
    """

    def __init__(self, max_bytes: int | None = None, unpacker: Unpacker | None = None) -> None:
        self._unpacker = unpacker or ZlibUnpacker()
        self._rest = bytearray()
        self._left = max_bytes

    def feed(self, data: bytes) -> Iterator[list[Any] | bytes]:
        """Take a piece of the stream and return the records it completes; raises DamagedStream. Exhaust it."""
        while data or self._unpacker.has_more:
            plain = self._unpacker.unpack(data, _MAX_BYTES)
            data = b""
            self._count(len(plain))
            self._rest += plain
            yield from self._records()

    def rest(self) -> Iterator[list[Any] | bytes]:
        """Return the records that a decompressor of its own pace still holds, once all was fed. Exhaust it."""
        drain = getattr(self._unpacker, "drain", None)
        while drain is not None and (plain := drain(_MAX_BYTES)):
            self._count(len(plain))
            self._rest += plain
            yield from self._records()

    def end(self) -> None:
        """Check that the stream is complete; raises DamagedStream."""
        if self._rest or not self._unpacker.is_at_end:
            raise DamagedStream("the stream ends too early")

    def _count(self, length: int) -> None:
        if self._unpacker.is_overfull:
            raise DamagedStream("there is more after the end of the stream")
        if self._left is not None:
            self._left -= length
            if self._left < 0:
                raise DamagedStream("the stream is longer than allowed")

    def _records(self) -> Iterator[list[Any] | bytes]:
        position, rest = 0, self._rest
        while len(rest) - position >= _RECORD.size:
            tag, length = _RECORD.unpack_from(rest, position)
            if tag not in {_OBJECT, _BYTES} or length > (_MAX_OBJECT if tag == _OBJECT else _MAX_BYTES):
                raise DamagedStream("the stream holds something that is no record")
            stop = position + _RECORD.size + length
            if stop > len(rest):
                break
            data = bytes(rest[position + _RECORD.size : stop])
            position = stop
            yield _decoded(data) if tag == _OBJECT else data
        del rest[:position]


def _decoded(data: bytes) -> list[Any]:
    try:
        text = data.decode("ascii")
        found, end = _decode(text)
    except (ValueError, RecursionError) as error:
        raise DamagedStream("a record holds no JSON") from error
    if not isinstance(found, list) or not found or end != len(text):
        raise DamagedStream("a record holds no list")
    return found


def decode_item(record: list[Any] | bytes) -> Item:
    """Return the item a record holds after its first field; raises DamagedStream, UnsafePath."""
    if isinstance(record, bytes) or len(record) != 1 + len(Item._fields):
        raise DamagedStream("an item was expected")
    path, kind, mode, digest, size, mtime_ns = record[1:]
    texts_fit = isinstance(path, str) and isinstance(digest, str) and kind in {FILE, DIRECTORY, LINK, OTHER}
    if not texts_fit or not all(type(number) is int for number in (mode, size, mtime_ns)):
        raise DamagedStream("an item has fields of the wrong type")
    if size < 0 or (kind == FILE and len(digest) not in {0, 64}):
        raise DamagedStream("an item has impossible fields")
    if kind == LINK and not 0 < _encoded_length(digest) <= _MAX_TARGET:
        raise DamagedStream("an item has impossible fields")
    check_path(path)
    return Item(path, kind, mode & PERMISSIONS, digest, size, mtime_ns)
