"""Write what a droplet sends below one local directory, and nowhere else.

The droplet is not trusted: no path leads out of the target or to what was not asked for, nothing is written through a
symbolic link, a link whose own target leads out is left out, set-uid bits never arrive, and there is an end to files,
bytes and depth. A file appears whole, by rename, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from chisel.node import tree
from chisel.node.offer import Entry, Link, decode_count, decode_entry, decode_link, decode_text
from chisel.node.tree import Directories
from chisel.sync.codec import open_unpacker
from chisel.sync.incoming import Base, Damaged, Incoming
from chisel.sync.links import inner_target
from chisel.sync.pulled import Note, Notes
from chisel.sync.stage import Stage
from chisel.sync.wanted import Caps, Wanted, folded

_LEFT_OUT = {
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EACCES,
    errno.EPERM,
    errno.EINVAL,
    errno.ENAMETOOLONG,
    errno.EILSEQ,
    errno.ENOTEMPTY,
    errno.ENOENT,
    errno.ETXTBSY,
}
_MOST_SAID = 1000
_SPARE_ROOM = 16 << 20


class TooMuch(ValueError):
    """The droplet offers more than the caps allow; `option` is what raises the one in the way."""

    def __init__(self, message: str, option: str) -> None:
        super().__init__(message)
        self.option = option


class NoRoom(ValueError):
    """The disk here has no room for it."""


class Writer:
    """Take one droplet's offer and its contents; blocking, for one thread at a time. Texts carry their reason.

    `files` and `bytes` count what was written (`bytes` as files appear), `unchanged` what was here already; `received`
    and `done` go along with the contents. `expected_bytes` and `expected_files` are None until they are known.
    """

    def __init__(
        self,
        target: Path,
        wanted: Wanted | None = None,
        caps: Caps | None = None,
        *,
        host: str = "",
        notes: Notes | None = None,
        folds: bool | None = None,
    ) -> None:
        target.mkdir(parents=True, exist_ok=True)
        self._target = os.path.realpath(target)
        self.wanted = wanted or Wanted(["."])
        self._caps = caps or Caps()
        self._host = host
        self._notes = notes
        self._root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.directories = Directories(self._root)
        try:
            self.stage = Stage(self._root)
        except OSError:
            os.close(self._root)
            raise
        self._folds = self.stage.folds() if folds is None else folds
        self._umask = _umask()
        self._records: tree.Records | None = None
        self._seen: dict[str, str] = {}
        self._admitted_keys: set[str] = set()
        self._links: list[Link] = []
        self._due: list[str] = []
        self._incoming: Incoming | None = None
        self._admitted = 0
        self._admitted_bytes = 0
        self._unsaid = 0
        self.is_asking = self.is_dry = False
        self.asked_for: dict[str, Base] | None = None
        self.digests: dict[str, str] = {}
        self.offered: list[Entry | None] = []
        self.would: list[Entry] = []
        self.files = self.bytes = self.unchanged = 0
        self.received = self.done = 0
        self.expected_bytes: int | None = None
        self.expected_files: int | None = None
        self.missing: list[tuple[str, list[str]]] = []
        self.skipped: list[str] = []
        self.refused: list[str] = []

    # -- the stream

    def expect(self, codec: str) -> None:
        """Learn how the next run of the stream is compressed; raises DamagedStream for what is not known."""
        self._end_segment()
        self._records = tree.Records(unpacker=open_unpacker(codec))

    def feed(self, data: bytes) -> None:
        """Take a piece of the stream. Raises DamagedStream, UnsafePath, TooMuch, NoRoom, OSError (disk full)."""
        self._records = self._records or tree.Records()
        for record in self._records.feed(data):
            if isinstance(record, bytes):
                self._content(record)
            else:
                self._obey(record)

    def end(self) -> None:
        """Check that the stream is complete, make directories and links; raises DamagedStream, OSError."""
        self._end_segment()
        if self._incoming is not None:
            raise tree.DamagedStream("a file has no end")
        for path in self._due:
            self._trying(path, partial(self._make_directory, path))
        for link in self._links:
            self._trying(link.path, partial(self._make_link, link))
        if self._unsaid:
            self.skipped.append(f"and {self._unsaid:,} more")
        if self._notes is not None:
            self._notes.save()

    def close(self) -> None:
        """Close everything; what is on its way is kept for the next pull where that is worth it."""
        keep = self._incoming.leave() if self._incoming is not None else None
        self._incoming = None
        if self._notes is not None:
            self._notes.save()
        self.directories.close()
        self.stage.close(keep)
        os.close(self._root)

    def _end_segment(self) -> None:
        if self._records is not None:
            self._records.end()
        self._records = None

    def _obey(self, record: list[Any]) -> None:
        orders: dict[Any, Callable[[list[Any]], None]] = {
            "file": self._begin,
            "hole": self._hole,
            "copy": self._copy,
            "tail": self._copy,
            "end": self._finish,
            "again": self._again,
            "same": self._same,
            "would": self._would,
            "total": self._total,
            "dir": self._directory,
            "link": self._link,
            "skipped": lambda record: self.say(decode_text(record, 1), decode_text(record, 2)),
            "missing": self._missing,
        }
        order = orders.get(record[0]) if isinstance(record[0], str) else None
        is_of_a_file = record[0] in ("hole", "copy", "tail", "end", "again")
        if order is None or is_of_a_file != (self._incoming is not None):
            raise tree.DamagedStream(f"`{str(record[0])[:40]}` has no place here")
        order(record)

    # -- what is on offer

    def offer(self, record: list[Any] | bytes) -> None:
        """Take a record of the listing that comes before the answers. Raises as `feed` does."""
        if isinstance(record, bytes):
            raise tree.DamagedStream("content came before it was asked for")
        if record[0] != "file":
            if record[0] not in ("total", "dir", "link", "skipped", "missing"):
                raise tree.DamagedStream(f"`{str(record[0])[:40]}` has no place here")
            self._obey(record)
            return
        entry = decode_entry(record)
        if len(self.offered) >= self._caps.files:
            raise TooMuch(f"more than {self._caps.files:,} files", "--max-files")
        self.offered.append(entry if self._admits(entry.path, entry.size) else None)

    def check_room(self, needed: int) -> None:
        """Raise NoRoom when that many bytes do not fit on the disk."""
        found = os.fstatvfs(self._root)
        free = found.f_bavail * found.f_frsize
        if needed > max(0, free - _SPARE_ROOM):
            raise NoRoom(f"{needed:,} bytes are to come and {free:,} are free")

    def _total(self, record: list[Any]) -> None:
        files, size, room = (decode_count(record, index) for index in (1, 2, 3))
        if files > self._caps.files:
            raise TooMuch(f"{files:,} files, more than {self._caps.files:,}", "--max-files")
        if not self.is_asking:
            self.expected_files, self.expected_bytes = files, size
            if size > self._caps.bytes:
                raise TooMuch(f"{size:,} bytes, more than {self._caps.bytes:,}", "--max-bytes")
            self.check_room(room)

    def _admits(self, path: str, size: int = 0) -> bool:
        """Count a path against the caps, and say whether it may be written; what may not is named."""
        self._admitted += 1
        self._admitted_bytes += size
        if self._admitted > self._caps.files:
            raise TooMuch(f"more than {self._caps.files:,} files", "--max-files")
        if self._admitted_bytes > self._caps.bytes:
            raise TooMuch(f"more than {self._caps.bytes:,} bytes", "--max-bytes")
        if path.count("/") >= self._caps.depth:
            raise TooMuch(f"a path of more than {self._caps.depth} components", "--max-depth")
        reason = self.wanted.refusal(path) or self._collision(path)
        if reason is not None:
            self.say(path, reason)
        return reason is None

    def _collision(self, path: str) -> str | None:
        """Say what stands in the way of a name: itself, or one that this file system takes for the same."""
        key = folded(path) if self._folds else path
        other = self._seen.setdefault(key, path)
        if other != path:
            return f"this file system takes it for `{other}`, which came first"
        if key in self._admitted_keys:
            return "it came twice"
        self._admitted_keys.add(key)
        above = path.rpartition("/")[0] if self._folds else ""
        while above:
            other = self._seen.setdefault(folded(above), above)
            if other != above:
                return f"this file system takes its directory for `{other}`, which came first"
            above = above.rpartition("/")[0]
        return None

    def say(self, path: str, reason: str) -> None:
        """Name a path that is not written, and why; of very many the first ones."""
        if len(self.refused) < _MOST_SAID:
            self.refused.append(path)
            self.skipped.append(f"{path}: {reason}")
        else:
            self._unsaid += 1

    def _trying(self, path: str, action: Callable[[], None]) -> bool:
        try:
            action()
        except OSError as error:
            if error.errno not in _LEFT_OUT:
                raise
            self.say(path, f"{error.strerror} here")
            return False
        return True

    def _directory(self, record: list[Any]) -> None:
        path = tree.check_path(decode_text(record, 1))
        if self._admits(path):
            self._due.append(path)

    def _make_directory(self, path: str) -> None:
        self.directories.get(path, create=True)

    def _link(self, record: list[Any]) -> None:
        link = decode_link(record)
        if self._admits(link.path):
            self._links.append(link)

    def _missing(self, record: list[Any]) -> None:
        near = record[2] if len(record) > 2 and isinstance(record[2], list) else []
        if len(self.missing) < _MOST_SAID:
            self.missing.append((decode_text(record, 1), [str(one)[:300] for one in near[:3]]))

    # -- contents

    def _begin(self, record: list[Any]) -> None:
        entry = decode_entry(record)
        base = Base()
        if self.asked_for is None:
            is_admitted = self._admits(entry.path, entry.size)
        else:
            found = self.asked_for.pop(entry.path, None)
            base = found or base
            is_admitted = found is not None and self._grown(entry, base)
            if found is None:
                self.say(entry.path, "it was not asked for")
        self._start(entry, base, is_admitted=is_admitted)

    def _grown(self, entry: Entry, base: Base) -> bool:
        """Count what a file has grown by since it was listed."""
        self._admitted_bytes += max(0, entry.size - base.offered_size)
        if self._admitted_bytes > self._caps.bytes:
            raise TooMuch(f"more than {self._caps.bytes:,} bytes", "--max-bytes")
        return True

    def _start(self, entry: Entry, base: Base, *, is_admitted: bool) -> None:
        self._incoming = Incoming(entry, base, self.directories, self.stage)
        if is_admitted and not self._trying(entry.path, self._incoming.open):
            self._incoming.drop()

    def _content(self, data: bytes) -> None:
        if self._incoming is None:
            raise tree.DamagedStream("content came without a file")
        self.received += len(data)
        self.done += len(data)
        self._incoming.write(data)

    def _hole(self, record: list[Any]) -> None:
        assert self._incoming is not None
        count = decode_count(record, 1)
        self._incoming.hole(count)
        self.done += count

    def _copy(self, record: list[Any]) -> None:
        assert self._incoming is not None
        count = decode_count(record, 1)
        self._incoming.copy(count, from_end=record[0] == "tail")
        self.done += count

    def _again(self, record: list[Any]) -> None:
        del record
        assert self._incoming is not None
        entry = self._incoming.entry
        self.done -= self._incoming.position
        self._incoming.drop()
        self._incoming = None
        if self.asked_for is None:
            self._admitted_keys.discard(folded(entry.path) if self._folds else entry.path)
            self._admitted_bytes -= entry.size
        else:
            self.asked_for[entry.path] = Base(offered_size=entry.size)

    def _finish(self, record: list[Any]) -> None:
        incoming, self._incoming = self._incoming, None
        assert incoming is not None
        digest, trouble = decode_text(record, 1), decode_text(record, 2)
        after = decode_entry(["file", *record[3:]])
        entry = incoming.entry
        if not incoming.is_open:
            return
        try:
            incoming.check(digest, may_be_short=bool(trouble))
        except Damaged:
            incoming.drop(forget=True)
            if incoming.base.is_empty:
                raise
            self.say(entry.path, "what was here already did not fit what came: pull it again")
            return
        except BaseException:
            incoming.drop()
            raise
        was_own = self._is_own(entry.path)
        is_in = self._trying(entry.path, lambda: incoming.move_in(entry.mode & ~self._umask))
        if not is_in:
            incoming.drop(forget=True)
            return
        self.files += 1
        self.bytes += incoming.position
        if trouble:
            self.say(entry.path, f"{trouble}: {incoming.position:,} bytes are here, pull it again")
        looked = None if trouble or after.is_racy else tuple(after.look)
        self.note(entry, incoming.content_digest, looked, was_own=was_own)

    def _is_own(self, path: str) -> bool:
        """Say whether what is here, before a pull writes it, is the user's: not as a pull had written it."""
        status = self.directories.look(path) if self._notes is not None else None
        if status is None or self._notes is None:
            return False
        before = self._notes.get(path)
        if before is None or not before.is_pulled or before[:2] != (status.st_size, status.st_mtime_ns):
            return True
        return before.was_own

    def note(
        self,
        entry: Entry,
        digest: str,
        remote: tuple[int, ...] | None,
        *,
        was_written: bool = True,
        was_own: bool | None = None,
    ) -> None:
        """Remember how a file is here now, and how it looked there.

        One that was here already is the droplet's only if an earlier pull wrote it; `was_own` None: as was known then.
        """
        status = self.directories.look(entry.path) if self._notes is not None else None
        if self._notes is None or status is None:
            return
        look, before = (status.st_size, status.st_mtime_ns), self._notes.get(entry.path)
        is_pulled = was_written or (before is not None and before.is_pulled and before[:2] == look)
        if was_own is None:
            was_own = before.was_own if before is not None else False
        self._notes.add(
            entry.path,
            Note(*look, status.st_ctime_ns, status.st_ino, digest, self._host, remote, is_pulled, was_own),
        )

    def known(self, path: str) -> Note | None:
        """Return what was noted of a file from this droplet."""
        note = self._notes.get(path) if self._notes is not None else None
        return note if note is not None and note.host == self._host else None

    # -- what was here

    def _numbered(self, record: list[Any]) -> Entry:
        entry = self.offered[decode_count(record, 1, len(self.offered) - 1)] if self.offered else None
        if entry is None or self.asked_for is None or self.asked_for.pop(entry.path, None) is None:
            raise tree.DamagedStream("an answer came to what was not asked")
        return entry

    def _same(self, record: list[Any]) -> None:
        entry = self._numbered(record)
        self.keep(entry)
        self.done += entry.size
        looked = None if entry.is_racy else tuple(entry.look)
        self.note(entry, self.digests.get(entry.path, ""), looked, was_written=False)

    def keep(self, entry: Entry) -> None:
        """Leave a file that has the droplet's content; its mode becomes the droplet's too."""
        self.unchanged += 1
        mode = (entry.mode & ~self._umask) | 0o600
        status = self.directories.look(entry.path)
        if not self.is_dry and status is not None and stat.S_IMODE(status.st_mode) != mode:
            self._trying(entry.path, lambda: self._change_mode(entry.path, mode))

    def _change_mode(self, path: str, mode: int) -> None:
        handle = tree.open_file(self.directories, path)
        try:
            os.fchmod(handle, mode)
        finally:
            os.close(handle)

    def _would(self, record: list[Any]) -> None:
        self.would.append(self._numbered(record))

    def _make_link(self, link: Link) -> None:
        if not inner_target(link, self._target):
            self.say(link.path, f"a link that leads out of the directory, to `{link.target}`")
            return
        parent, name = self.directories.of(link.path, create=True)
        with contextlib.suppress(OSError):
            if os.readlink(name, dir_fd=parent) == link.target:
                self.unchanged += 1
                return
        assert self.stage.handle is not None
        with contextlib.suppress(FileNotFoundError):
            os.unlink("link", dir_fd=self.stage.handle)
        os.symlink(link.target, "link", dir_fd=self.stage.handle)
        os.rename("link", name, src_dir_fd=self.stage.handle, dst_dir_fd=parent)
        self.files += 1


def _umask() -> int:
    """Return this process's umask, which can only be read by setting it; where Linux tells, it is asked."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
