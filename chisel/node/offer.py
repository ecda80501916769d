"""Describe what a droplet offers to a pull: entries as records of a stream, checked when they are read.

Both ends share this module; the reader trusts nothing. Standard library only, Python 3.10.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from . import tree

RACY_NS = 50_000_000
"""A file touched within this time before it was looked at may change again and look the same."""

_MOST_BYTES = 1 << 62


class Entry(NamedTuple):
    """One file on offer.

    `room` is what it takes on disk (bytes, less than `size` when it has holes). `is_racy` says that it was touched so
    shortly before that the same look does not mean the same content.
    """

    path: str
    mode: int
    size: int
    room: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    is_racy: bool = False

    @property
    def look(self) -> list[int]:
        """Return what changes when the file does."""
        return [self.size, self.mtime_ns, self.ctime_ns, self.inode]


class Link(NamedTuple):
    """One symbolic link on offer."""

    path: str
    target: str


def decode_entry(record: list[Any]) -> Entry:
    """Return the entry that `["file", ...]` holds; raises DamagedStream, UnsafePath."""
    fields = record[1:]
    if len(fields) != len(Entry._fields) or not isinstance(fields[0], str) or type(fields[7]) is not bool:
        raise tree.DamagedStream("a file is described in a way that makes no sense")
    if not all(type(number) is int and abs(number) <= _MOST_BYTES for number in fields[1:7]):
        raise tree.DamagedStream("a file has fields of the wrong type")
    entry = Entry(*fields)
    if entry.size < 0 or entry.room < 0:
        raise tree.DamagedStream("a file has an impossible size")
    return entry._replace(path=tree.check_path(entry.path), mode=entry.mode & tree.PERMISSIONS)


def decode_link(record: list[Any]) -> Link:
    """Return the link that `["link", path, target]` holds; raises DamagedStream, UnsafePath."""
    if len(record) != 3:
        raise tree.DamagedStream("a link is described in a way that makes no sense")
    item = tree.decode_item(["item", record[1], tree.LINK, 0, record[2], 0, 0])
    return Link(item.path, item.digest)


def decode_text(record: list[Any], index: int, *, most: int = 5000) -> str:
    """Return a text of a record, cut to `most` characters; raises DamagedStream."""
    if len(record) <= index or not isinstance(record[index], str):
        raise tree.DamagedStream(f"`{str(record[0])[:40]}` lacks a text")
    return str(record[index])[:most]


def decode_count(record: list[Any], index: int, most: int = _MOST_BYTES) -> int:
    """Return a number of a record between 0 and `most`; raises DamagedStream."""
    if len(record) <= index or type(record[index]) is not int or not 0 <= record[index] <= most:
        raise tree.DamagedStream(f"`{str(record[0])[:40]}` has an impossible number")
    return int(record[index])
