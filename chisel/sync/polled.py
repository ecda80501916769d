"""Watch a tree where there is no inotify, by the `watchfiles` library (FSEvents on macOS).

It looks for news some hundred times a second, does not tell when the system lost some, and fails for names that are no
UTF-8: so many changes at once, and every failure, count as a change of everything.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from functools import partial

from anyio import to_thread
from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError

from chisel.sync.ignore import GIT, Surroundings
from chisel.sync.sieve import MAKES_REPOSITORY, Changes, Sieve, until_back

_MANY = 1000
_MODIFIED = 2


class PolledWatch:
    """Listen to one tree; `start`, `settle` and `close` block and are for one thread at a time."""

    def __init__(self, root: str, around: Surroundings) -> None:
        self._root = root
        self._around = around
        self._sieve: Sieve | None = None
        self._notify: RustNotify | None = None
        self._identity: tuple[int, int] | None = None
        self._git: dict[str, frozenset[str]] = {}
        self._happened: dict[str, bool] = {}
        self._stop = threading.Event()
        self._looking = threading.Lock()

    def start(self) -> None:
        """Begin to listen; raises OSError without a root."""
        self.close()
        self._stop = threading.Event()
        self._sieve = Sieve(self._root, self._around)
        status = os.stat(self._sieve.root)
        self._identity = (status.st_dev, status.st_ino)
        for folder in self._sieve.directories(""):
            self._git.update(self._sieve.git_files(folder))
        outside = [place for place in self._git if not place.startswith(self._sieve.root + os.sep)]
        paths = [self._sieve.root, *(place for place in outside if os.path.isdir(place))]
        self._notify = RustNotify(paths, False, False, 300, True, True)

    def close(self) -> None:
        """Listen no more; what still looks in its thread ends within its step, which is waited for."""
        self._stop.set()
        with self._looking:
            if self._notify is not None:
                self._notify.close()
        self._notify = self._identity = None
        self._git.clear()
        self._happened.clear()

    async def collect(self, debounce_s: float, at_most_s: float) -> float:
        """Wait until something has happened and then nothing more for a moment; or until the root is back."""
        if self._notify is None:
            await until_back(self._root)
            await to_thread.run_sync(self._start_again)
            return time.monotonic()
        step_ms = max(1, round(debounce_s * 1000))
        look = partial(self._look, self._notify, self._stop, step_ms, max(step_ms, round(at_most_s * 1000)))
        # The thread only looks; it ends within a step of `close`.
        for change, path in await to_thread.run_sync(look, abandon_on_cancel=True):
            self._happened[path] = self._happened.get(path, False) or change != _MODIFIED
        return time.monotonic() - debounce_s

    def _look(self, notify: RustNotify, stop: threading.Event, step_ms: int, at_most_ms: int) -> set[tuple[int, str]]:
        try:
            with self._looking:
                found = notify.watch(at_most_ms, step_ms, 0, stop)
        except (WatchfilesRustInternalError, RuntimeError):
            assert self._sieve is not None
            self._sieve.reason = "the system cannot tell what happened"
            return set()
        return found if isinstance(found, set) else set()

    def _start_again(self) -> None:
        with suppress(OSError):
            self.start()
            assert self._sieve is not None
            self._sieve.reason = "the directory was replaced"

    def settle(self, first_at: float) -> Changes | None:
        """Return what may differ by now, None when nothing does."""
        sieve = self._sieve
        if sieve is None or self._notify is None:
            return None
        try:
            status = os.stat(sieve.root)
            if (status.st_dev, status.st_ino) != self._identity:
                self.close()
                return None
            if len(self._happened) > _MANY:
                sieve.reason = "more happened than the system may have told"
            happened = self._sorted(sieve)
            sieve.check_index()
            if sieve.reason:
                reason = sieve.reason
                self.start()
                return Changes(first_at, is_everything=True, reason=reason)
        except OSError:
            self.close()
            return None
        paths = sieve.sent(happened)
        return Changes(first_at, paths) if paths else None

    def _sorted(self, sieve: Sieve) -> dict[str, tuple[bool, ...]]:
        """Tell what happened in the tree from what happened to git's own files."""
        found: dict[str, tuple[bool, ...]] = {}
        for place, came_or_went in self._happened.items():
            folder, name = os.path.split(place)
            if name in self._git.get(folder, ()):
                sieve.note_git(name)
            if not place.startswith(sieve.root + os.sep):
                continue
            path = os.path.relpath(place, sieve.root)
            if GIT in path.split(os.sep)[:-1]:
                if os.path.basename(folder) == GIT and folder not in self._git and name in MAKES_REPOSITORY:
                    sieve.note(GIT)
                continue
            is_directory = os.path.isdir(place) and not os.path.islink(place)
            if came_or_went or not is_directory:
                sieve.note(name)
            if is_directory:
                sieve.rules.forget_below(path)
            # Of what came or went it is not told what it was before.
            found[path] = (True, False) if came_or_went else (is_directory,)
        self._happened = {}
        return found
