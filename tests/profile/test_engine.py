"""A whole profile against a droplet: the table first, the files second, nothing left there, whatever happens."""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from chisel.errors import ConfigError, HostUnreachable, RemoteError, UsageError
from chisel.events import Event, ProfileRanked, Progress
from chisel.figures import ProfileResult
from chisel.model import RunResult
from chisel.node.frames import Kind, encode_json
from chisel.profile.engine import profile
from chisel.runner import Order, new_run_id, run_one
from chisel.sync.pull import pull
from tests.sync.conftest import Bench, bench  # noqa: F401 - a fixture

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "vector_add"
FACTS = {"rocm": "7.2.0", "profiler": {"rocprofv3": "/opt/rocm/bin/rocprofv3", "version": "1.1.0"}}
SECRET = "hunter2-secret-value"


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

    def forget(self, host: Any) -> None:
        raise AssertionError(f"the link to {host} was lost")


class Profiler:
    """Profile on the bench's droplet, in a directory that holds the built example."""

    def __init__(self, bench: Bench, out: Path) -> None:  # noqa: F811
        self.bench = bench
        self.out = out
        self.sink = Recorder()
        self.started = anyio.Event()

    async def __call__(self, line: str, facts: Mapping[str, Any] = FACTS, **changes: Any) -> ProfileResult:
        chosen: dict[str, Any] = {"traces": None, "out": self.out, "top": 10, "env": {"HF_TOKEN": SECRET}, **changes}
        connection = changes.get("connection", self.bench.connection)
        chosen.pop("connection", None)
        return await profile(
            connection, line, cwd="~/work", execute=self.execute, fetch=self.fetch, probe=facts, run_id=new_run_id(),
            sink=self.sink, **chosen,
        )  # fmt: skip

    async def execute(self, connection: Any, line: str, cwd: str, env: Mapping[str, str]) -> RunResult:
        self.started.set()
        order = Order(line=line, cwd=cwd, env=env)
        link = self.bench.connection
        return await run_one(Only(link), link.host, order, self.sink, run_id=new_run_id())

    async def fetch(self, connection: Any, remote: Any, patterns: Any, target: Path) -> Any:
        return await pull(connection, remote, patterns, target, sink=self.sink)

    @property
    def left(self) -> list[str]:
        """Name what profiles have left on the droplet and beside the output."""
        there = self.bench.home / ".chisel" / "profiles"
        here = [path.name for path in self.out.parent.iterdir() if path.name.startswith(f".{self.out.name}")]
        return [*(path.name for path in there.glob("*")), *here]


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


async def test_the_table_comes_first_and_the_files_are_whole(profiler: Profiler) -> None:
    result = await profiler("./build/vector_add")
    assert (result.status, result.error) == (0, None)
    assert [kernel.name.partition("(")[0] for kernel in result.kernels] == ["vector_add", "saxpy", "sum"]
    assert sum(kernel.share for kernel in result.kernels) == pytest.approx(1)
    assert result.tool == "rocprofv3 1.1.0, rocpd; sandbox stand-in: no GPU was used; figures are made up"
    kinds = [event.kind for event in profiler.sink.events if event.kind == "profile" or is_pull(event)]
    assert (kinds[0], kinds.count("profile")) == ("profile", 1), "the answer does not wait for the files"
    assert sorted(path.name for path in profiler.out.iterdir()) == [".gitignore", "kernels.csv", "raw", "trace.json.gz"]
    (database,) = (profiler.out / "raw").glob("*.db")
    with sqlite3.connect(database) as opened:
        (calls,) = opened.execute("SELECT count(*) FROM kernels").fetchone()
    opened.close()
    assert calls == sum(kernel.calls for kernel in result.kernels)
    with gzip.open(profiler.out / "trace.json.gz") as trace:
        slices = [one for one in json.load(trace)["traceEvents"] if one["ph"] == "X"]
    assert len(slices) > calls, "kernels, and the calls that launched them"
    assert profiler.left == []
    assert not (profiler.bench.home / "work" / ".rocprofv3").exists(), "the working copy stays as it was"


async def test_no_artifact_holds_a_variables_value(profiler: Profiler) -> None:
    await profiler("./build/vector_add")
    every = [path for path in profiler.out.rglob("*") if path.is_file()]
    assert len(every) >= 4
    for path in every:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        assert SECRET.encode() not in data, path


async def test_the_program_sees_its_environment_and_its_status_is_ours(profiler: Profiler) -> None:
    result = await profiler('./build/vector_add && test "$HF_TOKEN" = hunter2-secret-value && exit 42')
    assert (result.status, result.error, len(result.kernels)) == (42, None, 3)


async def test_csv_of_an_older_rocm_gives_the_same_kernels(profiler: Profiler) -> None:
    newer = await profiler("./build/vector_add")
    older = await profiler("./build/vector_add", {**FACTS, "rocm": "6.4.0"})
    assert [(k.name, k.calls) for k in older.kernels] == [(k.name, k.calls) for k in newer.kernels]
    assert older.tool.startswith("rocprofv3 1.1.0, csv")
    assert list((profiler.out / "raw").glob("*_kernel_trace.csv"))


async def test_two_processes_are_one_table(profiler: Profiler) -> None:
    one = await profiler("./build/vector_add")
    two = await profiler("./build/vector_add & ./build/vector_add; wait")
    assert [k.calls for k in two.kernels] == [2 * k.calls for k in one.kernels]
    assert len(list((profiler.out / "raw").glob("*.db"))) == 2


async def test_no_kernels_is_an_error_and_the_files_come_all_the_same(profiler: Profiler) -> None:
    result = await profiler("true")
    assert result.status == 0
    assert result.error is not None
    assert result.error.startswith("no kernels: the profiler's files hold none")
    assert (profiler.out / "raw").is_dir()
    assert profiler.left == []


async def test_wrong_wishes_are_refused_before_anything_runs(profiler: Profiler) -> None:
    profiler.out.mkdir()
    (profiler.out / "precious").touch()
    with pytest.raises(UsageError, match="already holds other files"):
        await profiler("true")
    with pytest.raises(UsageError, match="no trace"):
        await profiler("true", traces=["x"], out=profiler.out / "new")
    with pytest.raises(ConfigError):
        await profiler("true", {})
    assert not profiler.started.is_set()


async def test_cancelled_it_ends_the_command_and_leaves_nothing(profiler: Profiler) -> None:
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(profiler, "touch started; sleep 1234.5")
            while not (profiler.bench.home / "work" / "started").exists():  # noqa: ASYNC110 - a file sends no event
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
    assert profiler.left == []
    assert not profiler.out.exists()
    found = await profiler.bench.connection.shell("pgrep -f 'sleep 1234[.]5'", timeout_s=5)
    assert found.status == 1, found.stdout


@dataclass
class Liar:
    """A droplet whose node program answers `aggregate` with these frames, then hangs up."""

    bench: Bench
    answers: list[bytes]

    @property
    def host(self) -> Any:
        return self.bench.connection.host

    def node(self, role: str, request: dict[str, Any]) -> Any:
        return self

    async def __aenter__(self) -> Liar:
        return self

    async def __aexit__(self, *_: object) -> None:
        return

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
    whole = await profiler("true", connection=Liar(profiler.bench, answers[:0]))
    assert whole.status in {HostUnreachable.exit_status, RemoteError.exit_status}
