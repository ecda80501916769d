"""Run one command on one droplet over as many links as it takes: started once, followed to its exact end.

The supervisor there keeps what has not arrived (`chisel.node.spool`). A lost link is opened again with back-off; output
goes on at the byte where it stopped, and its running checksum proves that nothing is missing or doubled.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Protocol

import anyio

from chisel.errors import ChiselError, HostKeyMismatch, HostUnreachable, NotReady, RemoteError
from chisel.events import LinkLost, LinkResumed, Notice, RunDetached, Sink
from chisel.model import Host, RunId, RunResult
from chisel.node import frames
from chisel.node.frames import Frame, Kind
from chisel.runner.feed import Feed
from chisel.runner.order import Control, Order, SyncPart
from chisel.runner.watch import Watch

HEARTBEAT_S = 1.0
SILENT_S = 2.0
ANSWER_S = 0.9
"""A droplet that says nothing on a session for `SILENT_S` is asked whether it hears at all, and given up when its sshd
does not answer within `ANSWER_S`. One that does is busy: starting 200 programs at a time, say."""
MUTE_S = 20.0
"""How long a command's supervisor may say nothing while its droplet answers."""
ACK_BYTES = 256 << 10
_LOOK_S = 0.5
_END_GRACE_S = 1.0
_END_ON_CANCEL_S = 3.0
_LEAVE_S = 2.0
_BACK_OFF_S, _LONGEST_BACK_OFF_S = 0.1, 5.0
_UNSTARTED_PATIENCE_S = 30.0
_SYNC_MUTE_S = 180.0
_SYNC_TRIES = 3
_SYNC_AGAIN = frozenset({"moved", "mismatch"})
"""Refusals of a working copy that changed while it was synced: the sync begins again, knowing less."""


class Channel(Protocol):
    """One role of the node program on one droplet."""

    async def send(self, kind: int, payload: bytes = b"") -> None:
        """Send one frame; waits while the window is full."""

    async def send_json(self, kind: int, obj: Any) -> None:
        """Send a control message; waits while the window is full."""

    async def receive(self) -> Sequence[Frame]:
        """Return the frames at hand, waiting for one; an empty list means the end."""

    def done(self) -> None:
        """Say that all has arrived: to close the channel need not wait."""

    async def is_linked(self, within_s: float) -> bool:
        """Say whether the droplet answers in time on the connection that the channel is on."""

    def give_up(self) -> None:
        """Drop that connection, without waiting."""


class Connector(Protocol):
    """Whoever keeps the connections."""

    def node(self, host: Host, role: str, request: dict[str, Any], *, window: int | None = None) -> Any:
        """Connect where needed and start a role of the node program: an async context manager of a Channel."""

    async def ask(self, host: Host, role: str, request: dict[str, Any]) -> dict[str, Any]:
        """Connect where needed and start a role that gives one answer; return it. Raises HostUnreachable."""


def new_run_id() -> RunId:
    """Return an id that sorts by time and is unique."""
    return RunId(f"{int(time.time()):x}-{secrets.token_hex(4)}")


def describe(error: ChiselError) -> str:
    """Return the message with its hint, for a result's `error`."""
    return f"{error.message} ({error.hint})" if error.hint else error.message


class Run:
    """One command on one droplet, from its start (or from `attach`) to its end."""

    def __init__(
        self,
        host: Host,
        order: Order,
        sink: Sink,
        *,
        run_id: RunId,
        feed: Feed | None = None,
        window: int | None = None,
        is_attached: bool = False,
        family: RunId | None = None,
    ) -> None:
        self.host = host
        self._order = order
        self._sink = sink
        self._feed = feed
        self._window = window
        self._attaches = is_attached
        self._family = family
        self.watch = Watch(host.name, run_id, order, sink)
        self._signals: list[int] = []
        self._size: tuple[int, int] | None = None
        self._stopped_by: str | None = None
        self._news = anyio.Event()
        self._acked = 0
        self._heard_at = 0.0
        self._waits = False
        self._lost_at: float | None = None
        self._silence: HostUnreachable | None = None
        self._never_began = False
        self._part: SyncPart | None = None
        self._is_synced = order.sync is None
        self._sync_tries = 0
        self._is_detached = is_attached  # until its droplet says what it is

    # -- what others want of it

    def heed(self, control: Control) -> None:
        """Take signals and sizes from a control from now on."""
        control.listen(self.signal, self.resize)

    def signal(self, number: int) -> None:
        """Have a signal sent to the process group; while the link is lost it waits."""
        self._signals.append(number)
        self._tell()

    def take_up(self, kept: dict[str, Any] | None) -> None:
        """Go on with what another process began, or (None) was about to begin; call it before `follow`."""
        self._lost_at = time.monotonic()
        if kept is not None:
            self.watch.take_up(kept)
            self._acked = self.watch.position

    def resize(self, rows: int, columns: int) -> None:
        """Tell the command's terminal its size."""
        self._size = rows, columns
        self._tell()

    def stop(self, why: str) -> None:
        """End the command, and say why in its result."""
        if self._stopped_by is None:
            self._stopped_by = why
            self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    # -- its life

    async def follow(self, connector: Connector) -> RunResult:
        """Start the command, or attach to it, and return how it ended.

        Raises HostUnreachable where the droplet cannot be reached at all or not again, RemoteError for what it
        refuses. Cancelled, it ends the command (TERM, then KILL), in at most `_END_ON_CANCEL_S`.
        """
        try:
            return await self._follow_links(connector)
        except anyio.get_cancelled_exc_class():
            if self._lost_at is not None:
                said = "it could not be told to end its command, which may run on"
                hint = f"chisel kill {self.watch.run_id}"
                self._sink.emit(Notice(host=self.host.name, level="warning", message=said, hint=hint))
            raise

    async def _follow_links(self, connector: Connector) -> RunResult:
        goes_on = self._attaches or self._lost_at is not None
        if not goes_on:
            await self._prepare_sync()
        role, request = self._again() if goes_on else ("supervise", self._request())
        is_first, wait_s = self._lost_at is None, _BACK_OFF_S
        while True:
            try:
                async with connector.node(self.host, role, request, window=self._window) as channel:
                    is_first, wait_s = False, _BACK_OFF_S
                    trouble = await self._follow_link(channel)
            except HostUnreachable as error:
                trouble = error
                if error.was_asked and not isinstance(error, NotReady):
                    is_first = False  # it may have begun
            if self._is_done:
                return self._result()
            if trouble is None:
                continue
            if await self._may_sync_again(trouble):
                role, request = "supervise", self._request()
                continue
            if not self._may_go_on(trouble) or is_first:
                raise trouble
            self._say_lost(trouble)
            wait_s = await self._back_off(wait_s, trouble)
            await self._prepare_sync()
            role, request = self._again()

    async def _prepare_sync(self) -> None:
        """Have a fresh part of the sync for the next start, if there is to be one."""
        if self._order.sync is not None and not self._attaches and not self.watch.has_started:
            self._is_synced = False
            self._part = await self._order.sync.part(self.host)

    async def _may_sync_again(self, trouble: ChiselError) -> bool:
        """Say whether a sync that the droplet refused can do better at once: then it is prepared."""
        if self._part is None or not isinstance(trouble, RemoteError) or trouble.code not in _SYNC_AGAIN:
            return False
        self._sync_tries += 1
        if self._sync_tries >= _SYNC_TRIES or self.watch.has_started:
            return False
        await self._part.doubt()
        await self._prepare_sync()
        return True

    @property
    def _is_done(self) -> bool:
        return self.watch.exit is not None or (self._order.detaches and self.watch.has_started)

    def _result(self) -> RunResult:
        if self.watch.exit is None:
            result = self.watch.detached()
            run_id = self.watch.run_id
            self._sink.emit(RunDetached(host=self.host.name, run_id=run_id, pool_run_id=self._family or run_id))
            return result
        return self.watch.result(stopped_by=self._stopped_by)

    def _may_go_on(self, trouble: ChiselError) -> bool:
        if isinstance(trouble, RemoteError):
            return trouble.code == "no-run" and not self.watch.has_started
        return self._order.patience_s > 0 and not isinstance(trouble, HostKeyMismatch)

    def _request(self) -> dict[str, Any]:
        order = self._order
        request: dict[str, Any] = {
            "run_id": self.watch.run_id,
            "line": order.line,
            "shown": order.shown or order.line,
            "cwd": order.cwd,
            "env": dict(order.env),
            "stdin": self._feed is not None,
            "owner": order.owner,
            "detached": order.detaches,
            "resumes": order.patience_s > 0,
        }
        if order.terminal is not None:
            rows, columns = self._size or (order.terminal.rows, order.terminal.columns)
            request["terminal"] = {"rows": rows, "columns": columns, "term": order.terminal.term}
        if self._part is not None:
            request["sync"] = self._part.request()
        more = {
            "tree_hash": order.tree_hash or None,
            "git": asdict(order.git) if order.git is not None else None,
            "timeout_s": order.timeout_s,
            "orphan_s": order.orphan_s,
            "user": order.user,
            "venv": order.venv,
            "gpus": order.gpus,
            "container": order.container,
        }
        return {**request, **{name: value for name, value in more.items() if value is not None}}

    def _again(self) -> tuple[str, dict[str, Any]]:
        """Return how to go on: where it stopped, or from the start when it surely never began."""
        if self._attaches and self._lost_at is None:
            return "attach", {"run_id": self.watch.run_id, "place": None}
        if self._never_began:
            self._never_began = False
            return "supervise", self._request()
        self._is_synced = True  # to be followed, not to be started
        place, forbids = self.watch.place, not self.watch.has_started
        return "attach", {"run_id": self.watch.run_id, "place": place, "forbids": forbids}

    # -- a link lost

    def _say_lost(self, trouble: ChiselError) -> None:
        if isinstance(trouble, RemoteError):  # it never began there: it does now, under a name of its own
            self._never_began = True
            self.watch.run_id = RunId(f"{self.watch.run_id}-2")
        elif self._lost_at is None:
            self._lost_at = time.monotonic()
            self._sink.emit(LinkLost(host=self.host.name, run_id=self.watch.run_id, reason=trouble.message))

    async def _back_off(self, wait_s: float, trouble: ChiselError) -> float:
        """Wait before the next attempt; raises HostUnreachable when it has been tried for long enough."""
        patience_s = self._order.patience_s
        if not self.watch.has_started:
            patience_s = min(patience_s, _UNSTARTED_PATIENCE_S)
        if self._lost_at is not None and time.monotonic() - self._lost_at > patience_s:
            message = f"`{self.host.name}` cannot be reached any more: {trouble.message}"
            may = "still run" if self.watch.has_started else "have begun"
            hint = f"its command may {may}: chisel attach {self.watch.run_id}"
            raise HostUnreachable(message, host=self.host.name, hint=hint) from trouble
        await anyio.sleep(wait_s * random.uniform(0.5, 1.0))
        return min(wait_s * 2, _LONGEST_BACK_OFF_S)

    def _resumed(self, facts: dict[str, Any]) -> None:
        """Go on where the droplet says that it goes on; raises RemoteError when that is another place."""
        if self._attaches and self._lost_at is None:
            self.watch.begin_at(facts["place"])
        elif facts["place"] != self.watch.place:
            raise RemoteError(
                f"`{self.host.name}` goes on at another byte than asked for", host=self.host.name, code="damaged"
            )
        self.watch.started(facts)
        self._linked_again()

    def _linked_again(self) -> None:
        if self._lost_at is not None:
            seconds = time.monotonic() - self._lost_at
            self._lost_at = None
            self.watch.links += 1
            self._sink.emit(LinkResumed(host=self.host.name, position=self.watch.position, seconds=seconds))

    # -- one link

    async def _follow_link(self, channel: Channel) -> ChiselError | None:
        """Return what went wrong instead of raising it, so that it does not come out of the task group as a group."""
        trouble: ChiselError | None = None
        self._heard_at = time.monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._beat, channel, tasks.cancel_scope)
            try:
                if self._part is not None and not self._is_synced:
                    await self._part.begin(channel)
                await self._receive(channel, tasks)
            except ChiselError as error:
                trouble = error
            except anyio.get_cancelled_exc_class():
                if self._silence is not None:
                    raise
                with anyio.move_on_after(_END_ON_CANCEL_S, shield=True):
                    await self._end(channel)
                raise
            tasks.cancel_scope.cancel()
        silence, self._silence = self._silence, None
        return silence or trouble

    async def _receive(self, channel: Channel, tasks: Any) -> None:
        """Take frames until the command has ended or, started, is to be left."""
        has_helpers = False
        while self.watch.exit is None:
            self._waits = True
            row = await channel.receive()
            self._waits, self._heard_at = False, time.monotonic()
            if not row:
                raise HostUnreachable(
                    f"`{self.host.name}` ended the session without an exit status", host=self.host.name
                )
            for frame in row:
                if not self._is_synced and self._part is not None:
                    self._is_synced = await self._part.take(frame, channel)
                elif frame.kind in (Kind.STARTED, Kind.ATTACHED):
                    facts = frame.json()
                    self._is_detached = bool(facts.get("detached"))
                    if frame.kind == Kind.ATTACHED:
                        self._resumed(facts)
                    else:
                        self.watch.take(frame)
                        self._linked_again()
                    if self._order.detaches:
                        await channel.send(Kind.LEAVE)
                        return
                    if not has_helpers:
                        has_helpers = True
                        tasks.start_soon(self._send_orders, channel, int(facts.get("signals", 0)))
                        if self._feed is not None:
                            tasks.start_soon(self._send_input, channel, int(facts.get("stdin", 0)))
                elif frame.kind == Kind.STDIN_ACK:
                    if self._feed is not None:
                        self._feed.ack(self.host.name, frames.OFFSET.unpack(frame.payload)[0])
                else:
                    self.watch.take(frame)
            await self._sink.drain()
            if self.watch.safe_position - self._acked >= ACK_BYTES and self.watch.exit is None:
                await self._ack(channel)
        channel.done()

    async def _ack(self, channel: Channel) -> None:
        position = self.watch.safe_position
        if position > self._acked:
            self._acked = position
            with suppress(HostUnreachable):  # whoever reads the channel says so
                await channel.send(Kind.ACK, frames.OFFSET.pack(self._acked))

    async def _beat(self, channel: Channel, link: anyio.CancelScope) -> None:
        """Say that this end lives, and give a link up whose other end does not."""
        sent_at = 0.0
        while True:
            now = time.monotonic()
            if now - sent_at >= HEARTBEAT_S:
                sent_at = now
                with suppress(HostUnreachable), anyio.move_on_after(_LOOK_S):
                    await channel.send(Kind.HEARTBEAT)
                    await self._ack(channel)
            await anyio.sleep(_LOOK_S)
            if self._order.patience_s > 0 and self._silent_s() > SILENT_S:
                self._silence = await self._judge(channel)
                if self._silence is not None:
                    link.cancel()

    def _silent_s(self) -> float:
        """Return for how long the droplet has said nothing, in seconds; 0 while this end does not listen."""
        return time.monotonic() - self._heard_at if self._waits else 0.0

    async def _judge(self, channel: Channel) -> HostUnreachable | None:
        """Say what is wrong with a droplet that has been silent: None when it answers, and may still speak."""
        host, asked_at = self.host.name, time.monotonic()
        is_linked = await channel.is_linked(ANSWER_S)
        if self._heard_at > asked_at or not self._waits:
            return None
        if not is_linked:
            channel.give_up()  # and only this one: others may have opened theirs again already
            return HostUnreachable(f"`{host}` has been silent for {SILENT_S + ANSWER_S:.0f} s", host=host)
        mute_s = MUTE_S if self._is_synced else _SYNC_MUTE_S  # a working copy may be large, its disk slow
        if self._silent_s() <= mute_s:
            return None
        return HostUnreachable(f"`{host}` answers, but its command has been silent for {mute_s:.0f} s", host=host)

    async def _send_orders(self, channel: Channel, seen: int) -> None:
        """Send what is wanted of the command, from signal number `seen` on, as it is wanted."""
        size, has_stopped = None, False
        with suppress(HostUnreachable):  # whoever reads the channel says so
            while True:
                news = self._news
                while seen < len(self._signals):
                    await channel.send_json(Kind.SIGNAL, {"signal": self._signals[seen], "index": seen})
                    seen += 1
                if self._size != size and self._size is not None:
                    size = self._size
                    await channel.send_json(Kind.SIZE, {"rows": size[0], "columns": size[1]})
                if self._stopped_by is not None and not has_stopped:
                    has_stopped = True
                    await channel.send_json(Kind.END, {"grace_s": _END_GRACE_S})
                await news.wait()

    async def _send_input(self, channel: Channel, offset: int) -> None:
        assert self._feed is not None
        with suppress(HostUnreachable):  # whoever reads the channel says so
            while data := await self._feed.piece(self.host.name, offset):
                await channel.send(Kind.STDIN, frames.OFFSET.pack(offset) + data)
                offset += len(data)
            await channel.send(Kind.STDIN_EOF)

    async def _end(self, channel: Channel) -> None:
        """End the command and follow it to its end; one that was detached is left alone."""
        with suppress(ChiselError):
            if self._is_detached:
                await channel.send(Kind.LEAVE)
                return
            await channel.send_json(Kind.END, {"grace_s": _END_GRACE_S})
            while self.watch.exit is None and (row := await channel.receive()):
                for frame in row:
                    if frame.kind not in (Kind.ATTACHED, Kind.STDIN_ACK):
                        self.watch.take(frame)
                await self._sink.drain()
