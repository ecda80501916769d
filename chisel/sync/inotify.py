"""Watch a tree by Linux's inotify: the directories that are sent, and no other, are listened to.

A directory is listened to before it is looked into, so that nothing made in a new one is missed. A file that is being
written is held back until it is closed, for a second at most: what an editor saves arrives whole.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass

import anyio
from anyio import to_thread
from inotify_simple import Event, INotify, flags

from chisel.errors import ChiselError
from chisel.sync.ignore import Surroundings
from chisel.sync.sieve import Changes, Sieve, until_back

_MASK = (
    *(flags.CREATE, flags.DELETE, flags.MODIFY, flags.ATTRIB, flags.CLOSE_WRITE, flags.MOVED_FROM, flags.MOVED_TO),
    *(flags.DELETE_SELF, flags.MOVE_SELF, flags.ONLYDIR, flags.DONT_FOLLOW, flags.EXCL_UNLINK),
)
# Added to what is asked already: a git directory may lie in the tree and be listened to as one of it.
_GIT_MASK = flags.CLOSE_WRITE | flags.MOVED_TO | flags.CREATE | flags.DELETE | flags.ONLYDIR | flags.MASK_ADD
_HELD_S = 1.0
_NEW_HELD_S = 0.05
"""How long a new file that nobody has written to yet is held back: a hard link to one that is gone looks like it."""
_GONE = flags.DELETE | flags.MOVED_FROM
_COME = flags.CREATE | flags.MOVED_TO


@dataclass(slots=True)
class _Happened:
    """What is known of one path since the last delivery.

    `kinds` are what it was met as, directory or not; `is_directory` is the last of it. `was_born` says that it was not
    there before, `is_gone` that it is not there any more; `open_since` is when it began to be written, None when nobody
    writes it.
    """

    is_directory: bool
    was_born: bool
    kinds: set[bool]
    is_gone: bool = False
    open_since: float | None = None
    was_written: bool = False

    @property
    def held_until(self) -> float | None:
        """Return until when it is held back at most (monotonic), None when it is not."""
        if self.open_since is None:
            return None
        return self.open_since + (_HELD_S if self.was_written else _NEW_HELD_S)


class InotifyWatch:
    """Listen to one tree. All but `collect` block and are for one thread at a time."""

    def __init__(self, root: str, around: Surroundings) -> None:
        self._root = root
        self._around = around
        self._sieve: Sieve | None = None
        self._inotify: INotify | None = None
        self._identity: tuple[int, int] | None = None
        self._folders: dict[int, str] = {}
        self._handles: dict[str, int] = {}
        self._git: dict[int, frozenset[str]] = {}
        self._happened: dict[str, _Happened] = {}

    def start(self) -> None:
        """Begin to listen; raises ChiselError when the system allows no more watches, OSError without a root."""
        self.close()
        self._sieve = Sieve(self._root, self._around)
        self._inotify = INotify(nonblocking=True)
        status = os.stat(self._sieve.root)
        self._identity = (status.st_dev, status.st_ino)
        self._listen_below("")
        if "" not in self._handles:
            raise FileNotFoundError(errno.ENOENT, "it is gone", self._root)

    def close(self) -> None:
        """Listen no more, and forget what happened."""
        if self._inotify is not None:
            self._inotify.close()
        self._inotify = self._identity = None
        for known in (self._folders, self._handles, self._git, self._happened):
            known.clear()

    async def collect(self, debounce_s: float, at_most_s: float) -> float:
        """Wait for the first thing that happens and what belongs to it; while the root is gone, until it is back."""
        inotify = self._inotify
        if inotify is None:
            await until_back(self._root)
            await to_thread.run_sync(self._start_again)
            return time.monotonic()
        with anyio.move_on_after(self._held_s):
            await anyio.wait_readable(inotify)
        first_at = time.monotonic()
        while True:
            await to_thread.run_sync(self.read)
            left = first_at + at_most_s - time.monotonic()
            if left <= 0:
                return first_at
            with anyio.move_on_after(min(debounce_s, left)) as quiet:
                await anyio.wait_readable(inotify)
            if quiet.cancelled_caught:
                return first_at

    @property
    def _held_s(self) -> float | None:
        """Return for how long at most a file that is being written is still held back, None when none is."""
        ends = [one.held_until for one in self._happened.values() if one.held_until is not None]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _start_again(self) -> None:
        with suppress(OSError):
            self.start()
            assert self._sieve is not None
            self._sieve.reason = "the directory was replaced"

    # -- what happened

    def read(self) -> None:
        """Take everything that has happened until now; raises ChiselError as `start` does."""
        assert self._inotify is not None
        for event in self._inotify.read(timeout=0):
            self._take(event)

    def _take(self, event: Event) -> None:
        assert self._sieve is not None
        if event.mask & flags.Q_OVERFLOW:
            self._sieve.reason = "more happened than the system can tell"
        if event.wd in self._git:
            self._take_git(event)
        if event.wd in self._folders:
            folder = self._folders[event.wd]
            if event.mask & (flags.IGNORED | flags.UNMOUNT):
                self._drop(event.wd)
            elif event.name:
                self._take_name(f"{folder}/{event.name}" if folder else event.name, event)

    def _take_git(self, event: Event) -> None:
        assert self._sieve is not None
        if event.mask & flags.IGNORED:
            del self._git[event.wd]
        elif event.name in self._git[event.wd]:
            self._sieve.note_git(event.name)

    def _take_name(self, path: str, event: Event) -> None:
        assert self._sieve is not None
        is_directory = bool(event.mask & flags.ISDIR)
        one = self._happened.get(path)
        if one is None:
            one = self._happened[path] = _Happened(is_directory, bool(event.mask & flags.CREATE), set())
        one.is_directory = is_directory
        one.kinds.add(is_directory)
        if event.mask & _GONE:
            one.is_gone, one.open_since = True, None
        elif event.mask & _COME:
            one.is_gone = False
        if is_directory:
            self._take_directory(path, event)
        elif event.mask & (flags.CLOSE_WRITE | flags.ATTRIB):
            one.open_since = None if event.mask & flags.CLOSE_WRITE else one.open_since
            one.was_written = True
        elif event.mask & flags.MODIFY or (event.mask & flags.CREATE and self._will_be_closed(path)):
            one.open_since = time.monotonic() if one.open_since is None else one.open_since
            one.was_written = one.was_written or bool(event.mask & flags.MODIFY)
            return
        elif event.mask & flags.MOVED_TO:
            one.open_since = None
        if not is_directory or event.mask & (_COME | _GONE):
            self._sieve.note(event.name)

    def _will_be_closed(self, path: str) -> bool:
        """Say whether a new name is of a file somebody has opened: a link of any kind is complete as it comes."""
        try:
            status = os.lstat(os.path.join(self._root, path))
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_nlink == 1

    def _take_directory(self, path: str, event: Event) -> None:
        assert self._sieve is not None
        if event.mask & flags.MOVED_FROM:
            self._forget_below(path)
        if event.mask & (_COME | _GONE):
            self._sieve.rules.forget_below(path)
        if event.mask & _COME and self._sieve.is_sent(path, is_directory=True):
            self._listen_below(path)

    # -- what is listened to

    def _listen_below(self, path: str) -> None:
        assert self._sieve is not None
        for folder in self._sieve.directories(path):
            self._listen(folder)
            for place, names in self._sieve.git_files(folder).items():
                self._listen_git(place, names)

    def _listen(self, folder: str) -> None:
        assert self._sieve is not None
        handle = self._add(os.path.join(self._sieve.root, folder), sum(_MASK))
        if handle is None:
            return
        before = self._handles.get(folder)
        if before is not None and before != handle:
            self._ignore(before)  # another directory had this name
        known = self._folders.get(handle)
        if known is not None and known != folder:
            del self._handles[known]  # this one had another name
        self._folders[handle] = folder
        self._handles[folder] = handle

    def _listen_git(self, place: str, names: frozenset[str]) -> None:
        handle = self._add(place, _GIT_MASK)
        if handle is not None:
            self._git[handle] = self._git.get(handle, frozenset()) | names

    def _add(self, place: str, mask: int) -> int | None:
        assert self._inotify is not None
        try:
            return int(self._inotify.add_watch(place, mask))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise ChiselError(
                    f"the system allows no more directories to be watched than are: `{place}` cannot be",
                    hint="sudo sysctl fs.inotify.max_user_watches=524288, or ignore large directories",
                ) from error
            return None

    def _forget_below(self, path: str) -> None:
        for folder in [one for one in self._handles if one == path or one.startswith(path + "/")]:
            self._ignore(self._handles[folder])

    def _ignore(self, handle: int) -> None:
        """Listen to a directory no more; the two tables always say the same."""
        assert self._inotify is not None
        with suppress(OSError):
            self._inotify.rm_watch(handle)
        self._drop(handle)

    def _drop(self, handle: int) -> None:
        del self._handles[self._folders.pop(handle)]

    # -- what is delivered

    def settle(self, first_at: float) -> Changes | None:
        """Return what may differ by now, None when nothing does; raises ChiselError as `start` does."""
        sieve = self._sieve
        if sieve is None or self._inotify is None:
            return None
        if not self._is_same_root():
            self.close()
            return None
        sieve.check_index()
        if sieve.reason:
            reason = sieve.reason
            try:
                self.start()
            except OSError:
                self.close()
                return None
            return Changes(first_at, is_everything=True, reason=reason)
        self._check_directories()
        ready = self._take_ready()
        if any(self._has_other_names(path, one) for path, one in ready.items()):
            return Changes(first_at, is_everything=True, reason="a file with several names was written")
        paths = sieve.sent({path: one.kinds for path, one in ready.items()})
        return Changes(first_at, paths) if paths else None

    def _is_same_root(self) -> bool:
        try:
            status = os.stat(self._root)  # a root that is a link may lead elsewhere by now
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity and "" in self._handles

    def _check_directories(self) -> None:
        """Listen anew where directories have changed places so quickly that the wrong one is listened to."""
        assert self._sieve is not None
        for path, one in self._happened.items():
            if one.is_directory and self._sieve.is_sent(path, is_directory=True):
                before = self._handles.get(path)
                place = os.path.join(self._sieve.root, path)
                if before is None or self._add(place, sum(_MASK)) != before:
                    self._listen_below(path)

    def _has_other_names(self, path: str, one: _Happened) -> bool:
        """Say whether a file that was written may have other names in the tree: they have changed without a word.

        One that was written and is gone is taken for such a file, unless it came in between.
        """
        if one.is_directory or not one.was_written or one.is_gone:
            return one.was_written and one.is_gone and not one.was_born
        try:
            status = os.lstat(os.path.join(self._root, path))
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_nlink > 1

    def _take_ready(self) -> dict[str, _Happened]:
        """Take what is complete. What came and went again is told as well: whoever was told last may have seen it."""
        now = time.monotonic()
        held = {
            path: one for path, one in self._happened.items() if one.held_until is not None and now < one.held_until
        }
        ready = {path: one for path, one in self._happened.items() if path not in held}
        self._happened = held
        return ready
