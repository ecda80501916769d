"""Run a command on one droplet or over a pool: live output as events, exact exit statuses, verified ends.

The command runs under the node's supervisor, in its own process group. A droplet's failure is a value in its result
(status 255, `source="chisel"`), never an exception that hides the others.
"""

from __future__ import annotations

import secrets
import signal as signals
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio

from chisel.errors import ChiselError, HostUnreachable
from chisel.events import Output, RunEnded, RunStarted, Sink, Stream
from chisel.model import Host, RunId, RunResult
from chisel.node.frames import Frame, Kind
from chisel.ssh.refusal import remote_error

LOST = 255
CAPTURE_LIMIT_BYTES = 64 << 20
_END_ON_CANCEL_S = 3.0
_OFFSET_BYTES = 8


class Channel(Protocol):
    """One role of the node program on one droplet."""

    async def send_json(self, kind: int, obj: Any) -> None:
        """Send a control message; waits while the window is full."""

    async def receive(self) -> list[Frame]:
        """Return the frames at hand, waiting for one; an empty list means the end."""


class Connection(Protocol):
    """A warm, verified connection to one droplet."""

    def node(self, role: str, request: dict[str, Any]) -> Any:
        """Start a role of the node program: an async context manager of a Channel."""


class Connector(Protocol):
    """Whoever keeps the connections."""

    async def connect(self, host: Host) -> Connection:
        """Return the connection to a host; raises HostUnreachable."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to run: `line` is a shell line for bash, `cwd` a path on the droplet (`~/` is its home).

    With `capture` the results carry the output, at most `CAPTURE_LIMIT_BYTES` of each stream. `shown` stands for the
    line wherever people read it.
    """

    line: str
    cwd: str = "~"
    env: Mapping[str, str] = field(default_factory=dict)
    owner: str = ""
    capture: bool = False
    shown: str = ""


class Control:
    """Carry signals from whoever watches the keyboard to every command under way."""

    def __init__(self) -> None:
        self._sent: list[int] = []
        self._more = anyio.Event()

    @property
    def was_used(self) -> bool:
        """Say whether a signal was sent."""
        return bool(self._sent)

    def signal(self, number: int) -> None:
        """Send a signal to the process group of every command under way, and of those still to start."""
        self._sent.append(number)
        self._more.set()
        self._more = anyio.Event()

    async def next_signal(self, seen: int) -> int:
        """Return signal number `seen` (counted from 0), waiting until it is sent."""
        while len(self._sent) <= seen:
            await self._more.wait()
        return self._sent[seen]


async def run_pool(
    connector: Connector, hosts: Sequence[Host], order: Order, sink: Sink, *, control: Control | None = None
) -> list[RunResult]:
    """Run on all hosts at once and return one result each, in the order of `hosts`.

    Cancellation ends every command under way (TERM, then KILL) before it leaves, in at most `_END_ON_CANCEL_S`.
    """
    results: dict[str, RunResult] = {}
    control = control or Control()

    async def one(host: Host) -> None:
        results[host.name] = await run_one(connector, host, order, sink, control=control)

    async with anyio.create_task_group() as tasks:
        for host in hosts:
            tasks.start_soon(one, host)
    return [results[host.name] for host in hosts]


async def run_one(
    connector: Connector, host: Host, order: Order, sink: Sink, *, control: Control | None = None
) -> RunResult:
    """Run on one host; a droplet that cannot be reached or is lost gives status 255 with the reason in `error`."""
    run_id = new_run_id()
    try:
        connection = await connector.connect(host)
        result = await run_on_connection(connection, host.name, order, sink, run_id=run_id, control=control)
    except ChiselError as error:
        result = RunResult(host=host.name, run_id=run_id, status=LOST, source="chisel", error=describe(error))
    sink.emit(RunEnded(host=host.name, result=result))
    await sink.drain()
    return result


def describe(error: ChiselError) -> str:
    """Return the message with its hint, for a result's `error`."""
    return f"{error.message} ({error.hint})" if error.hint else error.message


def new_run_id() -> RunId:
    """Return an id that sorts by time and is unique."""
    return RunId(f"{int(time.time()):x}-{secrets.token_hex(4)}")


async def run_on_connection(
    connection: Connection, name: str, order: Order, sink: Sink, *, run_id: RunId, control: Control | None = None
) -> RunResult:
    """Run over a connection at hand; raises HostUnreachable or RemoteError where `run_one` gives a value."""
    request = {
        "run_id": run_id,
        "line": order.line,
        "shown": order.shown or order.line,
        "cwd": order.cwd,
        "env": dict(order.env),
        "stdin": False,
        "owner": order.owner,
    }
    watch = _Watch(name, run_id, order, sink)
    async with connection.node("supervise", request) as channel:
        trouble = await _follow_with_signals(channel, watch, control or Control())
    if trouble is not None:
        raise trouble
    return watch.result()


async def _follow_with_signals(channel: Channel, watch: _Watch, control: Control) -> ChiselError | None:
    """Return what went wrong instead of raising it, so that it does not come out of the task group as a group."""
    trouble: ChiselError | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_forward_signals, channel, control)
        try:
            await watch.follow(channel)
        except ChiselError as error:
            trouble = error
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(_END_ON_CANCEL_S, shield=True):
                await _end(channel, watch)
            raise
        tasks.cancel_scope.cancel()
    return trouble


async def _forward_signals(channel: Channel, control: Control) -> None:
    seen = 0
    while True:
        number = await control.next_signal(seen)
        seen += 1
        with suppress(HostUnreachable):  # whoever reads the channel says so
            await channel.send_json(Kind.SIGNAL, {"signal": number})


async def _end(channel: Channel, watch: _Watch) -> None:
    for number in (signals.SIGTERM, signals.SIGKILL):
        await channel.send_json(Kind.SIGNAL, {"signal": int(number)})
        with anyio.move_on_after(_END_ON_CANCEL_S / 2):
            await watch.follow(channel)
            return


class _Watch:
    """Follow one command's frames: emit its output, keep what capture asks for, remember how it ended."""

    def __init__(self, host: str, run_id: RunId, order: Order, sink: Sink) -> None:
        self._host = host
        self._run_id = run_id
        self._order = order
        self._sink = sink
        self._exit: dict[str, Any] | None = None
        self._captured: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}

    async def follow(self, channel: Channel) -> None:
        while self._exit is None:
            frames = await channel.receive()
            if not frames:
                raise HostUnreachable(f"`{self._host}` ended the session without an exit status", host=self._host)
            for frame in frames:
                self._take(frame)
            await self._sink.drain()

    def _take(self, frame: Frame) -> None:
        if frame.kind == Kind.STDOUT:
            self._output("stdout", frame.payload)
        elif frame.kind == Kind.STDERR:
            self._output("stderr", frame.payload)
        elif frame.kind == Kind.STARTED:
            facts = frame.json()
            self._sink.emit(
                RunStarted(
                    host=self._host, run_id=self._run_id, line=self._order.shown or self._order.line, cwd=facts["cwd"]
                )
            )
        elif frame.kind == Kind.EXIT:
            self._exit = frame.json()
        elif frame.kind == Kind.ERROR:
            raise remote_error(frame, self._host)

    def _output(self, stream: Stream, payload: bytes) -> None:
        offset = int.from_bytes(payload[:_OFFSET_BYTES], "big")
        data = payload[_OFFSET_BYTES:]
        if self._order.capture and len(self._captured[stream]) < CAPTURE_LIMIT_BYTES:
            self._captured[stream] += data
        self._sink.emit(Output(host=self._host, stream=stream, data=data, offset=offset))

    def result(self) -> RunResult:
        facts = self._exit or {}
        number = facts.get("signal")
        return RunResult(
            host=self._host,
            run_id=self._run_id,
            status=128 + number if number else int(facts["status"]),
            signal=number,
            seconds=float(facts.get("seconds", 0.0)),
            stdout_bytes=int(facts.get("stdout_bytes", 0)),
            stderr_bytes=int(facts.get("stderr_bytes", 0)),
            peak_rss_bytes=facts.get("peak_rss_bytes"),
            stdout=bytes(self._captured["stdout"]) if self._order.capture else None,
            stderr=bytes(self._captured["stderr"]) if self._order.capture else None,
        )
