"""One conformance suite for both kinds of droplets: what OpenSSH does by default, both do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import asyncssh
import pytest
from anyio import to_thread

from chisel.sandbox.base import DropletServer, DropletSpec, Kind, WriteFile, home_of, session_environment
from chisel.sandbox.droplets import start_droplet
from chisel.sandbox.processes import processes_of
from tests.support import processes_with, until

pytestmark = pytest.mark.timeout(60)
KINDS = ["asyncssh", pytest.param("openssh", marks=[pytest.mark.real_part("sshd"), pytest.mark.real_part("root")])]
KEY = asyncssh.generate_private_key("ssh-ed25519")
HOST_KEY = asyncssh.generate_private_key("ssh-ed25519")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def spec(tmp_path: Path) -> DropletSpec:
    return DropletSpec(
        id=7,
        name="bench-1",
        root=tmp_path / "droplet",
        authorized_keys=(KEY.export_public_key().decode().strip(),),
        host_private_key=HOST_KEY.export_private_key().decode(),
        write_files=(WriteFile("/etc/profile.d/chisel.sh", "export A=1\n", 0o640),),
    )


@asynccontextmanager
async def started(spec: DropletSpec, kind: Kind) -> AsyncIterator[DropletServer]:
    droplet = await start_droplet(spec, kind)
    try:
        yield droplet
    finally:
        await droplet.close()
        assert processes_of([spec.root]) == []


@pytest.fixture
async def droplet(spec: DropletSpec, kind: Kind) -> AsyncIterator[DropletServer]:
    async with started(spec, kind) as droplet:
        yield droplet


def login(droplet: DropletServer, **changes: object) -> asyncssh.SSHClientConnection:
    options = {
        "username": "root",
        "client_keys": [KEY],
        "known_hosts": ([HOST_KEY.convert_to_public()], [], []),
        "config": None,
        "agent_path": None,
        **changes,
    }
    return asyncssh.connect(droplet.address, droplet.port, **options)  # type: ignore[return-value]


async def wait_until(holds: Callable[[], object], what: str) -> None:
    await to_thread.run_sync(lambda: until(holds, what=what))


@pytest.fixture
async def link(droplet: DropletServer) -> AsyncIterator[asyncssh.SSHClientConnection]:
    async with login(droplet) as link:
        yield link


async def out_of(link: asyncssh.SSHClientConnection, line: str, **options: object) -> str:
    ended = await link.run(line, **options)  # type: ignore[arg-type]
    return str(ended.stdout)


async def test_the_host_key_is_the_one_handed_over(droplet: DropletServer) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").convert_to_public()
    with pytest.raises(asyncssh.HostKeyNotVerifiable):
        async with login(droplet, known_hosts=([other], [], [])):
            pass


async def test_only_root_with_an_authorized_key_comes_in(droplet: DropletServer) -> None:
    for changes in ({"client_keys": [asyncssh.generate_private_key("ssh-ed25519")]}, {"username": "nobody"}):
        with pytest.raises(asyncssh.PermissionDenied):
            async with login(droplet, **changes):
                pass


async def test_a_session_sees_the_droplet_and_nothing_of_this_machine(
    link: asyncssh.SSHClientConnection, spec: DropletSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET_OF_THIS_MACHINE", "1")
    text = await out_of(link, "env -0; pwd", env={"SENT": "by the client"})
    pairs, _, cwd = text.rpartition("\0")
    found = dict(pair.split("=", 1) for pair in pairs.split("\0"))
    assert cwd.strip() == found["HOME"] == str(home_of(spec))
    assert found["CHISEL_DROPLET_ROOT"] == str(spec.root)
    assert found["USER"] == "root"
    assert "SENT" not in found
    assert "A_SECRET_OF_THIS_MACHINE" not in found
    added_by_bash = {"PWD", "SHLVL", "_", "OLDPWD"}
    assert set(found) - added_by_bash == set(session_environment(spec))


async def test_user_data_files_and_standins_are_there(link: asyncssh.SSHClientConnection, spec: DropletSpec) -> None:
    assert (spec.root / "etc/profile.d/chisel.sh").read_text() == "export A=1\n"
    assert (spec.root / "etc/profile.d/chisel.sh").stat().st_mode & 0o777 == 0o640
    assert await out_of(link, "command -v hipcc") == f"{spec.root}/opt/rocm/bin/hipcc\n"


@pytest.mark.parametrize(("line", "status"), [("exit 0", 0), ("exit 42", 42), ("nosuch-command", 127)])
async def test_a_status_comes_back(link: asyncssh.SSHClientConnection, line: str, status: int) -> None:
    assert (await link.run(line)).exit_status == status


async def test_a_command_killed_by_a_signal_says_so(link: asyncssh.SSHClientConnection) -> None:
    ended = await link.run("kill -TERM $$")
    assert ended.exit_signal is not None
    assert ended.exit_signal[0] == "TERM"


async def test_bytes_go_both_ways_untouched(link: asyncssh.SSHClientConnection) -> None:
    data = bytes(range(256)) * 4096
    ended = await link.run("tee /dev/stderr", input=data, encoding=None)
    assert ended.stdout == data
    assert ended.stderr == data


async def test_a_slow_reader_stops_the_writer(link: asyncssh.SSHClientConnection, spec: DropletSpec) -> None:
    process = await link.create_process("yes | tee ~/written >/dev/stderr 2>&1 | cat; cat /dev/zero", encoding=None)
    written = home_of(spec) / "written"
    async with process:
        process.channel.pause_reading()
        async with link.create_process("yes | head -c 50000000 | tee ~/written", encoding=None) as second:
            second.channel.pause_reading()
            await wait_until(lambda: written.exists() and written.stat().st_size > 0, "the first bytes")
            await link.run("sleep 0.3")
            assert written.stat().st_size < 30_000_000
            second.channel.resume_reading()
            assert len(await second.stdout.read()) == 50_000_000
        process.channel.abort()


async def test_ten_sessions_a_connection(link: asyncssh.SSHClientConnection) -> None:
    processes = [await link.create_process("cat") for _ in range(10)]
    with pytest.raises(asyncssh.ChannelOpenError):
        await link.create_process("cat")
    processes[0].stdin.write_eof()
    await processes[0].wait()
    await _opens_again(link)
    for process in processes[1:]:
        process.close()


async def _opens_again(link: asyncssh.SSHClientConnection) -> None:
    """A session's place is free a moment after its channel has closed: at the server's next turn."""
    with anyio.fail_after(10):
        while True:
            try:
                assert await out_of(link, "echo again") == "again\n"
            except asyncssh.ChannelOpenError:
                continue
            return


async def test_signals_are_refused_and_a_closed_channel_kills_nothing(link: asyncssh.SSHClientConnection) -> None:
    mark = "sleep 613.5"
    process = await link.create_process(f"{mark} & wait; {mark}")
    await wait_until(lambda: processes_with(mark), "the command")
    process.send_signal("KILL")
    assert await out_of(link, "echo served after the signal") == "served after the signal\n"
    assert processes_with(mark)
    process.close()
    assert await out_of(link, "echo served after the close") == "served after the close\n"
    assert processes_with(mark)


async def test_a_command_that_outlives_its_channel_keeps_its_session(link: asyncssh.SSHClientConnection) -> None:
    mark = "sleep 617.5"
    for _ in range(10):
        (await link.create_process(mark)).close()
    await wait_until(lambda: len(processes_with(mark)) >= 10, "ten commands")
    with pytest.raises(asyncssh.ChannelOpenError):
        await link.create_process("cat")


async def test_the_end_of_input_arrives_and_a_dead_pipe_ends_a_writer(link: asyncssh.SSHClientConnection) -> None:
    assert await out_of(link, "cat; echo over", input="in\n") == "in\nover\n"
    process = await link.create_process("while echo 614.5; do sleep 0.02; done", encoding=None)
    await process.stdout.readline()
    process.close()
    await wait_until(lambda: not processes_with("while echo 614.5"), "SIGPIPE to end it")


async def test_a_terminal_is_one_and_its_loss_hangs_up(link: asyncssh.SSHClientConnection) -> None:
    size = await out_of(link, "tty >/dev/null && stty size; echo $TERM", term_type="vt100", term_size=(91, 17))
    assert size.split() == ["17", "91", "vt100"]
    mark = "sleep 615.5"
    process = await link.create_process(mark, term_type="vt100")
    await wait_until(lambda: processes_with(mark), "the command")
    process.close()
    await wait_until(lambda: not processes_with(mark), "the hang-up")


async def test_a_login_shell_without_a_command(link: asyncssh.SSHClientConnection) -> None:
    assert await out_of(link, "", input="echo $HOME\n") == await out_of(link, "echo $HOME")


async def test_files_travel_by_sftp(link: asyncssh.SSHClientConnection, spec: DropletSpec) -> None:
    async with link.start_sftp_client() as sftp:
        async with sftp.open("a file", "wb") as out:
            await out.write(b"content")
        assert (home_of(spec) / "a file").read_bytes() == b"content"
        assert await sftp.exists("a file")


async def test_the_asyncssh_kind_shows_nothing_outside(spec: DropletSpec, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")
    async with started(spec, "asyncssh") as droplet, login(droplet) as link, link.start_sftp_client() as sftp:
        home_of(spec).joinpath("link").symlink_to(tmp_path / "outside")
        for path in (str(tmp_path / "outside"), "../../../outside", "link"):
            with pytest.raises(asyncssh.SFTPPermissionDenied):
                await sftp.open(path, "rb")


async def test_closing_ends_every_process(spec: DropletSpec, kind: Kind) -> None:
    mark = "sleep 616.5"
    async with started(spec, kind) as droplet, login(droplet) as link:
        await link.create_process(f"trap '' TERM HUP; setsid {mark} & {mark}")
        await wait_until(lambda: len(processes_with(mark)) >= 2, "both processes")
    assert processes_with(mark) == []


async def test_a_closed_droplet_answers_nothing(spec: DropletSpec, kind: Kind) -> None:
    async with started(spec, kind) as droplet:
        pass
    with pytest.raises(OSError, match=r"refused|Connect"):
        async with login(droplet):
            pass


async def test_many_droplets_start_at_once(tmp_path: Path, kind: Kind) -> None:
    public = (KEY.export_public_key().decode().strip(),)
    specs = [DropletSpec(id=n, name=f"n{n}", root=tmp_path / str(n), authorized_keys=public) for n in range(12)]
    droplets = await asyncio.gather(*(start_droplet(spec, kind) for spec in specs))  # noqa: TID251 - asyncssh's loop
    assert len({droplet.port for droplet in droplets}) == 12
    async with anyio.create_task_group() as tasks:
        for droplet in droplets:
            tasks.start_soon(droplet.close)


@pytest.mark.parametrize("path", ["relative", "/../up", "/etc/../../up"])
async def test_a_file_outside_the_droplet_is_refused(spec: DropletSpec, path: str) -> None:
    bad = DropletSpec(id=1, name="n", root=spec.root, authorized_keys=(), write_files=(WriteFile(path, "x"),))
    with pytest.raises(ValueError, match="not an absolute path"):
        await start_droplet(bad, "asyncssh")
    assert processes_of([spec.root]) == []
