"""Take files that are pushed to a directory of this droplet: the `store` role.

The conversation: REQUEST `{"to"}`; DATA up to a DATA_END from the client, one zlib stream of `["file", path, mode,
size, mtime_ns, digest]` (an empty digest is not known yet), `["dir", path]` and `["link", path, target]`. REPLY `{"to",
"free"}`, then DATA up to a DATA_END: for every file `["same"]`, or `["has", blocks in the part, size of the file here]`
with a record of bytes, the sha256s of the blocks that are here already: in the part of an interrupted push first, then
in the file itself. PROGRESS comes while files are read for that.

Then contents: each DATA frame begins with a letter. `J`: `["begin", number]`, `["keep", count]` (the next blocks are
here), `["hole", count]`, `["end", digest, mtime_ns]`, `["drop"]` (it changed meanwhile: stop here), `["same", number,
digest]`. `B`: bytes. `Z`: bytes, zlib-compressed. DATA_END; REPLY with the counts. A file appears by rename when it is
whole and verified; what came of it before is kept, so that no more than a block is sent again. Nothing is ever deleted.
The contents may come from a neighbour (`incoming`): then the client tells over SSH what each file has to be, and ERROR
`relay-lost` says that another push is needed, which goes on from what came.
Standard library only, Python 3.10.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from . import contents, env, frames, stdio, tree
from .arriving import Arriving
from .contents import block_size
from .incoming import Incoming, LostError
from .offer import decode_count, decode_link, decode_text
from .pushed import PART_PREFIX, Index, Journal, has_journal
from .tree import Directories

SILENCE_S = 90.0
SCRATCH, DATA = "/scratch", "~/data"
MOST_FILES = 1_000_000
_SPARE = 64 << 20
_REPORT_S = 1.0
_MOST_PLAIN = 4 << 20
_MOST_SAID = 1000
_FORGOTTEN_S = 14 * 86400


class Wish(NamedTuple):
    """One file as the client has it."""

    path: str
    mode: int
    size: int
    mtime_ns: int
    digest: str


def main(channel: stdio.Channel, request: dict[str, Any]) -> int:
    """Serve one push; return 0. Raises Refused: what was finished before stays, what had come is kept."""
    target = _target(str(request.get("to") or ""))
    try:
        os.makedirs(target, exist_ok=True)
        root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise stdio.Refused("no-target", f"`{target}`: {error.strerror}") from error
    store = Store(channel, target, root)
    try:
        store.serve()
    except LostError as error:
        raise stdio.Refused("relay-lost", str(error)) from error
    except (tree.DamagedStream, tree.UnsafePath, zlib.error, frames.FrameError) as error:
        code = "relay-lost" if store.incoming.is_relayed else "bad-stream"
        raise stdio.Refused(code, str(error)) from error
    except TimeoutError as error:
        raise stdio.Refused("silent", str(error)) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        code = "disk-full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "io"
        raise stdio.Refused(code, f"{error.strerror}: {error.filename or target}") from error
    finally:
        store.close()
    return 0


def _target(wanted: str) -> str:
    """Return the directory meant: a relative one lies in the home; by default the scratch disk, else `~/data`."""
    if wanted:
        return env.expand(wanted)
    scratch = env.system_path(SCRATCH)
    return scratch if os.path.isdir(scratch) and os.access(scratch, os.W_OK) else env.expand(DATA)


class Store:
    """Take one push into an opened directory."""

    def __init__(self, channel: stdio.Channel, target: str, root: int) -> None:
        self._channel = channel
        self.incoming = Incoming(channel)
        self._target = target
        self._root = root
        self._directories = Directories(root)
        self._index = Index()
        self._wishes: list[Wish] = []
        self._links: list[tuple[str, str]] = []
        self._journals: dict[int, Journal] = {}
        self._arriving: Arriving | None = None
        self._number_arriving = 0
        self._reported = time.monotonic()
        self._files = self._bytes = self._same = 0
        self._skipped: list[list[str]] = []
        self._unproven: list[tuple[Wish, str]] = []

    def serve(self) -> None:
        """Hold the whole conversation; an early end of the input leaves what has come for the next push."""
        self._clean_up()
        if not self._take_wishes():
            return
        self._channel.send_json(frames.Kind.REPLY, {"to": self._target, "free": self._free()})
        self._send_states()
        if not self._take_contents():
            return
        for path, text in self._links:
            self._trying(path, partial(self._make_link, path, text))
        self._channel.send_json(
            frames.Kind.REPLY,
            {
                "files": self._files,
                "bytes": self._bytes,
                "same": self._same,
                "skipped": self._skipped[:_MOST_SAID],
                "relayed": self.incoming.relayed_bytes,
            },
        )

    def close(self) -> None:
        """Close everything; what has come of a file is kept."""
        self.incoming.close()
        if self._arriving is not None:
            self._arriving.leave()
        for journal in self._journals.values():
            journal.close(is_done=not journal.blocks)
        self._directories.close()
        os.close(self._root)

    def _clean_up(self) -> None:
        """Remove what pushes that nobody went on with left here long ago."""
        for name in os.listdir(self._root):
            if name.startswith(PART_PREFIX):
                with suppress(OSError):
                    if time.time() - os.stat(name, dir_fd=self._root).st_mtime > _FORGOTTEN_S:
                        os.unlink(name, dir_fd=self._root)

    # -- what is wanted

    def _take_wishes(self) -> bool:
        records = tree.Records()
        while (frame := self._channel.receive(SILENCE_S)) is not None:
            if frame.kind == frames.Kind.DATA_END:
                records.end()
                return True
            if frame.kind == frames.Kind.DATA:
                for record in records.feed(frame.payload):
                    self._wish(record)
        return False

    def _wish(self, record: list[Any] | bytes) -> None:
        if isinstance(record, bytes):
            raise tree.DamagedStream("a file was expected")
        if record[0] == "link":
            self._links.append(tuple(decode_link(record)))  # type: ignore[arg-type]
            return
        path = tree.check_path(decode_text(record, 1))
        if record[0] == "dir":
            self._trying(path, lambda: self._directories.get(path, create=True))
        elif record[0] == "file" and len(self._wishes) < MOST_FILES:
            mode, size, mtime_ns = (decode_count(record, index) for index in (2, 3, 4))
            self._wishes.append(Wish(path, mode & tree.PERMISSIONS, size, mtime_ns, decode_text(record, 5)))
        else:
            raise tree.DamagedStream(f"`{str(record[0])[:40]}` has no place here")

    def _free(self) -> int:
        found = os.fstatvfs(self._root)
        return found.f_bavail * found.f_frsize

    def _send_states(self) -> None:
        """Say what is here of every file, and refuse what has no room before anything is sent."""
        needed = 0
        packed = bytearray()
        packer = zlib.compressobj(1)
        for number, wish in enumerate(self._wishes):
            state = self._state(number, wish)
            if state[0][0] == "has" and state[0][2] != wish.size:  # of the same size it may well be the same
                needed += max(0, wish.size - state[0][1] * block_size(wish.size))
            packed += packer.compress(tree.pack(state[0]) + b"".join(map(tree.pack_bytes, state[1:])))
        packed += packer.flush()
        free = max(0, self._free() - _SPARE)
        if needed > free:
            said = f"{needed:,} bytes are to come and {free:,} are free below `{self._target}`"
            raise stdio.Refused("disk-full", said)
        for start in range(0, len(packed), tree.CHUNK):
            self._channel.send(frames.Kind.DATA, bytes(packed[start : start + tree.CHUNK]))
        self._channel.send(frames.Kind.DATA_END)

    def _state(self, number: int, wish: Wish) -> list[Any]:
        status = self._directories.look(wish.path)
        is_file = status is not None and stat.S_ISREG(status.st_mode)
        place = os.path.join(self._target, wish.path)
        if is_file and status is not None and wish.digest and self._index.digest(place, status) == wish.digest:
            self._same += 1
            self._keep(wish)
            return [["same"]]
        in_part = self._blocks_of_part(number, wish, place)
        in_file = self._blocks_of_file(wish, len(in_part)) if is_file else []
        size = status.st_size if status is not None and is_file else -1
        return [["has", len(in_part), size], b"".join([*in_part, *in_file])]

    def _keep(self, wish: Wish) -> None:
        with suppress(OSError):
            handle = tree.open_file(self._directories, wish.path)
            os.fchmod(handle, wish.mode | stat.S_IRUSR)
            os.close(handle)

    def _blocks_of_part(self, number: int, wish: Wish, place: str) -> list[bytes]:
        """Return the blocks of an interrupted push that are still what they were noted to be."""
        if not has_journal(place):
            return []
        journal = Journal(place, wish.size)
        self._journals[number] = journal
        found: list[bytes] = []
        with suppress(OSError):
            parent, _ = self._directories.of(wish.path)
            handle = os.open(journal.part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                for digest, noted in zip(self._hashes(handle, wish.size, 0), journal.blocks):  # noqa: B905
                    if digest != noted:
                        break
                    found.append(digest)
            finally:
                os.close(handle)
        journal.rewrite(found)
        return found

    def _blocks_of_file(self, wish: Wish, first: int) -> list[bytes]:
        try:
            handle = tree.open_file(self._directories, wish.path)
        except OSError:
            return []
        try:
            return list(self._hashes(handle, wish.size, first))
        finally:
            os.close(handle)

    def _hashes(self, handle: int, size: int, first: int) -> Iterator[bytes]:
        """Give the sha256s of an open file's blocks, as a content of `size` bytes is cut, reporting now and then."""
        block = block_size(size)
        stop = min(os.fstat(handle).st_size, size)
        for start in range(first * block, stop, block):
            yield contents.hash_range(handle, start, min(block, size - start))
            self._report(start)

    def _report(self, read: int) -> None:
        """Say now and then that something is being done."""
        if time.monotonic() - self._reported > _REPORT_S:
            self._reported = time.monotonic()
            self._channel.send_json(frames.Kind.PROGRESS, {"read": read})

    # -- contents

    def _take_contents(self) -> bool:
        while (frame := self.incoming.receive(SILENCE_S)) is not None:
            if frame.kind == frames.Kind.DATA_END and self._arriving is None:
                for wish, digest in self._unproven:
                    self._note_same(wish, digest)
                return True
            if self.incoming.is_relayed:
                self._report(0)
            if frame.kind == frames.Kind.DATA:
                self._take(frame.payload)
            elif frame.kind != frames.Kind.HEARTBEAT:
                raise tree.DamagedStream(f"frame {frame.kind} has no place in a push")
            for journal in self._journals.values():
                journal.is_alive()
        return False

    def _take(self, payload: bytes) -> None:
        kind, data = payload[:1], payload[1:]
        if kind == b"J":
            self._obey(_order(data))
            return
        if kind not in {b"B", b"Z"} or self._arriving is None:
            raise tree.DamagedStream("content came without a file")
        if kind == b"Z":
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(data, _MOST_PLAIN)
            if not unpacker.eof or unpacker.unused_data:
                raise tree.DamagedStream("a block does not unpack")
        self._arriving.write(data)

    def _obey(self, record: list[Any]) -> None:
        order, arriving = record[0], self._arriving
        if order == "begin" and arriving is None:
            self._begin(self._number(record))
        elif order == "same" and arriving is None:
            same = self._wishes[self._number(record)], decode_text(record, 2)
            if self.incoming.is_relayed:
                self._unproven.append(same)  # a neighbour's word: it counts when the client has confirmed the stream
            else:
                self._note_same(*same)
        elif order == "keep" and arriving is not None:
            arriving.keep(decode_count(record, 1, contents.MOST_BLOCKS))
        elif order == "hole" and arriving is not None:
            arriving.hole(decode_count(record, 1))
        elif order == "end" and arriving is not None:
            digest, mtime_ns = decode_text(record, 1), decode_count(record, 2)
            if self.incoming.is_relayed and digest != self._promised():
                raise tree.DamagedStream(f"`{arriving.wish.path}` is not what the client has")
            self._arriving = None
            self._end(arriving, digest, mtime_ns)
        elif order == "drop" and arriving is not None:
            self._arriving = None
            arriving.leave()
        else:
            raise tree.DamagedStream(f"`{str(order)[:40]}` has no place here")

    def _promised(self) -> str:
        """Return what the client says that the arriving file is."""
        return self.incoming.promised(self._number_arriving, SILENCE_S)

    def _number(self, record: list[Any]) -> int:
        return decode_count(record, 1, len(self._wishes) - 1)

    def _note_same(self, wish: Wish, digest: str) -> None:
        """Note the digest of a file that turned out to be here."""
        self._same += 1
        self._keep(wish)
        status = self._directories.look(wish.path)
        if status is not None:
            self._index.add(os.path.join(self._target, wish.path), status, digest)

    def _begin(self, number: int) -> None:
        wish = self._wishes[number]
        if number not in self._journals:
            self._journals[number] = Journal(os.path.join(self._target, wish.path), wish.size)
        self._arriving, self._number_arriving = Arriving(wish, self._directories, self._journals[number]), number
        self._trying(wish.path, self._arriving.open)

    def _end(self, arriving: Arriving, digest: str, mtime_ns: int) -> None:
        wish = arriving.wish
        if not arriving.is_open:
            return
        if not self._trying(wish.path, lambda: arriving.move_in(digest, mtime_ns)):
            arriving.leave()
            return
        self._journals.pop(self._number_arriving).close(is_done=True)
        status = self._directories.look(wish.path)
        if status is not None:
            self._index.add(os.path.join(self._target, wish.path), status, digest)
        self._files += 1
        self._bytes += wish.size

    def _make_link(self, path: str, text: str) -> None:
        parent, name = self._directories.of(path, create=True)
        with suppress(OSError):
            if os.readlink(name, dir_fd=parent) == text:
                return
        temporary = f".chisel-link-{os.getpid()}"
        os.symlink(text, temporary, dir_fd=parent)
        try:
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except OSError:
            os.unlink(temporary, dir_fd=parent)
            raise

    def _trying(self, path: str, action: Any) -> bool:
        """Do something for one path; a failure that concerns it alone is named, and the rest goes on."""
        try:
            action()
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EPIPE}:
                raise
            self._skipped.append([path, error.strerror or "it cannot be written"])
            return False
        return True


def _order(data: bytes) -> list[Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise tree.DamagedStream("an order holds no JSON") from error
    if not isinstance(found, list) or not found:
        raise tree.DamagedStream("an order holds no list")
    return found
