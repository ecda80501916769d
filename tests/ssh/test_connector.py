"""Reach a real OpenSSH server: verified, warm, with the node program shipped once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import pytest

import chisel.node
from chisel.errors import ConfigError, HostKeyMismatch, HostUnreachable, NotReady
from chisel.model import DropletId, Host
from chisel.node import activity
from chisel.node.frames import Kind
from chisel.ssh.boot import START_NAME, install_line, start_line
from chisel.ssh.connector import Connection, Deadlines, open_connector
from chisel.ssh.keys import fingerprint_md5, fingerprint_sha256, generate_keypair, load_or_create_client_key
from chisel.ssh.program import NodeProgram, node_program, pack_node_program
from tests.ssh.conftest import Sshd
from tests.support import processes_with, until

PROGRAM = pack_node_program()
pytestmark = pytest.mark.timeout(60)
real = pytest.mark.real_part("sshd")
SESSIONS = 20
SHORT = Deadlines(connect_s=1.0, login_s=1.0, hello_s=5.0)


async def output_of(connection: Connection, line: str, run_id: str) -> bytes:
    found = b""
    async with connection.node("supervise", {"run_id": run_id, "line": line, "cwd": "~"}) as channel:
        while True:
            for frame in await channel.receive():
                if frame.kind == Kind.STDOUT:
                    found += frame.payload[12:]
                elif frame.kind == Kind.EXIT:
                    return found


@real
async def test_the_program_is_shipped_once(sshd: Sshd) -> None:
    async with open_connector(sshd.key) as connector:
        connection = await connector.connect(sshd.host)
        async with connection.node("status", {}) as channel:
            assert channel.hello["version"] == PROGRAM.sha256
            assert [frame.kind for frame in await channel.receive()] == [Kind.REPLY]
        installed = sshd.home / ".chisel" / "node" / PROGRAM.sha256
        first = await anyio.Path(installed).stat()
        assert await output_of(connection, "echo $((6 * 7))", "a") == b"42\n"
        assert (await anyio.Path(installed).stat()).st_ino == first.st_ino
        assert first.st_mode & 0o077 == 0


@pytest.mark.parametrize("line", [start_line("0" * 64, "receive"), install_line("0" * 64, "receive", 1)])
def test_a_waiting_session_is_no_use_of_its_droplet(line: str) -> None:
    """Whoever judges idleness knows chisel's processes by a word on their command lines."""
    assert activity._NODE.decode() in line


@real
@pytest.mark.parametrize("damage", ["", "def (", None])
async def test_a_damaged_start_is_replaced(sshd: Sshd, damage: str | None) -> None:
    """A full disk or a power cut may leave anything of the file that every session begins with, or nothing."""
    async with open_connector(sshd.key) as connector:
        connection = await connector.connect(sshd.host)
        assert await output_of(connection, "echo one", "a") == b"one\n"
        start = sshd.home / ".chisel" / "node" / PROGRAM.sha256 / START_NAME
        whole = start.read_text()
        if damage is None:
            start.unlink()
        else:
            start.write_text(damage)
        assert await output_of(connection, "echo two", "b") == b"two\n"
        assert start.read_text() == whole
        assert await output_of(connection, "echo three", "c") == b"three\n"


@real
async def test_a_damaged_program_is_not_run(sshd: Sshd) -> None:
    async with open_connector(sshd.key) as connector:
        connection = await connector.connect(sshd.host)
        connection._program = type(connection._program)(connection._program.data[:-1] + b"x", "0" * 64)
        with pytest.raises(NotReady, match="damaged"):
            async with connection.node("status", {}):
                pass
    assert not list((sshd.home / ".chisel" / "node").glob("*"))


@real
async def test_one_connection_is_shared(sshd: Sshd) -> None:
    found: set[int] = set()
    async with open_connector(sshd.key) as connector:

        async def connect() -> None:
            found.add(id(await connector.connect(sshd.host)))

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(connect)
    assert len(found) == 1


@real
async def test_another_host_key_gets_nothing(sshd: Sshd) -> None:
    async with open_connector(sshd.key) as connector:
        with pytest.raises(HostKeyMismatch, match="nothing was sent"):
            await connector.connect(sshd.with_key(generate_keypair("other").public_openssh))


@real
async def test_another_key_is_refused(sshd: Sshd) -> None:
    async with open_connector(generate_keypair("stranger")) as connector:
        with pytest.raises(HostUnreachable, match="refuses chisel's SSH key"):
            await connector.connect(sshd.host)


def link_of(record: Path) -> int:
    """Return which TCP connection the supervisor of a run came over: sshd has a process for each, its parent."""
    pid = json.loads(record.read_bytes())["pid"]
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert "sshd" in Path(f"/proc/{parent}/comm").read_text()
    return parent


@real
async def test_more_sessions_than_sshd_allows(sshd: Sshd) -> None:
    """Links are filled one after the other, in the order in which their commands came: nobody is overtaken."""
    runs, gate = sshd.home / ".chisel" / "runs", sshd.home / "gate"
    found = dict[int, bytes]()
    async with open_connector(sshd.key) as connector:
        connection = await connector.connect(sshd.host)

        async def one(number: int) -> None:
            line = f"while [ ! -e {gate} ]; do sleep 0.1; done; echo {number}"
            found[number] = await output_of(connection, line, f"r{number}")

        def have_begun() -> bool:
            return len(list(runs.glob("r*/run.json"))) == SESSIONS

        async with anyio.create_task_group() as tasks:
            for number in range(SESSIONS):
                tasks.start_soon(one, number)
            await anyio.to_thread.run_sync(lambda: until(have_begun, what="all commands", deadline_s=40))
            links = [link_of(runs / f"r{number}" / "run.json") for number in range(SESSIONS)]
            gate.touch()
    assert found == {number: b"%d\n" % number for number in range(SESSIONS)}
    assert links == sorted(links, key=links.index), "each link has those that came together"
    assert max(Counter(links).values()) <= 10, "sshd's MaxSessions"


@real
async def test_a_lost_connection_is_opened_again(sshd: Sshd) -> None:
    async with open_connector(sshd.key) as connector:
        connection = await connector.connect(sshd.host)
        connection.abort()
        with pytest.raises(HostUnreachable):
            await output_of(connection, "true", "lost")
        again = await connector.connect(sshd.host)
        assert again is not connection
        assert await output_of(again, "echo back", "b") == b"back\n"


@real
async def test_a_cancelled_reader_leaves_nothing(sshd: Sshd) -> None:
    mark = "sleep 612.25"
    async with open_connector(sshd.key) as connector:
        connection = await connector.connect(sshd.host)
        with anyio.move_on_after(10) as waited:
            async with connection.node("supervise", {"run_id": "c", "line": mark, "cwd": "~"}) as channel:
                await anyio.to_thread.run_sync(lambda: until(lambda: processes_with(mark), what="the command"))
                waited.cancel()
                await channel.receive()
        await anyio.to_thread.run_sync(lambda: until(lambda: not processes_with(mark), what="its end"))
        assert await output_of(connection, "echo alive", "d") == b"alive\n"


@real
async def test_single_files_travel(sshd: Sshd, tmp_path: Path) -> None:
    async with open_connector(sshd.key) as connector:
        connection = await connector.connect(sshd.host)
        answer = await connection.shell("printf out; printf err >&2; exit 3", timeout_s=5)
        assert (answer.status, answer.stdout, answer.stderr) == (3, b"out", b"err")
        with pytest.raises(HostUnreachable, match="in time"):
            await connection.shell("sleep 5", timeout_s=0.3)


@real
async def test_a_banner_instead_of_a_shell_is_not_ready(sshd: Sshd) -> None:
    script = sshd.config.parent / "session"
    script.write_text("#!/bin/sh\necho 'Please wait while we get your droplet ready...'\n")
    async with open_connector(sshd.key) as connector:
        connection = await connector.connect(sshd.host)
        with pytest.raises(NotReady, match="Please wait"):
            async with connection.node("probe", {"nonce": "x"}):
                pass


async def test_a_refused_port_is_unreachable() -> None:
    host = Host("gone", DropletId(1), "127.0.0.1", 1, "root", generate_keypair("h").public_openssh)
    async with open_connector(generate_keypair("u")) as connector:
        with pytest.raises(HostUnreachable, match="connecting failed"):
            await connector.connect(host)


async def test_a_silent_peer_is_named_within_its_deadline() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    host = Host("silent", DropletId(1), "127.0.0.1", port, "root", generate_keypair("h").public_openssh)
    async with open_connector(generate_keypair("u"), deadlines=SHORT) as connector:
        with anyio.fail_after(4), pytest.raises(HostUnreachable, match="silent"):
            await connector.connect(host)
    listener.close()


def test_the_program_is_packed_the_same_every_time() -> None:
    assert pack_node_program() == pack_node_program()
    assert len(pack_node_program().data) < 200_000


def test_the_program_is_kept_until_a_file_of_it_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, packed = tmp_path / "cache", list[int]()
    sources = tmp_path / "node"
    shutil.copytree(Path(chisel.node.__file__).parent, sources)
    monkeypatch.setattr("chisel.ssh.program.resources.files", lambda _: sources)

    def counted() -> NodeProgram:
        packed.append(1)
        return pack_node_program()

    monkeypatch.setattr("chisel.ssh.program.pack_node_program", counted)
    assert node_program(place) == node_program(place) == pack_node_program()
    assert len(packed) == 1
    (kept,) = place.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    assert node_program(place) == pack_node_program(), "a damaged one counts for nothing"
    with (sources / "frames.py").open("a") as source:
        source.write("# other\n")
    assert node_program(place) == pack_node_program()
    assert len(packed) == 3
    place.chmod(0o500)
    assert node_program(place / "not" / "made") == pack_node_program(), "a full or closed disk costs time only"


def test_a_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "id_ed25519"
    first = load_or_create_client_key(path)
    assert load_or_create_client_key(path).private_openssh == first.private_openssh
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert "PRIVATE" not in repr(first)


def test_two_that_make_the_key_at_once_agree(tmp_path: Path) -> None:
    path = tmp_path / "id_ed25519"
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: load_or_create_client_key(path).private_openssh, range(8)))
    assert found == {path.read_text()}
    assert [entry.name for entry in tmp_path.iterdir()] == ["id_ed25519"]


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "id_ed25519"
    load_or_create_client_key(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others"):
        load_or_create_client_key(path)


@pytest.mark.real_part("sshd")
def test_fingerprints_are_what_ssh_keygen_says(tmp_path: Path) -> None:
    public = generate_keypair("x").public_openssh
    (tmp_path / "key.pub").write_text(public + "\n")

    def said(kind: str) -> str:
        line = ["ssh-keygen", "-l", "-E", kind, "-f", str(tmp_path / "key.pub")]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()[1]

    assert said("sha256") == fingerprint_sha256(public)
    assert said("md5") == "MD5:" + fingerprint_md5(public)


@real
async def test_a_session_counts_until_sshd_has_closed_it(sshd: Sshd) -> None:
    """One that is left without waiting is one of sshd's ten all the same."""
    async with open_connector(sshd.key) as connector:
        connection = await connector.connect(sshd.host)
        async with connection.node("supervise", {"run_id": "e", "line": "sleep 4", "cwd": "~"}) as channel:
            while (await channel.receive())[0].kind != Kind.STARTED:
                pass
            link = connection._links[0]
            frozen = link_of(sshd.home / ".chisel" / "runs" / "e" / "run.json")
            os.kill(frozen, signal.SIGSTOP)
            channel.done()
        try:
            assert link.sessions == 1
        finally:
            os.kill(frozen, signal.SIGCONT)
        with anyio.fail_after(20):
            while link.sessions:  # noqa: ASYNC110 - what is looked at sends no event
                await anyio.sleep(0.02)
