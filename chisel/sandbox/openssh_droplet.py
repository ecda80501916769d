"""Put OpenSSH's own sshd in front of a droplet: one `sshd -i` per connection, so that any free port will do.

The forced command gives each session the droplet's home and environment; nobody's real home is written to. sshd lets
a user in only as themselves, and chisel logs in as root: this kind of droplet needs root.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import socket
from asyncio.subprocess import Process
from pathlib import Path

from chisel.sandbox.base import BANNER, DropletSpec, banner_file, home_of, session_environment
from chisel.sandbox.droplets import AUTHORIZED_KEYS, HOST_KEY
from chisel.sandbox.processes import end_processes

_PLACES = ("/usr/sbin", "/usr/local/sbin", "/sbin", "/opt/homebrew/sbin")
_SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/libexec/sftp-server")
_SEPARATION = Path("/run/sshd")
_CLOSE_S = 2.0


def find_sshd() -> str:
    """Return the path of sshd; raises RuntimeError where there is none or this user cannot log in as root."""
    program = shutil.which("sshd", path=os.pathsep.join((os.environ.get("PATH", ""), *_PLACES)))
    if program is None:
        raise RuntimeError("there is no sshd here (Debian: apt install openssh-server)")
    if os.geteuid() != 0:
        raise RuntimeError("droplets with a real sshd need root, because chisel logs in as root")
    return os.path.realpath(program)


async def start_openssh(spec: DropletSpec) -> OpensshDroplet:
    """Return a running droplet; raises RuntimeError where sshd cannot be used."""
    program = find_sshd()
    config = await asyncio.to_thread(_write_config, spec)
    listener = socket.create_server(("127.0.0.1", spec.port), backlog=128)
    listener.setblocking(False)
    return OpensshDroplet(spec, [program, "-i", "-f", str(config), "-E", str(config.parent / "log")], listener)


class OpensshDroplet:
    """One droplet: a listening socket that hands each connection to a new sshd."""

    def __init__(self, spec: DropletSpec, command: list[str], listener: socket.socket) -> None:
        self._spec = spec
        self._command = command
        self._listener = listener
        self.address: str = "127.0.0.1"
        self.port: int = listener.getsockname()[1]
        self._servers: set[Process] = set()
        # The droplet owns its tasks and ends them in `close`: its lifetime is no block of code.
        loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = {loop.create_task(self._accept())}

    def drop_connections(self) -> None:
        """Cut every connection, as a restart of sshd with its sessions does."""
        for server in self._servers:
            with contextlib.suppress(OSError):
                os.killpg(server.pid, signal.SIGKILL)

    async def close(self) -> None:
        """Stop listening, end every sshd and every process."""
        for task in self._tasks:
            task.cancel()
        self._listener.close()
        self.drop_connections()
        await asyncio.to_thread(end_processes, [self._spec.root])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                for server in list(self._servers):
                    await server.wait()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._listener)
            task = loop.create_task(self._serve(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setblocking(True)
            server = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=connection.fileno(),
                stdout=connection.fileno(),
                stderr=asyncio.subprocess.DEVNULL,
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
                start_new_session=True,
            )
        self._servers.add(server)
        try:
            await server.wait()
        finally:
            if server.returncode is not None:
                self._servers.discard(server)


def _write_config(spec: DropletSpec) -> Path:
    """Write sshd's configuration and the forced command; OpenSSH's own defaults hold for all that is not named."""
    _SEPARATION.mkdir(mode=0o755, exist_ok=True)
    folder = spec.root / "etc" / "ssh"
    session = folder / "session"
    session.write_text(_session_script(spec))
    session.chmod(0o700)
    sftp = next((path for path in _SFTP_SERVERS if Path(path).exists()), "internal-sftp")
    config = folder / "sshd_config"
    config.write_text(
        f"HostKey {spec.root / HOST_KEY}\n"
        f"AuthorizedKeysFile {home_of(spec) / AUTHORIZED_KEYS}\n"
        f"ForceCommand {session}\n"
        f"Subsystem sftp {sftp}\n"
        "PermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\n"
        "AllowUsers root\n"
        "StrictModes no\n"
        "UsePAM no\n"
        "PermitUserRC no\n"
        "PrintMotd no\n"
        "PrintLastLog no\n"
        "AcceptEnv LANG LC_*\n"  # as Debian and Ubuntu have it
        "PidFile none\n"
        # Debian's bash reads the real ~/.bashrc of a user who comes by SSH, but not in a nested shell.
        "SetEnv SHLVL=9\n"
    )
    return config


def _session_script(spec: DropletSpec) -> str:
    environment = session_environment(spec)
    pairs = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
    return (
        "#!/bin/sh\n"
        f"if [ -e {shlex.quote(str(banner_file(spec.root)))} ]; then printf %s {shlex.quote(BANNER)}; exit 0; fi\n"
        f"cd {shlex.quote(environment['HOME'])} || exit 255\n"
        f'set -- {pairs} ${{TERM:+"TERM=$TERM"}} ${{LC_CHISEL:+"LC_CHISEL=$LC_CHISEL"}}\n'
        'if [ -z "$SSH_ORIGINAL_COMMAND" ]; then exec env -i "$@" bash -l; fi\n'
        'exec env -i "$@" bash -c "$SSH_ORIGINAL_COMMAND"\n'
    )
