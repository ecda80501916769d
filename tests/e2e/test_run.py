"""`chisel run` and those beside it as their users meet them: streams, input, ends, detached runs, terminals."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from termios import ECHO, ICANON, TIOCSWINSZ, tcgetattr

import pytest

from chisel.sandbox.pytest import sandbox
from tests.e2e.test_loop import bytes_of
from tests.support import Ended, User, processes_with, until
from tests.torture.cuts import through_proxies
from tests.torture.proxy import Proxy

pytestmark = pytest.mark.timeout(180)


Trio = tuple[User, dict[str, Proxy]]


@pytest.fixture(scope="module", params=["off", "on"], ids=["alone", "by-agent"])
def trio(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    """Give a user with three droplets, each behind a network that can be made bad; with and without the agent."""
    place = tmp_path_factory.mktemp("run")
    for name in ("home", "work"):
        (place / name).mkdir()
    with sandbox(place / "cloud", droplets=kind_of_droplet(), per_minute=10**6, per_hour=10**6) as cloud:
        user = User(home=place / "home", cwd=place / "work", cloud=cloud.environ, agent=request.param)
        user.does("up", "-n", "3", "--idle", "0")
        proxies = through_proxies(user)
        user.does("sync", "--all")
        yield user, proxies
        user.chisel("agent", "stop")
        for proxy in proxies.values():
            proxy.close()


def kind_of_droplet() -> str:
    """Return the more real kind that this machine can play; `test_loop` and `test_cuts` go through both."""
    return "openssh" if os.geteuid() == 0 and shutil.which("sshd", path="/usr/sbin:/sbin") else "asyncssh"


@pytest.fixture
def user(trio: Trio) -> User:
    for proxy in trio[1].values():
        proxy.behave()
    return trio[0]


@pytest.fixture
def network(trio: Trio) -> dict[str, Proxy]:
    return trio[1]


NAME = "${HOME%/home/root}"
WHO = f"basename {NAME}"
"""What differs between droplets of a sandbox: the directory that each lives in."""


def with_input(user: User, data: bytes, *words: str) -> Ended:
    ended = subprocess.run(
        [sys.executable, "-m", "chisel", *words], input=data, capture_output=True, cwd=user.cwd, env=user.environ(),
        timeout=60, check=False,
    )  # fmt: skip
    return Ended(ended.returncode, ended.stdout, ended.stderr.decode())


# -- streams


def test_equal_output_is_folded_with_the_droplets_that_gave_it(user: User) -> None:
    ended = user.does("run", "--all", "--fold", "echo same; echo err >&2")
    assert ended.out == b"--- chisel-dev-1, chisel-dev-2, chisel-dev-3 (3) ---\nsame\n"
    assert ended.err.count("err\n") == 1


def test_a_diff_shows_only_what_differs(user: User) -> None:
    line = f"seq 5; [ $({WHO}) = {first_droplet(user)} ] && echo odd; seq 6 9"
    out = user.does("run", "--all", "--diff", line).out.decode().split("\n")
    assert out[0] == "--- chisel-dev-2, chisel-dev-3 (2) ---"
    assert out[1:10] == [str(number) for number in range(1, 10)]
    assert "+odd" in out
    assert "--- chisel-dev-1 ---" in out
    assert not [line for line in out if line.startswith("-") and not line.startswith("---")]


def first_droplet(user: User) -> str:
    return user.does("run", "--on", "1", WHO).out.decode().strip()


def test_a_group_is_shown_when_it_ends(user: User) -> None:
    line = f"echo begin; [ $({WHO}) = {first_droplet(user)} ] && sleep 1; echo end"
    out = user.does("run", "--all", "--group", line).out.decode().split("\n")
    assert [row for row in out if row.startswith("---")][-1] == "--- chisel-dev-1 ---"
    assert [row for row in out if row and not row.startswith("---")] == ["begin", "end"] * 3


def test_every_stream_has_a_file_of_its_own(user: User) -> None:
    user.does("run", "--all", "--out-dir", "outputs", "head -c 200000 /dev/zero; echo bad >&2")
    found = {path.name: path.read_bytes() for path in (user.cwd / "outputs").iterdir()}
    assert len(found) == 6
    assert {len(found[f"chisel-dev-{number}.stdout"]) for number in (1, 2, 3)} == {200_000}
    assert {found[f"chisel-dev-{number}.stderr"] for number in (1, 2, 3)} == {b"bad\n"}


def test_without_a_prefix_lines_of_several_droplets_stay_whole(user: User) -> None:
    line = "for i in 1 2 3 4 5 6 7 8; do printf aaaa; sleep 0.01; echo bbbb; done"
    out = user.does("run", "--all", "--prefix", "none", line).out
    assert out == b"aaaabbbb\n" * 24


def test_ways_to_show_exclude_each_other(user: User) -> None:
    ended = user.chisel("run", "--all", "--fold", "--group", "true")
    assert ended.status == 2
    assert "exclude each other" in ended.err


# -- standard input


def test_input_goes_to_one_droplet_as_it_is(user: User) -> None:
    data = os.urandom(3_000_000)
    assert with_input(user, data, "run", "--on", "2", "cat").out == data


def test_input_is_broadcast_on_demand_only(user: User) -> None:
    data = b"line\n" * 100_000
    ended = with_input(user, data, "run", "--all", "--stdin", "broadcast", "--fold", "wc -c")
    assert ended.out.split() == b"--- chisel-dev-1, chisel-dev-2, chisel-dev-3 (3) ---\n500000\n".split()
    assert with_input(user, data, "run", "--all", "--fold", "wc -c").out.split()[-1] == b"0"
    assert with_input(user, data, "run", "--on", "1", "--stdin", "none", "wc -c").out == b"0\n"


def test_a_command_that_reads_no_input_ends_all_the_same(user: User) -> None:
    with user.start("run", "--on", "1", "sleep 0.3; exit 4") as process:
        process.communicate(timeout=30)
    assert process.returncode == 4
    assert with_input(user, bytes(5_000_000), "run", "--on", "1", "head -c 3; exit 4").status == 4


# -- ends


def test_a_time_limit_is_status_124(user: User) -> None:
    ended = user.chisel("run", "--on", "1", "--timeout", "1s", "--json", "sleep 30")
    assert ended.status == 124
    assert ended.of("run_ended")[0]["result"]["error"] == "ended after its time limit"
    assert ended.of("ended")[0]["source"] == "chisel"


def test_the_others_are_stopped_when_enough_have_failed(user: User) -> None:
    line = f"[ $({WHO}) = {first_droplet(user)} ] && exit 3; sleep 30"
    began = time.monotonic()
    ended = user.chisel("run", "--all", "--fail-fast", line)
    assert (ended.status, time.monotonic() - began < 15) == (3, True), ended.err
    assert "stopped because chisel-dev-1 failed" in ended.err
    kept = user.chisel("run", "--all", "--max-fail", "2", f"[ $({WHO}) = {first_droplet(user)} ] && exit 3; sleep 1")
    assert kept.status == 3
    assert "stopped" not in kept.err


def test_a_table_says_how_each_ended(user: User) -> None:
    line = f"[ $({WHO}) = {first_droplet(user)} ] && kill -9 $$; head -c 1234567 /dev/zero >&2"
    ended = user.chisel("run", "--all", line, COLUMNS="120")
    lines = ended.err.replace("\0", "").split("\n")
    rows = [line.split() for line in lines if line.startswith("chisel-dev-") and "|" not in line]
    assert [row[1] for row in rows] == ["137", "0", "0"]
    assert "signal 9" in ended.err
    assert ended.status == 137


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_no_process_outlives_its_chisel(user: User, number: int) -> None:
    mark = f"sleep 721.{os.getpid()}"
    with user.start("run", "--all", f"{mark} & setsid {mark} & {mark}") as process:
        until(lambda: len(processes_with(mark)) >= 9, what="the commands", deadline_s=30)
        process.send_signal(number)
        process.communicate(timeout=30)
        until(lambda: not processes_with(f" {mark}") and not is_there(mark), what="their end", deadline_s=4)
    assert process.returncode == 128 + number


def is_there(mark: str) -> list[str]:
    return [line for line in processes_with(mark) if line.startswith("sleep")]


def test_a_killed_chisel_leaves_nothing_after_twelve_seconds(user: User) -> None:
    mark = f"sleep 722.{os.getpid()}"
    with user.start("run", "--all", f"setsid -f {mark}; {mark}") as process:
        until(lambda: len(is_there(mark)) >= 6, what="the commands", deadline_s=30)
        process.kill()
        began = time.monotonic()
        until(lambda: not is_there(mark), what="their end", deadline_s=25)
        if user.agent == "off":
            assert time.monotonic() - began > 5, "a client may come back for some seconds"


# -- a bad network


def test_a_frozen_droplet_is_named_and_the_others_do_not_wait(user: User, network: dict[str, Proxy]) -> None:
    line = "for i in $(seq 30); do echo $i; sleep 0.05; done"
    with user.start("run", "--all", "--json", line) as process:
        assert process.stdout
        ended, named_s, frozen = {}, 0.0, 0.0
        for text in process.stdout:
            event = json.loads(text)
            if event["event"] == "output" and event["host"] == "chisel-dev-2" and not frozen:
                frozen = time.monotonic()
                network["chisel-dev-2"].swallow()
            elif event["event"] == "link_lost":
                assert event["host"] == "chisel-dev-2"
                named_s = time.monotonic() - frozen
            elif event["event"] == "run_ended":
                ended[event["host"]] = event["result"]
        process.wait(30)
    assert process.returncode == 0
    assert {host: one["stdout_bytes"] for host, one in ended.items()} == dict.fromkeys(network, 81)
    assert [ended[f"chisel-dev-{number}"]["links"] for number in (1, 2, 3)] == [0, 1, 0]
    assert 1 < named_s < 6, "the goal is 3.5 s; this machine is shared"


@pytest.mark.parametrize("way", ["refused", "silent"])
def test_a_droplet_that_is_not_there_is_named_and_the_others_run(
    user: User, network: dict[str, Proxy], way: str
) -> None:
    proxy = network["chisel-dev-3"]
    if way == "refused":
        proxy.refuse(60)
    else:
        proxy.stall(1, 60)
    began = time.monotonic()
    ended = user.chisel("run", "--all", "echo fine")
    assert ended.status == 255
    assert ended.out.count(b"fine") == 2
    assert "error: chisel-dev-3: " in ended.err
    assert ("silent for 3 s" if way == "silent" else "connecting failed") in ended.err
    assert time.monotonic() - began < 10


def test_without_resume_a_lost_link_is_the_end(user: User, network: dict[str, Proxy]) -> None:
    mark = f"sleep 723.{os.getpid()}"
    with user.start("run", "--on", "1", "--no-resume", f"echo up; {mark}") as process:
        until(lambda: is_there(mark), what="the command", deadline_s=30)
        network["chisel-dev-1"].reset()
        _, said = process.communicate(timeout=30)
    assert process.returncode == 255
    assert b"lost" in said or b"ended the session" in said
    until(lambda: not is_there(mark), what="its end")


def test_a_droplet_that_fails_is_tried_again(user: User, network: dict[str, Proxy]) -> None:
    network["chisel-dev-1"].refuse(2.0)
    ended = user.does("run", "--on", "1", "--retry", "5", "echo there")
    assert ended.out == b"there\n"
    assert "trying again (1 of 5)" in ended.err
    assert user.chisel("run", "--on", "1", "--retry", "5", "exit 3").status == 3


# -- detached


def test_a_detached_run_is_shown_followed_and_ended_from_elsewhere(user: User) -> None:
    go = Path(f"/tmp/go{os.getpid()}")
    line = f"echo one; while [ ! -e {go} ]; do sleep 0.05; done; rm {go}; echo two; exit 7"
    run_id = user.does("run", "--on", "1", "-d", "--cwd", "/tmp", line).out.decode().strip()
    until(lambda: user.does("logs", run_id).out == b"one\n", what="the first line", deadline_s=30)
    status = user.does("status", "--json").of("status")[0]["pools"][0]["droplets"][0]
    assert [run["is_running"] for run in status["runs"] if run["run_id"] == run_id] == [True]
    with user.start("attach", run_id) as process:
        assert process.stdout
        assert process.stdout.readline() == b"one\n"
        go.touch()
        rest, _ = process.communicate(timeout=30)
    assert (rest, process.returncode) == (b"two\n", 7)
    ended = user.does("logs", run_id)
    assert ended.out == b"one\ntwo\n"
    assert "it ended with status 7" in ended.err


def test_who_attaches_to_a_detached_run_may_leave_it(user: User) -> None:
    mark = f"sleep 724.{os.getpid()}"
    run_id = user.does("run", "--all", "-d", f"echo up; {mark}").out.decode().strip()
    with user.start("attach", run_id) as process:
        assert process.stdout
        assert b"up" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert len(is_there(mark)) == 3
    with user.start("logs", "-f", run_id) as process:
        assert process.stdout
        assert b"up" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert len(is_there(mark)) == 3
    ended = user.does("kill", run_id)
    assert is_there(mark) == []
    assert ended.err.count("it ended with status 143") == 3


def test_an_unknown_run_is_said_with_those_that_are_known(user: User) -> None:
    ended = user.chisel("logs", "nosuch")
    assert ended.status == 2
    assert "there is no run `nosuch`" in ended.err


# -- environment


def test_the_environment_comes_from_files_and_options(user: User) -> None:
    (user.cwd / "vars").write_text("# comment\n\nA=1\nexport B='two words'\nC=\"$A\"\n")
    ended = user.does("run", "--on", "1", "--env-file", "vars", "-e", "A=9", 'echo "$A|$B|$C"')
    assert ended.out == b"9|two words|$A\n"
    (user.cwd / "vars").write_text("no pair\n")
    assert "line 1" in user.chisel("run", "--env-file", "vars", "true").err


def test_secrets_are_on_no_command_line(user: User) -> None:
    secret = f"s3cret-{os.getpid()}"
    with user.start("run", "--on", "1", "-e", "S", "echo up; sleep 1", S=secret) as process:
        assert process.stdout
        process.stdout.readline()
        assert not [line for line in processes_with(secret) if "chisel" not in line]
        process.communicate(timeout=30)


def test_one_connection_syncs_runs_and_pulls(user: User) -> None:
    (user.cwd / "input").write_text("data\n")
    user.does("run", "--on", "1", "-s", "--pull", "made", "cat input > made")
    assert (user.cwd / "made").read_text() == "data\n"


# -- a terminal


def on_terminal(user: User, *words: str) -> tuple[int, int]:
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(user.cwd)
        os.execve(sys.executable, [sys.executable, "-m", "chisel", *words], user.environ())
    ioctl(master, TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))
    return pid, master


def read_until(master: int, mark: bytes, deadline_s: float = 30.0) -> bytes:
    seen, end = b"", time.monotonic() + deadline_s
    while mark not in seen:
        assert select.select([master], [], [], max(0.0, end - time.monotonic()))[0], seen
        try:
            seen += os.read(master, 65536)
        except OSError as error:
            raise AssertionError(f"the end came after {seen!r}") from error
    return seen


def ended_with(pid: int, master: int) -> int:
    while True:
        try:
            if not os.read(master, 65536):
                break
        except OSError:
            break
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_terminal_reaches_through(user: User) -> None:
    line = "trap 'echo caught; exit 9' INT; stty size; while :; do sleep 0.05; done"
    pid, master = on_terminal(user, "run", "--on", "1", "--tty", line)
    read_until(master, b"30 90")
    os.write(master, b"\x03")
    read_until(master, b"caught")
    assert ended_with(pid, master) == 9


def test_sizes_follow_and_the_terminal_is_as_it_was(user: User) -> None:
    line = "trap 'stty size' WINCH; echo up; while :; do sleep 0.05; done"
    pid, master = on_terminal(user, "run", "--on", "1", "--tty", line)
    read_until(master, b"up")
    assert not tcgetattr(master)[3] & (ECHO | ICANON)
    ioctl(master, TIOCSWINSZ, struct.pack("HHHH", 41, 101, 0, 0))
    read_until(master, b"41 101")
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 20
    while not tcgetattr(master)[3] & ECHO and time.monotonic() < end:
        select.select([master], [], [], 0.05)
    assert tcgetattr(master)[3] & ECHO
    assert tcgetattr(master)[3] & ICANON
    assert ended_with(pid, master) == 143


def test_tilde_and_dot_leave(user: User) -> None:
    mark = f"sleep 725.{os.getpid()}"
    pid, master = on_terminal(user, "run", "--on", "1", "--tty", f"echo up; {mark}")
    read_until(master, b"up")
    os.write(master, b"\r~.")
    assert ended_with(pid, master) == 129
    until(lambda: not is_there(mark), what="its end")


@pytest.mark.real_part("gdb")
def test_a_debugger_works_as_at_home(user: User) -> None:
    pid, master = on_terminal(user, "run", "--on", "1", "--tty", "gdb -q -nx /bin/true")
    read_until(master, b"(gdb) ")
    os.write(master, b"print 6*7\r")
    read_until(master, b"$1 = 42")
    os.write(master, b"quit\r")
    assert ended_with(pid, master) == 0


def test_a_terminal_needs_one(user: User) -> None:
    ended = user.chisel("run", "--on", "1", "--tty", "true")
    assert ended.status == 2
    assert "--tty needs a terminal" in ended.err


def test_output_for_machines_names_every_byte(user: User) -> None:
    ended = user.does("run", "--all", "--cwd", "/tmp", "--json", "printf 'a\\377'; printf b >&2")
    for number in (1, 2, 3):
        assert bytes_of(ended, "stdout", f"chisel-dev-{number}") == b"a\xff"
        assert bytes_of(ended, "stderr", f"chisel-dev-{number}") == b"b"


# -- what a start loads


@pytest.mark.parametrize("words", [("run", "true"), ("sync",), ("pull", "made")])
def test_the_loop_on_a_pool_that_is_up_needs_no_api(user: User, words: tuple[str, ...]) -> None:
    (user.cwd / "input").write_text("data\n")
    user.does("run", "--on", "1", "-s", "touch made")
    code = (
        "import sys\nfrom chisel.cli.app import run_command\n"
        f"status = run_command({[words[0], '--on', '1', *words[1:]]!r})\n"
        "print(status, *sorted({m.split('.')[0] for m in sys.modules} & {'pydo', 'azure', 'rich', 'requests'}))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=user.cwd,
        env=user.environ(),
        check=True,
        timeout=60,
    )
    assert ended.stdout.splitlines()[-1] == "0"


# -- the system's own ssh


@pytest.mark.real_part("ssh")
def test_the_systems_ssh_knows_what_chisel_knows(user: User) -> None:
    ended = user.does("ssh", "2", "--", f"{WHO}; exit 0")
    assert ended.out == user.does("run", "--on", "2", WHO).out
    assert user.chisel("ssh", "2", "--", "exit 7").status == 7
    assert with_input(user, b"in\n", "ssh", "chisel-dev-1", "--", "cat").out == b"in\n"


@pytest.mark.real_part("ssh")
def test_another_host_key_stops_the_systems_ssh(user: User) -> None:
    user.does("ssh", "1", "--", "true")
    words = ["-o", f"UserKnownHostsFile={user.home}/other"]
    user.does("ssh", "--config")
    config = user.home / ".config" / "chisel" / "ssh_config"
    known = (user.home / ".cache" / "chisel" / "known_hosts").read_text().split("\n")
    (user.home / "other").write_text(f"{known[0].split()[0]} {' '.join(known[1].split()[1:])}\n")
    good = subprocess.run(["ssh", "-F", str(config), "chisel-dev-1", "echo in"], capture_output=True, check=False)
    bad = subprocess.run(
        ["ssh", "-F", str(config), *words, "chisel-dev-1", "echo in"], capture_output=True, check=False
    )
    assert (good.returncode, good.stdout) == (0, b"in\n")
    assert (bad.returncode, bad.stdout) == (255, b"")


@pytest.mark.real_part("ssh")
def test_host_blocks_follow_the_pool(user: User) -> None:
    user.does("ssh", "--config")
    config = user.home / ".config" / "chisel" / "ssh_config"
    assert config.read_text().count("\nHost ") == 3
    assert "StrictHostKeyChecking yes" in config.read_text()
    user.does("up", "--pool", "bench", "--idle", "0")
    assert "Host bench-1" in config.read_text()
    user.does("down", "--pool", "bench", "--yes")
    assert "Host bench-1" not in config.read_text()
    assert user.chisel("ssh", "1", "-L", "99999").status == 2
    assert user.chisel("ssh").status == 2


def test_the_demo_asks_nothing_of_who_tries_it_in_a_terminal(tmp_path: Path) -> None:
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    pid, master = on_terminal(User(home=tmp_path / "home", cwd=tmp_path / "work"), "demo", "-n", "1")
    try:
        seen = read_until(master, b"the sandbox's bill", 100.0)
    except AssertionError:
        os.kill(pid, signal.SIGTERM)
        raise
    assert b"0 droplets are left of 1" in seen
    assert ended_with(pid, master) == 0
