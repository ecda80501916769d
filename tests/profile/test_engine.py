"""A whole profile against a droplet: the table first, the files second, nothing left there, whatever happens."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from chisel.errors import UsageError
from chisel.events import Compared, Event, Notice, ProfileRanked, ProfileSummed, Progress
from chisel.figures import ProfileReport, ProfileResult
from chisel.model import RunResult
from chisel.node.frames import Kind, encode_json
from chisel.profile.campaign import Plan, profile
from chisel.profile.drivers import Asked
from chisel.profile.order import Bench as ProfileBench
from chisel.profile.order import ProfileOrder
from chisel.profile.saved import Saved, load
from chisel.runner import Control, Order, new_run_id, run_one
from chisel.sync.pull import pull
from tests.sync.conftest import Bench, bench  # noqa: F401 - a fixture

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "vector_add"
FACTS = {"rocm": "7.2.0", "profiler": {"rocprofv3": "/opt/rocm/bin/rocprofv3", "version": "1.1.0"}}
CSV = {"rocm": "6.4.0", "profiler": {"rocprofv3": "/opt/rocm/bin/rocprofv3"}}
V1 = {"rocm": "5.7.0", "profiler": {"rocprof": "/opt/rocm/bin/rocprof"}}
SECRET = "hunter2-secret-value"
pytestmark = pytest.mark.timeout(60)


@dataclass
class Recorder:
    """A sink that keeps events."""

    events: list[Event] = field(default_factory=list)

    def emit(self, event: Event) -> None:
        self.events.append(event)

    async def drain(self) -> None:
        return

    def ranked(self) -> list[ProfileResult]:
        return [event.result for event in self.events if isinstance(event, ProfileRanked)]

    def said(self) -> str:
        return "; ".join(event.message for event in self.events if isinstance(event, Notice))


def is_pull(event: Event) -> bool:
    return isinstance(event, Progress) and event.task == "pull"


class Only:
    """One connection in a connector's place."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def node(self, host: Any, role: str, request: dict[str, Any], *, window: int | None = None) -> Any:
        assert host == self._connection.host
        return self._connection.node(role, request, window=window)

    async def ask(self, host: Any, role: str, request: dict[str, Any]) -> Any:
        raise AssertionError(f"{role} was asked of {host}: {request}")


class Profiler:
    """Profile on the bench's droplet, in a directory that holds the built example."""

    def __init__(self, bench: Bench, out: Path) -> None:  # noqa: F811
        self.bench = bench
        self.out = out
        self.sink = Recorder()
        self.control = Control()
        self.env = {"HF_TOKEN": SECRET}
        self.started = anyio.Event()

    async def __call__(self, line: str, facts: Mapping[str, Any] = FACTS, **changes: Any) -> ProfileResult:
        report = await self.report(line, facts, **changes)
        return report.results[-1]

    async def report(
        self, *lines: Any, connection: Any = None, plan: Mapping[str, Any] | None = None, **changes: Any
    ) -> ProfileReport:
        words = [line for line in lines if isinstance(line, str)]
        facts = next((one for one in lines if not isinstance(one, str)), FACTS)
        orders = tuple(ProfileOrder(line=line, secrets=(SECRET,), **changes) for line in words)
        labels = ("A", "B") if len(orders) > 1 else ("now",)
        wishes: dict[str, Any] = {"sides": orders, "labels": labels, "out": self.out, "title": "t", **(plan or {})}
        return await profile([self.on("one", facts, connection)], Plan(**wishes), self.sink)

    def on(self, host: str, facts: Mapping[str, Any], connection: Any = None) -> ProfileBench:
        async def connect() -> Any:
            return connection or self.bench.connection

        return ProfileBench(
            host=host,
            connect=connect,
            execute=self.execute,
            fetch=self.fetch,
            probe=facts,
            facts={"droplet": host},
            was_interrupted=lambda: self.control.was_used,
            new_id=lambda: str(new_run_id()),
            sink=self.sink,
        )

    async def execute(self, line: str, shown: str) -> RunResult:
        self.started.set()
        order = Order(line=line, cwd="~/work", env=self.env, shown=shown)
        link = self.bench.connection
        return await run_one(Only(link), link.host, order, self.sink, run_id=new_run_id(), control=self.control)

    async def fetch(self, connection: Any, remote: Any, patterns: Any, local: Path, total_bytes: int | None) -> Any:
        return await pull(self.bench.connection, remote, patterns, local, sink=self.sink, total_bytes=total_bytes)

    @property
    def left(self) -> list[str]:
        """Name what profiles have left on the droplet and beside the output."""
        there = self.bench.home / ".chisel" / "profiles"
        here = [path.name for path in self.out.parent.iterdir() if path.name.startswith(f".{self.out.name}")]
        return [*(path.name for path in there.glob("*")), *here]

    async def until_running(self) -> None:
        """Wait until the profiled program has begun: it makes a file.

        A shell that waits for a child to end takes no SIGINT of its own: the file is made by the shell itself.
        """
        with anyio.fail_after(20):
            while not (self.bench.home / "work" / "started").exists():  # noqa: ASYNC110 - a file sends no event
                await anyio.sleep(0.01)


@pytest.fixture
async def profiler(bench: Bench, tmp_path: Path) -> Profiler:  # noqa: F811
    shutil.copytree(EXAMPLE, bench.home / "work")
    (tmp_path / "here").mkdir()
    made = Profiler(bench, tmp_path / "here" / "prof")
    made_it = Order(line="make", cwd="~/work")
    link = bench.connection
    built = await run_one(Only(link), link.host, made_it, made.sink, run_id=new_run_id())
    assert built.status == 0
    return made


async def kept_in(directory: Path, name: str) -> Saved:
    return await to_thread.run_sync(load, directory, name)


def names(result: ProfileResult) -> list[str]:
    return [kernel.name.partition("(")[0] for kernel in result.kernels]


def slices(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path) as trace:
        return [one for one in json.load(trace)["traceEvents"] if one["ph"] == "X"]


async def test_the_table_comes_first_and_the_files_are_whole(profiler: Profiler) -> None:
    result = await profiler("./build/vector_add")
    assert (result.status, result.error) == (0, None)
    assert names(result) == ["vector_add", "saxpy", "sum"]
    assert sum(kernel.share for kernel in result.kernels) == pytest.approx(1)
    assert result.tool == "rocprofv3 1.1.0, rocpd; sandbox stand-in: no GPU was used; figures are made up"
    kinds = [event.kind for event in profiler.sink.events if event.kind == "profile" or is_pull(event)]
    assert (kinds[0], kinds.count("profile")) == ("profile", 1), "the answer does not wait for the files"
    assert sorted(path.name for path in profiler.out.iterdir()) == [
        ".gitignore", "kernels.csv", "profile.json", "raw", "report.html", "trace.json.gz",
    ]  # fmt: skip
    (database,) = (profiler.out / "raw").glob("*.db")
    with sqlite3.connect(database) as opened:
        (calls,) = opened.execute("SELECT count(*) FROM kernels").fetchone()
    opened.close()
    assert calls == sum(kernel.calls for kernel in result.kernels)
    assert len(slices(profiler.out / "trace.json.gz")) > calls, "kernels, and the calls that launched them"
    with (profiler.out / "kernels.csv").open(newline="") as source:
        rows = list(csv.DictReader(source))
    assert [(row["name"], int(row["calls"])) for row in rows] == [(k.name, k.calls) for k in result.kernels]
    assert "vector_add" in (profiler.out / "report.html").read_text()
    assert (await kept_in(profiler.out, "profile")).sessions[0].keys() == {kernel.name for kernel in result.kernels}
    assert profiler.left == []
    assert not (profiler.bench.home / "work" / ".rocprofv3").exists(), "the working copy stays as it was"


async def test_no_artifact_holds_a_variables_value(profiler: Profiler) -> None:
    await profiler('./build/vector_add 4096 && ./build/vector_add 64 5 "$HF_TOKEN" >/dev/null; true')
    every = [path for path in profiler.out.rglob("*") if path.is_file()]
    assert len(every) >= 6
    for path in every:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        assert SECRET.encode() not in data, path


@pytest.mark.parametrize(("bench", "facts"), [("7.2", FACTS), ("6.4", CSV), ("5.7", V1)], indirect=["bench"])
async def test_the_program_sees_its_environment_and_its_status_is_ours(
    profiler: Profiler, facts: Mapping[str, Any]
) -> None:
    line = './build/vector_add >/dev/null; test "$HF_TOKEN" = hunter2-secret-value && echo "a  b"; echo e >&2; exit 42'
    result = await profiler(line, facts)
    assert (result.status, result.error, len(result.kernels)) == (42, None, 3)
    assert result.run is not None
    assert result.run.stdout_bytes == len("a  b\n"), "what the profiler says is not the program's output"


@pytest.mark.parametrize("bench", ["6.4"], indirect=True)
async def test_csv_of_an_older_rocm_gives_the_same_kernels(profiler: Profiler) -> None:
    older = await profiler("./build/vector_add", CSV)
    assert names(older) == ["vector_add", "saxpy", "sum"]
    assert older.tool.startswith("rocprofv3 (version unknown), csv")
    assert list((profiler.out / "raw").glob("*_kernel_trace.csv"))
    assert slices(profiler.out / "trace.json.gz")


@pytest.mark.parametrize("bench", ["5.7"], indirect=True)
async def test_the_oldest_profiler_gives_them_too_with_barriers_apart(profiler: Profiler) -> None:
    oldest = await profiler("./build/vector_add", V1)
    assert (oldest.status, names(oldest)) == (0, ["vector_add", "saxpy", "sum"])
    assert oldest.generation == "rocprof v1"
    assert oldest.tool.startswith("rocprof v1 (ROCm 5.7)")
    assert {path.name for path in (profiler.out / "raw").iterdir()} >= {"results.stats.csv", "results.json"}
    assert slices(profiler.out / "trace.json.gz")
    assert profiler.left == []


async def test_two_processes_are_one_table(profiler: Profiler) -> None:
    one = await profiler("./build/vector_add")
    two = await profiler("./build/vector_add & ./build/vector_add; wait")
    assert [k.calls for k in two.kernels] == [2 * k.calls for k in one.kernels]
    assert [part.kind for part in two.ranking.parts] == ["process", "process"]
    assert len(list((profiler.out / "raw").glob("*.db"))) == 2


async def test_counters_warm_up_and_a_pattern_are_heeded(profiler: Profiler) -> None:
    whole = await profiler("./build/vector_add")
    asked = Asked((), ("SQ_WAVES",))
    less = await profiler("./build/vector_add", asked=asked, kernel="^(saxpy|sum)", skip_warmup=3)
    assert names(less) == ["saxpy", "sum"]
    assert [k.calls for k in less.kernels] == [k.calls - 3 for k in whole.kernels[1:]]
    assert less.kernels[0].counters["SQ_WAVES"] > 0
    assert {span["name"].partition("(")[0] for span in slices(profiler.out / "trace.json.gz")} >= {"vector_add"}


async def test_what_is_built_first_is_not_profiled(profiler: Profiler) -> None:
    good = await profiler("./build/again", build="cp build/vector_add build/again && ./build/again 64")
    assert (good.status, names(good)) == (0, ["vector_add", "saxpy", "sum"])
    assert {k.calls for k in good.kernels} == {k.calls for k in (await profiler("./build/vector_add")).kernels}
    failed = await profiler("./build/vector_add", build="exit 9")
    assert (failed.status, failed.error) == (9, "`exit 9` failed with status 9")
    assert failed.kernels == ()


async def test_no_kernels_is_an_error_and_the_files_come_all_the_same(profiler: Profiler) -> None:
    result = await profiler("sudo -u nobody ./build/vector_add; true")
    assert result.status == 0
    assert result.error is not None
    assert result.error.startswith("no kernels: `sudo` in the command clears the environment")
    assert (profiler.out / "raw").is_dir()
    assert profiler.left == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("no-files", "wrote nothing"),
        ("barriers-only", "barriers only"),
        ("killed-while-writing", "killed while it wrote"),
        ("truncated-db", "cannot be read"),
    ],
)
async def test_each_way_to_have_no_kernels_is_explained(profiler: Profiler, fault: str, said: str) -> None:
    profiler.env["CHISEL_STANDIN_FAULT"] = fault
    result = await profiler("./build/vector_add")
    assert result.kernels == ()
    assert said in str(result.error)
    assert profiler.left == []


async def test_wrong_wishes_are_refused_before_anything_runs(profiler: Profiler) -> None:
    profiler.out.mkdir()
    (profiler.out / "precious").touch()
    with pytest.raises(UsageError, match="already holds other files"):
        await profiler("true")
    assert not profiler.started.is_set()
    profiler.out = profiler.out.with_name("other")
    result = await profiler("true", driver="v1")
    assert "cannot do `--driver v1`" in str(result.error)
    assert result.status == 3
    assert not profiler.started.is_set()
    assert not profiler.out.exists()


async def test_a_profiler_that_came_after_the_droplets_probe_is_found(profiler: Profiler) -> None:
    result = await profiler("./build/vector_add 64", {})
    assert result.tool.startswith("rocprofv3 1.1.0")


async def test_cancelled_it_ends_the_command_and_leaves_nothing(profiler: Profiler) -> None:
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(profiler, "touch started; sleep 1234.5")
            await profiler.until_running()
            tasks.cancel_scope.cancel()
    assert profiler.left == []
    assert not profiler.out.exists()
    found = await profiler.bench.connection.shell("pgrep -f 'sleep 1234[.]5'", timeout_s=5)
    assert found.status == 1, found.stdout


@pytest.mark.parametrize(("bench", "facts"), [("7.2", FACTS), ("6.4", CSV), ("5.7", V1)], indirect=["bench"])
async def test_ctrl_c_keeps_what_the_profiler_has(profiler: Profiler, facts: Mapping[str, Any]) -> None:
    found: list[ProfileResult] = []
    with anyio.fail_after(40):
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                found.append(await profiler("./build/vector_add; : > started; exec sleep 1234.5", facts))

            tasks.start_soon(run)
            await profiler.until_running()
            profiler.control.signal(signal.SIGINT)
    (result,) = found
    assert (result.status, result.is_partial) == (130, True)
    assert names(result) == ["vector_add", "saxpy", "sum"]
    assert (profiler.out / "kernels.csv").is_file()
    assert "PARTIAL" in (profiler.out / "report.html").read_text().upper()
    assert profiler.left == []


async def test_a_second_ctrl_c_gives_a_slow_profiler_up(profiler: Profiler) -> None:
    profiler.env |= {"CHISEL_STANDIN_FAULT": "slow-finalise", "CHISEL_STANDIN_FINALISE_S": "1000"}
    found: list[ProfileResult] = []
    with anyio.fail_after(40):
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                found.append(await profiler("./build/vector_add; : > started; exec sleep 1234.5"))

            tasks.start_soon(run)
            await profiler.until_running()
            profiler.control.signal(signal.SIGINT)
            while not any(isinstance(one, Progress) and "writes" in one.task for one in profiler.sink.events):  # noqa: ASYNC110
                await anyio.sleep(0.01)
            profiler.control.signal(signal.SIGKILL)
    assert (found[0].status, found[0].is_partial) == (137, True)
    assert profiler.left == []


# -- sessions, sides, droplets


async def test_sessions_are_taken_together_and_kept(profiler: Profiler) -> None:
    kept = profiler.out.parent / "saved"
    report = await profiler.report("./build/vector_add 4096", plan={"sessions": 3, "save_as": (kept, "main")})
    assert len(report.results) == 3
    assert report.ranking.kernels[0].calls == 3 * report.results[0].kernels[0].calls
    (summed,) = [event for event in profiler.sink.events if isinstance(event, ProfileSummed)]
    assert (summed.sessions, summed.ranking) == (3, report.ranking)
    assert len((await kept_in(kept, "main")).sessions) == len((await kept_in(profiler.out, "profile")).sessions) == 3
    assert profiler.left == []


async def test_two_commands_in_turns_are_compared_kernel_by_kernel(profiler: Profiler) -> None:
    report = await profiler.report(
        "CHISEL_STANDIN_SEED=$RANDOM ./build/vector_add 4096 20",
        "CHISEL_STANDIN_SEED=$RANDOM ./build/vector_add 40960 20",
        plan={"sessions": 4, "fail_if_slower": 3.0},
    )
    assert (len(report.before), len(report.results)) == (4, 4)
    (compared,) = [event for event in profiler.sink.events if isinstance(event, Compared)]
    assert report.comparison == compared.comparison
    by_name = {one.name.partition("(")[0]: one.verdict for one in compared.comparison.verdicts}
    assert by_name["vector_add"] == "slower", "ten times the elements"
    assert "vector_add" in {one.name.partition("(")[0] for one in report.regressions}
    for side in "ab":
        assert sorted(path.name for path in (profiler.out / side).iterdir()) == [
            ".gitignore", "kernels.csv", "profile.json", "raw", "trace.json.gz",
        ]  # fmt: skip
    assert (profiler.out / "report.html").is_file()
    assert profiler.left == []


async def test_a_baseline_of_another_profiler_is_refused(profiler: Profiler) -> None:
    kept = profiler.out.parent / "saved"
    await profiler.report("./build/vector_add 4096", plan={"save_as": (kept, "main")})
    baseline = await kept_in(kept, "main")
    report = await profiler.report("./build/vector_add 4096", plan={"baseline": baseline})
    assert {one.verdict for one in report.comparison.verdicts} == {"can't tell"}, "one session tells nothing"
    other = replace(baseline, generation="rocprof v1")
    with pytest.raises(UsageError, match="rocprof v1"):
        await profiler.report("./build/vector_add 4096", plan={"baseline": other})
    assert profiler.left == []


async def test_droplets_are_ranked_together_and_each_keeps_its_files(profiler: Profiler) -> None:
    order = ProfileOrder(line="./build/vector_add 4096")
    benches = [profiler.on(name, FACTS) for name in ("one", "two", "three")]
    plan = Plan(sides=(order,), labels=("now",), out=profiler.out, title="t")
    report = await profile(benches, plan, profiler.sink)
    assert {result.host for result in report.results} == {"one", "two", "three"}
    assert report.ranking.kernels[0].calls == 3 * report.results[0].kernels[0].calls
    assert [one.name for one in report.spreads] == [kernel.name for kernel in report.ranking.kernels]
    assert report.spreads[0].spread == 0, "they play the same figures"
    groups = {one["args"]["name"] for one in events_of(profiler.out / "trace.json.gz", "process_name")}
    assert all(any(name in group for group in groups) for name in ("one", "two", "three"))
    for name in ("one", "two", "three"):
        assert (profiler.out / name / "raw").is_dir()
    assert (profiler.out / "report.html").is_file()


def events_of(path: Path, name: str) -> list[dict[str, Any]]:
    with gzip.open(path) as trace:
        return [one for one in json.load(trace)["traceEvents"] if one.get("name") == name]


async def test_one_droplets_trouble_is_its_own(profiler: Profiler) -> None:
    order = ProfileOrder(line="./build/vector_add 4096")
    benches = [profiler.on("one", FACTS), profiler.on("two", FACTS, Liar(profiler.bench, []))]
    report = await profile(benches, Plan(sides=(order,), labels=("now",), out=profiler.out, title="t"), profiler.sink)
    good, bad = sorted(report.results, key=lambda result: result.host)
    assert (good.error, len(good.kernels)) == (None, 3)
    assert "ended the session" in str(bad.error)
    assert (profiler.out / "one" / "raw").is_dir()


# -- a droplet that lies


@dataclass
class Liar:
    """A droplet whose node program answers `aggregate` with these frames, then hangs up."""

    bench: Bench
    answers: list[bytes]

    @property
    def host(self) -> Any:
        return self.bench.connection.host

    @asynccontextmanager
    async def node(self, role: str, request: dict[str, Any]) -> AsyncIterator[Any]:
        if role != "aggregate":
            async with self.bench.connection.node(role, request) as channel:
                yield channel
        else:
            yield self

    async def receive(self) -> list[Any]:
        from chisel.node.frames import Decoder

        frames = Decoder().feed(b"".join(self.answers))
        self.answers = []
        return frames

    async def shell(self, line: str, *, timeout_s: float) -> Any:
        return await self.bench.connection.shell(line, timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([], "ended the session"),
        ([encode_json(Kind.DATA_END, {})], "no ranking"),
        ([encode_json(Kind.DATA, {"x": 1}), encode_json(Kind.DATA_END, {})], "no ranking"),
        ([encode_json(Kind.ERROR, {"code": "bug", "message": "boom"})], "boom"),
    ],
)
async def test_a_droplet_that_lies_is_named_and_its_status_kept(
    profiler: Profiler, answers: list[bytes], said: str
) -> None:
    result = await profiler("exit 3", connection=Liar(profiler.bench, answers))
    assert (result.status, result.kernels) == (3, ())
    assert said in str(result.error)
    assert profiler.sink.ranked() == [result]
    assert not profiler.out.exists()
    assert profiler.left == []
    whole = await profiler("true", connection=Liar(profiler.bench, []))
    assert whole.status == 255
