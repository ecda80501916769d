"""A machine that slept, an agent that was stopped, clocks that jump: nothing hangs, nothing ends early or too late."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from chisel.agent import warm
from tests.agent.conftest import WarmUser
from tests.agent.test_life import another
from tests.support import until

pytestmark = pytest.mark.timeout(180)
STOPPED_S = 3 * warm.LOOK_EVERY_S + 3


@pytest.fixture
def sleeper(someone: WarmUser, tmp_path: Path) -> Iterator[WarmUser]:
    """Give somebody whose agent is stopped at will."""
    user = another(someone, tmp_path)
    user.warm_up()
    yield user
    until(
        lambda: user.facts() is not None, what="the agent, or the one that a command has started since", deadline_s=20
    )
    facts = user.facts()
    with suppress(ProcessLookupError):
        if facts is not None:
            os.kill(int(str(facts["pid"])), signal.SIGCONT)
    user.end_agent()


def log(user: WarmUser) -> str:
    return (user.home / ".cache/chisel/agent.log").read_text()


def sleep_of(pid: int, seconds: float = STOPPED_S) -> None:
    """Have a process sleep as a laptop does: the time itself is what is tested."""
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)  # noqa: TID251 - the sleep of the machine
    finally:
        os.kill(pid, signal.SIGCONT)


def test_after_a_sleep_the_next_command_works_and_says_nothing(sleeper: WarmUser) -> None:
    pid, before = sleeper.pid, sleeper.served
    sleep_of(pid)
    until(lambda: sleeper.facts() is not None, what="the agent", deadline_s=20)
    ended = sleeper.does("run", "--on", "1", "echo here")
    assert (ended.out, ended.err) == (b"here\n", "")
    assert (sleeper.pid, sleeper.served) == (pid, before + 1)
    assert "no time for" in log(sleeper)


def test_a_sleep_under_a_running_command_costs_it_nothing(sleeper: WarmUser) -> None:
    """The agent and its client sleep, as the whole laptop does; the command goes on there."""
    line = "for i in $(seq 100); do echo out $i; sleep 0.05; done; exit 5"
    with sleeper.start("run", "--on", "1", line) as process:
        assert process.stdout
        first = process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        try:
            sleep_of(sleeper.pid)
        finally:
            process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, first + out) == (5, b"".join(b"out %d\n" % number for number in range(1, 101)))
    assert all("connect" in line for line in err.decode().splitlines()), "it waited: that may be said"


def test_a_stopped_agent_that_had_greeted_is_not_waited_for(sleeper: WarmUser) -> None:
    """It is stopped between its greeting and the call's first answer; the command runs once."""
    pid = sleeper.pid
    script = (
        "import os, signal, sys\n"
        "from chisel.agent import wire\n"
        "from chisel.entry import main\n"
        "before = wire.connect\n"
        "def connect(environ):\n"
        "    found = before(environ)\n"
        "    os.kill(int(sys.argv.pop()), signal.SIGSTOP)\n"
        "    return found\n"
        "wire.connect = connect\n"
        "main(sys.argv[1:-1])\n"
    )
    words = ["run", "--on", "1", "echo once >> ~/greeted; wc -l < ~/greeted"]
    try:
        with subprocess.Popen(
            [sys.executable, "-c", script, *words, str(pid)], cwd=sleeper.cwd, env=sleeper.environ(),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            try:
                out, err = process.communicate(timeout=40)
            finally:
                process.kill()
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    assert (process.returncode, out.split()) == (0, [b"1"]), err


def test_an_agent_that_is_stopped_under_a_command_costs_it_nothing(sleeper: WarmUser) -> None:
    """It alone is stopped, and stays so: the command goes on without it, with every byte."""
    line = "for i in $(seq 60); do echo out $i; sleep 0.05; done; exit 5"
    with sleeper.start("run", "--on", "1", line) as process:
        assert process.stdout
        first = process.stdout.readline()
        os.kill(sleeper.pid, signal.SIGSTOP)
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, first + out) == (5, b"".join(b"out %d\n" % number for number in range(1, 61)))


def test_a_clock_that_jumps_means_neither_sleep_nor_waking(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the agent decides by time goes by a clock that nobody sets; by how far the other one jumped is nothing."""
    for jump_s in (-30 * 86400.0, 30 * 86400.0):
        true_s = time.time()
        before = warm.now_s()
        monkeypatch.setattr(time, "time", lambda jumped=true_s + jump_s: jumped)
        assert 0 <= warm.now_s() - before < 5
