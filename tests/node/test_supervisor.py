"""The supervisor owns a command: exact bytes, exact ends, and nothing left behind; on every Python it must run on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from chisel.node.frames import OFFSET, Kind
from tests.node.session import RUN_1, RUN_2, Session
from tests.support import processes_with, until

pytestmark = [pytest.mark.timeout(90), pytest.mark.skipif(os.name != "posix", reason="droplets are POSIX systems")]
Start = Callable[..., AbstractContextManager[Session]]


def order(line: str, **changes: object) -> dict[str, object]:
    return {"run_id": RUN_1, "line": line, "cwd": "~", "env": {}, "stdin": False, "owner": "me", **changes}


def record_of(home: Path, name: str = "exit.json", run_id: str = RUN_1) -> dict[str, object]:
    found: dict[str, object] = json.loads((home / ".chisel" / "runs" / run_id / name).read_text())
    return found


@pytest.mark.parametrize(
    ("line", "status", "number"),
    [
        ("true", 0, None),
        ("exit 42", 42, None),
        ("exit 137", 137, None),
        ("kill -KILL $$", None, 9),
        ("kill -SEGV $$", None, 11),
        ("nosuch-command", 127, None),
        ("/etc/passwd", 126, None),
        ("exec 1>&- 2>&-; exit 3", 3, None),
    ],
)
def test_the_end_is_exact(start: Start, home: Path, line: str, status: int | None, number: int | None) -> None:
    with start("supervise", order(line)) as session:
        ended = session.rest()[2]
    assert (ended["status"], ended["signal"]) == (status, number)
    assert record_of(home)["status"] == status


def test_one_that_has_told_its_end_sleeps_until_its_client_leaves(start: Start) -> None:
    with start("supervise", order("true")) as session:
        session.until(Kind.EXIT)
        spent = cpu_s(session.process.pid)
        with pytest.raises(subprocess.TimeoutExpired):
            session.process.wait(timeout=1.0)
        assert cpu_s(session.process.pid) - spent < 0.3


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_streams_are_exact(start: Start) -> None:
    data = bytes(range(256)) * 5000
    with start("supervise", order("cat data; cat data >&2", cwd="~/work")) as session:
        assert session.until(Kind.ERROR).json()["code"] == "no-cwd"
    home = Path(session.hello["home"])
    (home / "work").mkdir()
    (home / "work" / "data").write_bytes(data)
    with start("supervise", order("cat data; cat data >&2", cwd="~/work")) as session:
        out, err, ended = session.rest()
    assert out == data
    assert err == data
    assert ended["stdout_crc32"] == ended["stderr_crc32"] == zlib.crc32(data)
    assert (ended["stdout_bytes"], ended["stderr_bytes"]) == (len(data), len(data))


def test_output_arrives_while_the_command_runs(start: Start) -> None:
    with start("supervise", order("echo first; read line; echo $line", stdin=True)) as session:
        assert session.until(Kind.STDOUT).payload[12:] == b"first\n"
        session.send(Kind.STDIN, bytes(8) + b"sec")
        session.send(Kind.STDIN, OFFSET.pack(3) + b"ond\n")
        assert session.until(Kind.STDOUT).payload[12:] == b"second\n"
        assert session.until(Kind.EXIT).json()["status"] == 0


def test_input_of_megabytes_ends_with_its_end(start: Start) -> None:
    with start("supervise", order("wc -c", stdin=True)) as session:
        for index in range(40):
            session.send(Kind.STDIN, OFFSET.pack(index * 100_000) + bytes(100_000))
        session.send(Kind.STDIN_EOF)
        assert session.rest()[0].split() == [b"4000000"]


def test_environment_and_place(start: Start, home: Path) -> None:
    (home / "a b").mkdir()
    with start("supervise", order('echo "$X|$PWD"', cwd="~/a b", env={"X": "1 $2 'q'"})) as session:
        assert session.rest()[0].decode() == f"1 $2 'q'|{home}/a b\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_whole_group(start: Start, number: int) -> None:
    mark = f"sleep 701.{os.getpid()}"
    with start("supervise", order(f"{mark} & ({mark}; true) & echo up; wait; {mark}")) as session:
        until(lambda: len(processes_with(mark)) >= 3, what="the group")
        session.send_json(Kind.SIGNAL, {"signal": int(number)})
        ended = session.rest()[2]
    assert ended["signal"] == number
    assert processes_with(mark) == []


def test_a_command_that_handles_the_signal_says_its_own_status(start: Start) -> None:
    with start("supervise", order("trap 'echo caught; exit 5' INT; echo up; while :; do sleep 0.05; done")) as session:
        session.until(Kind.STDOUT)
        session.send_json(Kind.SIGNAL, {"signal": int(signal.SIGINT)})
        assert session.until(Kind.STDOUT).payload[12:] == b"caught\n"
        assert session.until(Kind.EXIT).json()["status"] == 5


@pytest.mark.parametrize("line", ["{m} & {m}", "trap '' TERM HUP INT; {m}; {m}", "setsid {m} & (setsid -f {m}); {m}"])
def test_a_client_that_will_not_come_back_leaves_no_process(start: Start, home: Path, line: str) -> None:
    mark = f"sleep 702.{os.getpid()}"
    with start("supervise", order(line.format(m=mark), resumes=False)) as session:
        until(lambda: processes_with(mark), what="the command")
        assert session.process.stdin
        session.process.stdin.close()
        session.process.wait(20)
        assert processes_with(mark) == []
    assert record_of(home)["signal"] in {15, 9}


def test_what_a_command_leaves_behind_is_ended(start: Start) -> None:
    mark = f"sleep 703.{os.getpid()}"
    with start("supervise", order(f"(setsid {mark} &) ; {mark} & echo over; exit 4")) as session:
        out, _, ended = session.rest()
    assert (out, ended["status"]) == (b"over\n", 4)
    assert processes_with(mark) == []
    assert ended["left_behind"] >= 1


def test_the_command_dies_with_its_supervisor(start: Start) -> None:
    mark = f"sleep 704.{os.getpid()}"
    with start("supervise", order(mark)) as session:
        until(lambda: processes_with(mark), what="the command")
        session.process.kill()
        until(lambda: not processes_with(mark), what="its end")


def test_a_slow_reader_slows_the_command_and_keeps_memory_small(start: Start, home: Path) -> None:
    line = "head -c 40000000 /dev/zero | tee written >/dev/stdout; echo over >&2"
    with start("supervise", order(line)) as session:
        session.until(Kind.STARTED)
        until(lambda: (home / "written").exists() and (home / "written").stat().st_size > 0, what="the first bytes")
        _until_still(home / "written")
        assert (home / "written").stat().st_size < 20_000_000
        peak = _rss_bytes(session.process.pid)
        out, err, _ = session.rest()
    assert (len(out), err) == (40_000_000, b"over\n")
    assert peak < 40_000_000


def _until_still(path: Path) -> None:
    """Wait until a file has not grown for a quarter of a second."""
    seen, since = path.stat().st_size, time.monotonic()
    while time.monotonic() - since < 0.25:
        time.sleep(0.01)  # noqa: TID251 - a file sends no event
        if path.stat().st_size != seen:
            seen, since = path.stat().st_size, time.monotonic()


def _rss_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024


def test_a_reader_that_is_killed_in_the_flood_ends_the_command(start: Start) -> None:
    mark = f"yes 705.{os.getpid()}"
    with start("supervise", order(mark, resumes=False)) as session:
        session.until(Kind.STDOUT)
        assert session.process.stdout
        session.process.stdout.close()
        session.process.wait(20)
        assert processes_with(mark) == []


@pytest.mark.parametrize("run_id", ["", "../up", "a/b", "x" * 65, "-x"])
def test_an_id_that_is_no_name_is_refused(start: Start, home: Path, run_id: str) -> None:
    with start("supervise", order("echo ran > ran", run_id=run_id)) as session:
        assert session.until(Kind.ERROR).json()["code"] == "bad-request"
    assert not (home / "ran").exists()


def test_the_registry_knows_what_runs_and_what_ran(start: Start) -> None:
    with start("supervise", order("read x", stdin=True)) as session:
        session.until(Kind.STARTED)
        with start("status", {}) as asking:
            answer = asking.until(Kind.REPLY).json()
        assert [(run["run_id"], run["running"], run["line"]) for run in answer["runs"]] == [(RUN_1, True, "read x")]
        assert answer["idle_s"] == 0.0
        session.send(Kind.STDIN_EOF)
        session.rest()
    with start("status", {}) as asking:
        answer = asking.until(Kind.REPLY).json()
    assert [(run["running"], run["status"]) for run in answer["runs"]] == [(False, 1)]


def test_a_run_whose_supervisor_was_killed_does_not_run(start: Start) -> None:
    with start("supervise", order(f"sleep 706.{os.getpid()}")) as session:
        session.until(Kind.STARTED)
        session.process.kill()
        session.process.wait()
    with start("status", {}) as asking:
        assert [run["running"] for run in asking.until(Kind.REPLY).json()["runs"]] == [False]


def test_asking_is_no_activity(start: Start, home: Path) -> None:
    with start("supervise", order("true")) as session:
        session.rest()
    alone = {"CHISEL_DROPLET_ROOT": str(home)}  # whoever works on this machine is not looked for
    activity = home / ".chisel" / "activity"
    os.utime(activity, (time.time() - 1000, time.time() - 1000))
    for _ in range(2):
        with start("status", {}, **alone) as asking:
            assert 990 < asking.until(Kind.REPLY).json()["idle_s"] < 1100
    with start("supervise", order("true", run_id=RUN_2)) as session:
        session.rest()
    with start("status", {}, **alone) as asking:
        assert asking.until(Kind.REPLY).json()["idle_s"] < 100


def test_the_probe_proves_itself_and_tells_the_truth(start: Start) -> None:
    with start("probe", {"nonce": "abc"}) as session:
        facts = session.until(Kind.REPLY).json()
    assert facts["nonce_sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert facts["profiler"]["rocprofv3"] is None
    assert facts["gpu"] == []


@pytest.mark.parametrize("role", ["nosuch", "../x"])
def test_an_unknown_role_is_refused(start: Start, role: str) -> None:
    with start(role, None) as session:
        assert session.until(Kind.ERROR).json()["code"] == "no-role"


def test_a_bug_in_a_role_is_told_as_one(start: Start) -> None:
    with start("supervise", {"run_id": "x", "cwd": "~"}) as session:
        error = session.until(Kind.ERROR).json()
    assert error["code"] == "bug"
    assert "KeyError" in error["message"]
