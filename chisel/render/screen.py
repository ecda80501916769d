"""Show events as text for a person: output to stdout as it is or prefixed, everything chisel says to stderr."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from chisel import events
from chisel.model import Bill, PullResult, PushResult, RunResult
from chisel.render import summary, transfers, words
from chisel.render.clean import clean, clean_lines
from chisel.render.collect import STREAMS, Collector, Held, differences
from chisel.render.outdir import OutDirectory
from chisel.render.pace import Pace
from chisel.render.prefix import LinePrefixer, as_it_is
from chisel.render.writer import Writer

STDOUT, STDERR = 1, 2
_COLOURS = (36, 33, 35, 32, 34, 96, 93, 95, 92, 94)
_PLAIN_PROGRESS_EVERY_S = 5.0
_PIPED_WIDTH = 200


_CLEAR = b"\x1b[H\x1b[J"
"""Cursor home, then erase to the end (ECMA-48): what was there goes without a flicker."""


@dataclass(frozen=True, slots=True)
class Look:
    """How text is to look: widths in columns, colour and terminal per stream, prefixes before output lines.

    `mode` says when output is shown: as it comes, a droplet's when it ends, or equal output once at the end, then with
    what differs. `is_raw` passes it through as it is, whatever reads it. `out_dir` gets a file per droplet and stream
    as well. `line_end` ends chisel's own lines: a terminal in raw mode needs a carriage return. Paths below `cwd` are
    shown relative to it. One that `is_endless` sums nothing up.
    """

    width: int = 80
    stdout_is_terminal: bool = False
    stderr_is_terminal: bool = False
    colour_stdout: bool = False
    colour_stderr: bool = False
    prefix: Literal["auto", "name", "none"] = "auto"
    mode: Literal["live", "group", "fold", "diff"] = "live"
    is_raw: bool = False
    out_dir: Path | None = None
    line_end: str = "\n"
    quiet: bool = False
    cwd: Path | None = None
    is_endless: bool = False


class Screen:
    """Render events as lines of text (a sink); `hosts` are the names that output may come from, for the prefixes."""

    def __init__(self, writer: Writer, look: Look) -> None:
        self._writer = writer
        self._look = look
        self._hosts: tuple[str, ...] = ()
        self._prefixers: dict[tuple[str | None, str], LinePrefixer] = {}
        self._results: list[RunResult] = []
        self._collector = Collector() if look.mode != "live" else None
        self._files = OutDirectory(look.out_dir, writer) if look.out_dir is not None else None
        self._has_hinted = False
        self._bills: list[Bill] = []
        self._last_progress: dict[tuple[str | None, str], float] = {}
        self._pace = Pace()
        self._moved: list[PullResult | PushResult] = []
        self._handlers: dict[type[events.Event], Callable[[Any], None]] = {
            events.Notice: self._notice,
            events.DropletStage: self._stage,
            events.Progress: self._progress,
            events.Retry: self._retry,
            events.Output: self._output,
            events.RunEnded: self._run_ended,
            events.RunDetached: self._detached,
            events.LinkLost: self._link_lost,
            events.LinkResumed: self._link_resumed,
            events.PathExplained: self._explained,
            events.SyncEnded: self._sync_ended,
            events.PullEnded: self._pull_ended,
            events.PushEnded: self._push_ended,
            events.ProfileRanked: self._ranked,
            events.ProfileSummed: self._summed,
            events.Compared: self._compared,
            events.ProfileSaved: self._saved,
            events.Billed: self._billed,
            events.StatusReported: self._status,
            events.SweepReported: lambda event: self._data(_tables().sweep(event.items)),
            events.Facts: lambda event: self._data(_tables().facts(event.title, event.facts)),
        }

    def expect(self, hosts: Sequence[str]) -> None:
        """Learn the names of the droplets whose output is to come: prefixes are as wide as the longest."""
        self._hosts = tuple(hosts)
        if self._files is not None:
            self._files.expect(self._hosts)

    def take_up(self, tails: Mapping[str, Mapping[events.Stream, bytes]], results: Sequence[RunResult]) -> None:
        """Go on where another screen stopped: what it held back of lines (see `tails`), and who had ended."""
        for host, held in tails.items():
            for stream, tail in held.items():
                key = (host, stream)
                self._prefixers[key] = self._prefixer(events.Output(host=host, stream=stream, data=b"", offset=0))
                self._prefixers[key].hold(tail)
        self._results += results

    def tails(self, host: str) -> dict[events.Stream, bytes]:
        """Return what is held back of a droplet's unfinished lines."""
        found = {stream: self._prefixers.get((host, stream)) for stream in STREAMS}
        return {stream: one.tail for stream, one in found.items() if one is not None and one.tail}

    def emit(self, event: events.Event) -> None:
        """Show one event; never blocks."""
        handler = self._handlers.get(type(event))
        if handler:
            handler(event)

    async def drain(self) -> None:
        """Wait until the reader of stdout and stderr keeps up."""
        await self._writer.drain()

    async def tick(self) -> None:
        """Draw what moves; the plain screen has nothing that does."""

    def finish(self) -> None:
        """Write what is held back and the tables that belong at the end."""
        for (_, stream), prefixer in self._prefixers.items():
            self._put(STDOUT if stream == "stdout" else STDERR, prefixer.finish())
        self._prefixers.clear()
        if self._collector is not None:
            if self._look.mode in ("fold", "diff"):
                self._show_folded(self._collector)
            self._writer.write_lazily(STDOUT, self._collector.closing())
        if len(self._results) > 1:
            self._summary(self._results)
        if len(self._bills) > 1:
            total = sum((bill.usd for bill in self._bills), Decimal(0))
            self.say(f"{words.count(len(self._bills), 'droplet')} destroyed, {words.usd(total)} in all")
        self._sum_of_moved()
        self._results, self._bills, self._moved = [], [], []

    def end(self, status: int, source: str, outcome: Mapping[str, Any] | None = None) -> None:
        """Say nothing: a shell tells its user the status."""

    def say(self, text: str, style: str = "") -> None:
        """Write one line of chisel's own to stderr, with control characters made harmless."""
        line = clean(text)
        if style and self._look.colour_stderr:
            line = f"\x1b[{style}m{line}\x1b[0m"
        self._put(STDERR, (line + self._look.line_end).encode())

    def _put(self, descriptor: int, data: bytes) -> None:
        self._writer.write(descriptor, data)

    def _data(self, renderable: Any) -> None:
        width = self._look.width if self._look.stdout_is_terminal else max(self._look.width, _PIPED_WIDTH)
        self._put(STDOUT, _tables().to_text(renderable, width=width, colour=self._look.colour_stdout).encode())

    def _table(self, renderable: Any) -> None:
        self._put(
            STDERR, _tables().to_text(renderable, width=self._look.width, colour=self._look.colour_stderr).encode()
        )

    def _summary(self, results: Sequence[RunResult]) -> None:
        look = self._look
        text = summary.runs(results, width=look.width, colour=look.colour_stderr)
        if text is None:
            self._table(_tables().runs(results))
        else:
            self._put(STDERR, text.encode())

    def _status(self, event: events.StatusReported) -> None:
        """Show what is up; one that follows another takes its place on a terminal."""
        if event.is_again and self._look.stdout_is_terminal:
            self._put(1, _CLEAR)
        self._data(_tables().pools(event.pools, width=self._look.width))

    def _notice(self, event: events.Notice) -> None:
        label, style = {"info": ("", ""), "warning": ("warning: ", "33"), "error": ("error: ", "31")}[event.level]
        if event.level == "info" and self._look.quiet:
            return
        self.say(f"{label}{self._named(event.host)}{event.message}", style)
        if event.hint:
            self.say(f"hint: {event.hint}", "36")

    def _named(self, host: str | None) -> str:
        return f"{host}: " if host else ""

    def _stage(self, event: events.DropletStage) -> None:
        price = f" ({words.usd(event.usd_per_hour)} per hour)" if event.usd_per_hour is not None else ""
        detail = f": {event.detail}" if event.detail else ""
        if not self._look.quiet:
            self.say(f"{self._named(event.host)}{event.stage}{detail}{price}")

    def _progress(self, event: events.Progress) -> None:
        key = (event.host, event.task)
        self._pace.take(event)
        since = self._last_progress.setdefault(key, event.at)
        if not event.is_done and event.at - since >= _PLAIN_PROGRESS_EVERY_S and not self._look.quiet:
            self._last_progress[key] = event.at
            self.say(f"{self._named(event.host)}{event.task}: {self._pace.text(event)}")

    def _retry(self, event: events.Retry) -> None:
        self.say(f"{event.what} failed ({event.reason}); trying again in {event.wait_s:.1f} s", "33")

    def _output(self, event: events.Output) -> None:
        if self._files is not None:
            self._files.take(event)
        if self._collector is not None:
            self._collector.add(event.host or "", event.stream, event.data)
            return
        descriptor = STDOUT if event.stream == "stdout" else STDERR
        if self._look.is_raw or (not self._is_prefixed() and len(self._hosts) < 2):
            self._put(descriptor, event.data)
            return
        key = (event.host, event.stream)
        if key not in self._prefixers:
            self._prefixers[key] = self._prefixer(event)
        self._put(descriptor, self._prefixers[key].feed(event.data))

    def _is_prefixed(self) -> bool:
        return self._look.prefix == "name" or (self._look.prefix == "auto" and len(self._hosts) > 1)

    def _prefixer(self, event: events.Output) -> LinePrefixer:
        to_stdout = event.stream == "stdout"
        on_terminal = self._look.stdout_is_terminal if to_stdout else self._look.stderr_is_terminal
        make_harmless = clean_lines if on_terminal else as_it_is
        if not self._is_prefixed():
            return LinePrefixer(b"", make_harmless)
        name = (event.host or "").ljust(max(map(len, self._hosts), default=0))
        label = f"{name} | "
        if self._look.colour_stdout if to_stdout else self._look.colour_stderr:
            colour = _COLOURS[self._hosts.index(event.host) % len(_COLOURS)] if event.host in self._hosts else 37
            label = f"\x1b[{colour}m{label}\x1b[0m"
        return LinePrefixer(label.encode(), make_harmless)

    def _run_ended(self, event: events.RunEnded) -> None:
        for stream, descriptor in (("stdout", STDOUT), ("stderr", STDERR)):
            prefixer = self._prefixers.pop((event.host, stream), None)
            if prefixer:
                self._put(descriptor, prefixer.finish())
        if not self._look.is_endless:
            self._results.append(event.result)
        if self._collector is not None:
            self._count_ended()
            if self._look.mode == "group":
                self._show(self._collector.of(event.result.host), [event.result])
        if event.result.error:
            self.say(f"error: {event.result.host}: {event.result.error}", "31")

    def _count_ended(self) -> None:
        ended, total = len(self._results), max(len(self._hosts), len(self._results))
        self.emit(events.Progress(task="ended", done=ended, total=total, unit="steps", is_done=ended == total))

    def _show_folded(self, collector: Collector) -> None:
        """Show equal output once, and with `diff` only what the smaller groups have different from the largest."""
        by_host = {result.host: result for result in self._results}
        groups = collector.folded([(name, by_host[name].status) for name in sorted(by_host, key=self._order)])
        for index, (hosts, held) in enumerate(groups):
            results = [by_host[host] for host in hosts]
            if index and self._look.mode == "diff":
                self._header(results)
                for line in differences(groups[0][1], held, groups[0][0][0], hosts[0]):
                    self._put(STDOUT, clean(line).encode() + b"\n")
            else:
                self._show(held, results)

    def _show(self, held: Held, results: Sequence[RunResult]) -> None:
        self._header(results)
        for stream in STREAMS:
            descriptor = STDOUT if stream == "stdout" else STDERR
            on_terminal = self._look.stdout_is_terminal if descriptor == STDOUT else self._look.stderr_is_terminal
            lines = LinePrefixer(b"", clean_lines if on_terminal and not self._look.is_raw else as_it_is)
            self._writer.write_lazily(descriptor, lines.feed_all(held.pieces(stream)))

    def _order(self, name: str) -> tuple[int, str]:
        return (self._hosts.index(name) if name in self._hosts else len(self._hosts), name)

    def _header(self, results: Sequence[RunResult]) -> None:
        names = ", ".join(result.host for result in results)
        count = f" ({len(results)})" if len(results) > 1 else ""
        ended = f": status {results[0].status}" if results[0].status else ""
        line = f"--- {names}{count}{ended} ---"
        if self._look.colour_stdout:
            line = f"\x1b[1m{line}\x1b[0m"
        self._put(STDOUT, line.encode() + b"\n")

    def _detached(self, event: events.RunDetached) -> None:
        """Print the id, once for a pool, where a script can take it."""
        if not self._has_hinted:
            self._has_hinted = True
            self._put(STDOUT, f"{event.pool_run_id}\n".encode())
            if not self._look.quiet:
                self.say(f"it runs on there: chisel logs -f {event.pool_run_id}", "36")

    def _link_lost(self, event: events.LinkLost) -> None:
        self.say(f"{event.host}: {event.reason}: its command runs on there, connecting again", "33")

    def _link_resumed(self, event: events.LinkResumed) -> None:
        self.say(
            f"{event.host}: connected again after {words.duration(event.seconds)};"
            f" its output goes on at byte {event.position:,}, checked",
            "32",
        )

    def _explained(self, event: events.PathExplained) -> None:
        where = f"{event.source}:{event.line}: {event.pattern}" if event.source else ""
        why = ", ".join(filter(None, (where, event.detail)))
        line = clean(f"{'sent' if event.is_sent else 'not sent':8}  {event.path}: {why}").replace("\n", "\\n")
        self._put(STDOUT, line.encode() + b"\n")

    def _sync_ended(self, event: events.SyncEnded) -> None:
        one = event.result
        if one.error:
            self.say(f"error: {one.host}: {one.error}", "31")
            return
        if self._look.quiet:
            return
        if one.is_dry:
            for path in sorted(one.reasons):
                self.say(f"{one.host}: {path}: {one.reasons[path]}")
            self.say(f"{one.host}: nothing was changed: {words.count(len(one.reasons), 'path')} would be")
        else:
            after = "" if event.after_s is None else f", {event.after_s * 1000:.0f} ms after the change"
            self.say(f"{one.host}: {transfers.synced(one)}{after}")
        for line in transfers.remarked(one):
            self.say(f"{one.host}: {line}", "33")
        for note in one.notes:
            self.say(f"{one.host}: {note}")

    def _pull_ended(self, event: events.PullEnded) -> None:
        one = event.result
        self._moved.append(one)
        if not self._look.quiet:
            for line in transfers.pulled(one, self._path(one.target)):
                self.say(line)
        for path in one.skipped:
            self.say(f"{one.host}: not written: {path}", "33")
        if one.error:
            self.say(f"error: {one.host}: {one.error}", "31")

    def _push_ended(self, event: events.PushEnded) -> None:
        one = event.result
        self._moved.append(one)
        if not self._look.quiet:
            for line in transfers.pushed(one):
                self.say(line)
        for path in one.skipped:
            self.say(f"{one.host}: not sent: {path}", "33")
        if one.error:
            self.say(f"error: {one.host}: {one.error}", "31")

    def _sum_of_moved(self) -> None:
        if len(self._moved) > 1 and not self._look.quiet:
            self.say(transfers.in_all(self._moved))

    def _ranked(self, event: events.ProfileRanked) -> None:
        """Show one profile; of several only how it went, what they make together follows."""
        result = event.result
        self._results = [one for one in self._results if one.host != result.host]  # the table below says it
        if result.error:
            self.say(f"error: {self._named(result.host or None)}{result.error}", "31")
        if not result.kernels and not result.pseudo:
            return
        if event.is_part:
            self._one_of_several(event)
        else:
            self._table(_profiles().kernels(result, event.top, width=self._look.width))

    def _one_of_several(self, event: events.ProfileRanked) -> None:
        if self._look.quiet or not event.result.kernels:
            return
        result = event.result
        spent = sum(kernel.total_ns for kernel in result.kernels) + result.ranking.rest_ns
        count = len(result.kernels) + result.ranking.rest
        status = f", status {result.status}" if result.status else ""
        partial = ", partial" if result.is_partial else ""
        self.say(
            f"{self._named(result.host)}{words.nanoseconds(spent)} in {words.count(count, 'kernel')},"
            f" {words.count(result.ranking.dispatches, 'dispatch', 'dispatches')}{status}{partial}"
        )

    def _summed(self, event: events.ProfileSummed) -> None:
        self._table(_profiles().summed(event, width=self._look.width))

    def _compared(self, event: events.Compared) -> None:
        self._table(_profiles().compared(event.comparison, event.top, width=self._look.width))

    def _saved(self, event: events.ProfileSaved) -> None:
        if not self._look.quiet:
            names = "report.html, kernels.csv, trace.json.gz and the raw files"
            self.say(f"{self._named(event.host)}{names} are in {self._path(event.out)}")

    def _path(self, path: Path) -> str:
        """Show a path as the user would type it: relative where it lies below the current directory."""
        if self._look.cwd is None or not path.is_relative_to(self._look.cwd):
            return str(path)
        return f"./{path.relative_to(self._look.cwd)}".removesuffix("/.")

    def _billed(self, event: events.Billed) -> None:
        bill = event.bill
        self._bills.append(bill)
        if bill.error:
            self.say(f"error: {bill.host}: {bill.error}", "31")
        else:
            time = words.duration(bill.seconds)
            self.say(
                f"{bill.host}: destroyed after {time}, {words.usd(bill.usd)} at {words.usd(bill.usd_per_hour)} per hour"
            )


def _profiles() -> Any:
    """Return what lays profiles out."""
    from chisel.render import profiles

    return profiles


def _tables() -> Any:
    """Return what lays tables out: rich takes 40 ms to import, and most commands show no table."""
    from chisel.render import tables

    return tables
