"""Pack what runs on a droplet into one archive, addressed by the hash of its content."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chisel import __version__
from chisel.node import kept
from chisel.ssh.boot import START, START_NAME

if TYPE_CHECKING:
    import zipfile

PACKAGE = "chisel_node"
_SOURCE = "chisel.node"
_KEPT_NAME = "node-program"
_MEMBER = re.compile(r"[a-z_][a-z0-9_]*\.py")
_EPOCH = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
_MAIN = f"import sys\nfrom {PACKAGE}.__main__ import main\nsys.exit(main(sys.argv[1:]))\n"


@dataclass(frozen=True, slots=True)
class NodeProgram:
    """The node program as a zipapp; `sha256` is the hex digest of `data` and its name on the droplet."""

    data: bytes = field(repr=False)
    sha256: str


def node_program(kept_in: Path | None = None) -> NodeProgram:
    """Return the node program; one that was packed from the same files before is kept in a directory of this user's.

    Packing takes longer than to start a command. Losing what is kept costs that time only. Reads and writes files: call
    it in a thread.
    """
    sources = _sources() if kept_in is not None else None
    if kept_in is None or sources is None:
        return pack_node_program()
    file = str(kept_in / _KEPT_NAME)
    found = kept.read(file)
    if isinstance(found, tuple) and len(found) == 2 and found[0] == sources and isinstance(found[1], bytes):
        return _program(found[1])
    program = pack_node_program()
    with suppress(OSError):
        os.makedirs(kept_in, mode=0o700, exist_ok=True)
        kept.write(file, (sources, program.data))
    return program


def _sources() -> tuple[Any, ...] | None:
    """Return what tells that a file of the program was touched; None where they are no files."""
    directory = resources.files(_SOURCE)
    if not isinstance(directory, Path):
        return None
    try:
        with os.scandir(directory) as entries:
            looks = [(entry.name, entry.stat()) for entry in entries if _MEMBER.fullmatch(entry.name)]
    except OSError:
        return None
    files = tuple((name, look.st_size, look.st_mtime_ns, look.st_ctime_ns, look.st_ino) for name, look in sorted(looks))
    return (__version__, START, _MAIN, files)


def pack_node_program() -> NodeProgram:
    """Pack the modules of `chisel/node`: equal sources give equal bytes. Reads files: call it in a thread."""
    import zipfile

    members = {"__main__.py": _MAIN.encode("ascii"), START_NAME: START.encode("ascii")}
    for entry in resources.files(_SOURCE).iterdir():
        if _MEMBER.fullmatch(entry.name):
            members[f"{PACKAGE}/{entry.name}"] = entry.read_bytes()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in sorted(members):
            archive.writestr(_member(name), members[name], compresslevel=9)
    return _program(packed.getvalue())


def _program(data: bytes) -> NodeProgram:
    return NodeProgram(data, hashlib.sha256(data).hexdigest())


def read_modules(names: Sequence[str]) -> dict[str, str]:
    """Return the texts of some of the node program's modules by name. Reads files: call it in a thread."""
    return {name: resources.files(_SOURCE).joinpath(name).read_text(encoding="utf-8") for name in names}


def _member(name: str) -> zipfile.ZipInfo:
    """Return an entry without anything that differs between machines or days."""
    import zipfile

    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system = _UNIX
    info.external_attr = 0o600 << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info
