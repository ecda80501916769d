"""The whole loop as its users meet it: one process a command, argv in; stdout, stderr and status out."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import pytest

from tests.support import Ended, User, processes_with, until

pytestmark = pytest.mark.timeout(180)
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "vector_add"


def bytes_of(ended: Ended, stream: str = "stdout", host: str | None = None) -> bytes:
    """Put an output stream together from `--json` events, checking that its offsets have no gap."""
    found = b""
    for event in ended.of("output"):
        if event["stream"] == stream and host in {None, event["host"]}:
            assert event["offset"] == len(found)
            found += event["text"].encode() if "text" in event else base64.b64decode(event["base64"])
    return found


def test_the_whole_loop(user_of_either: User) -> None:
    user = user_of_either
    shutil.copytree(EXAMPLE, user.cwd, dirs_exist_ok=True)
    assert "droplets" in user.does("auth").out.decode()
    user.does("up", "-n", "2")
    first = user.does("sync", "--all", "--json").of("sync_ended")
    assert {event["result"]["error"] for event in first} == {None}
    assert all(event["result"]["sent_files"] >= 3 for event in first)
    again = user.does("sync", "--all", "--json").of("sync_ended")
    assert [event["result"]["sent_files"] for event in again] == [0, 0]

    ran = user.does("run", "--all", "make -s && ./bench.sh")
    assert b"chisel-dev-1 | " in ran.out
    assert "PASSED" in ran.err
    assert b"vector_add,1048576" in ran.out

    profiled = user.does("profile", "--on", "1", "--out", "prof", "--json", "./build/vector_add")
    kernels = json.loads(profiled.out.splitlines()[-1])["kernels"]
    assert kernels[0]["total_ns"] >= kernels[-1]["total_ns"] > 0
    assert any("vector_add" in kernel["name"] for kernel in kernels)
    assert {"kernels.csv", "trace.json.gz", "raw"} <= {path.name for path in (user.cwd / "prof").iterdir()}

    user.does("pull", "--all", "out/")
    assert (user.cwd / "chisel-dev-1" / "out" / "results.csv").read_bytes()
    user.does("pull", "--on", "2", "out/")
    assert (user.cwd / "out" / "results.csv").read_bytes()

    status = user.does("status", "--json").of("status")[0]["pools"][0]
    assert [one["is_reachable"] for one in status["droplets"]] == [True, True]
    bills = user.does("down", "--all", "--yes", "--json").of("billed")
    assert [bill["bill"]["error"] for bill in bills] == [None, None]
    assert user.does("status", "--json").of("status")[0]["pools"] == []


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("true", 0),
        ("false", 1),
        ("exit 42", 42),
        ("exit 137", 137),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
        ("nosuch", 127),
    ],
)
def test_exit_statuses_come_back_exactly(one: User, line: str, status: int) -> None:
    ended = one.chisel("run", "--json", line)
    assert ended.status == status
    assert ended.of("ended")[0] == {"v": 1, "event": "ended", "status": status, "source": "remote"}
    assert one.chisel("run", line).status == status


NASTY = b"[/path] [red]x[/red] \x1b[2J\x1b]0;title\x07 \xff\xfe \xe2\x82 \xc3\r\x00end\n" * 3


def test_output_comes_back_byte_for_byte(one: User) -> None:
    (one.cwd / "nasty").write_bytes(NASTY)
    one.does("sync")
    assert one.does("run", "cat nasty").out == NASTY
    assert one.does("run", "cat nasty >&2").err.encode() == NASTY.decode("utf-8", "replace").encode()
    assert bytes_of(one.does("run", "--json", "cat nasty")) == NASTY
    torn = "i=0; while [ $i -lt 20 ]; do head -c $((i+1)) nasty | tail -c 1; i=$((i+1)); done"
    assert bytes_of(one.does("run", "--json", torn)) == NASTY[:20]


def test_several_words_are_exactly_those_words(one: User) -> None:
    words = ["a b", "", "'", '"', "$HOME", "`id`", "*", "é", "-x", "a\nb"]
    assert one.does("run", "--", "printf", "[%s]", *words).out.decode() == "".join(f"[{word}]" for word in words)


def test_a_command_keeps_its_own_options(one: User) -> None:
    assert one.does("run", "echo", "--json", "--all", "-n").out == b"--json --all -n\n"


def test_environment_goes_along(one: User) -> None:
    ended = one.does("run", "-e", "A=1 2", "-e", "LOCAL", 'echo "$A,$LOCAL"', LOCAL="here")
    assert ended.out == b"1 2,here\n"


def test_commands_run_where_the_user_stands(one: User) -> None:
    (one.cwd / "kernels" / "deep").mkdir(parents=True)
    (one.cwd / "kernels" / "deep" / "x").write_text("found\n")
    one.does("sync", "kernels")
    assert one.does("run", "cat", "deep/x").out == b"found\n"
    inside = User(one.home, one.cwd / "kernels" / "deep", one.cloud)
    # The project is known by its directory: a git top level makes the two places one project.
    subprocess.run(["git", "init", "-q", str(one.cwd)], check=True)
    inside.does("sync", str(one.cwd / "kernels"))
    assert inside.does("run", "cat", "x").out == b"found\n"


def test_sync_follows_deletions_and_honours_gitignore(one: User) -> None:
    (one.cwd / ".gitignore").write_text("*.o\n")
    for name in ("keep", "drop", "skip.o"):
        (one.cwd / name).write_text(name)
    one.does("sync")
    one.does("run", "touch built.o")
    (one.cwd / "drop").unlink()
    (one.cwd / "keep").write_text("KEEP")
    one.does("sync")
    assert one.does("run", "ls; cat keep").out == b"built.o\nkeep\nKEEP"


@pytest.fixture
def three(user: User) -> User:
    user.does("up", "-n", "3", "--pool", "bench")
    return user


def test_a_pool_is_never_guessed(three: User) -> None:
    ended = three.chisel("run", "--pool", "bench", "true")
    assert ended.status == 2
    assert "--all" in ended.err
    assert "--on" in ended.err
    assert three.does("run", "--pool", "bench", "--on", "2", "hostname >/dev/null; echo hi").out == b"hi\n"
    assert three.chisel("run", "--pool", "bench", "--on", "9", "true").status == 2


def test_a_pool_gives_the_largest_status_and_every_result(three: User) -> None:
    three.does("run", "--pool", "bench", "--on", "2", "echo 7 > ~/status")
    ended = three.chisel("run", "--pool", "bench", "--all", "--json", "exit $(cat ~/status 2>/dev/null || echo 0)")
    assert ended.status == 7
    assert sorted(event["result"]["status"] for event in ended.of("run_ended")) == [0, 0, 7]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_leaves_no_process(user_of_either: User, number: signal.Signals) -> None:
    user = user_of_either
    user.does("up", "-n", "2", "--pool", "bench")
    mark = f"3{os.getpid()}{int(number)}.25"
    line = f"sleep {mark} & (sleep {mark}; true) & echo ready; sleep {mark}"
    with started(user, "run", "--pool", "bench", "--all", line) as process:
        ready = read_until(process.stdout, b"ready", times=2)
        until(lambda: len(asleep(mark)) >= 6, what="six sleeping processes")
        process.send_signal(number)
        began = time.monotonic()
        out, err = process.communicate(timeout=20)
        took = time.monotonic() - began
    assert process.returncode == 128 + number, err
    assert asleep(mark) == []
    assert took < 5, "a second on an idle machine; this bound only catches a hang"
    assert (ready + out).count(b"ready") == 2


@pytest.mark.parametrize("moment", range(1, 7))
def test_a_run_interrupted_while_it_starts_leaves_no_process(one: User, moment: int) -> None:
    """The signal strikes when so many of its processes exist, chisel's own among them."""
    mark = f"5{os.getpid()}{moment}.75"
    with started(one, "run", f"sleep {mark} & (sleep {mark}; true) & sleep {mark}") as process:
        until(lambda: len(processes_with(f"sleep {mark}")) >= moment, what=f"{moment} processes")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode in {143, -signal.SIGTERM}
    until(lambda: not processes_with(f"sleep {mark}"), what="the end of the rest", deadline_s=2)


def test_nohup_keeps_it_running(one: User) -> None:
    line = "echo ready; until [ -e ~/go ]; do sleep 0.05; done; echo done"
    with started(one, "run", line, before=["nohup"]) as process:
        ready = read_until(process.stdout, b"ready")
        process.send_signal(signal.SIGHUP)
        one.does("run", "touch ~/go")
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert ready + out == b"ready\ndone\n"


def test_a_second_interrupt_kills_what_ignores_the_first(one: User) -> None:
    mark = f"4{os.getpid()}.5"
    with started(one, "run", f"trap '' INT; echo ready; sleep {mark}; sleep {mark}") as process:
        read_until(process.stdout, b"ready")
        process.send_signal(signal.SIGINT)
        read_until(process.stderr, b"interrupted")
        until(lambda: bool(asleep(mark)), what="the sleeper that ignores it")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 130
    assert asleep(mark) == []


@contextlib.contextmanager
def started(user: User, *words: str, before: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """Start chisel, by the command `before` if there is one; it is gone and its pipes are closed afterwards."""
    with user.start(*words, before=before) as process:
        try:
            yield process
        finally:
            process.kill()


def asleep(mark: str) -> list[str]:
    return [line for line in processes_with(mark) if line.startswith("sleep ")]


def read_until(stream: IO[bytes] | None, word: bytes, times: int = 1) -> bytes:
    assert stream is not None
    found = b""
    while found.count(word) < times:
        piece = os.read(stream.fileno(), 4096)
        assert piece, found
        found += piece
    return found


def test_down_without_a_terminal_needs_yes(one: User) -> None:
    ended = one.chisel("down")
    assert ended.status == 5
    assert "--yes" in ended.err
    assert one.does("run", "echo alive").out == b"alive\n"


def test_a_pool_that_is_not_up_is_named(user: User) -> None:
    ended = user.chisel("run", "--pool", "nothing-here", "true")
    assert ended.status == 3
    assert "chisel up --pool nothing-here" in ended.err
    as_json = user.chisel("run", "--pool", "nothing-here", "--json", "true")
    assert [event["event"] for event in as_json.events] == ["error", "ended"]
    assert as_json.of("ended")[0]["source"] == "chisel"


def test_a_wrong_token_is_credentials(user: User) -> None:
    ended = user.chisel("auth", CHISEL_DO_TOKEN="wrong-token-0123456789")
    assert ended.status == 3
    assert "wrong-token" not in ended.err + ended.out.decode()


def test_up_again_reuses_and_never_destroys(one: User) -> None:
    before = one.does("status", "--json").of("status")[0]["pools"][0]["droplets"][0]["droplet_id"]
    assert "reused" in one.does("up").err
    one.does("up", "-n", "2")
    assert "more than the 1 asked for" in one.does("up", "-n", "1").err
    droplets = one.does("status", "--json").of("status")[0]["pools"][0]["droplets"]
    assert [droplets[0]["droplet_id"], len(droplets)] == [before, 2]


def test_sweep_shows_before_it_acts(one: User) -> None:
    one.does("up", "--pool", "bench", "--ttl", "1s")
    items = one.does("sweep", "--json").of("sweep")[0]["items"]
    mine = {item["name"]: item["is_selected"] for item in items if item["owner"] == "you"}
    assert mine == {"chisel-dev-1": False, "bench-1": True}
    assert one.does("run", "--pool", "bench", "true").status == 0
    one.does("sweep", "--yes")
    assert one.chisel("run", "--pool", "bench", "true").status == 3
    assert one.does("run", "true").status == 0


def test_the_token_is_nowhere_but_where_it_belongs(one: User) -> None:
    token = one.cloud["CHISEL_DO_TOKEN"]
    one.does("sync")
    one.does("run", "env; cat /proc/self/environ")
    assert token not in one.does("run", "env").out.decode()
    for path in one.home.rglob("*"):
        if path.is_file():
            assert token.encode() not in path.read_bytes(), path


@pytest.mark.timeout(300)
@pytest.mark.parametrize("make_user", ["off"], indirect=True, ids=["alone"])
def test_thirty_two_droplets_at_once_lose_and_tear_nothing(user: User) -> None:
    user.does("up", "-n", "32", "--pool", "wide")
    line = "for i in $(seq 1 52429); do echo $i; done | awk '{printf \"%0100d\\n\", $1}' | head -c 5295329"
    # 32 servers and their client share a few cores here: a login may take longer than a droplet is waited for
    ended = user.does("run", "--pool", "wide", "--all", "--retry", "3", line)
    per_host: dict[bytes, int] = {}
    for text in ended.out.splitlines():
        name, bar, rest = text.partition(b" | ")
        assert bar
        assert len(rest) == 100, text
        number = int(rest)
        assert number == per_host.get(name.strip(), 0) + 1
        per_host[name.strip()] = number
    assert len(per_host) == 32
    assert set(per_host.values()) == {52429}
