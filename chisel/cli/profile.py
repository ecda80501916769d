"""Profile commands on droplets, rank what was profiled before, compare, and show traces in a browser."""

from __future__ import annotations

import re
import shlex
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import asyncclick as click
from anyio import to_thread

from chisel.cli.options import (
    WORDS,
    Command,
    Duration,
    env_file,
    environment,
    output_options,
    target_options,
    with_options,
)
from chisel.cli.run import interruptible
from chisel.cli.session import Session
from chisel.cli.target import bring_up_option, env_option, status_of_sync, target_of

if TYPE_CHECKING:
    from chisel.client import Client
    from chisel.figures import KernelStats, ProfileReport

_GUARDRAIL = 5
_FLAG: dict[str, Any] = {"is_flag": True}
_PATH = click.Path(path_type=Path)
_OPTIONS: tuple[Callable[[Command], Command], ...] = (
    click.option("--trace", metavar="hip,hsa,roctx", help="Trace these besides kernels (memory,hip)."),
    click.option("--out", type=_PATH, help="Where the files go (default: ./chisel-profile/...)."),
    click.option("--top", type=click.IntRange(1, 10000), default=10, show_default=True, help="How many to show."),
    click.option("--open", "opens", **_FLAG, help="Show the trace in the browser, at the hottest kernel."),
    click.option("--build", metavar="LINE", help="Run this first, outside the profiler."),
    click.option("-s", "--sync", "sync_first", **_FLAG, help="Sync first."),
    click.option("--kernel", metavar="REGEX", help="Rank only kernels whose name matches."),
    click.option("--skip-warmup", type=click.IntRange(0), default=0, metavar="N", help="Leave its first N calls out."),
    click.option("--pmc", metavar="A,B", help="Collect these hardware counters."),
    click.option("--driver", type=click.Choice(["rocpd", "csv", "v1"]), help="Use this generation of the profiler."),
    click.option("--profiler-args", metavar="WORDS", help="Give the profiler these words as well."),
    click.option("--from", "source", type=_PATH, metavar="PATH", help="Rank files that are here: nothing is run."),
    click.option("--sessions", type=click.IntRange(1, 1000), metavar="N", help="Profile N times (--ab: 8, else 1)."),
    click.option("--save", "save_as", metavar="NAME", help="Keep the figures, to compare with later."),
    click.option("--against", metavar="NAME", help="Compare with what --save kept, or with a profile's directory."),
    click.option("--ab", nargs=2, metavar="'CMD A' 'CMD B'", help="Profile two commands in turn, and compare."),
    click.option("--fail-if-slower", type=click.FloatRange(0), metavar="PCT", help="Status 5 if one got slower."),
    click.option("--env-file", "env_files", multiple=True, type=_PATH, help="Set what FILE's K=V lines say."),
    click.option("--cwd", metavar="DIR", help="Run there (default: where you stand, in the working copy)."),
    click.option("--venv", metavar="DIR", help="Run in this virtual environment of the droplet."),
    click.option("--gpu", "gpus", metavar="0,3", help="Show the command these GPUs only."),
    click.option("--timeout", type=Duration(), metavar="TIME", help="End the command after 90s, 15m, 2h."),
)  # fmt: skip
_AB_SESSIONS = 8
_LATER = ("--trace", "--out", "--top", "--open")


class ProfileCommand(click.Command):
    """Take the order `profile CMD [--trace ...] [--out ...]` too, where the command is one word.

    Only these options, and nothing else behind the word: what else stands there is the command's own.
    """

    async def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, with such a word moved behind the options."""
        return await super().parse_args(ctx, reordered(args, self._valued(ctx)))

    def _valued(self, ctx: click.Context) -> dict[str, int]:
        options = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
        return {text: one.nargs for one in options if not one.is_flag for text in one.opts}


def reordered(args: Sequence[str], valued: Mapping[str, int]) -> list[str]:
    """Return the arguments with options behind a command of one word moved before it; others as they are.

    `valued` names options that are followed by values, and by how many.
    """
    words, index = list(args), 0
    while index < len(words) and words[index].startswith("-") and words[index] != "--":
        index += 1 + valued.get(words[index], 0)
    behind = words[index + 1 :]
    if not behind or words[index : index + 1] == ["--"]:
        return words
    at = 0
    while at < len(behind):
        name, equals, _ = behind[at].partition("=")
        if name not in _LATER or (equals and name == "--open"):
            return words
        at += 2 if name != "--open" and not equals else 1
    return words if at > len(behind) else [*words[:index], *behind, words[index]]


@click.command(cls=ProfileCommand, context_settings=WORDS)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@target_options
@bring_up_option
@env_option
@with_options(_OPTIONS)
@output_options
async def profile(
    session: Session, command: tuple[str, ...], pool: str | None, everywhere: bool, on: str | None, bring_up: bool,
    pairs: tuple[str, ...], source: Path | None, opens: bool, sync_first: bool, **options: Any,
) -> None:  # fmt: skip
    """Run COMMAND under the droplets' profiler, rank the hottest kernels, bring the files.

    The directory holds report.html, kernels.csv, trace.json.gz and the profiler's raw files. The exit status is the
    program's own. The first Ctrl-C interrupts the command and keeps what the profiler has, a second one gives up.
    """
    _check(command, source, options)
    async with session.open(cares=source is None) as client:
        if source is not None:
            report = await client.profile_files(source, opens=opens, **_common(options))
        else:
            target = await target_of(client, session, pool, everywhere, on, bring_up)
            if sync_first:
                status_of_sync(session, await target.sync())
                if session.status:
                    return
            async with interruptible(session, client) as control:
                asked = _asked(session, command, pairs, options)
                report = await target.profile(control=control, converts=opens, **asked)
        _take_status(session, report)
        session.outcome.update(_outcome(report))
        if opens:
            await _show(session, client, report)


def _check(command: Sequence[str], source: Path | None, options: dict[str, Any]) -> None:
    given = [name for name, one in (("COMMAND", command), ("--ab", options["ab"]), ("--from", source)) if one]
    if not given:
        raise click.UsageError("there is no command to profile: COMMAND, --ab or --from")
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other")
    if source is not None and (options["build"] or options["sessions"]):
        raise click.UsageError("--from runs nothing: --build and --sessions make no sense")


def _common(options: dict[str, Any]) -> dict[str, Any]:
    """Return what concerns files that are here as well as commands that are run."""
    names = ("out", "top", "kernel", "skip_warmup", "save_as", "against", "fail_if_slower")
    return {name: options[name] for name in names}


def _asked(session: Session, command: Sequence[str], pairs: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Return what `Pool.profile` is to be told of the command line."""
    env: dict[str, str] = {}
    for file in options["env_files"]:
        env.update(env_file(file, session.around.cwd))
    env.update(environment(pairs, session.around.environ))
    try:
        profiler_args = shlex.split(options["profiler_args"] or "")
    except ValueError as error:
        raise click.BadParameter(f"{error}", param_hint="--profiler-args") from error
    first, second = options["ab"] or (list(command), None)
    same = ("build", "driver", "cwd", "venv", "gpus", "timeout")
    return {
        **_common(options),
        **{name: options[name] for name in same},
        "command": first,
        "versus": second,
        "env": env,
        "profiler_args": profiler_args,
        "traces": _names(options["trace"]),
        "counters": _names(options["pmc"]) or (),
        "sessions": options["sessions"] or (_AB_SESSIONS if second is not None else 1),
    }


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name for name in re.split(r"[,\s]+", text) if name]


def _take_status(session: Session, report: ProfileReport) -> None:
    """Leave with the program's own status; a droplet or a ranking that failed, or a regression, is chisel's to say."""
    results = [*report.before, *report.results]
    worst = max(results, key=lambda result: result.status)
    session.status = worst.status
    session.source = worst.run.source if worst.run else "chisel"
    if session.status == 0 and any(result.error for result in results):
        session.status, session.source = 1, "chisel"
    elif session.status == 0 and report.regressions:
        session.status, session.source = _GUARDRAIL, "chisel"


def _outcome(report: ProfileReport) -> dict[str, Any]:
    """Return what the last line of `--json` holds besides the status."""
    kernels = [_plain(kernel) for kernel in report.ranking.kernels]
    return {"kernels": kernels, "out": report.out, "regressions": [one.name for one in report.regressions]}


def _plain(kernel: KernelStats) -> dict[str, Any]:
    names = ("name", "calls", "total_ns", "mean_ns", "p50_ns", "p99_ns", "min_ns", "max_ns", "share", "std_ns")
    return {name: getattr(kernel, name) for name in names}


async def _show(session: Session, client: Client, report: ProfileReport) -> None:
    """Open the browser at the trace, and serve it until its page is closed; Ctrl-C ends that, and nothing else."""
    from chisel.events import Notice

    if report.trace is None:
        return
    session.is_done = True
    with anyio.CancelScope() as scope:
        session.hand_signals_to(partial(_end, scope))
        async with client.view(report.trace, report.trace.parent.name, report.window_ns) as view:
            client.sink.emit(Notice(message=f"the trace is at {view.url} until its page is closed; Ctrl-C ends it"))
            if not await to_thread.run_sync(partial(webbrowser.open, view.url), abandon_on_cancel=True):
                client.sink.emit(Notice(message="no browser could be started here: open that address in one"))
            await view.closed()
    session.hand_signals_to(None)


def _end(scope: anyio.CancelScope, number: int) -> bool:
    """Take a signal as the end of what is being shown: everything else is done."""
    del number
    scope.cancel()
    return True
