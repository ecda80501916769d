"""Kill chisel at every point of a command, run one more command, and count droplets and dollars.

    python -m tests.torture.crash_walk --points 500 --schedules all up down sweep recover

A point is every callback of the event loop (so every await), every request of the API before it is sent, while it is in
flight and after its answer came, and every write of the state before and after it. The command runs in a process of its
own, forked with everything imported, that kills itself (SIGKILL) at the chosen point. Droplets are played by the cloud
alone: what answers over SSH is a double here, because the API and the state are what a crash can tear apart.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import http.client
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import asyncssh

from chisel import guard
from chisel.cloud.digitalocean import open_digitalocean
from chisel.errors import ChiselError, HostKeyMismatch
from chisel.events import NullSink
from chisel.lifecycle import Lifecycle, Wish
from chisel.model import Host, Secret
from chisel.sandbox.base import DropletSpec
from chisel.sandbox.cloud import Cloud, Knobs, Machines
from chisel.sandbox.faults import Schedule, read_fault
from chisel.sandbox.http import Server, serving
from chisel.ssh.keys import generate_keypair
from chisel.state import CloudState, StateStore

COUNT = 2
SETTLE_AFTER_S = 3.0
"""Longer than a request may take and the lists lag, on a machine under load; as 60 s are longer than 30 s."""
API_DEADLINE_S = 1.2
CHILD_DEADLINE_S = 60.0
_FACTS = {"cloud_init": "done", "gpu": ["double"], "hipcc": "x", "profiler": {"rocprofv3": "x"}}
_PUBLIC = generate_keypair("me").public_openssh


@dataclass(frozen=True, slots=True)
class Trouble:
    """One schedule: how the cloud behaves, and which requests fail."""

    knobs: dict[str, Any] = field(default_factory=dict)
    faults: tuple[str, ...] = ()


SCHEDULES = {
    "none": Trouble(),
    "lag": Trouble({"list_lag_s": 0.5, "get_lag_s": 0.3, "delete_lag_s": 0.4}),
    "504": Trouble(faults=("create-then-504", "destroy-then-504")),
    "reset": Trouble({"list_lag_s": 0.3}, ("create-then-reset@2", "list-reset@2", "destroy-reset")),
    "silence": Trouble(faults=("create-then-hang", "get-hang@2")),
    "refused": Trouble(faults=("create-429", "list-503@2x2", "destroy-500")),
    "chance": Trouble({"list_lag_s": 0.2}, ("any-503x*%15",)),
    "vanishing": Trouble({"vanishing": [1], "active_after_s": 0.2}),
}
_MAKING_ONLY = {"vanishing"}


class Point:
    """Count what happens in this process, and die at the chosen one."""

    def __init__(self, deadly: int | None) -> None:
        self._deadly = deadly
        self._lock = threading.Lock()
        self.count = 0

    def pass_by(self) -> None:
        with self._lock:
            self.count += 1
            if self.count == self._deadly:
                os.kill(os.getpid(), signal.SIGKILL)


def count_everything(point: Point) -> None:
    """Make callbacks, requests and state writes points. For a forked process: nothing is put back."""
    run, respond, send = (
        asyncio.Handle._run,
        http.client.HTTPConnection.getresponse,
        http.client.HTTPConnection.endheaders,
    )
    replace, fsync = os.replace, os.fsync

    def around(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*words: Any, **named: Any) -> Any:
            point.pass_by()
            answer = call(*words, **named)
            point.pass_by()
            return answer

        return counted

    def before(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*words: Any, **named: Any) -> Any:
            point.pass_by()
            return call(*words, **named)

        return counted

    asyncio.Handle._run = before(run)  # type: ignore[method-assign]
    http.client.HTTPConnection.endheaders = before(send)  # type: ignore[method-assign]
    http.client.HTTPConnection.getresponse = around(respond)  # type: ignore[method-assign]
    os.replace, os.fsync = around(replace), around(fsync)


# -- a double of the droplets' SSH side


class Doubles:
    """Answer for every droplet, showing the host key that was installed last; the keys are kept in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def connect(self, host: Host) -> Any:
        shown = self._shown(host)
        if shown not in {key.split()[1] for key in (host.host_key, host.next_host_key) if key}:
            raise HostKeyMismatch("another key", host=host.name)
        return Double(host, self._directory / str(host.droplet_id))

    def _shown(self, host: Host) -> str:
        return (self._directory / str(host.droplet_id)).read_text()

    def forget(self, host: Host) -> None:
        return


@dataclass(frozen=True, slots=True)
class Double:
    """One connection of a droplet's double."""

    host: Host
    key_file: Path

    async def shell(self, line: str, *, timeout_s: float) -> Any:
        product = eval(line.partition("$((")[2].partition("))")[0] or "0")
        return Answer(0, f"chisel-{product}".encode())

    async def ask(self, role: str, request: dict[str, Any]) -> dict[str, Any]:
        if role == "hostkey":
            new = self.key_file.with_suffix(".new")
            new.write_text(request["public"].split()[1])
            new.rename(self.key_file)
        nonce = hashlib.sha256(str(request.get("nonce", "")).encode()).hexdigest()
        return {**_FACTS, "nonce_sha256": nonce}


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    stdout: bytes


# -- a world


@dataclass(slots=True)
class World:
    """One cloud with a stranger's look-alike droplet on it, one user's state, and a place for the doubles' keys."""

    server: Server
    directory: Path
    stranger: int = 0

    @property
    def cloud(self) -> Cloud:
        return self.server.cloud

    @property
    def store(self) -> StateStore:
        return StateStore(self.directory / "state.json")

    def mine(self) -> list[int]:
        return sorted(id for id in self.cloud.droplets if id != self.stranger)

    def usd(self) -> Decimal:
        every = [*self.cloud.destroyed, *self.cloud.failed, *self.cloud.droplets.values()]
        return sum((self.cloud.cost_of(one) for one in every if one.id != self.stranger), Decimal(0))

    def part(self) -> CloudState:
        state = asyncio.run(self.store.read())
        return state.clouds.get(self.server.url) or CloudState()


def boot(directory: Path, spec: DropletSpec, told: Callable[[int | None], None]) -> None:
    """Let a droplet show the host key of its user data."""
    if spec.host_private_key is not None:
        public = asyncssh.import_private_key(spec.host_private_key).export_public_key("openssh").decode()
        (directory / str(spec.id)).write_text(public.split()[1])
    told(22)


@contextmanager
def a_world(directory: Path) -> Iterator[World]:
    """Make a cloud whose droplets answer at once, with somebody else's droplet of the same name on it."""
    machines = Machines(
        start=lambda spec, told: boot(directory, spec, told),
        stop=lambda id: None,
        root_of=lambda id: directory / str(id),
    )
    generous = Knobs(active_after_s=0.0, address_after_s=0.0, per_minute=10**6, per_hour=10**6)
    with serving(Cloud(machines, knobs=generous)) as server:
        world = World(server, directory)
        tags = guard.make_tags(owner="f" * 16, pool="bench", project="p", attempt="ff", host_key=_PUBLIC, until=None)
        body = {"name": "bench-1", "size": "gpu-mi300x1-192gb", "image": "gpu-amd-base", "tags": list(tags)}
        (droplet,), _ = world.cloud.create({**body, "region": "atl1"})
        world.stranger, droplet.number = droplet.id, 0  # `vanishing` never means it
        world.cloud.creates = 0
        yield world


@asynccontextmanager
async def a_chisel(world: World) -> AsyncIterator[Lifecycle]:
    token, url = Secret(world.server.token), world.server.url
    async with open_digitalocean(token, api_url=url, deadline_s=API_DEADLINE_S) as cloud:
        yield Lifecycle(
            cloud, world.store, Doubles(world.directory), NullSink(), api_url=url, public_key=_PUBLIC,
            settle_after_s=SETTLE_AFTER_S,
        )  # fmt: skip


WISH = Wish(
    pool="bench", count=COUNT, project="p", sizes=("gpu-mi300x1-192gb",), region=None, image="gpu-amd-base",
    ttl=timedelta(hours=8),
)  # fmt: skip


async def up(world: World) -> None:
    async with a_chisel(world) as chisel:
        await chisel.up(WISH)


async def down(world: World) -> None:
    async with a_chisel(world) as chisel:
        await chisel.settle()
        mine = (await world.store.read()).clouds.get(world.server.url) or CloudState()
        bills = await chisel.down(list(mine.pools.get("bench", {}).values()))
    errors = [bill.error for bill in bills if bill.error]
    if errors:
        raise ChiselError(errors[0])


async def sweep(world: World) -> None:
    async with a_chisel(world) as chisel:
        await chisel.settle()
        await chisel.prune()
        state = await world.store.read()
        mine = state.clouds.get(world.server.url) or CloudState()
        records = [one for pool in mine.pools.values() for one in pool.values()]
        known = {one.id: guard.Known(one.name, one.attempt, one.is_ready) for one in records}
        listed = await chisel._desk.cloud.list_droplets(tag=guard.TAG)
        choice = guard.Choice(named=("bench-1", "bench-2"))
        items = guard.sweep_items(listed, known, owner=state.owner, now=datetime.now(UTC), choice=choice)
        bills = await chisel.destroy_swept([item for item in items if item.is_selected])
    errors = [bill.error for bill in bills if bill.error]
    if errors:
        raise ChiselError(errors[0])


async def recover(world: World) -> None:
    owner = (world.directory / "owner").read_text()
    async with a_chisel(world) as chisel:
        await chisel.recover(owner)


VERBS: dict[str, Callable[[World], Any]] = {"up": up, "down": down, "sweep": sweep, "recover": recover}


# -- running


def start_child(
    verb: Callable[[World], Any], world: World, deadly: int | None = None, report: Path | None = None
) -> int:
    """Start a verb in a forked process that kills itself at point `deadly`; return its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        point = Point(deadly)
        if deadly is not None or report is not None:
            count_everything(point)
        try:
            anyio.run(verb, world)
            status = 0
        except* ChiselError as errors:
            sys.stderr.write(f"{errors.exceptions}\n")
            status = 3
        if report is not None:
            report.write_text(str(point.count))
    finally:
        os._exit(status)


def end_of(pid: int, what: str) -> int:
    """Wait for a child; return its exit status, negative for a signal."""
    ends_at = time.monotonic() + CHILD_DEADLINE_S
    while True:
        done, raw = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(raw)
        if time.monotonic() > ends_at:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"`{what}` took more than {CHILD_DEADLINE_S} s")
        time.sleep(0.005)  # noqa: TID251 - a child's end sends no event here


def in_child(verb: Callable[[World], Any], world: World, deadly: int | None, report: Path | None = None) -> int:
    """Run a verb in a forked process; return its exit status, negative for a signal."""
    return end_of(start_child(verb, world, deadly, report), verb.__name__)


def prepare(verb: str, world: World) -> None:
    """Bring the world to where a verb starts."""
    if verb == "up":
        return
    assert in_child(up, world, None) == 0
    world.cloud.clock.advance(10)  # what lags behind a create has caught up
    if verb == "recover":
        state = json.loads((world.directory / "state.json").read_bytes())
        (world.directory / "owner").write_text(state["owner"])
        (world.directory / "state.json").unlink()


def misbehave(world: World, trouble: Trouble) -> None:
    world.cloud.knobs = world.cloud.knobs.changed(trouble.knobs)
    world.server.schedule = Schedule([read_fault(text) for text in trouble.faults])


def recorded_in(part: CloudState) -> list[int]:
    return sorted(int(one.id) for pool in part.pools.values() for one in pool.values())


def check(verb: str, world: World) -> None:
    """Run the command again until it succeeds, at most twice more, and hold everything against what was asked for."""
    for _ in range(3):
        status = in_child(VERBS[verb], world, None)
        if status == 0:
            break
        world.server.schedule.clear()
    assert status == 0, f"`{verb}` does not come right: {status}"
    wanted = COUNT if verb in {"up", "recover"} else 0
    part, alive = world.part(), world.mine()
    recorded = recorded_in(part)
    if verb == "sweep" and set(recorded) > set(alive):  # a 404 about a young droplet is not believed yet
        time.sleep(SETTLE_AFTER_S)  # noqa: TID251 - what is waited for is an age
        assert in_child(sweep, world, None) == 0
        part, alive = world.part(), world.mine()
        recorded = recorded_in(part)
    assert len(alive) == wanted, f"{len(alive)} alive, {wanted} asked for"
    assert recorded == alive, f"recorded {recorded}, alive {alive}"
    assert not part.intents, f"open intents: {part.intents}"
    assert world.stranger in world.cloud.droplets, "somebody else's droplet was destroyed"
    least = Decimal(world.cloud.knobs.minimum_billed_s) * Decimal("1.99") / 3600
    assert world.usd() == least * COUNT, f"${world.usd()} instead of ${least * COUNT}"
    left = sorted(world.directory.glob("*.new*")) + sorted(world.directory.glob("state.json.corrupt*"))
    assert not [path for path in left if "corrupt" in path.name], left


def points_of(verb: str, trouble: Trouble) -> int:
    """Count the points of an undisturbed run under a schedule."""
    with tempfile.TemporaryDirectory() as scratch, a_world(Path(scratch)) as world:
        prepare(verb, world)
        misbehave(world, trouble)
        report = Path(scratch) / "points"
        in_child(VERBS[verb], world, None, report)
        return int(report.read_text())


def walk(verb: str, schedule: str, points: int) -> tuple[int, int, float]:
    """Kill at `points` points spread over a verb's run; return how many died, of how many points, and the seconds."""
    trouble, began, died = SCHEDULES[schedule], time.monotonic(), 0
    most = points_of(verb, trouble)
    chosen = sorted({1 + (most - 1) * index // max(1, points - 1) for index in range(points)})
    for deadly in chosen:
        scratch = Path(tempfile.mkdtemp())
        with a_world(scratch) as world:
            prepare(verb, world)
            misbehave(world, trouble)
            status = in_child(VERBS[verb], world, deadly)
            died += status == -signal.SIGKILL
            try:
                check(verb, world)
            except AssertionError as error:
                raise AssertionError(f"{verb}, schedule {schedule}, point {deadly} of {most}: {error}") from error
        shutil.rmtree(scratch, ignore_errors=True)
    return died, most, time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verbs", nargs="*", metavar="VERB", help=f"of {', '.join(VERBS)}; all by default")
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--schedules", default="all")
    chosen = parser.parse_args()
    importlib.import_module("pydo")  # here, so that the commands' short deadlines do not pay for it
    names = list(SCHEDULES) if chosen.schedules == "all" else chosen.schedules.split(",")
    failures = 0
    for verb in chosen.verbs or VERBS:
        for name in names if verb == "up" else [name for name in names if name not in _MAKING_ONLY]:
            try:
                died, most, seconds = walk(verb, name, chosen.points)
                print(f"{verb:8} {name:10} killed {died} times over {most} points, {seconds:.0f} s: right", flush=True)
            except AssertionError as error:
                failures += 1
                print(f"WRONG: {error}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
