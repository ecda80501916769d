"""Read files in pieces of whole lines, plain or gzip, in bounded memory. Standard library only, Python 3.10."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from .tally import FormatError

BLOCK = 1 << 20
LONGEST_LINE = 8 << 20
_GZIP = b"\x1f\x8b"


def is_gzip(path: str) -> bool:
    """Say whether a file begins as gzip does."""
    with open(path, "rb") as source:
        return source.read(2) == _GZIP


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """Open a file for reading, unpacked when it is gzip; a damaged one raises FormatError where it is read."""
    try:
        if is_gzip(path):
            with gzip.open(path, "rb") as unpacked:
                yield cast("BinaryIO", unpacked)
        else:
            with open(path, "rb") as source:
                yield source
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FormatError(f"`{os.path.basename(path)}` is damaged or cut gzip: {error}") from error


def size_of(path: str) -> int | None:
    """Return a plain file's bytes, None for gzip: it has no middle to begin at."""
    return None if is_gzip(path) else os.path.getsize(path)


def lines_between(path: str, start: int, end: int | None) -> Iterator[tuple[int, bytes]]:
    """Give an offset and a block of whole lines (without the last line break) from there; the last may lack its end.

    A line above `LONGEST_LINE` is given in pieces, which no reader takes for whole lines.
    """
    with opened(path) as source:
        source.seek(start)
        offset, rest = start, b""
        left = None if end is None else end - start
        while left is None or left > 0:
            data = source.read(BLOCK if left is None else min(BLOCK, left))
            if not data:
                break
            if left is not None:
                left -= len(data)
            cut = data.rfind(b"\n")
            if cut < 0 and len(rest) < LONGEST_LINE:
                rest += data
                continue
            whole = rest + data[: cut + 1] if cut >= 0 else rest + data
            rest = data[cut + 1 :] if cut >= 0 else b""
            yield offset, whole[:-1] if cut >= 0 else whole
            offset += len(whole)
        if rest:
            yield offset, rest


def offset_of(block: bytes, line: bytes) -> int:
    """Return where a line begins in a block of lines."""
    return max((b"\n" + block + b"\n").find(b"\n" + line + b"\n"), 0)


def count_lines(path: str, offset: int) -> int:
    """Return how many lines end before an offset: less one, the number of the line that begins there."""
    count = 0
    with opened(path) as source:
        while offset > 0:
            data = source.read(min(BLOCK, offset))
            if not data:
                break
            count += data.count(b"\n")
            offset -= len(data)
    return count
