"""Send files of a droplet to the client: the `send` role.

The conversation: REQUEST `{"cwd", "patterns", "codecs"}` and, from a client that has some of it already, `"asks"`. That
one gets a listing first, in DATA frames up to a DATA_END, one zlib stream of `["total", files, bytes, room]`, `["dir",
path]`, `["link", path, target]`, `["skipped", path, reason]`, `["missing", pattern, near]` and `["file", entry...]`
(`offer.Entry`). It answers in the same way with what it wants of the files, by their number: `["want", first, last]`,
`["hash", number, digest]` (it has something of that size), `["blocks", number, size, in place]` with two records of
bytes, the short hashes of the blocks of what it has from its start and from its end, `in place` when that is the file
itself; `["dry"]` asks what would come. A client that has nothing gets the listing's records and all files at once.

Contents come in segments of one codec each, begun by PROGRESS `{"codec"}`: `["file", entry...]`, then bytes, `["hole",
count]`, `["copy", count]` (what the client has at the same place) or `["tail", count]` (as far from the end), then
`["end", digest, trouble, entry...]`; `["again"]` when it changed meanwhile and comes once more; `["same", number]` and
`["would", number]` for what was asked by hash. DATA_END; REPLY with the counts. The client closes with ACK `{"not":
paths}`: what it could not write. Standard library only, Python 3.10.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from . import contents, env, frames, packing, results, stdio, tree
from .contents import SHORT, ContentHash
from .offer import Entry, decode_count, decode_text
from .walk import Walk, entry_of

MAX_PATTERNS = 1000
ANSWER_S = 600.0
ACK_S = 30.0
TRIES = 3
_RETRIED = 64 << 20
"""A larger file that changes while it is read is not read again, but named."""
_PROBED, _PROBE = 1 << 18, 1 << 15
_WORTH = 0.93


class Answer(NamedTuple):
    """What the client has of a file: a digest of the whole, or the short hashes of its blocks from both ends."""

    digest: str = ""
    size: int = 0
    front: bytes = b""
    tail: bytes = b""
    is_in_place: bool = False


def main(channel: stdio.Channel, request: dict[str, Any]) -> int:
    """Serve one pull; return 0. Raises Refused when there is no such directory."""
    cwd = env.expand(str(request.get("cwd") or "~"))
    patterns = [str(pattern) for pattern in request.get("patterns") or []]
    if not os.path.isdir(cwd):
        raise stdio.Refused("no-cwd", f"there is no directory `{request.get('cwd')}` on the droplet")
    if not 0 < len(patterns) <= MAX_PATTERNS:
        raise stdio.Refused("bad-request", f"{len(patterns)} patterns")
    walk = Walk(cwd)
    for pattern in patterns:
        walk.add(pattern)
    codecs = [str(codec) for codec in request.get("codecs") or []]
    sender = Sender(walk)
    if request.get("asks"):
        for data in tree.compress([*sender.listing(), *(["file", *entry] for entry in walk.files)]):
            channel.send(frames.Kind.DATA, data)
        channel.send(frames.Kind.DATA_END)
        answers = _receive_answers(channel, len(walk.files))
        if answers is None:
            return 0
        sender.take(answers)
    else:
        sender.take({number: Answer() for number in range(len(walk.files))})
        _send_segment(channel, packing.ZlibPacker(), map(tree.pack, sender.listing()))
    for codec, records in sender.segments(codecs):
        _send_segment(channel, packing.open_packer([codec]), records)
    channel.send(frames.Kind.DATA_END)
    channel.send_json(frames.Kind.REPLY, {"files": sender.files, "bytes": sender.bytes})
    _remember(channel, sender)
    return 0


def _receive_answers(channel: stdio.Channel, count: int) -> dict[int, Answer] | None:
    """Return what the client wants, by number; None when it went away."""
    reader = AnswerReader(count)
    try:
        while True:
            frame = channel.receive(ANSWER_S)
            if frame is None:
                return None
            if frame.kind == frames.Kind.DATA:
                reader.feed(frame.payload)
            elif frame.kind == frames.Kind.DATA_END:
                return reader.found
    except (tree.DamagedStream, tree.UnsafePath) as error:
        raise stdio.Refused("bad-stream", str(error)) from error
    except TimeoutError as error:
        raise stdio.Refused("silent", str(error)) from error


class AnswerReader:
    """Decode a client's answers."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._records = tree.Records()
        self._waiting: list[bytes] | None = None
        self._last = 0
        self.found: dict[int, Answer] = {}

    def feed(self, data: bytes) -> None:
        """Take a piece; raises DamagedStream."""
        for record in self._records.feed(data):
            if isinstance(record, bytes):
                self._hashes(record)
            elif record[0] == "want":
                first, last = (decode_count(record, index, self._count) for index in (1, 2))
                self.found.update((number, Answer()) for number in range(first, last))
            elif record[0] == "hash":
                self.found[self._number(record)] = Answer(digest=decode_text(record, 2))
            elif record[0] == "blocks":
                self._last = self._number(record)
                self.found[self._last] = Answer(size=decode_count(record, 2), is_in_place=record[3:] == [True])
            elif record[0] == "dry":
                self.found[-1] = Answer()
            else:
                raise tree.DamagedStream("an answer was expected")

    def _number(self, record: list[Any]) -> int:
        return decode_count(record, 1, self._count - 1)

    def _hashes(self, data: bytes) -> None:
        known = self.found.get(self._last)
        if known is None or not known.size:
            raise tree.DamagedStream("hashes came for no file")
        self.found[self._last] = known._replace(tail=data) if known.front else known._replace(front=data or b"-")


def _send_segment(channel: stdio.Channel, packer: packing.Packer, records: Iterable[bytes]) -> None:
    waiting = bytearray()
    try:
        channel.send_json(frames.Kind.PROGRESS, {"codec": packer.codec})
        for record in records:
            waiting += packer.compress(record)
            while len(waiting) >= tree.CHUNK:
                channel.send(frames.Kind.DATA, bytes(waiting[: tree.CHUNK]))
                del waiting[: tree.CHUNK]
        waiting += packer.flush()
        for start in range(0, len(waiting), tree.CHUNK):
            channel.send(frames.Kind.DATA, bytes(waiting[start : start + tree.CHUNK]))
    finally:
        packer.close()


def _remember(channel: stdio.Channel, sender: Sender) -> None:
    """Note what the client has now, once it said so."""
    with suppress(TimeoutError, stdio.Refused, frames.FrameError):
        frame = channel.receive(ACK_S)
        if frame is not None and frame.kind == frames.Kind.ACK:
            for path in frame.json().get("not", []):
                sender.sent.pop(str(path), None)
            results.remember_pulled({sender.walk.places[path]: look for path, look in sender.sent.items()})


class Sender:
    """Give the records of what a client wants; `sent` are size and time of what it has afterwards, by path."""

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self.files = 0
        self.bytes = 0
        self.sent: dict[str, list[int]] = {}
        self._answers: dict[int, Answer] = {}
        self._is_dry = False
        self._hashed: dict[str, list[bytes]] = {}

    def listing(self) -> Iterator[list[Any]]:
        """Give all but the files."""
        walk = self.walk
        total = sum(entry.size for entry in walk.files), sum(entry.room for entry in walk.files)
        yield ["total", len(walk.files), *total]
        yield from (["missing", pattern, near] for pattern, near in walk.missing)
        yield from (["skipped", path, reason] for path, reason in walk.skipped)
        yield from (["dir", path] for path in walk.directories)
        yield from (["link", *link] for link in walk.links)

    def take(self, answers: dict[int, Answer]) -> None:
        """Learn what is wanted; what is not, the client has."""
        self._is_dry = answers.pop(-1, None) is not None
        self._answers = answers
        if not self._is_dry:
            self.sent = {
                entry.path: [entry.size, entry.mtime_ns]
                for number, entry in enumerate(self.walk.files)
                if number not in answers
            }

    def segments(self, codecs: list[str]) -> Iterator[tuple[str, Iterator[bytes]]]:
        """Give what is wanted in runs of one codec: what compresses first, then what does not."""
        numbers = sorted(self._answers)
        size = sum(self.walk.files[number].size for number in numbers)
        # A process that compresses takes longer to start than zlib takes for a little.
        best = packing.best_codec(codecs) if size > _PROBED else packing.ZLIB
        plain = {number for number in numbers if packing.NONE in codecs and not self._compresses(number)}
        for codec, chosen in ((best, [one for one in numbers if one not in plain]), (packing.NONE, sorted(plain))):
            if chosen:
                yield codec, self._records(chosen)

    def _compresses(self, number: int) -> bool:
        """Say whether compressing a file is worth it, from two pieces of it."""
        entry = self.walk.files[number]
        if entry.size < _PROBED or self._is_dry:
            return True
        try:
            handle = os.open(self.walk.places[entry.path], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                found = os.pread(handle, _PROBE, 0) + os.pread(handle, _PROBE, entry.size // 2)
            finally:
                os.close(handle)
        except OSError:
            return True
        return len(zlib.compress(found, 1)) < _WORTH * len(found)

    def _records(self, numbers: list[int]) -> Iterator[bytes]:
        for number in numbers:
            entry, answer = self.walk.files[number], self._answers[number]
            if self._is_as_there(entry, answer):
                self.sent[entry.path] = [entry.size, entry.mtime_ns]
                yield tree.pack(["same", number])
            elif self._is_dry:
                yield tree.pack(["would", number])
            else:
                yield from self._file(entry, answer)

    def _is_as_there(self, entry: Entry, answer: Answer) -> bool:
        """Say whether the client has just this content, by its digest or by all of its blocks."""
        if answer.digest:
            return self._digest(entry) == answer.digest
        if not answer.is_in_place or answer.size != entry.size:
            return False
        with suppress(OSError):
            handle, status = self._open(entry)
            try:
                changes = _Changes(handle, status, answer, ContentHash(entry.size))
                is_untouched = entry_of(entry.path, os.fstat(handle)).look == entry.look
                if is_untouched:
                    self._hashed = {entry.path: changes.known}
                return is_untouched and changes.are_none()
            finally:
                os.close(handle)
        return False

    def _digest(self, entry: Entry) -> str:
        """Return the digest of a file that is still as it was listed; empty otherwise."""
        with suppress(OSError):
            handle, status = self._open(entry)
            try:
                digest = contents.hash_open_file(handle, status).hexdigest()
                if entry_of(entry.path, os.fstat(handle)).look == entry.look:
                    return digest
            finally:
                os.close(handle)
        return ""

    def _open(self, entry: Entry) -> tuple[int, os.stat_result]:
        handle = os.open(self.walk.places[entry.path], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            os.close(handle)
            raise OSError(0, "it is no longer a file")
        return handle, status

    def _file(self, entry: Entry, answer: Answer) -> Iterator[bytes]:
        """Send a file as it is while it is read: one that grows is cut where it ended at the start."""
        for left in reversed(range(TRIES)):
            try:
                handle, before = self._open(entry)
            except OSError as error:
                yield tree.pack(["skipped", entry.path, error.strerror or "it cannot be read"])
                return
            try:
                now = entry_of(entry.path, before)
                yield tree.pack(["file", *now])
                content = ContentHash(now.size)
                if answer.size and now.size == entry.size:
                    known = self._hashed.pop(entry.path, None) if now.look == entry.look else None
                    yield from _Changes(handle, before, answer, content, known).records()
                else:
                    yield from _whole(handle, before, content)
                after = entry_of(entry.path, os.fstat(handle))
            finally:
                os.close(handle)
            trouble = "" if after.look == now.look else "it was being written while it was read"
            if trouble and left and now.size <= _RETRIED:
                yield tree.pack(["again"])
                continue
            yield tree.pack(["end", content.hexdigest(), trouble, *after])
            self.files += 1
            self.bytes += content.length
            if not trouble:
                self.sent[entry.path] = [now.size, now.mtime_ns]
            return


def _whole(handle: int, status: os.stat_result, content: ContentHash) -> Iterator[bytes]:
    return _literal(handle, status, content, 0, status.st_size)


def _literal(handle: int, status: os.stat_result, content: ContentHash, start: int, stop: int) -> Iterator[bytes]:
    """Give a range of a file as it is, holes as holes."""
    parts = contents.extents(handle, start, stop, size=status.st_size, stored=status.st_blocks)
    for offset, count, is_data in parts:
        if not is_data:
            content.zeros(count)
            yield tree.pack(["hole", count])
            continue
        for data in contents.read_range(handle, offset, count):
            content.update(data)
            yield tree.pack_bytes(data)


class _Changes:
    """Give a file as what the client has of it and what is new: blocks at their places, and at the same end."""

    def __init__(
        self,
        handle: int,
        status: os.stat_result,
        answer: Answer,
        content: ContentHash,
        known: list[bytes] | None = None,
    ) -> None:
        self._handle = handle
        self._status = status
        self._size = status.st_size
        self._answer = answer
        self._content = content
        self._block = content.block
        self.known = self._front() if known is None else known

    def are_none(self) -> bool:
        """Say whether all blocks are there."""
        return len(self.known) == -(-self._size // self._block) and all(self._matched())

    def _matched(self) -> list[bool]:
        return [digest[:SHORT] == self._short(self._answer.front, index) for index, digest in enumerate(self.known)]

    def records(self) -> Iterator[bytes]:
        known, matched = self.known, self._matched()
        first = matched.index(False) if False in matched else len(matched)
        tail = self._tail(min(first * self._block, self._size))
        position, stop = 0, self._size - tail
        while position < stop:
            index = position // self._block
            length = min(self._block, self._size - position)
            if index < len(matched) and matched[index] and position + length <= self._size:
                self._content.add(known[index], length)
                yield tree.pack(["copy", length])
                position += length
                continue
            # A block of the front may reach into what both have at the end.
            length = min(length, stop - position)
            yield from _literal(self._handle, self._status, self._content, position, position + length)
            position += length
        left = self._size - position
        if left > 0:
            for data in contents.read_range(self._handle, position, left):
                self._content.update(data)
            yield tree.pack(["tail", left])

    @staticmethod
    def _short(hashes: bytes, index: int) -> bytes:
        return hashes[index * SHORT : (index + 1) * SHORT]

    def _front(self) -> list[bytes]:
        count = min(-(-self._size // self._block), len(self._answer.front) // SHORT)
        return [contents.hash_range(self._handle, index * self._block, self._block) for index in range(count)]

    def _tail(self, start: int) -> int:
        """Return how many bytes at the end, after `start`, both have; none where the front decides alone."""
        length = 0
        if self._answer.size == self._size:
            return 0
        for index in range(len(self._answer.tail) // SHORT):
            place = self._size - length - self._block
            if place < start:
                break
            if contents.hash_range(self._handle, place, self._block)[:SHORT] != self._short(self._answer.tail, index):
                break
            length += self._block
        return length
