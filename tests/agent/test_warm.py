"""A command that the agent runs is the command that the user typed: bytes, status, input, signals, surroundings."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.agent.conftest import WarmUser
from tests.support import processes_with, until

pytestmark = pytest.mark.timeout(180)

TABLE = [
    ("run", "--on", "1", "echo out; echo err >&2; exit 7"),
    ("run", "--on", "1", "--", "printf", "%s|", "a b", "'", "$HOME", "é"),
    ("run", "--on", "1", "kill -9 $$"),
    ("run", "--on", "1", "printf 'no end'"),
    ("run", "--on", "1", "head -c 300000 /dev/zero"),
    ("run", "--on", "1", "--prefix", "name", "seq 3; echo err >&2"),
    ("run", "--on", "1", "--timeout", "1s", "sleep 30"),
    ("run", "--on", "1", "-q", "exit 3"),
    ("run", "--on", "1", "--cwd", "nowhere", "true"),
    ("run", "--on", "1", "-e", "A=1", "-e", "MINE", "echo $A$MINE"),
    ("run", "--on", "1", "-e", "NOT_SET_HERE", "true"),
    ("run", "--on", "1", "--env-file", "vars", "echo $FROM_FILE"),
    ("run", "--on", "1", "--env-file", "none", "true"),
    ("run", "--on", "1", "ls", "-h"),
    ("run", "--on", "1", "-t", "true"),
    ("run", "--on", "1", "--json", "echo out; exit 4"),
    ("run", "--on", "9", "true"),
    ("run", "true"),
    ("run", "--all", "--fold", "echo same"),
    ("run", "--all", "--group", "echo same"),
    ("run", "--all", "--prefix", "none", "echo same"),
    ("run", "--all", "--fail-fast", "--max-fail", "2", "true"),
    ("run", "--all", "exit 5"),
    ("run", "--pool", "nowhere", "true"),
    ("run", "--pool", "bad name", "true"),
    ("run", "--no-such"),
    ("run", "--help"),
    ("run",),
    ("sync", "--all", "tree"),
    ("sync", "--all", "no-tree"),
    ("sync", "-h"),
    ("run", "--on", "1", "-s", "cat file"),
    ("run", "--on", "1", "--pull", "made", "echo made > made"),
    ("pull", "--on", "1", "made"),
    ("pull", "--on", "1", "not-made"),
    ("pull", "--all", "file"),
    ("pull", "--on", "1", "-n", "file"),
    ("push", "--all", "vars", "tree", "--to", "~/there"),
    ("push", "--on", "1", "no-file"),
    ("logs", "--on", "1", "no-run"),
    ("kill", "--on", "1", "no-run"),
    ("kill", "--on", "1", "-s", "NOSUCH", "x"),
    ("attach", "--on", "1", "no-run"),
]


@pytest.mark.parametrize("words", TABLE, ids=" ".join)
def test_a_command_line_means_the_same_with_and_without_the_agent(user: WarmUser, words: tuple[str, ...]) -> None:
    (user.cwd / "tree").mkdir(exist_ok=True)
    (user.cwd / "tree" / "file").write_text("content")
    (user.cwd / "vars").write_text("FROM_FILE='yes'\n")
    if {"sync", "pull", "push", "-s", "--pull"} & set(words):  # what the first of them changes, the second would not
        user.does("sync", "--all", "tree", CHISEL_AGENT="off")
        user.chisel(*words, CHISEL_AGENT="off", MINE="m")
    without = user.chisel(*words, CHISEL_AGENT="off", MINE="m")
    with_agent = user.chisel(*words, MINE="m")
    assert with_agent.status == without.status, with_agent.err
    assert in_order(words, with_agent.out) == in_order(words, without.out)
    assert said(with_agent.err) == said(without.err)


def in_order(words: tuple[str, ...], out: bytes) -> object:
    """Make comparable what depends on the moment: times and ids in JSON, who of several droplets was first."""
    if "--json" in words:
        events = [json.loads(line) for line in out.splitlines()]
        return [{key: value for key, value in one.items() if key not in {"at", "run_id", "result"}} for one in events]
    if "status" in words[0]:
        return said(out.decode())
    return sorted(out.splitlines()) if "--all" in words else out


def said(err: str) -> list[str]:
    timeless = re.sub(r"\d+(\.\d+)? (s|ms|min)\b|\d\.\d\d|\d+(\.\d+)? (MB|kB)|[0-9a-f]{8}-[0-9a-f]{8}", "N", err)
    return sorted(re.sub(r"[ ─]+", " ", line) for line in timeless.splitlines())


def test_a_warm_command_is_served_by_the_agent(user: WarmUser) -> None:
    before = user.served
    assert user.does("run", "--on", "1", "echo hi").out == b"hi\n"
    assert user.served == before + 1


def test_a_session_in_reserve_waits_and_is_no_use_of_the_droplet(user: WarmUser) -> None:
    """The session that the agent keeps ready is not a command, a login or a request."""
    user.does("run", "--on", "1", "true")
    before = idleness(user)
    until(lambda: all(now > then for now, then in zip(idleness(user), before, strict=True)), what="idleness that grows")


def idleness(user: WarmUser) -> list[float]:
    reported = user.does("status", "--json").of("status")[-1]
    return [float(droplet["idle_s"]) for pool in reported["pools"] for droplet in pool["droplets"]]


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
def test_input_arrives_as_it_is(user: WarmUser, size: int) -> None:
    data = os.urandom(size)
    before = user.served
    ended = subprocess.run(
        [sys.executable, "-m", "chisel", "run", "--on", "1", "cat"], input=data, capture_output=True, cwd=user.cwd,
        env=user.environ(), timeout=60, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout == data, ended.stderr) == (0, True, b"")
    assert user.served == before + 1


def test_a_closed_pipe_ends_the_command(user: WarmUser) -> None:
    mark = f"sleep 733.{os.getpid()}"
    with user.start("run", "--on", "1", f"yes & {mark}") as process:
        assert process.stdout
        process.stdout.read(100)
        process.stdout.close()
        assert process.wait(30) == 128 + signal.SIGPIPE
        until(lambda: not sleeping(mark), what="its end", deadline_s=5)


def sleeping(mark: str) -> list[str]:
    return [line for line in processes_with(mark) if line.startswith("sleep")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_to_the_client_ends_the_command_at_once(user: WarmUser, number: int) -> None:
    mark = f"sleep 734.{number}{os.getpid()}"
    with user.start("run", "--all", f"{mark} & setsid {mark} & {mark}") as process:
        until(lambda: len(sleeping(mark)) >= 6, what="the commands", deadline_s=30)
        process.send_signal(number)
        assert process.wait(30) == (-9 if number == signal.SIGKILL else 128 + number)
        until(lambda: not sleeping(mark), what="their end", deadline_s=6)


def test_the_first_ctrl_c_asks_the_second_kills(user: WarmUser) -> None:
    with user.start("run", "--on", "1", "trap 'echo asked' INT; echo up; while :; do sleep 0.05; done") as process:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"asked\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"interrupted there" in said
    assert b"killed there" in said


def test_a_stalled_reader_holds_up_nobody_else(user: WarmUser) -> None:
    with user.start("run", "--on", "1", "head -c 50000000 /dev/zero") as stalled:
        assert stalled.stdout
        stalled.stdout.read(1)
        for _ in range(3):
            assert user.does("run", "--on", "1", "echo quick").out == b"quick\n"
        assert len(stalled.stdout.read()) == 49_999_999
        assert stalled.wait(30) == 0


def test_nothing_of_one_client_reaches_another(user: WarmUser, tmp_path: Path) -> None:
    """Many at once, each from a directory and with an environment of its own."""
    began = []
    for number in range(30):
        place = tmp_path / f"place{number}"
        place.mkdir()
        (place / "vars").write_text(f"FROM_FILE=file{number}\n")
        environ = user.environ(MINE=f"mine{number}", **({"NO_COLOR": "1"} if number % 2 else {}))
        words = [
            "run",
            "--on",
            str(1 + number % 2),
            "-e",
            "MINE",
            "--env-file",
            "vars",
            f"echo $MINE $FROM_FILE; exit {number}",
        ]
        began.append(subprocess.Popen(
            [sys.executable, "-m", "chisel", *words], cwd=place, env=environ, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ))  # fmt: skip
    before = user.served
    for number, process in enumerate(began):
        out, err = process.communicate(timeout=120)
        assert (out.decode(), process.returncode, err) == (f"mine{number} file{number}\n", number, b"")
    assert user.served > before


def test_a_detached_run_stays_and_is_found_again(user: WarmUser) -> None:
    started = user.does("run", "--on", "1", "-d", "echo there; sleep 2; exit 6")
    run_id = started.out.decode().strip()
    attached = user.chisel("attach", run_id)
    assert (attached.status, attached.out) == (6, b"there\n")
    assert user.chisel("logs", run_id).out == b"there\n"
    assert "it had ended already, with status 6" in user.chisel("kill", run_id).err


def test_an_agent_that_is_killed_costs_the_command_nothing(user: WarmUser) -> None:
    line = "for i in $(seq 60); do echo out $i; echo err $i >&2; sleep 0.03; done; printf end; exit 5"
    with user.start("run", "--on", "1", line) as process:
        assert process.stdout
        first = process.stdout.readline()
        os.kill(user.pid, signal.SIGKILL)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, first + out) == (5, b"".join(b"out %d\n" % n for n in range(1, 61)) + b"end")
    lines = err.decode().splitlines()
    assert [one for one in lines if one.startswith("err ")] == [f"err {number}" for number in range(1, 61)]
    assert next(one for one in lines if not one.startswith("err ")).startswith("chisel-dev-1: connected again")
    until(lambda: user.facts() is not None, what="a new agent", deadline_s=20)


def test_a_killed_agent_loses_no_input(user: WarmUser) -> None:
    data = os.urandom(60_000)
    with subprocess.Popen(
        [sys.executable, "-m", "chisel", "run", "--on", "1", "cat"], cwd=user.cwd, env=user.environ(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        process.stdin.write(data[:30_000])
        process.stdin.flush()
        first = process.stdout.read(1000)
        os.kill(user.pid, signal.SIGKILL)
        process.stdin.write(data[30_000:])
        process.stdin.close()
        assert first + process.stdout.read() == data
        assert process.wait(60) == 0


def test_a_second_agent_is_not_started(user: WarmUser) -> None:
    before = user.pid
    for _ in range(2):
        assert user.chisel("run", "--on", "1", "true", CHISEL_AGENT="").status == 0
    assert user.pid == before


def test_off_and_no_agent_do_without(user: WarmUser) -> None:
    before = user.served
    assert user.does("run", "--on", "1", "echo a", CHISEL_AGENT="off").out == b"a\n"
    assert user.does("run", "--on", "1", "--no-agent", "echo a").out == b"a\n"
    assert user.served == before


def test_two_hundred_commands_at_once_are_all_right(user: WarmUser) -> None:
    """The droplet's ten sessions at a time are enough for all of them."""
    until(lambda: (user.facts() or {})["running"] == 0, what="the end of what was cut off before")
    before = user.served
    with ExitStack() as ending:
        began = [user.start("run", "--on", "1", f"echo {number}; exit {number % 100}") for number in range(200)]
        for process in began:
            ending.enter_context(process)
            ending.callback(process.kill)
        for number, process in enumerate(began):
            out, err = process.communicate(timeout=150)
            assert (out, process.returncode) == (b"%d\n" % number, number % 100), err
            # So many processes may keep a small machine from hearing a droplet for seconds: then that is said.
            assert all(b"silent for" in line or b"connected again" in line for line in err.splitlines()), err
    # One that does not hear the agent within half a second goes without it.
    assert before + 100 <= user.served <= before + 200
