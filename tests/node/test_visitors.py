"""Other sessions come to a run: they take it over, look at it, end it; a killed client is told from a lost link."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from chisel.node import cgroup
from chisel.node.frames import OFFSET, OUTPUT, Kind
from tests.node.session import RUN_1, RUN_2, RUN_3, Session
from tests.support import processes_with, until

pytestmark = [pytest.mark.timeout(90), pytest.mark.skipif(os.name != "posix", reason="droplets are POSIX systems")]
Start = Callable[..., AbstractContextManager[Session]]
NOWHERE = {"stdout": 0, "stderr": 0, "stdout_crc32": 0, "stderr_crc32": 0}


def order(line: str, **changes: object) -> dict[str, object]:
    return {"run_id": RUN_1, "line": line, "cwd": "~", "env": {}, "stdin": False, "owner": "me", **changes}


def record(home: Path, name: str = "exit.json", run_id: str = RUN_1) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / ".chisel" / "runs" / run_id / name).read_text())
    return found


def attaching(**more: object) -> dict[str, object]:
    return {"run_id": RUN_1, "place": NOWHERE, **more}


def cut(session: Session) -> None:
    """Break a session's channel as a lost connection does."""
    assert session.process.stdin
    assert session.process.stdout
    session.process.stdin.close()
    session.process.stdout.close()


def test_a_lost_client_is_followed_by_another_at_the_same_byte(start: Start) -> None:
    with start("supervise", order("echo one; read x; echo two; exit 3", stdin=True)) as first:
        assert first.until(Kind.STDOUT).payload[OUTPUT.size :] == b"one\n"
        cut(first)
        with start("attach", attaching()) as second:
            told = second.until(Kind.ATTACHED).json()
            assert (told["line"], told["place"], told["stdin"]) == ("echo one; read x; echo two; exit 3", NOWHERE, 0)
            assert second.until(Kind.STDOUT).payload[OUTPUT.size :] == b"one\n"
            second.send(Kind.STDIN, OFFSET.pack(0) + b"\n")
            assert second.until(Kind.STDOUT).payload == OUTPUT.pack(4, zlib.crc32(b"one\ntwo\n")) + b"two\n"
            assert second.until(Kind.EXIT).json()["status"] == 3


def test_a_run_that_has_ended_is_told_from_its_record(start: Start) -> None:
    with start("supervise", order("printf out; printf err >&2; exit 9")) as first:
        out, err, ended = first.rest()
    for _ in range(2):
        with start("attach", attaching()) as second:
            second.until(Kind.ATTACHED)
            again = second.rest()
        assert (again[0], again[1]) == (out, err) == (b"out", b"err")
        assert again[2]["status"] == ended["status"] == 9


@pytest.mark.parametrize("forbids", [False, True])
def test_a_run_that_never_was_is_none(start: Start, home: Path, forbids: bool) -> None:
    with start("attach", attaching(forbids=forbids)) as asking:
        assert asking.until(Kind.ERROR).json()["code"] == "no-run"
    with start("supervise", order("echo ran > ran")) as late:
        if forbids:
            assert late.until(Kind.ERROR).json()["code"] == "used"
        else:
            late.rest()
    assert (home / "ran").exists() is not forbids


def test_a_place_with_another_checksum_is_refused(start: Start) -> None:
    with start("supervise", order("echo one; read x", stdin=True)) as first:
        first.until(Kind.STDOUT)
        wrong = {**NOWHERE, "stdout": 4, "stdout_crc32": 77}
        with start("attach", attaching(place=wrong)) as second:
            assert second.until(Kind.ERROR).json()["code"] == "damaged"
        first.send(Kind.STDIN_EOF)
        assert first.until(Kind.EXIT).json()["status"] == 1


def test_who_attaches_takes_over(start: Start) -> None:
    with start("supervise", order("echo one; read x; echo two", stdin=True)) as first:
        first.until(Kind.STDOUT)
        with start("attach", {"run_id": RUN_1, "place": None}) as second:
            second.until(Kind.ATTACHED)
            assert first.until(Kind.ERROR).json()["code"] == "taken-over"
            second.send(Kind.STDIN_EOF)
            assert second.rest()[0] == b"one\ntwo\n"


def test_signals_that_were_sent_before_the_loss_are_not_sent_twice(start: Start) -> None:
    line = "n=0; trap 'n=$((n+1)); echo $n' USR1; echo up; until [ $n = 2 ]; do sleep 0.02; done"
    with start("supervise", order(line)) as first:
        first.until(Kind.STDOUT)
        first.send_json(Kind.SIGNAL, {"signal": int(signal.SIGUSR1), "index": 0})
        assert first.until(Kind.STDOUT).payload[OUTPUT.size :] == b"1\n"
        cut(first)
        with start("attach", attaching()) as second:
            assert second.until(Kind.ATTACHED).json()["signals"] == 1
            for index in (0, 1):
                second.send_json(Kind.SIGNAL, {"signal": int(signal.SIGUSR1), "index": index})
            assert second.rest()[0] == b"up\n1\n2\n"


def test_a_client_that_was_killed_has_ten_seconds_to_come_back(start: Start, home: Path) -> None:
    mark = f"sleep 711.{os.getpid()}"
    with start("supervise", order(mark)) as session:
        until(lambda: processes_with(mark), what="the command")
        session.send(Kind.HEARTBEAT)
        session.until(Kind.HEARTBEAT)
        began = time.monotonic()
        cut(session)
        until(lambda: not processes_with(mark), what="its end")
        assert 9 < time.monotonic() - began < 14
        session.process.wait(10)
    assert record(home)["ended_by"] == "client-gone"


def test_a_client_that_fell_silent_first_is_a_lost_link(start: Start, home: Path) -> None:
    mark = f"sleep 712.{os.getpid()}"
    with start("supervise", order(mark, orphan_s=2.0)) as session:
        until(lambda: processes_with(mark), what="the command")
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 4, what="a silence")
        cut(session)
        lost = time.monotonic()
        until(lambda: not processes_with(mark), what="its end as an orphan")
        assert time.monotonic() - lost < 9, "that is the time of a killed client"
        session.process.wait(10)
    assert record(home)["ended_by"] in {"client-gone", "orphan"}


def test_a_silent_client_does_not_slow_the_command(start: Start, home: Path) -> None:
    line = "head -c 20000000 /dev/zero; echo over > over; read x"
    with start("supervise", order(line, stdin=True)) as session:
        session.until(Kind.STARTED)
        until(lambda: (home / "over").exists(), what="the end of a flood that nobody takes", deadline_s=20)
        session.send(Kind.HEARTBEAT)
        session.send(Kind.STDIN_EOF)
        assert len(session.rest()[0]) == 20_000_000


def test_a_detached_run_goes_on_alone_and_keeps_its_status(start: Start, home: Path) -> None:
    with start("supervise", order("echo one; sleep 0.5; echo two; exit 6", detached=True)) as session:
        session.until(Kind.STARTED)
        session.send(Kind.LEAVE)
        cut(session)
        until(lambda: (home / ".chisel" / "runs" / RUN_1 / "exit.json").exists(), what="its record")
    with start("attach", {"run_id": RUN_1, "place": None}) as later:
        later.until(Kind.ATTACHED)
        out, _, ended = later.rest()
    assert (out, ended["status"]) == (b"one\ntwo\n", 6)


def test_logs_look_and_do_not_touch(start: Start) -> None:
    with start("supervise", order("echo one; read x; echo two", stdin=True)) as first:
        first.until(Kind.STDOUT)
        with start("logs", {"run_id": RUN_1}) as looking:
            assert looking.until(Kind.REPLY).json()["running"] is True
            assert looking.until(Kind.STDOUT).payload[OUTPUT.size :] == b"one\n"
            assert looking.next() is None
        with start("logs", {"follow": True}) as following:
            assert following.until(Kind.STDOUT).payload[OUTPUT.size :] == b"one\n"
            first.send(Kind.STDIN, OFFSET.pack(0) + b"\n")
            assert following.until(Kind.STDOUT).payload[OUTPUT.size :] == b"two\n"
            assert following.until(Kind.EXIT).json()["status"] == 0
        assert first.until(Kind.EXIT).json()["status"] == 0


def test_logs_since_a_moment_leave_out_what_is_older(start: Start) -> None:
    with start("supervise", order("echo old; sleep 1.3; echo new")) as first:
        first.rest()
    middle = record(Path(first.hello["home"]), "run.json")["started_at"] + 1
    with start("logs", {"run_id": RUN_1, "since": middle}) as looking:
        place = looking.until(Kind.ATTACHED).json()["place"]
        while place["stdout"] == 0:
            place = looking.until(Kind.ATTACHED).json()["place"]
        assert place["stdout"] == 4
        assert looking.until(Kind.STDOUT).payload[OUTPUT.size :] == b"new\n"


@pytest.mark.parametrize("line", ["{m}", "trap '' TERM; {m}; {m}", "setsid {m} & setsid -f {m}; {m}"])
def test_kill_returns_when_nothing_is_left(start: Start, line: str) -> None:
    mark = f"sleep 713.{os.getpid()}"
    with start("supervise", order(line.format(m=mark), detached=True)) as first:
        until(lambda: processes_with(mark), what="the command")
        with start("kill", {"run_id": RUN_1, "grace_s": 0.5}) as ending:
            answer = ending.until(Kind.REPLY).json()
        assert processes_with(mark) == []
        assert (answer["was_running"], answer["running"]) == (True, False)
        assert answer["status"] in {143, 137, 0}
        first.until(Kind.EXIT)
    with start("kill", {"run_id": RUN_1}) as again:
        assert again.until(Kind.REPLY).json()["was_running"] is False


def test_kill_with_a_signal_sends_it(start: Start) -> None:
    with start("supervise", order("trap 'echo caught; exit 5' USR2; echo up; while :; do sleep 0.02; done")) as first:
        first.until(Kind.STDOUT)
        with start("kill", {"run_id": RUN_1, "signal": int(signal.SIGUSR2)}) as ending:
            assert ending.until(Kind.REPLY).json()["was_running"] is True
        assert first.until(Kind.EXIT).json()["status"] == 5


def test_a_time_limit_ends_the_command(start: Start) -> None:
    mark = f"sleep 714.{os.getpid()}"
    with start("supervise", order(f"trap '' TERM; {mark}", timeout_s=0.3)) as session:
        ended = session.rest()[2]
    assert (ended["ended_by"], ended["signal"]) == ("timeout", 9)
    assert processes_with(mark) == []


def test_a_run_without_a_supervisor_is_said_to_have_died(start: Start) -> None:
    with start("supervise", order("sleep 30")) as first:
        first.until(Kind.STARTED)
        first.process.kill()
        first.process.wait()
        with start("attach", attaching()) as asking:
            assert asking.until(Kind.ERROR).json()["code"] == "died"


def test_a_terminal_is_one(start: Start) -> None:
    line = 'test -t 0 -a -t 1 -a -t 2 && stty size && echo "$TERM" && read x && stty size && cat'
    request = order(line, terminal={"rows": 33, "columns": 77, "term": "vt220"})
    with start("supervise", request) as session:
        session.until(Kind.STARTED)
        seen = b""
        while b"vt220" not in seen:
            seen += session.until(Kind.STDOUT).payload[OUTPUT.size :]
        assert b"33 77" in seen
        session.send_json(Kind.SIZE, {"rows": 40, "columns": 100})
        session.send(Kind.STDIN, OFFSET.pack(0) + b"\r")
        while b"40 100" not in seen:
            seen += session.until(Kind.STDOUT).payload[OUTPUT.size :]
        session.send(Kind.STDIN, OFFSET.pack(1) + b"ping\r")
        while seen.count(b"ping") < 2:  # the terminal's echo, and cat
            seen += session.until(Kind.STDOUT).payload[OUTPUT.size :]
        session.send(Kind.STDIN, OFFSET.pack(6) + b"\x03")
        assert session.until(Kind.EXIT).json()["signal"] == signal.SIGINT


def has_groups() -> bool:
    made = cgroup.make("probe")
    if made is not None:
        made.remove()
    return made is not None


@pytest.mark.skipif(not has_groups(), reason="no control group can be made here")
def test_what_leaves_its_session_stays_in_the_control_group(start: Start) -> None:
    mark = f"sleep 715.{os.getpid()}"
    with start("supervise", order(f"setsid -f {mark}; echo up; sleep 30")) as session:
        session.until(Kind.STDOUT)
        group = cgroup.find(RUN_1)
        assert group is not None
        assert len(group.processes()) == 2
        session.process.kill()  # nobody reaps now; whoever looks at the record ends what is left
        session.process.wait()
        with start("status", {}) as asking:
            asking.until(Kind.REPLY)
        until(lambda: not processes_with(mark), what="the end of what the killed supervisor left")
        until(lambda: cgroup.find(RUN_1) is None or not group.is_populated(), what="an empty group")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can be somebody else")
def test_a_command_runs_as_another_user(start: Start, tmp_path: Path) -> None:
    with start("supervise", order('id -un; echo "$HOME|$USER"; id -Gn', user="nobody", cwd="/")) as session:
        out = session.rest()[0].decode().split("\n")
    assert out[0] == "nobody"
    assert out[1].endswith("|nobody")
    with start("supervise", order("true", run_id=RUN_2, user="nobody")) as session:
        assert "may not enter" in session.until(Kind.ERROR).json()["message"]
    with start("supervise", order("true", run_id=RUN_3, user="nosuchuser", cwd="/")) as session:
        assert session.until(Kind.ERROR).json()["code"] == "no-user"


def test_a_virtual_environment_and_devices(start: Start, home: Path) -> None:
    (home / "v" / "bin").mkdir(parents=True)
    tool = home / "v" / "bin" / "python"
    tool.write_text("#!/bin/sh\necho mine\n")
    tool.chmod(0o755)
    line = "python; echo $VIRTUAL_ENV; echo $ROCR_VISIBLE_DEVICES"
    with start("supervise", order(line, venv="v", gpus="0,3")) as session:
        assert session.rest()[0].decode().split() == ["mine", str(home / "v"), "0,3"]
    with start("supervise", order("true", run_id=RUN_2, venv="nosuch")) as session:
        assert session.until(Kind.ERROR).json()["code"] == "no-venv"


ENGINE = """#!/usr/bin/env python3
# Plays docker: does what `run` says without a container, and notes how it was called.
import json, os, sys
with open(os.environ["HOME"] + "/called", "a") as out:
    out.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1] == "run":
    words, at = sys.argv[2:], 0
    valued = {"--name", "--env"}
    environ = {}
    while words[at].startswith("--"):
        if words[at] == "--env":
            name, equals, value = words[at + 1].partition("=")
            environ[name] = value if equals else os.environ[name]
        elif words[at].startswith("--workdir="):
            os.chdir(words[at].partition("=")[2])
        at += 2 if words[at] in valued else 1
    os.execvpe(words[at + 1], words[at + 1 :], {"PATH": os.environ["PATH"], **environ})
"""


def test_a_container_gets_devices_and_working_copy_and_no_value_on_its_command_line(start: Start, home: Path) -> None:
    (home / "bin").mkdir()
    (home / "chisel" / "work").mkdir(parents=True)
    (home / "bin" / "docker").write_text(ENGINE)
    (home / "bin" / "docker").chmod(0o755)
    path = {"PATH": f"{home}/bin:{os.environ['PATH']}"}
    request = order("pwd; echo $SECRET; exit 5", cwd="~/chisel/work", env={"SECRET": "s3cret"}, container="rocm/dev")
    with start("supervise", request, **path) as session:
        out, _, ended = session.rest()
    assert (out.decode(), ended["status"]) == (f"{home}/chisel/work\ns3cret\n", 5)
    session.process.wait(20)
    ran, removed = [json.loads(line) for line in (home / "called").read_text().splitlines()]
    assert ran[:5] == ["run", "--rm", "--init", "--name", f"chisel-{RUN_1}"]
    assert f"--volume={home}/chisel:{home}/chisel" in ran
    assert ran[-4:] == ["rocm/dev", "bash", "-c", "pwd; echo $SECRET; exit 5"]
    assert not [word for word in ran if "s3cret" in word]
    assert removed == ["rm", "--force", f"chisel-{RUN_1}"]


def test_without_an_engine_a_container_is_refused(start: Start, home: Path) -> None:
    (home / "bin").mkdir()
    for name in ("bash", "python3"):
        (home / "bin" / name).symlink_to(shutil.which(name) or "")
    with start("supervise", order("true", container="rocm/dev"), PATH=f"{home}/bin") as session:
        assert session.until(Kind.ERROR).json()["code"] == "no-engine"
