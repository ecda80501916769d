"""Follow one command's frames: check and emit its output, keep what capture asks for, remember how it ended."""

from __future__ import annotations

import zlib
from typing import Any

from chisel.errors import RemoteError
from chisel.events import Output, PlaceKeeper, RunStarted, Sink, Stream
from chisel.model import GitFacts, RunId, RunResult
from chisel.node import frames
from chisel.node.frames import Frame, Kind
from chisel.runner.order import Order
from chisel.ssh.refusal import remote_error

CAPTURE_LIMIT_BYTES = 64 << 20
TIMED_OUT = 124
_WHY = {
    "timeout": "ended after its time limit",
    "client-gone": "ended: its chisel was gone",
    "orphan": "ended: no chisel had come back for it",
    "supervisor": "ended with the droplet",
    "asked": "ended by chisel",
}


class Watch:
    """What is known of one command so far. `place` are the bytes received and checked."""

    def __init__(self, host: str, run_id: RunId, order: Order, sink: Sink) -> None:
        self.host = host
        self.run_id = run_id
        self._order = order
        self._sink = sink
        self._keeper = sink if isinstance(sink, PlaceKeeper) else None
        self.has_started = False
        self.exit: dict[str, Any] | None = None
        self.links = 0
        self._counts: dict[Stream, int] = {"stdout": 0, "stderr": 0}
        self._crcs: dict[Stream, int] = {"stdout": 0, "stderr": 0}
        self._captured: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}

    @property
    def position(self) -> int:
        """Return how many bytes have come, of both streams."""
        return self._counts["stdout"] + self._counts["stderr"]

    @property
    def place(self) -> dict[str, int]:
        """Return what has come, as the droplet counts it."""
        return {
            "stdout": self._counts["stdout"],
            "stderr": self._counts["stderr"],
            "stdout_crc32": self._crcs["stdout"],
            "stderr_crc32": self._crcs["stderr"],
        }

    @property
    def kept_place(self) -> dict[str, Any]:
        """Return what somebody else needs to know to go on from here."""
        return {**self.place, "run_id": self.run_id, "has_started": self.has_started, "links": self.links}

    def take_up(self, kept: dict[str, Any]) -> None:
        """Go on where somebody else's watch was: `kept` is its `kept_place`."""
        self.begin_at(kept)
        self.run_id, self.has_started, self.links = RunId(kept["run_id"]), bool(kept["has_started"]), int(kept["links"])

    @property
    def safe_position(self) -> int:
        """Return how many bytes its droplet need not keep for anybody."""
        return self.position if self._keeper is None else min(self.position, self._keeper.kept(self.host))

    def _keep(self) -> None:
        if self._keeper is not None:
            self._keeper.keep(self.host, self.kept_place)

    def begin_at(self, place: dict[str, int]) -> None:
        """Begin in the middle: what came before is not kept, or was somebody else's."""
        for stream in self._counts:
            self._counts[stream], self._crcs[stream] = int(place[stream]), int(place[f"{stream}_crc32"])

    def take(self, frame: Frame) -> None:
        """Take a frame of output, of the start or of the end; raises RemoteError for an error or damaged output."""
        if frame.kind == Kind.STDOUT:
            self._output("stdout", frame.payload)
        elif frame.kind == Kind.STDERR:
            self._output("stderr", frame.payload)
        elif frame.kind == Kind.STARTED:
            self.started(frame.json())
        elif frame.kind == Kind.EXIT:
            self.exit = frame.json()
        elif frame.kind == Kind.ERROR:
            raise remote_error(frame, self.host)

    def started(self, facts: dict[str, Any]) -> None:
        """Say once that the command runs."""
        if not self.has_started:
            self.has_started = True
            line = self._order.shown or self._order.line or str(facts.get("line", ""))
            cwd, tree_hash = str(facts.get("cwd", "")), str(facts.get("tree_hash", ""))
            git = GitFacts.read(facts.get("git"))
            self._sink.emit(
                RunStarted(host=self.host, run_id=self.run_id, line=line, cwd=cwd, tree_hash=tree_hash, git=git)
            )
            self._keep()

    def _output(self, stream: Stream, payload: bytes) -> None:
        offset, crc32 = frames.OUTPUT.unpack_from(payload)
        data = payload[frames.OUTPUT.size :]
        here = zlib.crc32(data, self._crcs[stream])
        if offset != self._counts[stream] or here != crc32:
            raise RemoteError(
                f"the {stream} of `{self.host}` is damaged at byte {self._counts[stream]:,}",
                host=self.host,
                code="damaged",
                hint=f"what is complete is shown by: chisel logs {self.run_id}",
            )
        self._counts[stream] += len(data)
        self._crcs[stream] = here
        if self._order.capture and len(self._captured[stream]) < CAPTURE_LIMIT_BYTES:
            self._captured[stream] += data
        self._sink.emit(Output(host=self.host, stream=stream, data=data, offset=offset))
        self._keep()

    def result(self, *, stopped_by: str | None = None) -> RunResult:
        """Return how the command ended."""
        facts = self.exit or {}
        number, why = facts.get("signal"), facts.get("ended_by")
        has_timed_out = why == "timeout"
        status = 128 + int(number) if number else int(facts["status"])
        return RunResult(
            host=self.host,
            run_id=self.run_id,
            status=TIMED_OUT if has_timed_out else status,
            source="chisel" if has_timed_out else "remote",
            signal=number,
            seconds=float(facts.get("seconds", 0.0)),
            stdout_bytes=int(facts.get("stdout_bytes", 0)),
            stderr_bytes=int(facts.get("stderr_bytes", 0)),
            peak_rss_bytes=facts.get("peak_rss_bytes"),
            error=stopped_by or (_WHY.get(why, why) if why else None),
            was_stopped=stopped_by is not None,
            links=self.links,
            stdout=bytes(self._captured["stdout"]) if self._order.capture else None,
            stderr=bytes(self._captured["stderr"]) if self._order.capture else None,
        )

    def detached(self) -> RunResult:
        """Return the result of a run that was started and left."""
        return RunResult(host=self.host, run_id=self.run_id, status=0, source="chisel", is_detached=True)
