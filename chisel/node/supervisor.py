"""Own a user's command: its process group, its output in frames with offsets, signals as messages, its exact end.

One process, one poll loop. The command's pipes are read only while the channel takes what was read, so a slow reader
slows the command and memory stays bounded; signals and the client's end are seen all the same.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from . import env, frames, registry
from .processes import Command
from .stdio import Channel, Refused

CHUNK = 1 << 16
BUFFER_LIMIT = 1 << 20
CLIENT_GONE_GRACE_S = 2.0
LEFT_BEHIND_GRACE_S = 1.0
_STREAMS = ((frames.Kind.STDOUT, "stdout"), (frames.Kind.STDERR, "stderr"))


def main(channel: Channel, request: dict[str, Any]) -> int:
    """Run the command that the request describes; return 0 when its end was reported."""
    run_id = str(request.get("run_id", ""))
    if not registry.is_run_id(run_id):
        raise Refused("bad-request", f"`{run_id}` cannot be a run's id")
    cwd = env.expand(str(request.get("cwd") or "~"))
    if not os.path.isdir(cwd):
        raise Refused(
            "no-cwd", f"there is no directory `{request.get('cwd')}` on the droplet: nothing was synced there"
        )
    entry = registry.Entry(run_id)
    facts = {
        "line": str(request.get("shown") or request["line"]),
        "cwd": str(request.get("cwd")),
        "owner": str(request.get("owner", "")),
        "started_at": time.time(),
        "pid": os.getpid(),
    }
    entry.write("run.json", facts)
    environment = env.command_environment({str(k): str(v) for k, v in dict(request.get("env") or {}).items()})
    command = Command(str(request["line"]), cwd, environment, wants_stdin=bool(request.get("stdin")))
    ended = Supervisor(channel, command).run(run_id, str(request.get("cwd")))
    entry.write("exit.json", {**ended, "ended_at": time.time()})
    entry.close()
    return 0


class Supervisor:
    """Pump one command's streams through one channel until both are done."""

    def __init__(self, channel: Channel, command: Command) -> None:
        self._channel = channel
        self._command = command
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._stdin: list[bytes] = []
        self._stdin_ended = not command.wants_stdin
        self._client_is_there = True
        self._steps: list[tuple[float, int]] = []
        self._woken, self._wake = os.pipe()

    def run(self, run_id: str, cwd: str) -> dict[str, Any]:
        """Pump until the command and everything it left behind have ended; return the facts of its end."""
        self._prepare()
        self._queue(frames.encode_json(frames.Kind.STARTED, {"run_id": run_id, "cwd": cwd, **self._command.identity()}))
        while not self._command.is_over():
            self._poll()
        ended = self._command.end()
        self._queue(frames.encode_json(frames.Kind.EXIT, ended))
        while self._out and self._client_is_there:
            self._poll()
        return ended

    def _prepare(self) -> None:
        for descriptor in (self._channel.fileno_in, self._channel.fileno_out, self._woken, self._wake):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        for frame in self._channel.waiting:
            self._take(frame)
        self._channel.waiting.clear()

    # -- the loop

    def _poll(self) -> None:
        poll = select.poll()
        ready: dict[int, Callable[[], None]] = {}

        def watch(descriptor: int, events: int, do: Callable[[], None]) -> None:
            poll.register(descriptor, events)
            ready[descriptor] = do

        watch(self._woken, select.POLLIN, self._on_signal)
        if self._client_is_there:
            watch(self._channel.fileno_in, select.POLLIN, self._on_client)
            if self._out:
                watch(self._channel.fileno_out, select.POLLOUT, self._flush)
        if self._out_bytes < BUFFER_LIMIT:
            for kind, name in _STREAMS:
                descriptor = self._command.pipes.get(name)
                if descriptor is not None:
                    watch(descriptor, select.POLLIN, lambda kind=kind, name=name: self._on_output(kind, name))  # type: ignore[misc]
        if self._stdin and self._command.stdin is not None:
            watch(self._command.stdin, select.POLLOUT, self._feed_stdin)
        for descriptor, _ in poll.poll(self._timeout_ms()):
            if descriptor in ready:
                ready[descriptor]()
        self._take_due_steps()
        self._command.reap()
        if self._command.has_leader_ended and not self._steps:
            self._end_in_steps(LEFT_BEHIND_GRACE_S)

    def _timeout_ms(self) -> int | None:
        if not self._steps:
            return None
        # Processes reparented to this one end without a signal to wait for: look again soon.
        return max(1, min(50, int((self._steps[0][0] - time.monotonic()) * 1000)))

    def _on_signal(self) -> None:
        for number in os.read(self._woken, 512):
            if number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                self._client_gone()

    def _on_client(self) -> None:
        try:
            data = os.read(self._channel.fileno_in, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._client_gone()
            return
        for frame in self._channel.decoder.feed(data):
            self._take(frame)

    def _take(self, frame: frames.Frame) -> None:
        if frame.kind == frames.Kind.SIGNAL:
            self._command.signal(int(frame.json()["signal"]))
        elif frame.kind == frames.Kind.STDIN and self._command.stdin is not None:
            self._stdin.append(frame.payload)
        elif frame.kind == frames.Kind.STDIN_EOF:
            self._stdin_ended = True
            self._feed_stdin()

    def _on_output(self, kind: int, name: str) -> None:
        data = self._command.read(name, CHUNK)
        if data is None:
            return
        if self._client_is_there:
            offset = frames.OFFSET.pack(self._command.counts[name] - len(data))
            self._queue(frames.HEADER.pack(kind, len(offset) + len(data)) + offset)
            self._queue(data)
            self._flush()

    def _queue(self, data: bytes) -> None:
        if self._client_is_there:
            self._out.append(data)
            self._out_bytes += len(data)

    def _flush(self) -> None:
        try:
            written = os.writev(self._channel.fileno_out, self._out[:64])
        except BlockingIOError:
            return
        except OSError:
            self._client_gone()
            return
        self._out_bytes -= written
        done = 0
        while done < len(self._out) and written >= len(self._out[done]):
            written -= len(self._out[done])
            done += 1
        del self._out[:done]
        if written:
            self._out[0] = self._out[0][written:]

    def _feed_stdin(self) -> None:
        descriptor = self._command.stdin
        if descriptor is None:
            return
        try:
            while self._stdin:
                written = os.write(descriptor, self._stdin[0])
                self._stdin[0] = self._stdin[0][written:]
                if not self._stdin[0]:
                    del self._stdin[0]
        except BlockingIOError:
            return
        except OSError:
            self._stdin.clear()
            self._stdin_ended = True
        if self._stdin_ended:
            self._command.close_stdin()

    # -- the end

    def _client_gone(self) -> None:
        """End the command: nobody is there to want it. Its record stays."""
        if self._client_is_there:
            self._client_is_there = False
            self._out.clear()
            self._out_bytes = 0
            self._steps.clear()
            self._end_in_steps(CLIENT_GONE_GRACE_S)

    def _end_in_steps(self, grace_s: float) -> None:
        now = time.monotonic()
        self._steps = [(now, signal.SIGTERM), (now + grace_s, signal.SIGKILL)]
        self._take_due_steps()

    def _take_due_steps(self) -> None:
        while self._steps and self._steps[0][0] <= time.monotonic():
            _, number = self._steps.pop(0)
            self._command.signal_everything(number)
            if not self._steps:
                # What was forked in between is found and killed again until nothing is left.
                self._steps = [(time.monotonic() + 0.05, signal.SIGKILL)]
