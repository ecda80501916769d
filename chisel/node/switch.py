"""Change a working copy in one burst, from what is staged beside it. Standard library only, Python 3.10."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterable

from . import stdio, tree
from .exchange import exchanged
from .manifest import Rows, row_of
from .stage import Orders, Stage
from .tree import DIRECTORY, FILE, Directories, Item, Look, at_and_below, look_of

_OWNER_CAN = 0o700
_LARGE_BYTES = 1 << 20
"""To replace or free so much takes a while."""


def applied(rows: Rows, orders: Orders) -> Rows:
    """Return what a manifest becomes; rows that a switch touches have no look. Pure."""
    found = dict(rows)
    keys = sorted(rows) if orders.moves else []
    for old, new in orders.moves:
        for path in at_and_below(keys, old):
            other = tree.relocated(path, old, new)
            if other is not None and path in found:
                found[other] = found.pop(path)._replace(look=None)
    keys = sorted(found) if orders.deletes else []
    for prefix in orders.deletes:
        for path in at_and_below(keys, prefix):
            found.pop(path, None)
    for path in orders.releases:
        found.pop(path, None)
    for item in (*orders.directories.values(), *orders.puts.values(), *orders.links.values()):
        found[item.path] = row_of(item, None)
    for path, mode in orders.modes.items():
        if path in found:
            found[path] = found[path]._replace(mode=mode, look=None)
    return found


class Switch:
    """One change of a working copy: what takes long comes before the burst. Raises OSError.

    `before` are the rows as found now, `after` what they become (see `applied`).
    """

    def __init__(self, directories: Directories, stage: Stage, before: Rows, after: Rows, orders: Orders) -> None:
        self._directories = directories
        self._stage = stage
        self._before = before
        self._after = after
        self._orders = orders
        self._puts: list[tuple[str, str, bool]] = []
        self._folders: dict[str, bool] = {}
        self._opened: dict[str, int] = {}
        self._kept_looks: dict[str, Look | None] = {}
        """How what went with its directory looks: a file's times do not change by that."""
        self._moved = applied(before, Orders(moves=orders.moves)) if orders.moves else before
        self._keys_before = sorted(before)
        self._keys_after = sorted(after)
        self.deleted = 0
        self.aside: list[str] = []
        self.replaced: list[str] = []
        self.burst_s = 0.0

    def prepare(self) -> None:
        """Give every content its mode and time, beside the working copy."""
        wanted = sorted(item for item in self._orders.puts.values() if not self._is_there(item))
        left: dict[str, int] = {}
        for item in wanted:
            left[item.digest] = left.get(item.digest, 0) + 1
        for number, item in enumerate(wanted):
            left[item.digest] -= 1
            before = self._before.get(item.path)
            is_large = before is not None and max(before.size, item.size) >= _LARGE_BYTES
            last = not left[item.digest]
            name = self._stage.prepare(item, f"put-{number}", is_last=last, is_exchanged=is_large)
            self._puts.append((name, item.path, is_large))
        for number, item in enumerate(self._orders.links.values()):
            os.symlink(item.digest, f"link-{number}", dir_fd=self._stage.handle)

    def burst(self) -> None:
        """Change everything."""
        began_at = time.monotonic()
        orders = self._orders
        for path in sorted(orders.directories):
            self._make_directory(path)
        for old, new in orders.moves:
            self._move(old, new)
        self._delete(sorted(self._moved.keys() - self._after.keys(), reverse=True))
        for path in orders.extras:
            self._remove_extra(path)
        for name, path, is_large in self._puts:
            self._move_in(name, path, is_large=is_large)
        for number, item in enumerate(orders.links.values()):
            self._move_in(f"link-{number}", item.path)
        modes = {**self._opened, **{path: item.mode for path, item in orders.directories.items()}, **orders.modes}
        for path in sorted(modes, reverse=True):
            self._change_mode(path, modes[path])
        self.burst_s = time.monotonic() - began_at

    def seen(self) -> Rows:
        """Return the touched rows with how they look now."""
        found: Rows = {}
        written = {*self._orders.puts, *self._orders.links, *self._orders.modes}
        for path, row in self._after.items():
            look = self._kept_looks.get(path)
            if look is not None and path not in written:
                found[path] = row._replace(look=look)
            elif row.look is None or self._before.get(path) is not row:
                status = self._directories.look(path)
                # A file that somebody changed since the switch has another size or time: its look is not relied on.
                is_ours = status is not None and (
                    row.kind != FILE
                    or (
                        status.st_size == row.size
                        and (path not in self._orders.puts or status.st_mtime_ns == row.mtime_ns)
                    )
                )
                found[path] = row._replace(look=look_of(status) if status is not None and is_ours else None)
        return found

    def _is_there(self, item: Item) -> bool:
        """Say whether a path that was never pushed holds the wanted content already: then it keeps its time."""
        if item.path in self._before or not self._has_folder(item.path.rpartition("/")[0]):
            return False
        status = self._directories.look(item.path)
        if status is None or not stat.S_ISREG(status.st_mode):
            return False
        hashed = None
        if status.st_size == item.size:
            with contextlib.suppress(OSError):
                hashed = tree.hash_file(self._directories, item.path)
        if hashed is None or hashed[0] != item.digest:
            self.replaced.append(item.path)
            return False
        self._change_mode(item.path, item.mode)
        self._after[item.path] = self._after[item.path]._replace(mtime_ns=status.st_mtime_ns)
        return True

    def _has_folder(self, path: str) -> bool:
        """Say whether there is a directory before the burst: many files may be about to come into one."""
        if path not in self._folders:
            status = self._directories.look(path) if path else None
            self._folders[path] = not path or (status is not None and stat.S_ISDIR(status.st_mode))
        return self._folders[path]

    # -- one path

    def _move(self, old: str, new: str) -> None:
        """Move what the manifest has there; what the droplet made itself in an old directory stays in it."""
        moved = at_and_below(self._keys_before, old)
        folders = sorted(path for path in moved if self._before[path].kind == DIRECTORY)
        if folders and self._holds_only(folders, moved) and self._move_whole(old, new):
            self._kept_looks.update((tree.relocated(path, old, new) or new, self._before[path].look) for path in moved)
            return
        for path in folders:
            self._make_directory(tree.relocated(path, old, new) or new)
        for path in moved:
            if self._before[path].kind != DIRECTORY:
                parent, name = self._writable(path)
                os.rename(name, "moving", src_dir_fd=parent, dst_dir_fd=self._stage.handle)
                self._move_in("moving", tree.relocated(path, old, new) or new)
        for path in reversed(folders):
            self._opened.setdefault(tree.relocated(path, old, new) or new, self._before[path].mode)
        self._delete(reversed(folders))

    def _holds_only(self, folders: list[str], moved: list[str]) -> bool:
        """Say whether directories hold what the manifest has there and nothing else."""
        names: dict[str, set[str]] = {path: set() for path in folders}
        for path in moved[1:]:
            folder, _, name = path.rpartition("/")
            if folder not in names:
                return False
            names[folder].add(name)
        try:
            return all(set(os.listdir(self._directories.get(path))) == names[path] for path in folders)
        except OSError:
            return False

    def _move_whole(self, old: str, new: str) -> bool:
        """Rename a directory with all that is in it; False, with nothing changed, where that cannot be."""
        self._directories.forget(old)
        if self._directories.look(new) is not None:
            return False
        source, name = self._writable(old)
        source = os.dup(source)
        try:
            target, other = self._writable(new)
            os.rename(name, other, src_dir_fd=source, dst_dir_fd=target)
        except OSError:
            return False
        finally:
            os.close(source)
        return True

    def _delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            if path in self._orders.releases:
                continue
            self._directories.forget(path)
            row = self._moved.get(path)
            if row is not None and row.kind != DIRECTORY and row.size < _LARGE_BYTES and self._unlink(path):
                continue
            status = self._directories.look(path)
            if status is None:
                continue
            parent, name = self._writable(path)
            if stat.S_ISDIR(status.st_mode):
                self._opened.pop(path, None)
                if not self._remove_if_empty(parent, name):
                    self._opened[path] = status.st_mode & tree.PERMISSIONS
            elif path in self._moved and self._moved[path].kind != DIRECTORY:
                if status.st_size < _LARGE_BYTES or not self._put_away(parent, name):
                    os.unlink(name, dir_fd=parent)
                self.deleted += 1

    def _unlink(self, path: str) -> bool:
        """Remove what is no directory; False where that does not go without a closer look."""
        try:
            parent, name = self._writable(path, create=False)
            os.unlink(name, dir_fd=parent)
        except OSError:
            return False
        self.deleted += 1
        return True

    def _put_away(self, parent: int, name: str) -> bool:
        """Have a large file go with the stage, after the burst; False where it cannot be moved there."""
        try:
            os.rename(name, f"gone-{self.deleted}", src_dir_fd=parent, dst_dir_fd=self._stage.handle)
        except OSError:
            return False
        return True

    def _remove_extra(self, path: str) -> None:
        """Remove what was never pushed; a directory that holds something pushed stays."""
        self._directories.forget(path)
        status = self._directories.look(path)
        if status is None or at_and_below(self._keys_after, path):
            return
        parent, name = self._writable(path)
        _remove_tree(parent, name, status)
        self.deleted += 1

    @staticmethod
    def _remove_if_empty(parent: int, name: str) -> bool:
        """Remove a directory; one that holds what the droplet made itself stays."""
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY}:
                return False
            raise
        return True

    def _make_directory(self, path: str) -> None:
        status = self._directories.look(path)
        if status is not None and stat.S_ISDIR(status.st_mode):
            return
        parent, name = self._writable(path)
        if status is not None:
            if path in self._before:
                os.unlink(name, dir_fd=parent)
            else:
                self._set_aside(parent, path, name)
        os.mkdir(name, dir_fd=parent)

    def _move_in(self, staged: str, path: str, *, is_large: bool = False) -> None:
        """Bring a file from the stage to its place; a large one that was there goes with the stage, after the burst."""
        parent, name = self._writable(path)
        if is_large and self._is_file(parent, name) and exchanged(staged, self._stage.handle, name, parent):
            return
        try:
            os.rename(staged, name, src_dir_fd=self._stage.handle, dst_dir_fd=parent)
        except IsADirectoryError:
            self._directories.forget(path)
            if not self._remove_if_empty(parent, name):
                self._set_aside(parent, path, name)
            os.rename(staged, name, src_dir_fd=self._stage.handle, dst_dir_fd=parent)

    @staticmethod
    def _is_file(parent: int, name: str) -> bool:
        try:
            return stat.S_ISREG(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return False

    def _writable(self, path: str, *, create: bool = True) -> tuple[int, str]:
        """Return the directory that holds a path, made where it is missing, and writable until the burst is over."""
        parent, name = self._directories.of(path, create=create)
        if os.geteuid() != 0:
            above = path.rpartition("/")[0]
            if above and above not in self._opened:
                mode = os.fstat(parent).st_mode & tree.PERMISSIONS
                if mode & _OWNER_CAN != _OWNER_CAN:
                    self._opened[above] = mode
                    os.fchmod(parent, mode | _OWNER_CAN)
        return parent, name

    def _set_aside(self, parent: int, path: str, name: str) -> None:
        """Keep what the droplet made itself, under another name, where something else must be."""
        for number in range(1, 1000):
            other = f"{name[:60]}.chisel-kept-{number}"
            try:
                os.stat(other, dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:
                pass
            else:
                continue
            os.rename(name, other, src_dir_fd=parent, dst_dir_fd=parent)
            self.aside.append(path.rpartition("/")[0] + "/" * ("/" in path) + other)
            return
        raise stdio.Refused("in-the-way", f"`{path}` on the droplet cannot be moved aside")

    def _change_mode(self, path: str, mode: int) -> None:
        """Change the mode of what was pushed there, if that is still a file or a directory."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            parent, name = self._directories.of(path)
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                return
            if status.st_mode & tree.PERMISSIONS == mode & tree.PERMISSIONS:
                return
            handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
            try:
                os.fchmod(handle, mode & tree.PERMISSIONS)
            finally:
                os.close(handle)


def _remove_tree(parent: int, name: str, status: os.stat_result) -> None:
    """Remove a path and all below it, by handle and through no link."""
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=parent)
        return
    handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        for entry in os.listdir(handle):
            _remove_tree(handle, entry, os.stat(entry, dir_fd=handle, follow_symlinks=False))
    finally:
        os.close(handle)
    os.rmdir(name, dir_fd=parent)
