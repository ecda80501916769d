"""Hold one droplet's half of a sync's conversation; `chisel.node.receiver` is the other.

It knows nothing of sessions: the `receive` role or the start of a command carries it.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from chisel.errors import HostUnreachable, RemoteError
from chisel.events import Notice, Progress
from chisel.model import GitFacts, Host, SyncResult
from chisel.node import frames, tree
from chisel.node.frames import Frame, Kind
from chisel.node.tree import Item
from chisel.ssh.refusal import remote_error
from chisel.sync import codec
from chisel.sync.cast import Cast, Piece, all_of
from chisel.sync.hearing import heard
from chisel.sync.index import Index
from chisel.sync.plan import Plan, Present
from chisel.sync.relay import Place
from chisel.sync.stream import Outcome
from chisel.sync.there import There

if TYPE_CHECKING:
    from chisel.sync.job import Job

STALL_DEADLINE_S = 60.0
"""How long a quarter of a megabyte may take to leave."""
UNASKED_BYTES = codec.SMALL_BYTES
"""What is larger is not sent before the droplet has said what it has: a round trip is little beside it. What travels
within a request is taken to be zlib."""
INLINE_BYTES = 24 << 10
"""What is smaller travels within the request, which leaves with the login."""
_MEASURED_BYTES = 1 << 20
_BEAT_S = 30.0
_SAID_S = 2.0
_SHOWN = 200


class Channel(Protocol):
    """A session to one droplet."""

    async def send(self, kind: int, payload: bytes = b"") -> None:
        """Send one frame; waits while the window is full. Raises HostUnreachable."""

    async def receive(self) -> Any:
        """Return the frames at hand, an empty list at the end."""

    def put_back(self, found: Sequence[Frame]) -> None:
        """Have received frames given once more."""


class Part:
    """One droplet's sync; `result` is there when it is done. One task at a time."""

    def __init__(self, job: Job, host: Host) -> None:
        self._job = job
        self._host = host
        self._key = f"{host.droplet_id}:{job.remote}"
        self._began_at = time.monotonic()
        self._there = There()
        self._base: Mapping[str, Item] | None = None
        self._plan: Plan | None = None
        self._cast: Cast | None = None
        self._inline: bytes | None = None
        self._asks = True
        self._is_prepared = False
        self._is_announced = False
        self._state = ""
        self._staged: tuple[str, ...] = ()
        self._codecs: tuple[str, ...] = ()
        self._described: list[bytes] = []
        self._described_items: Mapping[str, Item] = {}
        self._described_tree = ""
        self._plan_key: Any = None
        self._own = frozenset[str]()
        self._sent_bytes = 0
        self._drift: tuple[str, ...] = ()
        self._kept: tuple[str, ...] = ()
        self._never_pushed: tuple[str, ...] = ()
        self._git: GitFacts | None = None
        self.result: SyncResult | None = None

    # -- before anything is said

    async def prepare(self) -> None:
        """Work out what to send unasked; nothing is read of what is to be sent but small files."""
        await self._job.work(self._recall)
        if self._job.git is not None:
            self._git = await self._job.git()
        self._is_prepared = True
        plan = self._plan
        if plan is None or self._asks or plan.is_empty:
            return
        self._cast = self._open_cast((self._there.tree, self._own), plan)
        if plan.read_bytes <= UNASKED_BYTES:
            pieces = await all_of(self._cast)
            data = b"".join(piece.payload for piece in pieces if piece.kind == Kind.DATA)
            if len(pieces) == 3 and len(data) <= INLINE_BYTES:
                self._inline = data

    def _recall(self) -> None:
        job, options = self._job, self._job.options
        self._there = there = job.known.of(self._key)
        self._codecs = there.codecs
        self._own = job.local.kept_from(self._host)
        self._base = job.known.tree(there.tree) if there.token else None
        self._asks = self._base is None or there.is_pending or options.is_dry or options.deletes_extra
        if self._base is None or self._asks:
            return
        if there.tree == job.local.tree_hash and not job.local.released:
            self._plan = Plan(final=job.local.items)
            return
        self._plan = job.plan(there.tree, self._present(self._base), self._own)
        size = self._plan.content_bytes
        self._asks = size > UNASKED_BYTES or job.relays.is_wanted(size, there.bytes_per_s)
        if self._plan.puts:
            job.known.remember(self._key, replace(there, is_pending=True))

    async def doubt(self) -> None:
        """Forget what was believed of the droplet: the next part asks."""
        await self._job.work(self._job.known.remember, self._key, replace(self._there, token=""))

    def _present(self, items: Mapping[str, Item]) -> Present:
        return Present(
            items,
            drift=self._drift,
            keeps=self._kept,
            staged=set(self._staged),
            patchable=_Patchable(self._job.index),
            extras=self._never_pushed,
        )

    def request(self) -> dict[str, Any]:
        """Return what the droplet is asked."""
        job, options = self._job, self._job.options
        who: dict[str, Any] = {"root": str(job.remote), "owner": job.owner, "owner_name": job.owner_name}
        who |= {name: True for name, is_set in self._early_flags() if is_set}
        if not self._is_prepared:
            self._is_announced = True
            return {**who, "waits": True}
        request = {} if self._is_announced else who
        request["base"] = self._there.token if self._base is not None else ""
        flags = {
            "asks": self._asks,
            "keep": options.keeps,
            "now": options.is_now,
            "extra": options.deletes_extra,
        }
        if self._inline is not None and self._cast is not None and self._cast.outcome is not None:
            request["stream"] = base64.b64encode(self._inline).decode("ascii")
            request["tree"] = self._cast.outcome.tree_hash
        elif self._cast is not None:
            request["follows"] = True
        if self._git is not None:
            request["git"] = asdict(self._git)
        return {**request, **{name: True for name, is_set in flags.items() if is_set}}

    def _early_flags(self) -> list[tuple[str, bool]]:
        options = self._job.options
        return [("takes_over", options.takes_over), ("checksum", options.checks)]

    # -- the conversation

    async def begin(self, channel: Channel) -> None:
        """Send what goes behind the request unasked: the rest of it, where it was only announced."""
        if not self._is_prepared:
            try:
                await self._wait_scanned(channel)
                await self.prepare()
                await channel.send(Kind.REQUEST, frames.as_json(self.request()))
            except HostUnreachable:  # it may have refused the first half
                await self._why(channel)
                raise
        if self._inline is not None:
            self._sent_bytes += len(self._inline)
        elif self._cast is not None:
            await self._send(channel, self._cast)

    async def _wait_scanned(self, channel: Channel) -> None:
        """Wait for the tree; the droplet waits as well, and would give up a client that is silent for minutes."""
        while not self._job.is_scanned:
            with anyio.move_on_after(_BEAT_S):
                await self._job.wait_scanned()
                return
            await channel.send(Kind.HEARTBEAT)

    async def take(self, frame: Frame, channel: Channel) -> bool:
        """Take one frame and answer it; True when the working copy is as it should be (see `result`).

        Raises RemoteError for what the droplet refuses, HostUnreachable.
        """
        if frame.kind == Kind.ERROR:
            raise remote_error(frame, self._host.name)
        if frame.kind == Kind.PROGRESS:
            waits = ", ".join(str(one) for one in frame.json().get("waits") or [])
            said = f"waiting for what runs in the working copy: {waits}"
            self._job.sink.emit(Notice(host=self._host.name, message=said, hint="--now does not wait"))
            self._job.relays.settled(self._host)  # it may take long, and all that it needs is there
        elif frame.kind == Kind.DATA:
            self._described.append(frame.payload)
        elif frame.kind == Kind.DATA_END:
            return await self._answer(channel)
        elif frame.kind == Kind.REPLY:
            facts = frame.json()
            if facts.get("seen"):
                if not self._is_settled_by(facts):
                    return False
                await self._finish(facts)
                return True
            if facts.get("done"):
                await self._finish(facts)
                return True
            self._state = str(facts.get("state"))
            self._staged = tuple(str(one) for one in facts.get("staged") or [])
            self._codecs = tuple(str(one) for one in facts.get("codecs") or [])
        elif frame.kind != Kind.HEARTBEAT:
            name = self._host.name
            raise RemoteError(f"`{name}` answers a sync with frame {frame.kind}", host=name, code="bug")
        return False

    def _is_settled_by(self, facts: Mapping[str, Any]) -> bool:
        """Say whether nothing is left to do for a droplet that has what it is known to have, and nothing else."""
        if self._job.goes_ahead:
            return False  # it is told the rest in any case, and says so when the working copy is the command's
        is_known = self._base is not None and facts.get("token") == self._there.token
        return is_known and not self._asks and self._plan is not None and self._plan.is_empty and self._cast is None

    async def _answer(self, channel: Channel) -> bool:
        """Send what the droplet needs, now that it has said what it has."""
        described, self._described = self._described, []
        try:
            await self._job.work(self._read_description, described)
        except (tree.DamagedStream, tree.UnsafePath) as error:
            name = self._host.name
            said = f"`{name}` describes its working copy in a way that makes no sense: {error}"
            raise RemoteError(said, host=name, code="bad-survey") from error
        plan = await self._make_plan()
        if self._job.options.is_dry:
            files = sum(item.kind != tree.DIRECTORY for item in plan.final.values())
            self.result = self._described_result(plan, files)
            return True
        for path in plan.extras:
            self._job.sink.emit(Notice(host=self._host.name, message=f"deleting {path}, which was never pushed"))
        if plan.puts:
            there = replace(self._there, is_pending=True)
            await self._job.work(self._job.known.remember, self._key, there)
        cast = self._share_cast(plan)
        place = await self._job.relays.place(self._host, cast, plan.content_bytes, self._there.bytes_per_s)
        if place is None:
            await self._send(channel, cast)
        elif place.is_root:
            async with place.feeding(channel):
                await self._send(channel, cast, place)
        else:
            return await self._follow_neighbour(channel, place)
        return False

    async def _make_plan(self) -> Plan:
        """Plan from what the droplet has said of its working copy, and of what is staged."""
        key = (self._described_tree, self._staged, self._kept, self._never_pushed)
        present = self._present(self._described_items)
        self._plan = plan = await self._job.work(self._job.plan, key, present, self._own)
        self._plan_key = key, self._own
        return plan

    def _share_cast(self, plan: Plan) -> Cast:
        self._cast = self._open_cast(self._plan_key, plan)
        return self._cast

    def _open_cast(self, key: Any, plan: Plan) -> Cast:
        rate = self._there.bytes_per_s
        return self._job.cast(key, plan, codec.choose_codec(self._codecs, rate, plan.content_bytes), rate)

    async def _follow_neighbour(self, channel: Channel, place: Place) -> bool:
        """Have the stream come from another droplet, and send what it does not bring; True when all is done."""
        plan = self._plan or Plan()

        def progress(piece: Piece) -> None:
            self._progress(piece.done_bytes, plan.read_bytes, piece.done_files, len(plan.puts))

        async with place.conducted(channel, progress):
            lost = await self._listen(channel, place)
        if lost is None:
            return True
        self._job.relays.say_direct(self._host, str(lost.get("lost"))[:_SHOWN])
        self._staged = tuple(str(one) for one in lost.get("staged") or [])
        await self._send(channel, self._share_cast(await self._make_plan()))
        return False

    async def _listen(self, channel: Channel, place: Place) -> Mapping[str, Any] | None:
        """Hear a droplet that a neighbour feeds until it is done; returns what it says when the stream is lost."""
        while True:
            row = await heard(channel, self._host.name)
            for number, frame in enumerate(row, 1):
                if frame.kind == Kind.RELAY:
                    facts: Mapping[str, Any] = frame.json()
                    if "lost" in facts:
                        channel.put_back(row[number:])
                        return facts
                    place.listens(int(facts["port"]))
                elif await self.take(frame, channel):
                    channel.put_back(row[number:])
                    return None

    def _read_description(self, pieces: list[bytes]) -> None:
        """Decode what a droplet says that it has."""
        items = dict(self._base or {}) if self._state in ("same", "drift") else dict[str, Item]()
        drift, kept, extras = list[str](), list[str](), list[str]()
        records = tree.Records()
        for piece in pieces:
            for record in records.feed(piece):
                if isinstance(record, bytes):
                    raise tree.DamagedStream("content has no place in a description")
                what = record[0]
                if what in ("gone", "never", "extra"):
                    path = tree.check_path(record[1])
                    items.pop(path, None)
                    {"gone": drift, "extra": extras}.get(str(what), []).append(path)
                    continue
                item = tree.decode_item(record)
                items[item.path] = item
                {"drift": drift, "kept": kept}.get(str(what), []).append(item.path)
        records.end()
        self._drift, self._kept, self._never_pushed = tuple(drift), tuple(kept), tuple(extras)
        self._described_items = items
        self._described_tree = self._there.tree if self._state == "same" else tree.tree_hash(items.values())

    async def _send(self, channel: Channel, cast: Cast, place: Place | None = None) -> None:
        plan = self._plan
        total, files = (plan.read_bytes, len(plan.puts)) if plan is not None else (0, 0)
        began_at, before = time.monotonic(), self._sent_bytes
        try:
            async with cast.joined() as pieces:
                async for piece in pieces:
                    await self._deliver(channel, piece)
                    if place is not None:
                        place.passed(piece)
                    self._progress(piece.done_bytes, total, piece.done_files, files)
        except HostUnreachable:
            await self._why(channel)
            raise
        if place is not None and cast.outcome is not None:
            place.ended(cast.outcome.tree_hash)
        self._progress(total, total, files, files, is_done=True)
        sent, seconds = self._sent_bytes - before, time.monotonic() - began_at
        if sent >= _MEASURED_BYTES:
            self._there = replace(self._there, bytes_per_s=sent / max(seconds, 1e-3))

    async def _deliver(self, channel: Channel, piece: Piece) -> None:
        """Send one piece; a window that does not open for `STALL_DEADLINE_S` is a lost droplet."""
        await self._job.throttle.take(len(piece.payload))
        with anyio.move_on_after(STALL_DEADLINE_S):
            await channel.send(piece.kind, piece.payload)
            self._sent_bytes += len(piece.payload)
            return
        name = self._host.name
        raise HostUnreachable(f"`{name}` takes no more data", host=name)

    async def _why(self, channel: Channel) -> None:
        """Raise what the droplet said before it ended the session or took no more, if it said something."""
        with anyio.move_on_after(_SAID_S):
            while row := await channel.receive():
                for frame in row:
                    if frame.kind == Kind.ERROR:
                        raise remote_error(frame, self._host.name)

    def _progress(self, done: int, total: int, files: int, all_files: int, *, is_done: bool = False) -> None:
        if total or all_files:
            event = Progress(
                host=self._host.name,
                task="sync",
                done=done,
                total=total,
                is_done=is_done,
                done_files=files,
                total_files=all_files,
            )
            self._job.sink.emit(event)

    # -- the end

    async def _finish(self, facts: Mapping[str, Any]) -> None:
        self._job.relays.settled(self._host)
        outcome = self._cast.outcome if self._cast is not None else None
        final = outcome.final if outcome is not None else (self._plan or Plan(final=self._job.local.items)).final
        there = replace(
            self._there,
            token=str(facts["token"]),
            tree=str(facts["tree"]),
            codecs=tuple(str(one) for one in facts.get("codecs") or []),
            is_pending=False,
        )
        await self._job.work(self._remember, there, final, outcome)
        plan = self._plan or Plan()
        self.result = replace(
            self._described_result(plan, int(facts.get("files", 0))),
            sent_files=int(facts.get("puts", 0)),
            deleted_files=int(facts.get("deleted", 0)),
            sent_bytes=self._sent_bytes,
            relayed_bytes=int(facts.get("relayed", 0)),
            skipped=(*self._job.local.skipped, *(outcome.skipped if outcome is not None else ()), *_said(facts)),
            tree_hash=str(facts["tree"]),
            burst_ms=float(facts.get("burst_ms", 0.0)),
            reasons={},
            is_dry=False,
        )
        if self._job.on_end is not None:
            self._job.on_end(self.result)

    def _remember(self, there: There, final: Mapping[str, Item], outcome: Outcome | None) -> None:
        if outcome is not None:
            self._job.note(outcome)
        expected = outcome.tree_hash if outcome is not None else self._there.tree
        is_known = there.tree == expected
        self._job.known.remember(self._key, there if is_known else replace(there, token=""), final)

    def _described_result(self, plan: Plan, total_files: int) -> SyncResult:
        return SyncResult(
            host=self._host.name,
            root=str(self._job.remote),
            total_files=total_files,
            sent_files=len(plan.puts) + len(plan.twins) + len(plan.staged) + len(plan.copies),
            deleted_files=len(plan.deletes),
            moved_files=plan.moved_files,
            seconds=time.monotonic() - self._began_at,
            repaired=plan.repaired,
            kept=self._kept,
            skipped=self._job.local.skipped,
            notes=self._job.local.notes,
            tree_hash=self._job.local.tree_hash,
            reasons=plan.reasons,
            is_dry=True,
        )


class _Patchable:
    """The digests of contents whose blocks are known here."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, str) and bool(digest) and self._index.sums_of(digest) is not None


def _said(facts: Mapping[str, Any]) -> tuple[str, ...]:
    aside = [
        f"{path}: what the droplet had made itself was in the way and is kept there" for path in facts.get("aside", [])
    ]
    replaced = [f"{path}: the droplet's own file was replaced" for path in facts.get("replaced", [])]
    return (*aside, *replaced)
