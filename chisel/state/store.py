"""Keep the state in one JSON file that many processes change at once: under a lock, replaced at once, never dropped."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio
from anyio import to_thread

from chisel.errors import StateError
from chisel.paths import PRIVATE_FILE, make_private_directory, write_private_file
from chisel.state.form import NotStateError, decode, encode
from chisel.state.records import State

_SALVAGE_OWNER = re.compile(rb'"owner":\s*"([0-9a-f]{16})"')
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.002, 0.05

T = TypeVar("T")


class StateStore:
    """Read and change the state file. Calls may overlap, in one process and between many.

    Raises StateError when the file cannot be read, locked or written (nothing is lost then), or when a newer chisel
    wrote it (it is then left alone). A file that is not valid state is set aside as `state.json.corrupt-<n>`, and the
    state returned names it in `recovered_from`. One that `remembers` reads the file again only when it has changed.
    """

    def __init__(self, file: Path, *, lock_deadline_s: float = 10.0, remembers: bool = False) -> None:
        self.file = file
        self._remembers = remembers
        self._remembered: tuple[tuple[int, int, int], State] | None = None
        self._lock_file = file.with_name(file.name + ".lock")
        self._lock_deadline_s = lock_deadline_s
        self._threads = anyio.CapacityLimiter(1)

    async def read(self) -> State:
        """Return what is on disk; without a file, an empty state with an owner that only `update` makes last."""
        stamp = self._stamp() if self._remembers else None
        if self._remembered is not None and self._remembered[0] == stamp:
            return self._remembered[1]
        try:
            state = await to_thread.run_sync(self._load, limiter=self._threads)
        except NotStateError:
            return await self._when_locked(self._set_aside)
        self._remembered = (stamp, state) if stamp is not None else None
        return state

    def _stamp(self) -> tuple[int, int, int] | None:
        """Return what changes with the file, which is always replaced: one look takes less than asking a thread."""
        try:
            found = os.stat(self.file)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    async def update(self, change: Callable[[State], State]) -> State:
        """Replace the state by `change(state)` and return it; nobody else changes it in between.

        `change` runs in a thread and must be pure. Cancelled, the change has happened completely or not at all.
        """

        def apply() -> State:
            state = self._set_aside()
            changed = change(state)
            if changed != state or not self.file.exists():
                self._save(changed)
            return changed

        return await self._when_locked(apply)

    # -- the lock

    @asynccontextmanager
    async def locked(self, name: str, *, deadline_s: float) -> AsyncIterator[None]:
        """Hold a lock of its own beside the state, across processes, while the block runs; a dead process holds none.

        Raises StateError when it is not free within `deadline_s` seconds, or cannot be made.
        """
        file, ends_at, wait_s = (
            self.file.with_name(f"{self.file.name}.{name}.lock"),
            anyio.current_time(),
            _FIRST_WAIT_S,
        )
        ends_at += deadline_s
        descriptor = await to_thread.run_sync(self._open_lock, file)
        try:
            while not _try_flock(descriptor):
                if anyio.current_time() >= ends_at:
                    raise StateError(
                        f"`{file}` has been locked by another chisel for {deadline_s:g} s", hint="try again"
                    )
                await anyio.sleep(wait_s)
                wait_s = min(wait_s * 1.5, _LONGEST_WAIT_S)
            yield
        finally:
            os.close(descriptor)

    async def _when_locked(self, action: Callable[[], T]) -> T:
        """Do a thing in a thread that holds the lock: the lock never outlives the thread's call.

        Waiting happens here, not in the thread, so that a cancelled caller is freed at once.
        """
        ends_at = anyio.current_time() + self._lock_deadline_s
        wait_s = _FIRST_WAIT_S
        while True:
            done, result = await to_thread.run_sync(self._try_locked, action, limiter=self._threads)
            if done:
                return result[0]
            if anyio.current_time() >= ends_at:
                holder = await to_thread.run_sync(self._holder, limiter=self._threads)
                raise StateError(
                    f"`{self.file}` has been locked for {self._lock_deadline_s:g} s by process `{holder}`",
                    hint=f"look at it with: ps -p {holder}" if holder.isdigit() else "try again",
                )
            await anyio.sleep(wait_s * random.uniform(0.5, 1.5))
            wait_s = min(wait_s * 1.5, _LONGEST_WAIT_S)

    def _try_locked(self, action: Callable[[], T]) -> tuple[bool, tuple[T, ...]]:
        descriptor = self._open_lock(self._lock_file)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False, ()
            except OSError as error:
                raise self._trouble("lock", error) from error
            with contextlib.suppress(OSError):  # who holds it is a courtesy; a full disk must not forbid reading
                os.pwrite(descriptor, f"{os.getpid():<20}".encode(), 0)
            try:
                return True, (action(),)
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may still hold the descriptor
        finally:
            os.close(descriptor)

    def _open_lock(self, file: Path) -> int:
        try:
            make_private_directory(self.file.parent)
            return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE)
        except OSError as error:
            raise self._trouble("lock", error) from error

    def _holder(self) -> str:
        try:
            text = self._lock_file.read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            return "unknown"
        return text if text.isdigit() else "unknown"

    # -- the file, in a thread

    def _load(self) -> State:
        try:
            data = self.file.read_bytes()
        except FileNotFoundError:
            return State()
        except OSError as error:
            raise self._trouble("read", error) from error
        return decode(data, self.file)

    def _set_aside(self) -> State:
        """Return the state on disk; what is not valid state is kept under another name, its owner is saved."""
        try:
            return self._load()
        except NotStateError:
            kept = self._keep_corrupt()
        found = _SALVAGE_OWNER.search(kept.read_bytes())
        state = State(owner=found[1].decode(), recovered_from=kept) if found else State(recovered_from=kept)
        self._save(state)
        return state

    def _keep_corrupt(self) -> Path:
        """Give the file a second name that is free; its first one goes when the fresh state replaces it."""
        number = 0
        while True:
            number += 1
            kept = self.file.with_name(f"{self.file.name}.corrupt-{number}")
            try:
                os.link(self.file, kept)
            except FileExistsError:
                continue
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                    raise self._trouble("set aside", error) from error
                self._move(kept)  # a file system without hard links
            return kept

    def _move(self, kept: Path) -> None:
        try:
            self.file.rename(kept)
        except OSError as error:
            raise self._trouble("set aside", error) from error

    def _save(self, state: State) -> None:
        data = encode(state)
        try:
            write_private_file(self.file, data)
        except OSError as error:
            raise self._trouble("write", error) from error

    def _trouble(self, what: str, error: OSError) -> StateError:
        hints = {
            errno.ENOSPC: "make room on that disk; nothing was lost",
            errno.EDQUOT: "make room within your quota; nothing was lost",
            errno.EROFS: "that disk is read-only: point XDG_CACHE_HOME to a folder you may write",
        }
        hint = hints.get(error.errno or 0, "see who owns it, or point XDG_CACHE_HOME to a folder you may write")
        return StateError(f"cannot {what} `{self.file}`: {error.strerror or error}", hint=hint)


def _try_flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
