"""Pack what runs on a droplet into one archive, addressed by the hash of its content."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources

from chisel.ssh.boot import START, START_NAME

PACKAGE = "chisel_node"
_SOURCE = "chisel.node"
_MEMBER = re.compile(r"[a-z_][a-z0-9_]*\.py")
_EPOCH = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
_MAIN = f"import sys\nfrom {PACKAGE}.__main__ import main\nsys.exit(main(sys.argv[1:]))\n"


@dataclass(frozen=True, slots=True)
class NodeProgram:
    """The node program as a zipapp; `sha256` is the hex digest of `data` and its name on the droplet."""

    data: bytes = field(repr=False)
    sha256: str


def pack_node_program() -> NodeProgram:
    """Pack the modules of `chisel/node`: equal sources give equal bytes. Reads files: call it in a thread."""
    members = {"__main__.py": _MAIN.encode("ascii"), START_NAME: START.encode("ascii")}
    for entry in resources.files(_SOURCE).iterdir():
        if _MEMBER.fullmatch(entry.name):
            members[f"{PACKAGE}/{entry.name}"] = entry.read_bytes()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in sorted(members):
            archive.writestr(_member(name), members[name], compresslevel=9)
    data = packed.getvalue()
    return NodeProgram(data, hashlib.sha256(data).hexdigest())


def read_modules(names: Sequence[str]) -> dict[str, str]:
    """Return the texts of some of the node program's modules by name. Reads files: call it in a thread."""
    return {name: resources.files(_SOURCE).joinpath(name).read_text(encoding="utf-8") for name in names}


def _member(name: str) -> zipfile.ZipInfo:
    """Return an entry without anything that differs between machines or days."""
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system = _UNIX
    info.external_attr = 0o600 << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info
