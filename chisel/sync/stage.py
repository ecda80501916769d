"""Hold what is on its way in a hidden directory of the target: one file at a time, and what an interrupted pull left.

Everything goes by the directory's handle. A second pull into the same target at the same time gets a directory of its
own, which nothing is kept in. A `.gitignore` inside keeps both git and `sync` from looking at it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import unicodedata

from chisel.node.contents import SMALL
from chisel.sync.wanted import STAGE_PREFIX

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PART = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_SMALL_PART = "part"
_IGNORE = ".gitignore"
_TRIES = 50
_PROBES = ("Case", "case"), (unicodedata.normalize("NFC", "\u00e9"), unicodedata.normalize("NFD", "\u00e9"))


class Stage:
    """One pull's stage; blocking."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._keeps = False
        self.name = STAGE_PREFIX
        self.handle: int | None = self._open_shared()
        self._keeps = self.handle is not None
        if self._keeps:
            self._clean_up_after_others()
        else:
            self._open_own()
        with contextlib.suppress(OSError):
            ignore = os.open(_IGNORE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self.handle)
            with os.fdopen(ignore, "w") as out:
                out.write("*\n")

    def _open_shared(self) -> int | None:
        """Open and lock the stage of the target; None where something else has its name or another pull uses it."""
        for _ in range(_TRIES):
            with contextlib.suppress(FileExistsError):
                os.mkdir(STAGE_PREFIX, 0o700, dir_fd=self._root)
            try:
                handle = self._locked(STAGE_PREFIX)
            except FileNotFoundError:
                continue
            except OSError:
                return None
            if handle is not None:
                return handle
        return None

    def _open_own(self) -> None:
        """Make a stage that nobody else uses; raises OSError."""
        for _ in range(_TRIES):
            self.name = f"{STAGE_PREFIX}-{secrets.token_hex(4)}"
            os.mkdir(self.name, 0o700, dir_fd=self._root)
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                self.handle = self._locked(self.name)
                if self.handle is not None:
                    return
        raise FileNotFoundError(errno.ENOENT, "others removed it again and again", self.name)

    def _locked(self, name: str) -> int | None:
        """Open and lock a directory; None when another has its name now: whoever cleans up may take it for left over.

        Raises OSError: FileNotFoundError when it was removed meanwhile, BlockingIOError where another has locked it.
        """
        handle = os.open(name, _DIRECTORY, dir_fd=self._root)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = os.stat(name, dir_fd=self._root, follow_symlinks=False)
        except OSError:
            os.close(handle)
            raise
        if os.path.samestat(os.fstat(handle), there):
            return handle
        os.close(handle)
        return None

    def _clean_up_after_others(self) -> None:
        """Remove the stages of second pulls that were killed."""
        for name in os.listdir(self._root):
            if not name.startswith(f"{STAGE_PREFIX}-"):
                continue
            with contextlib.suppress(OSError):
                handle = os.open(name, _DIRECTORY, dir_fd=self._root)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _empty(handle)
                    os.rmdir(name, dir_fd=self._root)
                finally:
                    os.close(handle)

    def folds(self) -> bool:
        """Say whether the file system takes names for one that differ in case, or in how an accent is written."""
        for written, looked_for in _PROBES:
            try:
                handle = os.open(written, _PART, 0o600, dir_fd=self._handle)
            except OSError as error:
                if error.errno in {errno.EILSEQ, errno.EINVAL}:
                    continue
                raise
            os.close(handle)
            try:
                os.stat(looked_for, dir_fd=self._handle, follow_symlinks=False)
            except FileNotFoundError:
                continue
            finally:
                os.unlink(written, dir_fd=self._handle)
            return True
        return False

    @property
    def _handle(self) -> int:
        assert self.handle is not None
        return self.handle

    @staticmethod
    def part_name(path: str, size: int) -> str:
        """Name what holds a file on its way: a large one by its path, so that it is found again."""
        return _SMALL_PART if size <= SMALL else f"part-{hashlib.sha256(os.fsencode(path)).hexdigest()[:24]}"

    def open_part(self, path: str, size: int) -> int:
        """Open what a file is written into; a large one still holds what came before. Raises OSError."""
        name = self.part_name(path, size)
        return os.open(name, _PART | (os.O_TRUNC if size <= SMALL else 0), 0o600, dir_fd=self._handle)

    def find_part(self, path: str, size: int) -> int | None:
        """Open what an interrupted pull left of a large file, None when there is nothing."""
        if size <= SMALL:
            return None
        with contextlib.suppress(OSError):
            return os.open(self.part_name(path, size), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._handle)
        return None

    def has_parts(self) -> bool:
        """Say whether an interrupted pull left something."""
        return any(name.startswith("part-") for name in os.listdir(self._handle))

    def drop_part(self, path: str, size: int) -> None:
        """Remove what a file was written into."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.part_name(path, size), dir_fd=self._handle)

    def close(self, keep: str | None = None) -> None:
        """Remove it, but for the part named `keep`, which the next pull goes on with."""
        if self.handle is None:
            return
        kept = keep if self._keeps else None
        _empty(self.handle, {kept, _IGNORE} if kept else set())
        if not kept:
            with contextlib.suppress(OSError):
                os.rmdir(self.name, dir_fd=self._root)
        os.close(self.handle)
        self.handle = None


def _empty(handle: int, keep: set[str | None] | None = None) -> None:
    for name in os.listdir(handle):
        if name not in (keep or ()):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=handle)
