"""Say where chisel keeps its files, and write them so that a crash or a full disk never leaves half a file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = "chisel"
PRIVATE_FILE = 0o600
PRIVATE_DIRECTORY = 0o700


@dataclass(frozen=True, slots=True)
class Paths:
    """The two folders of one user: `config_dir` is theirs to keep, `cache_dir` costs time when it is lost."""

    config_dir: Path
    cache_dir: Path

    @property
    def config_file(self) -> Path:
        """Return the file of settings and the token (0600)."""
        return self.config_dir / "config.toml"

    @property
    def client_key(self) -> Path:
        """Return the private SSH key chisel made for this user (0600); the public half lies beside it."""
        return self.config_dir / "id_ed25519"

    @property
    def ssh_config_file(self) -> Path:
        """Return the Host blocks for OpenSSH's own client, written on demand."""
        return self.config_dir / "ssh_config"

    @property
    def known_hosts_file(self) -> Path:
        """Return the host keys as OpenSSH's own client reads them."""
        return self.cache_dir / "known_hosts"

    @property
    def state_file(self) -> Path:
        """Return the file that remembers droplets, intents and projects (0600)."""
        return self.cache_dir / "state.json"

    @property
    def index_dir(self) -> Path:
        """Return the folder of the local trees' indexes."""
        return self.cache_dir / "index"


def resolve_paths(environ: Mapping[str, str], home: Path) -> Paths:
    """Work out the folders from XDG_CONFIG_HOME and XDG_CACHE_HOME, else below `home`; nothing is created.

    Relative values are ignored, as the XDG base directory specification (0.8) demands.
    """
    return Paths(
        config_dir=_base(environ, "XDG_CONFIG_HOME", home / ".config") / FOLDER,
        cache_dir=_base(environ, "XDG_CACHE_HOME", home / ".cache") / FOLDER,
    )


def _base(environ: Mapping[str, str], name: str, default: Path) -> Path:
    value = environ.get(name, "")
    return Path(value) if value.startswith("/") else default


def make_private_directory(directory: Path) -> None:
    """Create a folder of ours (0700) with its parents; one that is there keeps its mode. Raises OSError."""
    directory.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)


def write_private_file(file: Path, data: bytes, *, suffix: str = ".new") -> None:
    """Replace a file (0600) at once: readers see the old or the new content, also after a power cut.

    `suffix` names the temporary file beside it. Under a lock it is always the same, so that the next writer uses up
    what a killed one left; writers without a lock need one each. Raises OSError; the old content is then still there.
    """
    temporary = file.with_name(file.name + suffix)
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    try:
        _write_durably(temporary, data)
        temporary.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(file.parent)


def _write_durably(file: Path, data: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE)
    with open(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(descriptor)


def sync_directory(directory: Path) -> None:
    """Make renames inside a folder durable. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
