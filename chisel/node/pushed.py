"""Keep the digests of files that were pushed to this droplet, and what has arrived of those under way.

`~/.chisel/store/` holds `index`, one JSON line a file (the last one about a path counts), and for each file under way a
journal: a line of JSON, then the sha256 of every block that is whole. Standard library only, Python 3.10.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import time
from contextlib import suppress
from typing import Any

from . import contents, env, stdio

DIGEST = 32
PART_PREFIX = ".chisel-part-"
BUSY_S = 30.0
STALE_S = 10.0
"""A push that has taken nothing for so long has lost its client: another one of the same file takes its place."""
_MOST_LINES = 400_000


def key_of(path: str) -> str:
    """Return what names a file's journal and part."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:24]


def has_journal(path: str) -> bool:
    """Say whether an interrupted push left something of a file."""
    return os.path.exists(os.path.join(env.own_directory("store"), key_of(path)))


def _look(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


class Index:
    """The digests of pushed files by absolute path, valid while size, times and inode are the same."""

    def __init__(self) -> None:
        self._path = os.path.join(env.own_directory("store"), "index")
        self._known: dict[str, list[Any]] = {}
        lines = 0
        with suppress(OSError), open(self._path, encoding="ascii", errors="replace") as source:
            for line in source:
                lines += 1
                with suppress(ValueError, IndexError, TypeError):
                    found = json.loads(line)
                    self._known[found[0]] = found[1:]
        if lines > 1000 and lines > 2 * len(self._known):
            self._rewrite()

    def digest(self, path: str, status: os.stat_result) -> str:
        """Return the digest of a file as it is now, empty when it is not known."""
        known = self._known.get(path)
        return str(known[-1]) if known is not None and known[:-1] == _look(status) else ""

    def add(self, path: str, status: os.stat_result, digest: str) -> None:
        """Remember a digest; raises nothing: it is found again by reading the file."""
        if self._known.get(path) == [*_look(status), digest]:
            return
        self._known[path] = [*_look(status), digest]
        with suppress(OSError):
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(handle, json.dumps([path, *self._known[path]]).encode("ascii") + b"\n")
            finally:
                os.close(handle)

    def _rewrite(self) -> None:
        with suppress(OSError):
            with open(f"{self._path}.new", "w", encoding="ascii") as out:
                for path, known in list(self._known.items())[-_MOST_LINES:]:
                    out.write(json.dumps([path, *known]) + "\n")
            os.replace(f"{self._path}.new", self._path)


class Journal:
    """What has arrived of one file: `blocks` are the sha256s of those that lie whole in its part. Locked while open."""

    def __init__(self, path: str, size: int) -> None:
        self.key = key_of(path)
        self._path = os.path.join(env.own_directory("store"), self.key)
        self._size = size
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._lock()
        self.blocks: list[bytes] = []
        self._touched = 0.0
        self._read()

    @property
    def part(self) -> str:
        """Return the name of the part, beside the file that it becomes."""
        return PART_PREFIX + self.key

    def _lock(self) -> None:
        """Wait for another push of this file; one that is not alive any more is ended. Raises Refused `busy`."""
        end = time.monotonic() + BUSY_S
        while not self._is_mine():
            if time.monotonic() > end:
                os.close(self._handle)
                raise stdio.Refused("busy", "another push of this file is under way")
            if time.time() - os.fstat(self._handle).st_mtime > STALE_S:
                self._end_holder()
            time.sleep(0.05)

    def _is_mine(self) -> bool:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _end_holder(self) -> None:
        with suppress(OSError, ValueError):
            holder = int(json.loads(os.pread(self._handle, 4096, 0).partition(b"\n")[0])["pid"])
            with open(f"/proc/{holder}/cmdline", "rb") as source:
                if b"store" in source.read().split(b"\0"):
                    os.kill(holder, signal.SIGTERM)

    def _read(self) -> None:
        """Learn what came before; of a file of another length or cut in another way nothing is used."""
        with open(self._path, "rb") as source:
            head, rest = source.readline(1 << 16), source.read(contents.MOST_BLOCKS * DIGEST)
        with suppress(ValueError, KeyError, TypeError):
            if json.loads(head)["block"] == contents.block_size(self._size):
                self.blocks = [rest[at : at + DIGEST] for at in range(0, len(rest) - DIGEST + 1, DIGEST)]
        self.rewrite(self.blocks)

    def rewrite(self, digests: list[bytes]) -> None:
        """Let it hold these blocks, and this process's name as who is at work. Raises OSError."""
        head = json.dumps({"pid": os.getpid(), "block": contents.block_size(self._size)}).encode("ascii") + b"\n"
        self.blocks = list(digests)
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, head + b"".join(digests), 0)
        os.lseek(self._handle, 0, os.SEEK_END)

    def add(self, digests: list[bytes]) -> None:
        """Note blocks that lie whole in the part now. Raises OSError."""
        os.write(self._handle, b"".join(digests))
        self.blocks += digests

    def is_alive(self) -> None:
        """Show others that something comes."""
        now = time.monotonic()
        if now - self._touched > 1.0:
            self._touched = now
            os.utime(self._handle)

    def close(self, *, is_done: bool = False) -> None:
        """Let others go on; what is done needs no journal."""
        if is_done:
            with suppress(OSError):
                os.unlink(self._path)
        os.close(self._handle)
