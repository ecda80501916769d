"""Find the repository around a directory and read what ignoring needs of it, where git itself cannot be asked."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GIT = ".git"
_MAX_FILE_BYTES = 100 * 1024 * 1024
"""What git reads of an ignore file at most (PATTERN_MAX_FILE_SIZE in dir.c, since 2.46)."""

_GITLINK, _SPARSE_DIRECTORY = 0o160000, 0o040000
_ENTRY_FIXED = 40
_EXTENDED, _NAME_LENGTH = 0x4000, 0x0FFF


@dataclass(frozen=True, slots=True)
class Repository:
    """A work tree's top, its git directory, and the one it shares with other work trees of the same repository."""

    top: str
    git_directory: str
    common_directory: str

    @property
    def exclude_file(self) -> str:
        """Return where the repository's own unshared patterns are."""
        return os.path.join(self.common_directory, "info", "exclude")

    @property
    def index_file(self) -> str:
        """Return where git keeps what is tracked."""
        return os.path.join(self.git_directory, "index")


def repository_around(directory: str) -> Repository | None:
    """Return the nearest repository upwards whose `.git` is one; None when there is none."""
    for place in (directory, *map(str, Path(directory).parents)):
        found = repository_at(place)
        if found is not None:
            return found
    return None


def repository_at(directory: str) -> Repository | None:
    """Return the repository whose work tree begins here; None where `.git` is missing or leads to nothing, as in git.

    `.git` may be a file that names the git directory: in a linked work tree, and in a submodule.
    """
    git = os.path.join(directory, GIT)
    try:
        status = os.stat(git)
        if stat.S_ISREG(status.st_mode):
            text = _read(git, 1 << 16).decode("utf-8", "surrogateescape")
            if not text.startswith("gitdir: "):
                return None
            git = os.path.normpath(os.path.join(directory, text.removeprefix("gitdir: ").rstrip("\r\n")))
        common = git
        with suppress(OSError):
            shared = _read(os.path.join(git, "commondir"), 1 << 16).decode("utf-8", "surrogateescape")
            common = os.path.normpath(os.path.join(git, shared.rstrip("\r\n")))
    except (OSError, ValueError):
        return None
    has_head = _is_head(os.path.join(git, "HEAD"))
    has_rest = os.path.isdir(os.path.join(common, "objects")) and os.path.isdir(os.path.join(common, "refs"))
    return Repository(directory, git, common) if has_head and has_rest else None


def _is_head(path: str) -> bool:
    """Say whether git takes a file for a HEAD: it names a reference or a commit, or is a link to a reference."""
    try:
        if os.path.islink(path):
            return os.readlink(path).startswith("refs/")
        text = _read(path, 1 << 16)
    except OSError:
        return False
    return re.match(rb"ref:\s*refs/|[0-9a-f]{40}", text) is not None


def read_ignore_file(path: str, *, follows_links: bool = False) -> bytes | None:
    """Return an ignore file's content; None where there is none, or what is there is no file of patterns.

    In a work tree a symbolic link is no ignore file (git since 2.32).
    """
    try:
        return _read(path, _MAX_FILE_BYTES, 0 if follows_links else os.O_NOFOLLOW)
    except OSError:
        return None


def _read(path: str, max_bytes: int, flags: int = 0) -> bytes:
    """Return a regular file's content; raises OSError, also for what is longer or is no file."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
            raise OSError(f"`{path}` is no file of at most {max_bytes} bytes")
        return file.read(max_bytes)


# -- what a user's configuration says


def read_config_files(repository: Repository, home: Path, config_home: Path) -> dict[str, str]:
    """Return `core.excludesfile` and `core.ignorecase` as git's configuration files say them, the last one deciding.

    Only what is needed of the format: no `include`. Where git is there, it is asked instead.
    """
    found: dict[str, str] = {}
    files = ("/etc/gitconfig", str(config_home / "git" / "config"), str(home / ".gitconfig"))
    for file in (*files, os.path.join(repository.common_directory, "config")):
        with suppress(OSError):
            text = _read(file, 1 << 20).decode("utf-8", "surrogateescape")
            found.update(_core_settings(text, home))
    return found


def _core_settings(text: str, home: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    is_core = False
    for line in text.splitlines():
        section = re.match(r"\s*\[\s*([^\]\s\"]+)\s*(\"[^\]]*)?\]", line)
        if section:
            is_core = section[1].lower() == "core" and section[2] is None
            line = line[section.end() :]
        setting = re.match(r"\s*(excludesfile|ignorecase)\s*(?:=\s*(.*?)\s*)?$", line, re.IGNORECASE)
        if is_core and setting:
            value = "true" if setting[2] is None else re.sub(r"\s+[#;].*$", "", setting[2]).strip('"')
            found[f"core.{setting[1].lower()}"] = str(home) + value[1:] if value.startswith("~/") else value
    return found


# -- the index


class UnknownIndex(ValueError):
    """An index that is damaged, or of a kind that only git reads (split, sparse)."""


def read_tracked(repository: Repository) -> frozenset[str]:
    """Return the tracked paths, relative to the work tree's top, from the index (versions 2 to 4).

    The format is git's `Documentation/gitformat-index.txt`. Raises UnknownIndex.
    """
    try:
        data = _read(repository.index_file, 1 << 30)
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        raise UnknownIndex(str(error)) from error
    try:
        return frozenset(os.fsdecode(path) for path in _entries(data, _hash_bytes(data)))
    except (struct.error, IndexError, ValueError) as error:
        raise UnknownIndex(str(error)) from error


def _hash_bytes(data: bytes) -> int:
    """Return how long object names are, by the sum at the end; a sum of zeros (`index.skipHash`) means SHA-1."""
    for size, algorithm in ((20, hashlib.sha1), (32, hashlib.sha256)):
        if algorithm(data[:-size]).digest() == data[-size:]:
            return size
    if data.endswith(bytes(20)):
        return 20
    raise ValueError("it is damaged")


def _entries(data: bytes, hash_bytes: int) -> list[bytes]:
    signature, version, count = struct.unpack_from("!4sII", data)
    if signature != b"DIRC" or version not in {2, 3, 4}:
        raise ValueError("no index")
    paths: list[bytes] = []
    position, path = 12, b""
    for _ in range(count):
        start = position
        mode = struct.unpack_from("!I", data, start + 24)[0]
        (flags,) = struct.unpack_from("!H", data, start + _ENTRY_FIXED + hash_bytes)
        if mode == _SPARSE_DIRECTORY:
            raise ValueError("a sparse index")
        position = start + _ENTRY_FIXED + hash_bytes + (4 if flags & _EXTENDED else 2)
        if version == 4:
            cut, position = _offset(data, position)
            path = path[: len(path) - cut] if cut else path
        end = data.index(b"\0", position)
        path = (path if version == 4 else b"") + data[position:end]
        if flags & _NAME_LENGTH not in {len(path), _NAME_LENGTH} or not path:
            raise ValueError("a name of another length")
        paths.append(path)
        position = end + 1 if version == 4 else start + ((end - start) // 8 + 1) * 8
    if b"link" in _extensions(data, position, hash_bytes):
        raise ValueError("a split index")
    return paths


def _offset(data: bytes, position: int) -> tuple[int, int]:
    """Read one of the numbers that packs use for offsets."""
    byte = data[position]
    value = byte & 0x7F
    while byte & 0x80:
        position += 1
        byte = data[position]
        value = ((value + 1) << 7) | (byte & 0x7F)
    return value, position + 1


def _extensions(data: bytes, position: int, hash_bytes: int) -> set[bytes]:
    found = set()
    while position + 8 <= len(data) - hash_bytes:
        name, length = struct.unpack_from("!4sI", data, position)
        found.add(name)
        position += 8 + length
    return found
