from __future__ import annotations

import getpass
import os
import pwd
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from chisel.model import DropletId, Host
from chisel.ssh.keys import KeyPair, generate_keypair


@dataclass
class Sshd:
    """A real OpenSSH server whose sessions see a home of their own."""

    host: Host
    key: KeyPair
    home: Path
    config: Path
    process: subprocess.Popen[bytes]

    def with_key(self, public: str) -> Host:
        return replace(self.host, host_key=public)

    def configure(self, **settings: str) -> None:
        """Start again with other settings: the first value of a keyword counts (sshd_config(5))."""
        self.stop()
        said = "".join(f"{name} {value}\n" for name, value in settings.items())
        self.config.write_text(said + self.config.read_text())
        self.start()

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=10)

    def start(self) -> None:
        program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        assert program
        self.process = subprocess.Popen([program, "-D", "-e", "-f", str(self.config)], stderr=subprocess.PIPE)
        assert self.process.stderr
        said = b""
        while b"listening" not in said:
            piece = self.process.stderr.readline()
            assert piece, said
            said += piece


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def session_script(home: Path) -> str:
    quoted = shlex.quote(str(home))
    passed = f'HOME={quoted} PATH="$PATH" ${{LC_CHISEL:+"LC_CHISEL=$LC_CHISEL"}}'
    return f'#!/bin/sh\ncd {quoted} || exit 1\nexec env -i {passed} bash -c "$SSH_ORIGINAL_COMMAND"\n'


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    """Start sshd for this user on a free port, with a forced command that sets a home below the test's directory."""
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    if Path(shell := pwd.getpwuid(os.geteuid()).pw_shell).name in {"nologin", "false"}:
        pytest.skip(f"sshd lets nobody in whose shell is {shell}")
    key, host_key = generate_keypair("user"), generate_keypair("host")
    home, port = tmp_path / "home", free_port()
    home.mkdir()
    for name, text, mode in [
        ("host_key", host_key.private_openssh, 0o600),
        ("authorized", key.public_openssh + "\n", 0o600),
        (
            "session",
            session_script(home),
            0o700,
        ),
    ]:
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
    config = tmp_path / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host_key\nAuthorizedKeysFile {tmp_path}/authorized\n"
        "StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        f"AcceptEnv LANG LC_*\nSubsystem sftp internal-sftp\nForceCommand {tmp_path}/session\nLogLevel INFO\n"
    )
    host = Host("one", DropletId(1), "127.0.0.1", port, getpass.getuser(), host_key.public_openssh)
    server = Sshd(host, key, home, config, None)  # type: ignore[arg-type]
    server.start()
    yield server
    server.stop()
