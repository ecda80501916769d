"""An agent's life: who may call, what makes it go, what takes its place, and that nothing waits for a dead one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from chisel.agent import start, wire
from chisel.sandbox.pytest import Sandbox
from tests.agent.conftest import WarmUser, encoded
from tests.support import until

pytestmark = pytest.mark.timeout(120)
QUICK = ("run", "--on", "1", "echo here")


@pytest.fixture
def short() -> Iterator[Path]:
    """Give a directory whose name leaves room for a socket's."""
    place = Path(tempfile.mkdtemp(prefix="ch", dir="/tmp"))
    yield place
    shutil.rmtree(place)


def another(user: WarmUser, place: Path) -> WarmUser:
    """Give the same user with another state: the same droplets, another place."""
    home = place / "home"
    home.mkdir()
    other = WarmUser(home=home, cwd=user.cwd, cloud=user.cloud)
    for part in (".config", ".cache"):
        (home / part / "chisel").mkdir(parents=True, mode=0o700)
    for name in (".config/chisel/id_ed25519", ".config/chisel/id_ed25519.pub", ".cache/chisel/state.json"):
        if (user.home / name).exists():
            (home / name).write_bytes((user.home / name).read_bytes())
            (home / name).chmod(0o600)
    return other


@pytest.fixture
def fresh(someone: WarmUser, tmp_path: Path, short: Path) -> Iterator[WarmUser]:
    other = another(someone, tmp_path)
    other.cloud = {**other.cloud, "XDG_RUNTIME_DIR": str(short)}
    yield other
    other.end_agent()


def test_two_states_have_two_agents(user: WarmUser, fresh: WarmUser) -> None:
    fresh.warm_up()
    assert fresh.pid != user.pid
    assert fresh.place[1] != user.place[1]


def test_many_first_commands_start_one_agent(fresh: WarmUser) -> None:
    began = [fresh.start(*QUICK) for _ in range(5)]
    assert [process.communicate(timeout=60)[0] for process in began] == [b"here\n"] * 5
    until(fresh.is_warm, what="the agent", deadline_s=30)
    log = (fresh.home / ".cache/chisel/agent.log").read_text()
    assert log.count("begins") == 1


def test_its_place_is_private_and_it_leaves_no_core(user: WarmUser) -> None:
    directory, path = user.place
    assert directory.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600
    limits = Path(f"/proc/{user.pid}/limits").read_text()
    assert [line.split()[4] for line in limits.splitlines() if line.startswith("Max core")] == ["0"]
    assert Path(f"/proc/{user.pid}/mem").stat().st_uid == 0, "prctl(2): what is not dumpable belongs to root"
    assert os.readlink(f"/proc/{user.pid}/cwd") == "/"
    token = user.cloud["CHISEL_DO_TOKEN"]
    assert token not in (user.home / ".cache/chisel/agent.log").read_text()
    assert token.encode() not in Path(f"/proc/{user.pid}/cmdline").read_bytes()


def test_a_stale_socket_is_replaced(fresh: WarmUser) -> None:
    fresh.warm_up()
    fresh.end_agent()
    assert fresh.place[1].exists()
    assert fresh.does(*QUICK).out == b"here\n"
    until(fresh.is_warm, what="a new agent", deadline_s=30)


@pytest.mark.parametrize("way", ["mode", "link", "file"])
def test_a_place_that_is_not_ours_alone_is_not_used(fresh: WarmUser, tmp_path: Path, way: str) -> None:
    directory = fresh.place[0]
    directory.parent.mkdir(parents=True, exist_ok=True)
    if way == "mode":
        directory.mkdir()
        directory.chmod(0o777)
    elif way == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        directory.symlink_to(tmp_path / "elsewhere")
    else:
        directory.write_text("")
    for _ in range(2):
        assert fresh.does(*QUICK).out == b"here\n"
    assert not list(directory.iterdir() if directory.is_dir() else [])


@pytest.mark.real_part("root")
def test_a_place_of_another_owner_is_not_used(fresh: WarmUser) -> None:
    directory = fresh.place[0]
    directory.mkdir(parents=True, mode=0o700)
    os.chown(directory, 65534, 65534)
    assert fresh.does(*QUICK).out == b"here\n"
    assert list(directory.iterdir()) == []


@pytest.mark.real_part("root")
def test_another_user_is_not_served(user: WarmUser) -> None:
    path = user.place[1]
    script = (
        "import os, socket, sys\n"
        "found = socket.socket(socket.AF_UNIX); found.connect(sys.argv[1])\n"
        "os.setuid(65534); again = socket.socket(socket.AF_UNIX)\n"
        "try:\n again.connect(sys.argv[1])\nexcept PermissionError:\n print('refused')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert ended.stdout == "refused\n"


def test_a_log_that_cannot_be_written_is_no_trouble(fresh: WarmUser) -> None:
    (fresh.home / ".cache/chisel/agent.log").mkdir()
    fresh.warm_up()
    assert fresh.does(*QUICK).out == b"here\n"
    assert fresh.served == 1


def test_a_stopped_agent_is_not_waited_for(fresh: WarmUser) -> None:
    """As after SIGSTOP, or in a machine that swaps: the command goes its own way, and is not run twice."""
    fresh.warm_up()
    pid = fresh.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        ended = fresh.does("run", "--on", "1", "echo once >> ~/count; wc -l < ~/count")
        assert time.monotonic() - began < 20
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: fresh.facts() is not None, what="the agent to go on", deadline_s=20)
    again = fresh.does("run", "--on", "1", "wc -l < ~/count; rm ~/count")
    assert again.out == ended.out
    assert fresh.pid == pid
    assert fresh.served == 1


def test_an_agent_of_another_version_makes_room_and_finishes_its_commands(fresh: WarmUser) -> None:
    fresh.warm_up()
    before = fresh.pid
    gate = fresh.home / "gate"
    with fresh.start(
        "run", "--on", "1", f"echo up; until [ -e {gate} ]; do sleep 0.1; done; echo end; exit 4"
    ) as running:
        assert running.stdout
        assert running.stdout.readline() == b"up\n"
        wanted = wire.greeting(encoded(fresh.environ()), wire.READY)
        wanted[1] = b"99.0"
        assert wire.reach(encoded(fresh.environ()), wanted) is None
        until(lambda: fresh.facts() is None, what="its leave", deadline_s=20)
        fresh.warm_up()
        assert fresh.pid != before
        assert running.poll() is None
        gate.touch()
        out, _ = running.communicate(timeout=60)
    assert (out, running.returncode) == (b"end\n", 4)
    until(
        lambda: not Path(f"/proc/{before}").exists() or state_of(before) == "Z", what="the old one's end", deadline_s=20
    )


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_changed_code_makes_it_finish(fresh: WarmUser) -> None:
    fresh.warm_up()
    before = fresh.pid
    key = fresh.home / ".config/chisel/id_ed25519"
    os.utime(key, (1, 1))
    until(lambda: fresh.facts() is None, what="its leave", deadline_s=10)  # it looks at most once a second
    fresh.warm_up()
    assert fresh.pid != before


def test_it_stops_when_told_to(fresh: WarmUser) -> None:
    fresh.warm_up()
    assert "connected" in fresh.does("agent", "status").out.decode()
    assert "finishes" in fresh.does("agent", "stop").err
    until(lambda: fresh.facts() is None, what="its end", deadline_s=20)
    assert "there is no agent" in fresh.does("agent", "stop").err
    assert b"begins" in fresh.does("agent", "log").out
    lock = start.take_lock(encoded(fresh.environ()))
    assert lock is not None
    with fresh.start("agent", "stop") as stopping:
        with pytest.raises(subprocess.TimeoutExpired):  # one is about to listen, as right after a first command
            stopping.wait(2)
        os.close(lock)
        assert b"there is no agent" in stopping.communicate(timeout=60)[1]


def test_one_that_is_held_up_is_told_as_soon_as_it_listens(fresh: WarmUser) -> None:
    fresh.warm_up()
    pid = fresh.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with fresh.start("agent", "stop") as stopping:
            with pytest.raises(subprocess.TimeoutExpired):
                stopping.wait(2 * wire.HELLO_DEADLINE_S + 1)
            os.kill(pid, signal.SIGCONT)
            _, err = stopping.communicate(timeout=60)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert b"finishes" in err
    until(lambda: fresh.facts() is None, what="its end", deadline_s=20)


def test_one_that_never_answers_is_not_called_none(fresh: WarmUser) -> None:
    fresh.warm_up()
    pid = fresh.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with fresh.start("agent", "stop") as stopping:
            with pytest.raises(subprocess.TimeoutExpired):
                stopping.wait(2)
            stopping.send_signal(signal.SIGINT)
            assert stopping.wait(5) == 130, "Ctrl-C need not wait"
        ended = fresh.chisel("agent", "stop")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert ended.status == 6
    assert f"kill -9 {pid}" in ended.err
    assert fresh.pid == pid


def test_it_ends_when_nobody_calls(fresh: WarmUser) -> None:
    config = fresh.home / ".config/chisel/config.toml"
    config.write_text("agent_idle_minutes = 0.08\n")
    config.chmod(0o600)
    fresh.does(*QUICK)
    log = fresh.home / ".cache/chisel/agent.log"
    until(lambda: log.exists() and "ends;" in log.read_text(), what="its end", deadline_s=40)
    assert not fresh.place[1].exists()


def test_garbage_on_the_socket_harms_nobody(user: WarmUser) -> None:
    for data in (b"", b"C\xff\xff\xff\xff", b"C\0\0\0\x04\0\0\xff\xff", b"\0" * 100, os.urandom(5000)):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(user.place[1]))
            connection.sendall(data)
    assert user.does(*QUICK).out == b"here\n"


def test_a_droplet_that_vanished_is_noticed_and_named(cloud: Sandbox, tmp_path: Path) -> None:
    """The state forgets it, and the next command says so: the look that the agent takes once a minute, taken now."""
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    user = WarmUser(home=tmp_path / "home", cwd=tmp_path / "work", cloud=cloud.environ)
    user.does("up", "--pool", "gone", "-n", "1", "--idle", "0", CHISEL_AGENT="off")
    (droplet,) = [one for one in cloud.droplets if one["name"] == "gone-1" and one["is_alive"]]
    request = urllib.request.Request(
        f"{cloud.url}/v2/droplets/{droplet['id']}", method="DELETE", headers={"Authorization": f"Bearer {cloud.token}"}
    )
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).close()
    until(lambda: "gone-1" not in cloud.alive, what="its end")
    state = user.home / ".cache/chisel/state.json"
    found = json.loads(state.read_text())
    for pool in next(iter(found["clouds"].values()))["pools"].values():
        for record in pool.values():
            record["created_at"] = "2026-01-01T00:00:00+00:00"  # a young one may just not be listed yet
    state.write_text(json.dumps(found))
    looked = user.does("agent", "look", "--json", CHISEL_AGENT="off")
    assert [event["host"] for event in looked.of("notice") if "vanished" in event["message"]] == ["gone-1"]
    assert user.chisel("run", "--pool", "gone", "true", CHISEL_AGENT="off").status == 3


def test_each_caller_acts_with_its_own_token(fresh: WarmUser, cloud: Sandbox) -> None:
    """The agent was started by somebody whose token opens nothing: that is neither kept nor used for the others."""
    worthless = "dop_v1_" + "0" * 64
    fresh.does(*QUICK, CHISEL_DO_TOKEN=worthless)
    until(fresh.is_warm, what="the agent", deadline_s=30)
    assert fresh.does(*QUICK).out == b"here\n"
    assert fresh.does("status", "--json").of("status")
    assert fresh.chisel("status", CHISEL_DO_TOKEN=worthless).status != 0
    written = b"".join(file.read_bytes() for file in (fresh.home / ".cache").rglob("*") if file.is_file())
    for token in (worthless, cloud.token):
        assert token.encode() not in written
