"""Compose what a profile needs of a pool: connections, commands, files, and what is known of each droplet."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from anyio import to_thread

import chisel
from chisel.client.lines import shell_line
from chisel.errors import UsageError
from chisel.events import Notice, RunEnded
from chisel.figures import ProfileReport
from chisel.model import GitFacts, Host, PullResult, RunResult
from chisel.profile.archive import default_out
from chisel.profile.campaign import Plan, profile
from chisel.profile.drivers import Asked, check_counters, check_traces, cost_of
from chisel.profile.order import Bench, Connection, ProfileOrder
from chisel.profile.saved import load
from chisel.runner import Control, Order, new_run_id, run_one

if TYPE_CHECKING:
    from chisel.client.client import Client
    from chisel.profile.viewer import View
    from chisel.state import DropletRecord

DEFAULT_DIRECTORY = "chisel-profile"
SAVED_DIRECTORY = "saved"


def saved_directory(client: Client) -> Path:
    """Return where `--save` keeps a project's baselines."""
    return client.where.project.root / DEFAULT_DIRECTORY / SAVED_DIRECTORY


def make_orders(
    commands: Sequence[str | Sequence[str]],
    traces: Sequence[str] | None,
    counters: Sequence[str],
    profiler_args: Sequence[str],
    build: str | None,
    env: Mapping[str, str],
    **wishes: Any,
) -> list[ProfileOrder]:
    """Return what to profile, of each command the same (`wishes`); only the first is built for.

    Raises UsageError for traces and counters that make no sense.
    """
    asked = Asked(check_traces(traces), check_counters(counters), None, tuple(profiler_args))
    secrets = environment_of(env)
    return [
        ProfileOrder(line=shell_line(one), asked=asked, build=build if index == 0 else None, secrets=secrets, **wishes)
        for index, one in enumerate(commands)
    ]


async def make_plan(
    client: Client,
    orders: Sequence[ProfileOrder],
    *,
    out: Path | str | None,
    sessions: int,
    against: str | None,
    save_as: str | None,
    fail_if_slower: float | None,
) -> Plan:
    """Return a plan whose wishes make sense; raises UsageError for others, ConfigError for an unreadable baseline."""
    if sessions < 1:
        raise UsageError(f"`{sessions}` sessions make no sense")
    if len(orders) > 1 and against is not None:
        raise UsageError("--ab compares two commands, --against one with what was saved: say one of them")
    if fail_if_slower is not None and against is None and len(orders) < 2:
        raise UsageError("--fail-if-slower needs something to be slower than", hint="--against NAME, or --ab A B")
    directory = saved_directory(client)
    baseline = await to_thread.run_sync(load, directory, against) if against is not None else None
    shown = [order.line for order in orders]
    target = out or default_out(Path(DEFAULT_DIRECTORY), shown[-1], datetime.now())  # noqa: DTZ005 - the user's clock
    return Plan(
        sides=tuple(orders),
        labels=("A", "B") if len(orders) > 1 else ("now",),
        out=client.where.cwd / target,
        sessions=sessions,
        baseline=baseline,
        save_as=(directory, save_as) if save_as is not None else None,
        fail_if_slower=fail_if_slower,
        title=" against ".join(reversed(shown)),
    )


async def profile_pool(
    client: Client, droplets: Sequence[tuple[DropletRecord, Host]], plan: Plan, run: Order, control: Control | None
) -> ProfileReport:
    """Profile on all these droplets at once; `run` says where and with which environment commands run."""
    control = control or Control()
    for said in cost_of(plan.sides[-1].asked.traces, plan.sides[-1].asked.counters):
        client.sink.emit(Notice(message=said))
    tree = _tree_facts(*await client.last_tree())
    benches = [_bench(client, record, host, run, control, tree) for record, host in droplets]
    return await profile(benches, plan, client.sink)


def _bench(
    client: Client, record: DropletRecord, host: Host, run: Order, control: Control, tree: dict[str, str]
) -> Bench:
    async def connect() -> Connection:
        return await (await client.connector()).connect(host)

    async def execute(line: str, shown: str) -> RunResult:
        order = Order(
            line=line, cwd=run.cwd, env=run.env, owner=run.owner, shown=shown, venv=run.venv, gpus=run.gpus,
            timeout_s=run.timeout_s,
        )  # fmt: skip
        # A link that is lost while the program runs is taken up again.
        ended = await run_one(await client.connector(), host, order, client.sink, run_id=new_run_id(), control=control)
        client.sink.emit(RunEnded(host=host.name, result=ended))
        return ended

    return Bench(
        host=host.name,
        connect=connect,
        execute=execute,
        fetch=partial(_fetch, client),
        probe=record.facts,
        facts=_facts(record, tree),
        was_interrupted=lambda: control.was_used,
        new_id=lambda: str(new_run_id()),
        sink=client.sink,
    )


def _tree_facts(tree_hash: str, git: GitFacts | None) -> dict[str, str]:
    """Return what is known of the tree that the droplets have."""
    facts = {"tree": tree_hash, "commit": str(git) if git is not None else ""}
    return {name: value for name, value in facts.items() if value}


def _facts(record: DropletRecord, tree: dict[str, str]) -> dict[str, str]:
    """Return what chisel knows of a droplet that its figures may depend on."""
    return {
        "image": record.image,
        "droplet": f"{record.name} ({record.size} in {record.region})",
        **tree,
        "chisel": chisel.__version__,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


async def _fetch(
    client: Client,
    connection: Any,
    remote: PurePosixPath,
    patterns: Sequence[str],
    local: Path,
    total_bytes: int | None,
) -> PullResult:
    from chisel.sync.pull import pull

    # Without notes: a profile's directory is new each time, and none of its files belongs to a working copy.
    return await pull(connection, remote, patterns, local, sink=client.sink, total_bytes=total_bytes)


async def profile_files(
    client: Client,
    path: Path | str,
    *,
    out: Path | str | None = None,
    opens: bool = False,
    top: int = 10,
    kernel: str | None = None,
    skip_warmup: int = 0,
    save_as: str | None = None,
    against: str | None = None,
    fail_if_slower: float | None = None,
) -> ProfileReport:
    """Rank files that are here: see `Client.profile_files`."""
    from chisel.profile.files import Source, profile_files

    order = ProfileOrder(line=str(path), kernel=kernel, skip_warmup=skip_warmup, top=top)
    plan = await make_plan(
        client, [order], out=out, sessions=1, against=against, save_as=save_as, fail_if_slower=fail_if_slower
    )
    source = Source(client.where.cwd / path, plan, keeps=out is not None or opens)
    return await profile_files(source, client.sink)


@asynccontextmanager
async def view(trace: Path, title: str, window_ns: tuple[int, int] | None) -> AsyncIterator[View]:
    """Serve a trace to a browser on this machine: see `chisel.profile.viewer.serving`."""
    from chisel.profile.viewer import find_ui, serving

    ui = await to_thread.run_sync(find_ui)
    async with serving(trace, title=title, window_ns=window_ns, ui=ui) as shown:
        yield shown


def environment_of(env: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values of an environment that must not leave a droplet."""
    from chisel.profile.secrets import secret_values

    return secret_values(env)
