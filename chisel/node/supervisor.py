"""Own a user's command: its processes, its output in frames with offsets, signals as messages, its exact end.

One process, one poll loop, whoever is there to see it. A client is a pair of descriptors: those of the session that
started the command, later those that another session hands over (`attach`). Output is kept until a client says that it
has it (see `spool`); a client that is there but slow slows the command, one that is silent or gone does not.

A channel that closes while its client was heard is a killed client: the command is ended unless one comes back within
`COMES_BACK_S`. One that fell silent first is a sleeping laptop or a dead network: the command runs on, for `orphan_s`.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from . import client, environment, frames, listener, locks, registry
from .processes import Command
from .spool import LIMIT_BYTES, Mark, Spool
from .stdio import Channel, Refused

if TYPE_CHECKING:
    from .manifest import Manifest

CHUNK = 1 << 16
CLIENT_GONE_GRACE_S = 2.0
LEFT_BEHIND_GRACE_S = 1.0
TIMEOUT_GRACE_S = 5.0
SILENT_AFTER_S = 3.5
COMES_BACK_S = 10.0
ORPHAN_S = 7200.0
LINGER_S = 30.0
_STDIN_LIMIT = 1 << 20
_RETRY_S = 1.0
_LATELY_S = 3600.0
_STREAMS = ((frames.Kind.STDOUT, "stdout"), (frames.Kind.STDERR, "stderr"))


def prepare() -> Manifest | None:
    """Read, while there is no request as yet, what is known of a working copy that was synced lately."""
    if locks.latest_directory(_LATELY_S) is None:
        return None
    from . import receiver  # what a command without a sync does not need is not loaded for it

    return receiver.prepare()


def main(channel: Channel, request: dict[str, Any], ready: Manifest | None = None) -> int:
    """Run the command that the request describes; return 0 when its end was reported.

    A `sync` in the request is served first, over the same channel: one message brings the tree and runs the command.
    What git says of that tree may come with the sync.
    """
    run_id = str(request.get("run_id", ""))
    if not registry.is_run_id(run_id):
        raise Refused("bad-request", f"`{run_id}` cannot be a run's id")
    tree_hash, git = str(request.get("tree_hash", "")), request.get("git")
    if request.get("sync"):
        from . import receiver

        synced = receiver.serve(channel, request["sync"], ready)
        if synced is None:
            return 0
        tree_hash, git = synced, request["sync"].get("git", git)
    launch = environment.read_launch(request)
    use = locks.Use(launch.cwd, run_id, str(request.get("shown") or request["line"]))
    entry = registry.Entry(run_id)
    door = listener.Listener(entry.directory)
    facts = {
        "line": str(request.get("shown") or request["line"]),
        "cwd": str(request.get("cwd") or "~"),
        "owner": str(request.get("owner", "")),
        "detached": bool(request.get("detached")),
        "tree_hash": tree_hash,
        "git": git,
        "started_at": time.time(),
        "pid": os.getpid(),
    }
    entry.write("run.json", facts)
    os.chdir("/")
    spool = Spool(entry.directory, limit_bytes=int(request.get("spool_bytes") or LIMIT_BYTES))
    try:
        command = Command(launch, environment.group_of(run_id))
    except Refused as refusal:
        entry.write("exit.json", {"status": 127, "error": str(refusal), "ended_at": time.time()})
        raise
    supervisor = Supervisor(client.Client(channel), command, spool, door, entry, request)
    supervisor.run({"run_id": run_id, **facts}, use)
    environment.clean_up(request)
    entry.close()
    return 0


class Supervisor:
    """Pump one command's streams until it is over and its end is told or on disk."""

    def __init__(
        self,
        first: client.Client,
        command: Command,
        spool: Spool,
        door: listener.Listener,
        entry: registry.Entry,
        request: dict[str, Any],
    ) -> None:
        self._client: client.Client | None = first
        self._command = command
        self._spool = spool
        self._door = door
        self._entry = entry
        self._is_detached = bool(request.get("detached"))
        self._may_resume = bool(request.get("resumes", True))
        self._orphan_s = float(request.get("orphan_s") or ORPHAN_S)
        self._facts: dict[str, Any] = {}
        self._stdin: list[bytes] = []
        self._stdin_taken = 0
        self._stdin_fed = 0
        self._stdin_ended = not request.get("stdin") and not command.has_terminal
        self._signals_taken = 0
        self._steps: list[tuple[float, int]] = []
        self._ended_by: str | None = None
        self._dropped_bytes = 0
        self._exit: bytes | None = None
        self._timeout_at: float | None = None
        self._gone_at: float | None = None
        self._retry_at: float | None = None
        self._woken, self._wake = os.pipe()
        self._poller = select.poll()
        self._watched: dict[int, int] = {}
        self._has_news_of_children = True
        if request.get("timeout_s"):
            self._timeout_at = time.monotonic() + float(request["timeout_s"])

    def run(self, facts: dict[str, Any], use: locks.Use | None = None) -> None:
        """Pump until the command and everything it left behind have ended, and a client or the disk knows it all.

        `use` of the working copy ends with the command.
        """
        self._facts = {**facts, **self._command.identity()}
        self._prepare()
        if self._is_detached:
            self._spool.to_disk()
        self._tell(frames.encode_json(frames.Kind.STARTED, self._facts))
        while not self._command.is_over():
            self._poll()
        if use is not None:
            use.close()
        self._end()
        while self._client is not None and self._gone_at is None:
            self._poll()
        self._spool.close()

    def _prepare(self) -> None:
        for descriptor in (self._woken, self._wake):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        for number in (signal.SIGPIPE, signal.SIGHUP):  # the session that started it may go
            signal.signal(number, signal.SIG_IGN)
        assert self._client is not None
        for frame in self._client.early():
            self._take(frame)

    def _end(self) -> None:
        """Write down how it ended, what no client has yet too, and tell the client."""
        mark = self._spool.end._asdict()
        ended = {
            **self._command.end(),
            "ended_by": self._ended_by,
            "dropped_bytes": self._dropped_bytes,
            "stdout_bytes": mark.pop("stdout"),
            "stderr_bytes": mark.pop("stderr"),
            **mark,
        }
        self._spool.to_disk()
        self._entry.write("exit.json", {**ended, "ended_at": time.time()})
        self._door.close()
        self._exit = frames.encode_json(frames.Kind.EXIT, ended)
        self._timeout_at = None
        if self._client is not None:
            self._client.last_heard = time.monotonic()
            self._flush()

    # -- the loop

    def _poll(self) -> None:
        wanted = self._wanted()
        if wanted != self._watched:
            for descriptor in self._watched.keys() - wanted.keys():
                self._poller.unregister(descriptor)
            for descriptor, events in wanted.items():
                self._poller.register(descriptor, events)
            self._watched = wanted
        for descriptor, events in self._poller.poll(self._timeout_ms()):
            if descriptor in wanted:
                self._on_event(descriptor, events)
        self._on_time()
        if self._has_news_of_children or self._steps:
            self._has_news_of_children = False
            self._command.reap()
        if self._command.has_leader_ended and not self._steps and self._exit is None:
            self._end_in_steps(LEFT_BEHIND_GRACE_S)

    def _wanted(self) -> dict[int, int]:
        """Return what is to be watched, and for what."""
        wanted = dict.fromkeys((self._woken, *self._door.filenos()), select.POLLIN)
        client = self._client
        if client is not None:
            wanted[client.fileno_in] = select.POLLIN
            if client.has_unsent or self._spool.has_more or (self._exit is not None and not client.has_told_end):
                wanted[client.fileno_out] = wanted.get(client.fileno_out, 0) | select.POLLOUT
        if not self._spool.is_full or self._must_drop:
            for descriptor in self._command.pipes.values():
                wanted[descriptor] = select.POLLIN
        if self._stdin and self._command.stdin is not None:  # a terminal is read and written through one descriptor
            wanted[self._command.stdin] = wanted.get(self._command.stdin, 0) | select.POLLOUT
        return wanted

    def _on_event(self, descriptor: int, events: int) -> None:
        client = self._client
        if descriptor == self._woken:
            self._on_signal()
        elif client is not None and descriptor in (client.fileno_in, client.fileno_out):
            if descriptor == client.fileno_in and events & ~select.POLLOUT:
                self._on_client()
            if descriptor == client.fileno_out and events & ~select.POLLIN and self._client is client:
                self._flush()
        elif descriptor == self._command.stdin and events & ~select.POLLIN and self._stdin:
            self._feed_stdin()
        if events & ~select.POLLOUT:
            for kind, name in _STREAMS:
                if self._command.pipes.get(name) == descriptor:
                    self._on_output(kind, name)
                    return
            if descriptor in self._door.filenos():
                self._on_door(descriptor)

    # -- time

    def _timeout_ms(self) -> int | None:
        now = time.monotonic()
        due = [at for at in (self._timeout_at, self._gone_at, self._retry_at, self._silent_at()) if at is not None]
        if self._steps:
            # Processes reparented to this one end without a signal to wait for: look again soon.
            due += [self._steps[0][0], now + 0.05]
        elif self._command.has_leader_ended and self._exit is None:
            due.append(now + 0.05)
        return None if not due else max(0, int((min(due) - now) * 1000) + 1)

    def _silent_at(self) -> float | None:
        """Return when the next thing happens if the client says nothing more."""
        if self._client is None:
            return None
        heard = self._client.last_heard
        if self._exit is not None:
            return heard + LINGER_S
        return heard + (SILENT_AFTER_S if not self._spool.is_on_disk else self._orphan_s)

    def _on_time(self) -> None:
        now = time.monotonic()
        while self._steps and self._steps[0][0] <= now:
            _, number = self._steps.pop(0)
            self._command.signal_everything(number)
            if not self._steps:
                # What was forked in between is found and killed again until nothing is left.
                self._steps = [(now + 0.05, signal.SIGKILL)]
                break
        if self._timeout_at is not None and now >= self._timeout_at:
            self._timeout_at = None
            self.end("timeout", TIMEOUT_GRACE_S)
        if self._gone_at is not None and now >= self._gone_at:
            self._gone_at = None
            self.end("client-gone", CLIENT_GONE_GRACE_S)
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
            self._spool.retry()
        if self._spool.is_on_disk and self._spool.is_full and self._retry_at is None:
            self._retry_at = now + _RETRY_S
        silent_at = self._silent_at()
        if silent_at is not None and now >= silent_at:
            self._on_silence()

    def _on_silence(self) -> None:
        """Let the command run on without its client; one that was silent for too long is none."""
        if self._exit is not None:
            self._lost()
        elif not self._spool.is_on_disk:
            self._spool.to_disk()
        elif not self._is_detached:
            assert self._client is not None
            self._client.last_heard = time.monotonic()
            self.end("orphan", CLIENT_GONE_GRACE_S)
        else:
            self._lost()

    def _on_signal(self) -> None:
        self._has_news_of_children = True
        if {signal.SIGTERM, signal.SIGINT} & set(os.read(self._woken, 512)):
            self.end("supervisor", CLIENT_GONE_GRACE_S)

    # -- the client

    def _tell(self, frame: bytes) -> None:
        if self._client is not None:
            self._client.tell(frame)
            self._flush()

    def _on_client(self) -> None:
        assert self._client is not None
        found = self._client.receive()
        if found is None:
            self._lost()
            return
        for frame in found:
            self._take(frame)

    def _flush(self) -> None:
        at_hand = self._client
        if at_hand is not None and not at_hand.flush(self._spool, self._exit):
            self._lost()

    def _lost(self) -> None:
        """Go on without the client, for as long as it may be expected back."""
        if self._client is None:
            return
        now = time.monotonic()
        was_heard = now - self._client.last_heard < SILENT_AFTER_S
        has_left = self._client.has_left
        self._client.close()
        self._client = None
        if self._exit is not None:
            return
        self._spool.to_disk()
        if self._is_detached or has_left:
            return
        if not self._may_resume:
            self.end("client-gone", CLIENT_GONE_GRACE_S)
        else:
            self._gone_at = now + (COMES_BACK_S if was_heard else self._orphan_s)

    def _take(self, frame: frames.Frame) -> None:
        if frame.kind == frames.Kind.SIGNAL:
            self._take_signal(frame.json())
        elif frame.kind == frames.Kind.STDIN:
            self._take_stdin(frame.payload)
        elif frame.kind == frames.Kind.STDIN_EOF:
            self._stdin_ended = True
            self._feed_stdin()
        elif frame.kind == frames.Kind.ACK:
            self._spool.ack(frames.OFFSET.unpack(frame.payload)[0])
        elif frame.kind == frames.Kind.HEARTBEAT:
            self._tell(frames.encode(frames.Kind.HEARTBEAT))
        elif frame.kind == frames.Kind.END:
            self.end("asked", float(frame.json().get("grace_s", CLIENT_GONE_GRACE_S)))
        elif frame.kind == frames.Kind.LEAVE and self._client is not None:
            self._client.has_left = True
        elif frame.kind == frames.Kind.SIZE:
            facts = frame.json()
            self._command.resize(int(facts["rows"]), int(facts["columns"]))

    def _take_signal(self, facts: dict[str, Any]) -> None:
        """Pass a signal on; `index` counts the client's, so that one sent again after a lost link counts once."""
        index = facts.get("index")
        if index is not None and int(index) < self._signals_taken:
            return
        self._signals_taken = self._signals_taken + 1 if index is None else int(index) + 1
        number = int(facts["signal"])
        if number == signal.SIGKILL:
            self._command.signal_everything(number)
        else:
            self._command.signal(number)

    # -- whoever comes by the door

    def _on_door(self, descriptor: int) -> None:
        for visitor in self._door.take(descriptor):
            what = visitor.request.get("what")
            if what == "attach" and len(visitor.descriptors) == 2:
                self._attach(visitor)
            elif what == "watch":
                self._spool.to_disk()
                self._door.keep(visitor)
                visitor.nudge()
            elif what == "signal":
                self._take_signal({"signal": int(visitor.request["signal"])})
                visitor.close()
            elif what == "end":
                self.end("asked", float(visitor.request.get("grace_s", TIMEOUT_GRACE_S)))
                self._door.keep(visitor)
            else:
                visitor.close()

    def _attach(self, visitor: listener.Visitor) -> None:
        """Take over a session's channel in place of the one before."""
        fresh = client.Client.over(visitor)
        place = visitor.request.get("place")
        try:
            if place is None:
                self._spool.to_disk()
                self._spool.rewind()
            else:
                self._spool.seek(Mark(**{name: int(value) for name, value in place.items()}))
        except Refused as refusal:
            fresh.refuse(refusal.code, str(refusal))
            return
        if self._client is not None:
            self._client.refuse("taken-over", "another chisel has attached to this command")
        self._client, self._gone_at = fresh, None
        start = self._spool.place._asdict()
        told = {**self._facts, "place": start, "stdin": self._stdin_taken, "signals": self._signals_taken}
        self._tell(frames.encode_json(frames.Kind.ATTACHED, told))
        # what was acknowledged may not have arrived: the client would wait for it for ever, a whole window ahead
        self._tell(frames.encode(frames.Kind.STDIN_ACK, frames.OFFSET.pack(self._stdin_fed)))

    # -- the command's streams

    @property
    def _must_drop(self) -> bool:
        """Say whether what an ended command left in its pipes can go nowhere: no reader, and no room."""
        return self._command.has_leader_ended and self._client is None and self._spool.is_full

    def _on_output(self, kind: int, name: str) -> None:
        data = self._command.read(name, CHUNK)
        if data is None:
            return
        if self._must_drop:
            self._dropped_bytes += len(data)
            return
        self._spool.append(kind, data)
        self._door.nudge()
        self._flush()

    def _take_stdin(self, payload: bytes) -> None:
        """Take input; what came before a lost link already is not taken twice."""
        (offset,) = frames.OFFSET.unpack_from(payload)
        data = payload[frames.OFFSET.size + max(0, self._stdin_taken - offset) :]
        if offset > self._stdin_taken or not data or self._command.stdin is None:
            return
        self._stdin_taken += len(data)
        self._stdin.append(data)
        self._feed_stdin()

    def _feed_stdin(self) -> None:
        descriptor = self._command.stdin
        if descriptor is None:
            self._stdin.clear()
            return
        before = self._stdin_fed
        try:
            while self._stdin:
                written = os.write(descriptor, self._stdin[0])
                self._stdin_fed += written
                self._stdin[0] = self._stdin[0][written:]
                if not self._stdin[0]:
                    del self._stdin[0]
        except BlockingIOError:
            pass
        except OSError:  # the command reads no more: what is still to come is dropped
            self._stdin_fed = self._stdin_taken
            self._stdin.clear()
            self._stdin_ended = True
        if self._stdin_fed != before:
            self._tell(frames.encode(frames.Kind.STDIN_ACK, frames.OFFSET.pack(self._stdin_fed)))
        if self._stdin_ended and not self._stdin:
            self._command.close_stdin()

    # -- the end

    def end(self, why: str, grace_s: float) -> None:
        """End the command: TERM, and KILL after a grace; its record stays."""
        if self._exit is not None:
            return
        if self._ended_by is None and not self._command.has_leader_ended:
            self._ended_by = why
        self._end_in_steps(grace_s)

    def _end_in_steps(self, grace_s: float) -> None:
        now = time.monotonic()
        self._steps = [(now, signal.SIGTERM), (now + grace_s, signal.SIGKILL)]
        with suppress(OSError):
            self._command.signal(signal.SIGCONT)  # what is stopped cannot end
