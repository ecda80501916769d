"""Make a working copy equal to what a client sends: the `receive` role.

The conversation: REQUEST `{"root", "owner", "tree"}`; REPLY `{"same", "tree", "owner"}` and, when not the same, DATA
with an item for every path of the last pushed manifest as it is found now; DATA with the changes from the client; REPLY
with the counts. Nothing is visible before everything has arrived and was verified; then it is switched in one burst,
under a lock. What the client never pushed is never deleted.

`~/.chisel/sync/<key>/` holds the lock and the manifest, `.chisel-stage-<key>` beside the working copy what arrives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from . import frames, stdio, tree
from .tree import DIRECTORY, FILE, LINK, OTHER, Directories, Item

LOCK_DEADLINE_S = 30.0
SILENCE_S = 300.0

_VERSION = 1
_RACY_NS = 50_000_000
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_INCOMING = "incoming"

Look = tuple[int, ...]


class Known(NamedTuple):
    """One path of the last pushed manifest; `look` is how `stat` saw it then, None when that cannot be relied on."""

    item: Item
    look: Look | None


class State(NamedTuple):
    """The last pushed manifest, as it lies on disk."""

    tree: str
    owner: str
    known: dict[str, Known]


class Survey(NamedTuple):
    """What is found now at the paths of the manifest; `drift` names those that somebody else changed."""

    known: dict[str, Known]
    drift: list[str]
    is_fresh: bool


class Orders(NamedTuple):
    """What a client wants changed, decoded; `puts` are files whose content is staged."""

    puts: list[Item]
    links: list[Item]
    directories: list[Item]
    modes: list[Item]
    deletes: list[str]


def main(channel: stdio.Channel, request: dict[str, Any]) -> int:
    """Serve one sync; return 0. Raises Refused, with the working copy as it was or wholly switched."""
    root = tree.expand_home(str(request["root"]))
    key = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    directory = tree.expand_home(os.path.join("~/.chisel/sync", key))
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with locked(os.path.join(directory, "lock")), opened_root(root) as root_fd:
            stage = os.path.join(os.path.dirname(root), f".chisel-stage-{key}")
            receiver = Receiver(channel, Directories(root_fd), stage, os.path.join(directory, "manifest"))
            receiver.serve(str(request.get("owner", "")), str(request.get("tree", "")))
    except (tree.DamagedStream, tree.UnsafePath) as error:
        raise stdio.Refused("bad-stream", str(error)) from error
    except TimeoutError as error:
        raise stdio.Refused("silent", str(error)) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        code = "disk-full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "io"
        raise stdio.Refused(code, f"{error.strerror}: {error.filename or root}") from error
    return 0


@contextlib.contextmanager
def locked(path: str, deadline_s: float = LOCK_DEADLINE_S) -> Iterator[None]:
    """Hold the lock of a working copy; raises Refused `busy` when another holds it for too long."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        end = time.monotonic() + deadline_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise stdio.Refused("busy", "another sync of this working copy is under way") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def opened_root(root: str) -> Iterator[int]:
    """Open the working copy's directory, made when it is missing; a symbolic link in its place is refused."""
    os.makedirs(os.path.dirname(root), exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(root)
    if os.path.islink(root):
        raise stdio.Refused("unsafe", f"`{root}` is a symbolic link")
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


class Receiver:
    """Serve one sync on an opened and locked working copy."""

    def __init__(self, channel: stdio.Channel, directories: Directories, stage: str, manifest: str) -> None:
        self._channel = channel
        self._directories = directories
        self._stage = stage
        self._manifest = manifest

    def serve(self, owner: str, wanted: str) -> None:
        """Hold the whole conversation; an early end of the input changes nothing."""
        shutil.rmtree(self._stage, ignore_errors=True)
        state = read_state(self._manifest)
        survey = look_around(self._directories, state)
        is_same = bool(wanted) and not survey.drift and state.tree == wanted
        reply = {"same": is_same, "tree": state.tree, "owner": state.owner, "codec": tree.CODEC}
        if is_same:
            if not survey.is_fresh:
                write_state(self._manifest, State(state.tree, state.owner, survey.known))
            self._channel.send_json(frames.Kind.REPLY, reply)
            return
        self._channel.send_json(frames.Kind.REPLY, reply)
        self._send_survey(survey)
        os.mkdir(self._stage, 0o700)
        try:
            self._take(owner, survey)
        finally:
            shutil.rmtree(self._stage, ignore_errors=True)

    def _send_survey(self, survey: Survey) -> None:
        drift = set(survey.drift)
        objects = [["drift" if path in drift else "is", *known.item] for path, known in survey.known.items()]
        objects += [["gone", path] for path in survey.drift if path not in survey.known]
        for data in tree.compress(objects):
            self._channel.send(frames.Kind.DATA, data)
        self._channel.send(frames.Kind.DATA_END)

    def _take(self, owner: str, survey: Survey) -> None:
        stage = Stage(self._stage, self._directories)
        try:
            if not self._receive_into(stage):
                return
            orders = stage.orders()
            changed = {item.path: Known(item, None) for item in (*orders.puts, *orders.links, *orders.directories)}
            # Should the switch be cut short, the next sync must know every path that may have come from here.
            write_state(self._manifest, State("", owner, {**survey.known, **changed}))
            switch = Switch(self._directories, stage, survey.known)
            switch.apply(orders)
            known = switch.known()
            whole = tree.tree_hash(found.item for found in known.values())
            write_state(self._manifest, State(whole, owner, known))
        finally:
            stage.close()
        self._channel.send_json(
            frames.Kind.REPLY,
            {
                "tree": whole,
                "puts": len(orders.puts),
                "deleted": switch.deleted,
                "files": sum(found.item.kind != DIRECTORY for found in known.values()),
                "aside": switch.aside,
            },
        )

    def _receive_into(self, stage: Stage) -> bool:
        """Stage everything the client sends; False when it went away."""
        while True:
            frame = self._channel.receive(SILENCE_S)
            if frame is None:
                return False
            if frame.kind == frames.Kind.DATA:
                stage.feed(frame.payload)
            elif frame.kind == frames.Kind.DATA_END:
                stage.end()
                return True
            elif frame.kind != frames.Kind.HEARTBEAT:
                raise tree.DamagedStream(f"frame {frame.kind} has no place in a sync")


# -- the manifest


def read_state(path: str) -> State:
    """Return the last pushed manifest; an empty one when there is none that can be read."""
    try:
        with open(path, encoding="ascii") as file:
            found = json.load(file)
        if found["version"] != _VERSION:
            return State("", "", {})
        known = {row[0]: Known(Item(*row[:-1]), tuple(row[-1]) if row[-1] else None) for row in found["items"]}
        return State(str(found["tree"]), str(found["owner"]), known)
    except FileNotFoundError:
        return State("", "", {})
    except (ValueError, KeyError, TypeError, IndexError):
        # Without a manifest nothing is deleted and everything is sent again: slow, and safe.
        return State("", "", {})


def write_state(path: str, state: State) -> None:
    """Replace the manifest at once. Raises OSError; the old one is then still there."""
    rows = [[*known.item, known.look] for known in state.known.values()]
    temporary = f"{path}.new"
    with open(temporary, "w", encoding="ascii") as file:
        # `dumps`, because only it uses the fast encoder; names with surrogate escapes stay ASCII.
        file.write(json.dumps({"version": _VERSION, "tree": state.tree, "owner": state.owner, "items": rows}))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def look_of(status: os.stat_result) -> Look:
    """Return what of `stat` tells that a path was touched."""
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_mode)


def look_around(directories: Directories, state: State) -> Survey:
    """Find the present state of every path of the manifest; content is read only where `stat` differs."""
    now = time.time_ns()
    found: dict[str, Known] = {}
    drift: list[str] = []
    is_fresh = True
    for path in sorted(state.known):
        known = state.known[path]
        status = directories.look(path)
        if status is not None and known.look is not None and _is_as_seen(known, status):
            found[path] = known
            continue
        is_fresh = False
        present = _present(directories, path, status, now)
        if present is not None:
            found[path] = present
        if known.look is not None and (present is None or not present.item.is_like(known.item)):
            drift.append(path)
    return Survey(found, drift, is_fresh)


def _is_as_seen(known: Known, status: os.stat_result) -> bool:
    if known.item.kind == DIRECTORY:
        return stat.S_ISDIR(status.st_mode)
    return look_of(status) == known.look


def _present(directories: Directories, path: str, status: os.stat_result | None, now: int) -> Known | None:
    """Describe what is at a path now; a file that keeps changing has an empty digest, which nothing equals."""
    if status is None:
        return None
    if stat.S_ISDIR(status.st_mode):
        return Known(Item(path, DIRECTORY), look_of(status))
    if stat.S_ISLNK(status.st_mode):
        parent, name = directories.of(path)
        return Known(Item(path, LINK, 0, os.readlink(name, dir_fd=parent)), look_of(status))
    if not stat.S_ISREG(status.st_mode):
        return Known(Item(path, OTHER), None)
    try:
        hashed = tree.hash_file(directories, path)
    except FileNotFoundError:
        return None
    if hashed is None:
        return Known(Item(path, FILE), None)
    digest, status = hashed
    item = Item(path, FILE, status.st_mode & tree.PERMISSIONS, digest, status.st_size, status.st_mtime_ns)
    # A write in the same clock tick as this look would leave the same times: such a look is not kept.
    return Known(item, None if now - status.st_ctime_ns < _RACY_NS else look_of(status))


# -- staging


class Stage:
    """Take the client's records: contents go into files named by their hash, orders are remembered."""

    def __init__(self, path: str, directories: Directories) -> None:
        self.handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._directories = directories
        self._records = tree.Records()
        self._orders: dict[str, dict[str, Item]] = {order: {} for order in ("put", "link", "dir", "mode")}
        self._deletes: dict[str, None] = {}
        self._sources: dict[str, list[str]] = {}
        self._blob: int | None = None
        self._content = hashlib.sha256()

    def close(self) -> None:
        """Close what is open; the directory is the caller's to remove."""
        self._drop_blob()
        os.close(self.handle)

    def feed(self, data: bytes) -> None:
        """Take a piece of the stream. Raises DamagedStream, UnsafePath, OSError."""
        for record in self._records.feed(data):
            if isinstance(record, bytes):
                self._add(record)
            else:
                self._obey(record)

    def end(self) -> None:
        """Check that everything came; raises DamagedStream."""
        self._records.end()
        if self._blob is not None:
            raise tree.DamagedStream("a content has no end")

    def orders(self) -> Orders:
        """Return what to change, every put with its content staged; raises Refused for a content that is missing."""
        puts = sorted(self._orders["put"].values())
        missing = {item.digest for item in puts if not self._has(item.digest)}
        for digest in sorted(missing):
            if not any(self._copy(source, digest) for source in self._sources.get(digest, ())):
                raise stdio.Refused("moved", f"content {digest} is no longer on the droplet")
        rest = {order: sorted(items.values()) for order, items in self._orders.items() if order != "put"}
        return Orders(puts, rest["link"], rest["dir"], rest["mode"], sorted(self._deletes))

    def prepare(self, item: Item, name: str, *, is_last: bool) -> None:
        """Make one staged content ready under `name`, with its mode and time; the last user takes the file itself."""
        if is_last:
            os.rename(item.digest, name, src_dir_fd=self.handle, dst_dir_fd=self.handle)
        else:
            self._duplicate(item.digest, name)
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.handle)
        try:
            os.utime(handle, ns=(item.mtime_ns, item.mtime_ns))
            os.fchmod(handle, item.mode & tree.PERMISSIONS)
        finally:
            os.close(handle)

    def _obey(self, record: list[Any]) -> None:
        order = record[0]
        if order in self._orders:
            item = tree.decode_item(record)
            self._orders[order][item.path] = item
        elif order == "delete":
            self._deletes[tree.check_path(record[1])] = None
        elif order == "skip":
            self._orders["put"].pop(record[1], None)
        elif order == "copy":
            self._sources.setdefault(str(record[1]), []).append(tree.check_path(record[2]))
        elif order == "blob":
            self._drop_blob()
            self._blob = os.open(_INCOMING, _NEW_FILE, 0o600, dir_fd=self.handle)
            self._content = hashlib.sha256()
        elif order == "end":
            self._keep_blob(str(record[1]))
        else:
            raise tree.DamagedStream(f"`{str(order)[:40]}` is no order")

    def _add(self, data: bytes) -> None:
        if self._blob is None:
            raise tree.DamagedStream("content came without a beginning")
        self._content.update(data)
        write_all(self._blob, data)

    def _keep_blob(self, digest: str) -> None:
        """Name a received content by its hash; an empty `digest` means that the client could not read it whole."""
        if self._blob is None:
            raise tree.DamagedStream("a content ended without a beginning")
        if not digest:
            self._drop_blob()
            return
        if digest != self._content.hexdigest():
            raise tree.DamagedStream(f"content {digest[:80]} arrived damaged")
        os.close(self._blob)
        self._blob = None
        os.rename(_INCOMING, digest, src_dir_fd=self.handle, dst_dir_fd=self.handle)

    def _drop_blob(self) -> None:
        if self._blob is not None:
            os.close(self._blob)
            self._blob = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_INCOMING, dir_fd=self.handle)

    def _has(self, digest: str) -> bool:
        try:
            os.stat(digest, dir_fd=self.handle, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _copy(self, source: str, digest: str) -> bool:
        """Stage a content from a file of the working copy; False when that no longer holds it."""
        try:
            handle = tree.open_file(self._directories, source)
        except OSError:
            return False
        try:
            self._obey(["blob"])
            for data in tree.read_chunks(handle, sys.maxsize):
                self._add(data)
        finally:
            os.close(handle)
        if self._content.hexdigest() != digest:
            self._drop_blob()
            return False
        self._keep_blob(digest)
        return True

    def _duplicate(self, name: str, other: str) -> None:
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.handle)
        try:
            target = os.open(other, _NEW_FILE, 0o600, dir_fd=self.handle)
            try:
                for data in tree.read_chunks(source, sys.maxsize):
                    write_all(target, data)
            finally:
                os.close(target)
        finally:
            os.close(source)


def write_all(handle: int, data: bytes) -> None:
    """Write all of it. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


# -- switching


class Switch:
    """Change the working copy in one burst, from what is staged."""

    def __init__(self, directories: Directories, stage: Stage, known: dict[str, Known]) -> None:
        self._directories = directories
        self._stage = stage
        self._known = dict(known)
        self.deleted = 0
        self.aside: list[str] = []

    def apply(self, orders: Orders) -> None:
        """Do everything that is wanted; what takes long comes before the burst. Raises OSError."""
        puts = [item for item in orders.puts if not self._is_there(item)]
        kept = [item for item in orders.puts if item not in puts] if len(puts) < len(orders.puts) else []
        left = _uses(puts)
        for number, item in enumerate(puts):
            left[item.digest] -= 1
            self._stage.prepare(item, f"put-{number}", is_last=not left[item.digest])
        deletes = [path for path in orders.deletes if path in self._known]
        self._burst(orders, puts, deletes)
        for item in (*orders.directories, *puts, *kept, *orders.links, *orders.modes):
            self._record(item)

    def known(self) -> dict[str, Known]:
        """Return the new manifest."""
        return self._known

    def _burst(self, orders: Orders, puts: list[Item], deletes: list[str]) -> None:
        in_the_way = {item.path for item in (*puts, *orders.links)}
        first = [path for path in deletes if _is_below(path, in_the_way)]
        self._delete(first)
        for item in orders.directories:
            self._make_directory(item.path)
        for number, item in enumerate(puts):
            self._move_in(f"put-{number}", item.path)
        for number, item in enumerate(orders.links):
            os.symlink(item.digest, f"link-{number}", dir_fd=self._stage.handle)
            self._move_in(f"link-{number}", item.path)
        for item in orders.modes:
            self._change_mode(item)
        gone = set(first)
        self._delete(path for path in deletes if path not in gone)

    def _is_there(self, item: Item) -> bool:
        """Say whether a path that was never pushed holds the wanted content already: then it keeps its time."""
        if item.path in self._known:
            return False
        status = self._directories.look(item.path)
        if status is None or not stat.S_ISREG(status.st_mode) or status.st_size != item.size:
            return False
        hashed = tree.hash_file(self._directories, item.path)
        if hashed is None or hashed[0] != item.digest:
            return False
        self._change_mode(item)
        return True

    def _delete(self, paths: Iterable[str]) -> None:
        for path in sorted(paths, reverse=True):
            self._known.pop(path, None)
            self._directories.forget(path)
            status = self._directories.look(path)
            if status is None:
                continue
            parent, name = self._directories.of(path)
            if stat.S_ISDIR(status.st_mode):
                self._remove_if_empty(parent, name)
            else:
                os.unlink(name, dir_fd=parent)
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
        parent, name = self._directories.of(path, create=True)
        if status is not None:
            os.unlink(name, dir_fd=parent)
        os.mkdir(name, dir_fd=parent)

    def _move_in(self, staged: str, path: str) -> None:
        status = self._directories.look(path)
        parent, name = self._directories.of(path, create=True)
        if status is not None and stat.S_ISDIR(status.st_mode):
            self._directories.forget(path)
            if not self._remove_if_empty(parent, name):
                self._set_aside(parent, path, name)
        os.rename(staged, name, src_dir_fd=self._stage.handle, dst_dir_fd=parent)

    def _set_aside(self, parent: int, path: str, name: str) -> None:
        """Keep a directory with results of the droplet's own, under another name, where a file must be."""
        for number in range(1, 1000):
            other = f"{name[:200]}.chisel-kept-{number}"
            try:
                os.mkdir(other, dir_fd=parent)
            except FileExistsError:
                continue
            os.rename(name, other, src_dir_fd=parent, dst_dir_fd=parent)
            self.aside.append(path.rpartition("/")[0] + "/" * ("/" in path) + other)
            return
        raise stdio.Refused("in-the-way", f"`{path}` is a directory on the droplet that cannot be moved aside")

    def _change_mode(self, item: Item) -> None:
        handle = tree.open_file(self._directories, item.path)
        try:
            os.fchmod(handle, item.mode & tree.PERMISSIONS)
        finally:
            os.close(handle)

    def _record(self, item: Item) -> None:
        status = self._directories.look(item.path)
        # A file that somebody changed since the switch has another time than it was given: not relied on.
        is_ours = status is not None and (item.kind != FILE or status.st_size == item.size)
        self._known[item.path] = Known(item, look_of(status) if status is not None and is_ours else None)


def _uses(items: list[Item]) -> dict[str, int]:
    count: dict[str, int] = {}
    for item in items:
        count[item.digest] = count.get(item.digest, 0) + 1
    return count


def _is_below(path: str, above: set[str]) -> bool:
    parent = path.rpartition("/")[0]
    while parent:
        if parent in above:
            return True
        parent = parent.rpartition("/")[0]
    return False
