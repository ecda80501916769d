"""Say what a droplet of the embedded cloud is made of, and what both kinds of droplets do alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from chisel.sandbox.standins import DEFAULT_GENERATION

Kind = Literal["asyncssh", "openssh"]

ROOT_VARIABLE = "CHISEL_DROPLET_ROOT"


@dataclass(frozen=True, slots=True)
class WriteFile:
    """One entry of cloud-init's `write_files`; `path` is absolute, as the droplet sees it."""

    path: str
    content: str
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class DropletSpec:
    """What the cloud gives a new droplet.

    `root` is the directory that stands for the droplet's file system, made by `start_droplet` and its owner's to
    remove. `authorized_keys` are public keys in OpenSSH's form. Without `host_private_key` (OpenSSH PEM) the droplet
    makes a host key of its own, as an image does. `port` 0 is any free one. For the first `banner_s` seconds every
    command is answered with a banner and status 0 and does nothing; then connections drop, as when sshd restarts.
    `copy_of` is the disk that it begins with. `rocm` names the ROCm that it plays (`standins.GENERATIONS`).
    """

    id: int
    name: str
    root: Path
    authorized_keys: tuple[str, ...]
    host_private_key: str | None = None
    write_files: tuple[WriteFile, ...] = ()
    port: int = 0
    banner_s: float = 0.0
    copy_of: Path | None = None
    rocm: str = DEFAULT_GENERATION


class DropletServer(Protocol):
    """A droplet that answers SSH at `address`, `port`, as user `root`."""

    @property
    def address(self) -> str:
        """Return the address it listens on."""

    @property
    def port(self) -> int:
        """Return the port it listens on."""

    def drop_connections(self) -> None:
        """Cut every connection, as a restart of sshd with its sessions does."""

    async def close(self) -> None:
        """Stop listening, drop every connection and end every process of the droplet."""


BANNER = "Please wait while we get your droplet ready...\n"


def banner_file(root: Path) -> Path:
    """Return the file whose being there means that the first boot is not over."""
    return root / "run" / "first-boot"


def home_of(spec: DropletSpec) -> Path:
    """Return the home of the droplet's root user."""
    return spec.root / "home" / "root"


def session_environment(spec: DropletSpec) -> dict[str, str]:
    """Return the whole environment of a session: nothing of the machine's own comes in."""
    root = spec.root
    return {
        "HOME": str(home_of(spec)),
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/bash",
        "PATH": f"{root}/opt/rocm/bin:{root}/usr/local/bin:/usr/local/bin:/usr/bin:/bin",
        "TMPDIR": f"{root}/tmp",
        "LANG": "C.UTF-8",
        ROOT_VARIABLE: str(root),
        "CHISEL_SANDBOX": "1",
    }
