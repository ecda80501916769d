"""Start a droplet: furnish its directory, then put an SSH server of the wanted kind in front of it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path, PurePosixPath

import asyncssh

from chisel.sandbox.base import DropletServer, DropletSpec, Kind, banner_file, home_of
from chisel.sandbox.standins import install_standins

HOST_KEY = "etc/ssh/ssh_host_ed25519_key"
INSTANCE_ID = "var/lib/cloud/data/instance-id"
AUTHORIZED_KEYS = ".ssh/authorized_keys"


async def start_droplet(spec: DropletSpec, kind: Kind) -> DropletServer:
    """Return a droplet that accepts connections on a free port of 127.0.0.1; cancelled, it leaves nothing running.

    Raises ValueError for what cannot be made (a path that leads out of the root, a key that is none) and OSError;
    for `openssh` RuntimeError where there is no sshd, or it would not let anybody in as root.
    """
    import asyncio

    await asyncio.to_thread(furnish, spec)
    if kind == "openssh":
        from chisel.sandbox.openssh_droplet import start_openssh

        return await start_openssh(spec)
    from chisel.sandbox.asyncssh_droplet import start_asyncssh

    return await start_asyncssh(spec)


def furnish(spec: DropletSpec) -> None:
    """Make the directory a droplet: home, keys, stand-ins, and the files that its user data asks for."""
    home = home_of(spec)
    if spec.copy_of is not None:
        shutil.copytree(spec.copy_of, spec.root, symlinks=True, dirs_exist_ok=True)
        for key in (spec.root / "etc/ssh").glob("ssh_host_*"):  # cloud-init deletes them on a new instance
            key.unlink()
    for directory in (home / ".ssh", *(spec.root / name for name in ("etc/ssh", "tmp", "scratch", "usr/local/bin"))):
        directory.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    _write(home / AUTHORIZED_KEYS, "".join(f"{key}\n" for key in spec.authorized_keys), 0o600)
    _write(spec.root / HOST_KEY, spec.host_private_key or _own_host_key(), 0o600)
    install_standins(spec.root, spec.rocm)
    # The interpreter that runs the sandbox stands for the image's: what PATH has may be missing or too old.
    python = spec.root / "usr/local/bin/python3"
    if not python.is_symlink():
        python.symlink_to(os.path.realpath(sys.executable))
    if spec.banner_s > 0:
        _write(banner_file(spec.root), "", 0o600)
    _write(spec.root / INSTANCE_ID, f"{spec.id}\n", 0o644)  # as cloud-init does
    for file in spec.write_files:
        _write(_inside(spec.root, file.path), file.content, file.mode)


def _inside(root: Path, path: str) -> Path:
    """Return where an absolute path of the droplet is; raises ValueError for one that is not absolute or climbs."""
    parts = PurePosixPath(path).parts
    if not path.startswith("/") or ".." in parts:
        raise ValueError(f"`{path}` is not an absolute path of a droplet")
    return root.joinpath(*parts[1:])


def _write(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode), "w") as out:
        out.write(text)
    path.chmod(mode)


def _own_host_key() -> str:
    return asyncssh.generate_private_key("ssh-ed25519").export_private_key("openssh").decode("ascii")
