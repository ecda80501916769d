"""Keep a command's output until its reader has it: in memory while one keeps up, on disk while none does.

Output is a row of frames as they go over the wire. What a reader has not acknowledged is kept, and a little more (for
`chisel logs`), so that it can go on at the byte where it stopped. On disk the row is cut into segments, files that
begin with the counts and checksums at their first frame; old ones go once they are acknowledged and room is needed.
"""

from __future__ import annotations

import os
import time
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from . import frames
from .stdio import Refused

MEMORY_BYTES = 4 << 20
TAIL_BYTES = 256 << 10
SEGMENT_BYTES = 16 << 20
LIMIT_BYTES = 1 << 30
_BLOCK = 256 << 10
_MARK_EVERY_S = 1.0
_NAMES = {frames.Kind.STDOUT: "stdout", frames.Kind.STDERR: "stderr"}


class Mark(NamedTuple):
    """A place between two frames: the bytes of each stream before it, and the CRC-32 of each up to it."""

    stdout: int = 0
    stderr: int = 0
    stdout_crc32: int = 0
    stderr_crc32: int = 0

    @property
    def position(self) -> int:
        """Return the bytes of both streams before this place."""
        return self.stdout + self.stderr

    def after(self, kind: int, size: int, crc32: int) -> Mark:
        """Return the place behind an output frame."""
        if kind == frames.Kind.STDOUT:
            return Mark(self.stdout + size, self.stderr, crc32, self.stderr_crc32)
        return Mark(self.stdout, self.stderr + size, self.stdout_crc32, crc32)


class Spool:
    """Take output at its end, give it from a reader's place, forget what was acknowledged."""

    def __init__(self, directory: str, *, limit_bytes: int = LIMIT_BYTES, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._directory = directory
        self._limit = limit_bytes
        self._segment_bytes = segment_bytes
        self.end = Mark()
        self._base = Mark()
        self._acked = 0
        self._sent: deque[bytes] = deque()
        self._unsent: deque[bytes] = deque()
        self._disk: Disk | None = None
        self._stuck: list[bytes] = []
        self._marked_at = 0.0

    @property
    def is_on_disk(self) -> bool:
        """Say whether output goes to disk."""
        return self._disk is not None

    @property
    def is_full(self) -> bool:
        """Say whether the command must wait: nobody reads and there is no more room."""
        if self._disk is None:
            return self.end.position - self._acked >= MEMORY_BYTES
        return bool(self._stuck) or self._disk.size >= self._limit

    @property
    def has_more(self) -> bool:
        """Say whether the reader has not been given everything."""
        return bool(self._unsent) if self._disk is None else self._disk.has_more

    @property
    def place(self) -> Mark:
        """Return the reader's place."""
        if self._disk is not None:
            return self._disk.place
        here = self._base
        for frame in self._sent:
            here = behind(here, frame)
        return here

    @property
    def unacked(self) -> int:
        """Return how many bytes the reader has not acknowledged."""
        return self.end.position - self._acked

    def append(self, kind: int, data: bytes) -> None:
        """Take a piece of one stream's output."""
        now = time.time()
        if abs(now - self._marked_at) >= _MARK_EVERY_S:
            self._marked_at = now
            self._put([frames.encode(frames.Kind.TIME, frames.TIME.pack(now))])
        name = _NAMES[frames.Kind(kind)]
        crc32 = zlib.crc32(data, getattr(self.end, f"{name}_crc32"))
        head = frames.HEADER.pack(kind, frames.OUTPUT.size + len(data)) + frames.OUTPUT.pack(
            getattr(self.end, name), crc32
        )
        self.end = self.end.after(kind, len(data), crc32)
        self._put([head + data])

    def _put(self, row: list[bytes]) -> None:
        if self._disk is None:
            self._unsent.extend(row)
        else:
            self._stuck += row
            self._unstick()

    def _unstick(self) -> None:
        """Write what waits to the disk; where there is no room it goes on waiting."""
        assert self._disk is not None
        while self._stuck and self._disk.append(self._stuck[0]):
            del self._stuck[0]

    def next(self, limit: int) -> list[bytes]:
        """Return whole frames from the reader's place, about `limit` bytes of them, and move the place behind them."""
        if self._disk is not None:
            return self._disk.next(limit)
        found: list[bytes] = []
        while self._unsent and limit > 0:
            frame = self._unsent.popleft()
            self._sent.append(frame)
            found.append(frame)
            limit -= len(frame)
        return found

    def ack(self, position: int) -> None:
        """Forget what the reader has, but for a tail; room on disk is made."""
        self._acked = min(max(self._acked, position), self.end.position)
        if self._disk is not None:
            if self._disk.size >= self._limit or self._stuck:
                self._disk.drop(self._acked, down_to=self._limit // 2)
                self._unstick()
            return
        while self._sent:
            following = behind(self._base, self._sent[0])
            if following.position > self._acked - TAIL_BYTES:
                return
            self._base = following
            self._sent.popleft()

    def retry(self) -> None:
        """Try again to write what found no room."""
        if self._disk is not None:
            self._unstick()

    def seek(self, place: Mark) -> None:
        """Put the reader's place where it says that it stopped; raises Refused when it cannot go on from there."""
        if self._disk is not None:
            self._disk.seek(place)
        else:
            row = [*self._sent, *self._unsent]
            count = _find(self._base, row, place)
            self._sent, self._unsent = deque(row[:count]), deque(row[count:])
        self._acked = max(self._acked, place.position)

    def rewind(self) -> None:
        """Put the reader's place at the earliest output that is kept."""
        if self._disk is not None:
            self._disk.seek(self._disk.first)
        else:
            self._unsent.extendleft(reversed(self._sent))
            self._sent.clear()

    def to_disk(self) -> None:
        """Keep output on disk from now on, with all that is still in memory; without room it stays where it is."""
        if self._disk is not None:
            return
        place, row = self.place, [*self._sent, *self._unsent]
        disk = Disk(self._directory, self._base, segment_bytes=self._segment_bytes)
        if not disk.begin() or not all(disk.append(frame) for frame in row):
            disk.remove()
            return
        disk.seek(place)
        self._disk = disk
        self._sent.clear()
        self._unsent.clear()

    def close(self) -> None:
        """Let the files go."""
        if self._disk is not None:
            self._disk.close()


class Disk:
    """The segments of one spool: appended to by the supervisor, read from any place."""

    def __init__(self, directory: str, base: Mark, *, segment_bytes: int) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._segments: list[tuple[str, Mark]] = []
        self._end = base
        self._out = -1
        self._out_size = 0
        self.size = 0
        self._unread = 0
        self._reader = Reader(directory)

    @property
    def has_more(self) -> bool:
        """Say whether there is something behind the reader's place."""
        return self._unread > 0

    @property
    def place(self) -> Mark:
        """Return the reader's place."""
        return self._reader.place

    @property
    def first(self) -> Mark:
        """Return the earliest place that is kept."""
        return self._segments[0][1]

    def begin(self) -> bool:
        """Begin a segment at the present end; False when there is no room."""
        path = os.path.join(self._directory, segment_name(self._end.position))
        head = frames.encode_json(frames.Kind.DATA, self._end._asdict())
        try:
            out = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError:
            return False
        if not _write_whole(out, head):
            os.close(out)
            with suppress(OSError):
                os.unlink(path)
            return False
        if self._out >= 0:
            os.close(self._out)
        self._out, self._out_size = out, len(head)
        self._segments.append((path, self._end))
        self.size += len(head)
        return True

    def append(self, frame: bytes) -> bool:
        """Write one frame; False when there is no room, and then nothing of it is there."""
        is_over = self._out_size >= self._segment_bytes and self._segments[-1][1].position != self._end.position
        if is_over and not self.begin():
            return False
        if not _write_whole(self._out, frame):
            return False
        self._out_size += len(frame)
        self.size += len(frame)
        self._unread += len(frame)
        self._end = behind(self._end, frame)
        return True

    def next(self, limit: int) -> list[bytes]:
        """Return frames from the reader's place."""
        found = self._reader.next(limit)
        self._unread -= sum(map(len, found))
        return found

    def seek(self, place: Mark) -> None:
        """Put the reader's place; raises Refused for one that is not there."""
        self._reader.seek(place)
        unread = self._reader.left_in_segment()
        for path, base in self._segments:
            if base.position > self._reader.segment_position:
                unread += os.stat(path).st_size - _head_size(path)
        self._unread = unread

    def drop(self, acked: int, *, down_to: int) -> None:
        """Remove the oldest segments that lie wholly before `acked`, until at most `down_to` bytes are left."""
        while len(self._segments) > 1 and self.size > down_to and self._segments[1][1].position <= acked:
            path, _ = self._segments.pop(0)
            with suppress(OSError):
                self.size -= os.stat(path).st_size
                os.unlink(path)

    def close(self) -> None:
        """Let the files go."""
        if self._out >= 0:
            os.close(self._out)
            self._out = -1
        self._reader.close()

    def remove(self) -> None:
        """Undo what was written."""
        self.close()
        for path, _ in self._segments:
            with suppress(OSError):
                os.unlink(path)


class Reader:
    """Read a spool's segments from a place on, while they may grow."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._source = -1
        self._at = 0
        self.segment_position = -1
        self.place = Mark()

    @property
    def is_open(self) -> bool:
        """Say whether there is anything to read from."""
        return self._source >= 0

    def first(self) -> Mark | None:
        """Return the earliest place that is kept, None when nothing is."""
        found = _segments(self._directory)
        return _read_base(os.path.join(self._directory, segment_name(found[0]))) if found else None

    def seek(self, place: Mark) -> None:
        """Go to a place; raises Refused when it is not kept, or when what was read up to it was something else."""
        found = [position for position in _segments(self._directory) if position <= place.position]
        if not found:
            raise Refused("gone", f"the output from byte {place.position} on is not kept any more")
        self._open(found[-1])
        here = self.place
        while here.position < place.position:
            row = self._frames(_BLOCK)
            if not row:
                raise Refused("gone", f"there is no output up to byte {place.position}")
            for frame in row:
                here = behind(here, frame)
                self._at += len(frame)
                if here.position >= place.position:
                    break
        _check_same(here, place)
        self.place = here

    def next(self, limit: int) -> list[bytes]:
        """Return whole frames, about `limit` bytes of them; none at the present end."""
        row = self._frames(limit)
        if not row:
            later = [position for position in _segments(self._directory) if position > self.segment_position]
            if not later or self.place.position < later[0]:
                return []
            self._open(later[0])
            row = self._frames(limit)
        for frame in row:
            self.place = behind(self.place, frame)
            self._at += len(frame)
        return row

    def left_in_segment(self) -> int:
        """Return how many bytes of the open segment lie behind the place."""
        return os.fstat(self._source).st_size - self._at

    def close(self) -> None:
        """Let the file go."""
        if self._source >= 0:
            os.close(self._source)
            self._source = -1

    def _open(self, position: int) -> None:
        self.close()
        path = os.path.join(self._directory, segment_name(position))
        self._source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        base = _read_base(path)
        if base is None:
            raise Refused("gone", f"the spool's segment at byte {position} is damaged")
        self._at, self.segment_position, self.place = _head_size(path), position, base

    def _frames(self, limit: int) -> list[bytes]:
        """Return the whole frames that lie at the place, without moving it."""
        size = max(limit, frames.HEADER.size)
        while True:
            block = os.pread(self._source, size, self._at)
            row = list(_cut(block))
            if row or len(block) < size:
                return row
            size = frames.HEADER.size + frames.MAX_PAYLOAD


def segment_name(position: int) -> str:
    """Return the name of the segment that begins at a position."""
    return f"spool-{position:020d}"


def _segments(directory: str) -> list[int]:
    names = [name for name in os.listdir(directory) if name.startswith("spool-") and name[6:].isdigit()]
    return sorted(int(name[6:]) for name in names)


def _read_base(path: str) -> Mark | None:
    with open(path, "rb") as source:
        row = frames.Decoder().feed(source.read(1024))
    return Mark(**{name: int(value) for name, value in row[0].json().items()}) if row else None


def _head_size(path: str) -> int:
    with open(path, "rb") as source:
        return frames.HEADER.size + int(frames.HEADER.unpack(source.read(frames.HEADER.size))[1])


def _cut(block: bytes) -> Iterator[bytes]:
    at, end = 0, len(block)
    while end - at >= frames.HEADER.size:
        stop = at + frames.HEADER.size + int(frames.HEADER.unpack_from(block, at)[1])
        if stop > end:
            return
        yield block[at:stop]
        at = stop


def behind(mark: Mark, frame: bytes) -> Mark:
    """Return the place behind a whole frame; frames that hold no output move nothing."""
    if frame[0] not in _NAMES:
        return mark
    _, crc32 = frames.OUTPUT.unpack_from(frame, frames.HEADER.size)
    return mark.after(frame[0], len(frame) - frames.HEADER.size - frames.OUTPUT.size, crc32)


def _find(base: Mark, row: list[bytes], place: Mark) -> int:
    """Return how many frames lie before a place; raises Refused when it is none between two of them."""
    here, count = base, 0
    if place.position < base.position:
        raise Refused("gone", f"the output from byte {place.position} on is not kept any more")
    for frame in row:
        if here.position >= place.position:
            break
        here = behind(here, frame)
        count += 1
    _check_same(here, place)
    return count


def _check_same(here: Mark, place: Mark) -> None:
    if here != place:
        raise Refused("damaged", f"what was received up to byte {place.position} is not what the command wrote")


def _write_whole(out: int, data: bytes) -> bool:
    """Append all or nothing."""
    before = os.lseek(out, 0, os.SEEK_END)
    try:
        written = os.write(out, data)
    except OSError:
        written = 0
    if written == len(data):
        return True
    with suppress(OSError):
        os.ftruncate(out, before)
    return False
