"""Make a working copy equal to what a client sends: the `receive` role, and the first part of a `supervise`.

The conversation, one round trip when the client knows what is here:

- The request: `root`, `owner` and `owner_name`, `base` (the token of the state that the client knows), and flags.
  `stream` (base64; `tree` is the hash it leads to) or, with `follows`, DATA frames behind it hold the changes from that
  base.
- With `waits` the request holds only `root` and the owner, and the rest comes in another REQUEST: the working copy is
  looked at while the client looks at its own tree.
- The working copy is looked at. Where it is as the client believes, the changes are made: REPLY with `done`.
- Otherwise REPLY with `state` (`same`, `drift` or `other`) and what is staged, DATA with what differs from the base, or
  with everything that is here; then PROGRESS with a codec and DATA with the changes from the client; REPLY with `done`.

A stream ends with DATA_END: `{"next": codec}` when another follows, else `{"tree"}`, the hash of all that is wanted.
It comes from the client, or from a neighbour whom the client gave it to (`incoming`).
Nothing is visible before everything has arrived and was verified; then it is switched in one burst. What came is kept
by hash (`.chisel-stage-<key>` beside the working copy) until a sync is through. What the client never pushed is never
deleted but on its order. Standard library only, Python 3.10.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from typing import Any

from . import locks, stdio, tree, unpacking
from .frames import FrameError, Kind
from .incoming import Incoming, LostError
from .manifest import Facts, Manifest, Rows, Survey, look_around, new_token
from .stage import Orders, Stage
from .switch import Switch, applied
from .tree import Directories

SILENCE_S = 300.0
_WAIT_S = 0.25
_STAGE_KEPT_S = 3 * 86400.0


def prepare() -> Manifest | None:
    """Read, while there is no request as yet, what is known of the working copy that was synced last."""
    directory = locks.latest_directory()
    if directory is None:
        return None
    manifest = Manifest.load(directory)
    manifest.hashing.of_rows(manifest.rows)
    manifest.by_folder()
    return manifest


def main(channel: stdio.Channel, request: dict[str, Any], ready: Manifest | None = None) -> int:
    """Serve one sync; return 0. Raises Refused, with the working copy as it was or wholly switched."""
    serve(channel, request, ready)
    return 0


def serve(channel: stdio.Channel, request: dict[str, Any], ready: Manifest | None = None) -> str | None:
    """Serve one sync and return the tree hash of the working copy, None when the client went away before the end.

    Raises Refused, with the working copy as it was or wholly switched.
    """
    root = os.path.normpath(tree.expand_home(str(request["root"])))
    if f"{tree.expand_home('~/.chisel')}/".startswith(f"{root.rstrip('/')}/"):
        raise stdio.Refused("unsafe", f"`{root}` holds chisel's own files: choose a directory of the tree's own")
    try:
        directory = locks.directory_for(root)
        with locks.syncing(directory), opened_root(root) as root_fd:
            directories = Directories(root_fd)
            try:
                manifest = ready if ready is not None and ready.directory == directory else Manifest(directory)
                manifest.refresh()
                return Sync(channel, request, directories, root, manifest).serve()
            finally:
                directories.close()
    except (tree.DamagedStream, tree.UnsafePath) as error:
        raise stdio.Refused("bad-stream", str(error)) from error
    except TimeoutError as error:
        raise stdio.Refused("silent", str(error)) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        code = "disk-full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "io"
        raise stdio.Refused(code, f"{error.strerror}: {error.filename or root}") from error


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


class Sync:
    """One sync of an opened and locked working copy."""

    def __init__(
        self, channel: stdio.Channel, request: dict[str, Any], directories: Directories, root: str, manifest: Manifest
    ) -> None:
        self._channel = channel
        self._incoming = Incoming(channel)
        self._request = request
        self._directories = directories
        self._directory = manifest.directory
        self._stage_path = os.path.join(os.path.dirname(root), f".chisel-stage-{os.path.basename(manifest.directory)}")
        self._stage: Stage | None = None
        self._wanted = str(request.get("tree", ""))
        self._manifest = manifest
        self._survey = Survey({}, [], [])

    def serve(self) -> str | None:
        """Hold the whole conversation; an early end of the input changes nothing."""
        self._check_owner()
        _drop_old(self._stage_path)
        try:
            return self._serve()
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT} and self._stage is not None:
                self._stage.remove()  # what is kept there must not keep the disk full
                self._stage = None
            raise
        finally:
            self._incoming.close()
            if self._stage is not None:
                self._stage.close()

    def _serve(self) -> str | None:
        facts, is_thorough = self._manifest.facts, bool(self._request.get("checksum"))
        self._survey = look_around(self._directories, self._manifest.by_folder(), is_thorough=is_thorough)
        if self._request.get("waits"):
            if facts.token and not self._survey.differs:
                self._tell_seen()
            if not self._take_rest_of_request():
                return None
        request = self._request
        knows = bool(facts.token) and request.get("base") == facts.token
        if not self._take_first_stream():
            return None
        asks = bool(request.get("asks"))
        if knows and not self._survey.differs and not asks:
            if self._has_nothing_to_do:
                return self._confirm()
            return self._switch()
        state = "other" if not knows else "drift" if self._survey.differs else "same"
        self._tell_state(state)
        if self._stage is not None:
            self._stage.start_over()
        if not self._take_streams():
            return None
        return self._switch()

    @property
    def _keeps(self) -> bool:
        """Say whether what somebody changed here is to stay as it is: it goes on counting as changed."""
        return bool(self._request.get("keep"))

    @property
    def _has_nothing_to_do(self) -> bool:
        return self._stage is None or self._stage.orders.is_empty

    def _check_owner(self) -> None:
        facts, owner = self._manifest.facts, str(self._request.get("owner", ""))
        if facts.owner and owner and facts.owner != owner and not self._request.get("takes_over"):
            ago = max(0, int((time.time() - facts.synced_at) / 60))
            since = f"{ago} min ago" if ago < 120 else f"{ago // 60} h ago"
            raise stdio.Refused(
                "owned", f"the working copy belongs to {facts.owner_name or facts.owner}, who synced it {since}"
            )

    # -- what the client is told

    def _tell_state(self, state: str) -> None:
        self._channel.send_json(
            Kind.REPLY,
            {
                "done": False,
                "state": state,
                "token": self._manifest.facts.token,
                "staged": self._opened_stage().contents() if os.path.isdir(self._stage_path) else [],
                "codecs": unpacking.codecs(),
            },
        )
        for data in tree.compress(self._description(state)):
            self._channel.send(Kind.DATA, data)
        self._channel.send(Kind.DATA_END)

    def _tell_seen(self) -> None:
        """Say, before the client has looked through its own tree, that here nothing has changed since the last sync.

        A client whose tree has not changed either is done with that, and does not wait for more.
        """
        known = self._manifest.facts
        self._channel.send_json(Kind.REPLY, {**self._done_facts(self._facts(known.tree, known.token), 0), "seen": True})

    def _description(self, state: str) -> Iterator[list[Any]]:
        """Give what is here: everything, or what differs from the base that the client knows."""
        rows, changed, drift = self._manifest.rows, self._survey.changed, set(self._survey.drift)
        differs = set(self._survey.differs)
        for path in rows if state == "other" else self._survey.differs:
            row = changed.get(path, rows[path])
            if self._keeps and path in differs:
                yield ["kept", *rows[path].item(path)]
            elif row is not None:
                yield ["drift" if path in drift else "is", *row.item(path)]
            else:
                yield ["gone" if path in drift else "never", path]
        if self._request.get("extra"):
            yield from (["extra", path] for path in extras(self._directories, set(rows)))

    def _confirm(self) -> str:
        """Answer that nothing had to be done."""
        touched = {path: row for path, row in self._survey.changed.items() if row is not None}
        known = self._manifest.facts
        facts = self._facts(known.tree, known.token)
        if touched or facts.owner != known.owner:
            self._manifest.settle(touched, [], facts)
        self._reply_done(facts, 0, {"same": True})  # the client may be gone: what was seen was enough for it
        return facts.tree

    def _facts(self, whole: str, token: str) -> Facts:
        request = self._request
        owner, name = str(request.get("owner", "")), str(request.get("owner_name", ""))
        return Facts(whole, token, owner, name, time.time())

    def _reply_done(self, facts: Facts, puts: int, more: dict[str, Any]) -> None:
        self._channel.send_json(Kind.REPLY, {**self._done_facts(facts, puts), "done": True, **more})

    def _done_facts(self, facts: Facts, puts: int) -> dict[str, Any]:
        rows = self._manifest.rows
        return {
            "token": facts.token,
            "tree": facts.tree,
            "puts": puts,
            "files": sum(row.kind != tree.DIRECTORY for row in rows.values()),
            "codecs": unpacking.codecs(),
            "drift": self._survey.drift,
            "relayed": self._incoming.relayed_bytes,
        }

    # -- what the client sends

    def _take_rest_of_request(self) -> bool:
        """Wait for the second half of a request; False when the client went away."""
        while True:
            frame = self._channel.receive(SILENCE_S)
            if frame is None:
                return False
            if frame.kind == Kind.REQUEST:
                self._request.update(frame.json())  # whoever made the request reads there what else it says
                self._wanted = str(self._request.get("tree", ""))
                return True
            if frame.kind == Kind.END:
                raise stdio.Refused("cancelled", "the sync was given up")
            if frame.kind == Kind.HEARTBEAT:
                self._channel.send(Kind.HEARTBEAT)

    def _opened_stage(self) -> Stage:
        if self._stage is None:
            self._stage = Stage(self._stage_path, self._directories)
        return self._stage

    def _take_first_stream(self) -> bool:
        """Take what came with the request; False when the client went away."""
        text = self._request.get("stream")
        if text:
            stage = self._opened_stage()
            stage.expect(unpacking.ZLIB)
            stage.feed(base64.b64decode(text))
            stage.end()
        return self._take_streams() if self._request.get("follows") else True

    def _take_streams(self) -> bool:
        """Stage everything the client sends, itself or by a neighbour; False when it went away."""
        stage = self._opened_stage()
        while True:
            try:
                return self._take_stream(stage)
            except LostError as error:
                why = str(error)
            except (tree.DamagedStream, tree.UnsafePath, FrameError) as error:
                if not self._incoming.is_relayed:
                    raise
                why = f"the neighbour forwarded something else: {error}"
            stage.start_over()
            self._incoming.give_up(why, stage.contents())

    def _take_stream(self, stage: Stage) -> bool:
        while True:
            frame = self._incoming.receive(SILENCE_S)
            if frame is None:
                return False
            if frame.kind == Kind.PROGRESS:
                stage.expect(str(frame.json().get("codec")))
            elif frame.kind == Kind.DATA:
                stage.feed(frame.payload)
            elif frame.kind == Kind.DATA_END:
                stage.end()
                facts = frame.json()
                if facts.get("next") is None:
                    self._wanted = str(facts.get("tree", ""))
                    return True
                stage.expect(str(facts["next"]))
            elif frame.kind == Kind.END:
                raise stdio.Refused("cancelled", "the sync was given up")
            elif frame.kind == Kind.HEARTBEAT:
                self._channel.send(Kind.HEARTBEAT)
            elif frame.kind != Kind.ACK:
                raise tree.DamagedStream(f"frame {frame.kind} has no place in a sync")

    # -- the change

    def _switch(self) -> str | None:
        stage = self._opened_stage()
        orders = stage.complete()
        if self._keeps:
            for path in self._survey.differs:
                self._survey.changed.pop(path)
        before: Rows = dict(self._manifest.rows)
        for path, row in self._survey.changed.items():
            if row is None:
                del before[path]
            else:
                before[path] = row
        after = applied(before, orders)
        whole = self._manifest.hashing.of_rows(after)
        if whole != self._wanted:
            raise stdio.Refused("mismatch", "the tree would not be what it should be")
        switch = Switch(self._directories, stage, before, after, orders)
        switch.prepare()
        # Should the switch be cut short, the next sync must know every path that may have come from here.
        self._manifest.intend({path: row for path, row in after.items() if before.get(path) is not row})
        with locks.switching(self._directory, None if self._request.get("now") else self._wait()):
            switch.burst()
        return self._settle(switch, orders, before, after, whole)

    def _settle(self, switch: Switch, orders: Orders, before: Rows, after: Rows, whole: str) -> str:
        facts = self._facts(whole, new_token())
        touched = {path: row for path, row in self._survey.changed.items() if row is not None and path in after}
        removed = [path for path in self._manifest.rows if path not in after]
        self._manifest.settle({**touched, **switch.seen()}, removed, facts)
        more = {
            "deleted": switch.deleted,
            "moves": len(orders.moves),
            "aside": switch.aside,
            "replaced": switch.replaced,
            "burst_ms": round(switch.burst_s * 1000, 3),
        }
        self._reply_done(facts, len(orders.puts), more)
        if self._stage is not None:
            self._stage.remove()
            self._stage = None
        return whole

    def _wait(self) -> Any:
        """Return what waits for the commands that run in the working copy, saying so once, until the client goes."""
        was_said = False

        def wait(users: list[str]) -> None:
            nonlocal was_said
            if not was_said and users:
                was_said = True
                self._channel.send_json(Kind.PROGRESS, {"waits": users})
            with contextlib.suppress(TimeoutError):
                frame = self._channel.receive(_WAIT_S if was_said else _WAIT_S / 10)
                if frame is None or frame.kind == Kind.END:
                    raise stdio.Refused("cancelled", "the sync was given up while a command ran")
                if frame.kind == Kind.HEARTBEAT:
                    self._channel.send(Kind.HEARTBEAT)

        return wait


def extras(directories: Directories, pushed: set[str]) -> Iterator[str]:
    """Give what is in a working copy without ever having been pushed, whole directories by their own name only."""
    above = {path.rpartition("/")[0] for path in pushed} | {""}
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        for name in sorted(os.listdir(directories.get(folder))):
            path = f"{folder}/{name}" if folder else name
            status = directories.look(path)
            is_directory = status is not None and stat.S_ISDIR(status.st_mode)
            if path not in pushed and path not in above:
                yield path
            elif is_directory:
                waiting.append(path)


def _drop_old(stage: str) -> None:
    """Remove what an interrupted sync left long ago."""
    with contextlib.suppress(OSError):
        if time.time() - os.stat(stage).st_mtime > _STAGE_KEPT_S:
            import shutil

            shutil.rmtree(stage, ignore_errors=True)
