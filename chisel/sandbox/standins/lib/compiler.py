"""Play `hipcc`: read the source for real, and build a script that goes through the program's motions."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .identity import ARCHITECTURE, NOTICE, ROCM_VERSION, note, say
from .source import Kernel, Launch, SourceError, Unit, read_unit

_SOURCES = (".hip", ".cpp", ".cu", ".cc", ".cxx", ".c")
_TARGET = re.compile(r"^(gfx[0-9a-f]{3,4}|gfx\d+(-\d+)?-generic)(:(xnack|sramecc)[+-])*$|^native$")
_TAKES_VALUE = ("-I", "-D", "-L", "-l", "-isystem", "-include", "-x", "-U", "-MF", "-MT", "-MQ", "-Xlinker", "-rpath")
_KNOWN = re.compile(
    r"-(O[0-3sgz]?|fast|g\w*|c|v|w|S|E|s|pipe|pthread|shared|static\S*|M[DMGPV]*|std=\S+|[WfmX]\S*|x\S+|[IDLlU]\S+"
    r"|-?rocm-path=\S+|-hip-\S+|-gpu-\S+|-save-temps\S*|-amdgpu-target=\S+|-no-gpu-\S+|no\S+|parallel-jobs=\d+|###)"
)
_OBJECT_MARK = "sandbox stand-in object"
_HEAD = '''#!/usr/bin/env python3
"""{notice}.

Built by the stand-in hipcc {version} from {sources} for {architectures}.
"""
'''


@dataclass
class Order:
    """What a command line asks for."""

    inputs: list[str] = field(default_factory=list)
    output: str | None = None
    defines: dict[str, str] = field(default_factory=dict)
    include_dirs: list[str] = field(default_factory=list)
    architectures: list[str] = field(default_factory=list)
    depend_file: str | None = None
    writes_dependencies: bool = False
    compiles_only: bool = False
    shows_version: bool = False


class Refused(Exception):
    """The command line asks for something that cannot be."""


def main(argv: Sequence[str]) -> int:
    """Compile as `argv` says; 0, or 1 with errors in clang's form on standard error."""
    try:
        order = parse(argv[1:])
        if order.shows_version:
            return _version()
        note("hipcc", NOTICE)
        return _build(order)
    except Refused as refusal:
        sys.stderr.write(f"clang++: error: {refusal}\n")
    except SourceError as error:
        count = f"1 error generated when compiling for {ARCHITECTURE} ({NOTICE})."
        sys.stderr.write(f"{error}\n{count}\n")
    except OSError as error:
        sys.stderr.write(f"clang++: error: cannot use '{error.filename}': {error.strerror}\n")
    return 1


def _version() -> int:
    say(f"HIP version: {ROCM_VERSION}")
    say(f"stand-in clang version ({NOTICE})")
    say("Target: x86_64-unknown-linux-gnu")
    return 0


def parse(words: Sequence[str]) -> Order:
    """Understand hipcc's arguments; raises Refused for what clang would refuse."""
    order, rest = Order(), list(words)
    while rest:
        word = rest.pop(0)
        if word in ("-o", "--offload-arch", *_TAKES_VALUE):
            if not rest:
                raise Refused(f"argument to '{word}' is missing (expected 1 value)")
            _option(order, word, rest.pop(0))
        elif word.startswith("-") and word != "-":
            _flag(order, word)
        else:
            order.inputs.append(word)
    for target in order.architectures:
        if not _TARGET.match(target):
            raise Refused(f"invalid target ID '{target}'; format is a processor name followed by an optional features")
    return order


def _option(order: Order, word: str, value: str) -> None:
    if word == "-o":
        order.output = value
    elif word == "--offload-arch":
        order.architectures += value.split(",")
    elif word == "-D":
        name, _, text = value.partition("=")
        order.defines[name] = text if "=" in value else "1"
    elif word in ("-I", "-isystem"):
        order.include_dirs.append(value)
    elif word == "-U":
        order.defines.pop(value, None)
    elif word == "-MF":
        order.depend_file = value


def _flag(order: Order, word: str) -> None:
    order.compiles_only |= word == "-c"
    order.shows_version |= word == "--version"
    order.writes_dependencies |= word in ("-MD", "-MMD")
    if word.startswith("--offload-arch="):
        _option(order, "--offload-arch", word.partition("=")[2])
    elif word[:2] in ("-D", "-I", "-U") and len(word) > 2:
        _option(order, word[:2], word[2:])
    elif word != "--version" and not _KNOWN.fullmatch(word):
        raise Refused(f"unknown argument: '{word}'")


def _build(order: Order) -> int:
    if not order.inputs:
        raise Refused("no input files")
    for path in order.inputs:
        if not os.path.exists(path):
            raise Refused(f"no such file or directory: '{path}'")
    parts = [_part(path, order) for path in order.inputs]
    if order.compiles_only:
        _write_objects(order, parts)
    else:
        _write_program(order, parts)
    return 0


def _part(path: str, order: Order) -> dict[str, Any]:
    """Compile one input, or read an object compiled before."""
    if path.endswith(_SOURCES):
        unit = read_unit(path, order.defines, order.include_dirs)
        return _described(path, unit, order.architectures or [ARCHITECTURE])
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    if not text.startswith('{"tool"') or _OBJECT_MARK not in text:
        raise Refused(f"'{path}' is neither HIP source nor an object of this stand-in")
    return dict(json.loads(text))


def _described(path: str, unit: Unit, architectures: list[str]) -> dict[str, Any]:
    block = unit.macros.get("BLOCK_SIZE", "")
    return {
        "tool": f"hipcc {ROCM_VERSION}",
        "stand-in": f"{_OBJECT_MARK}: {NOTICE}",
        "source": path,
        "files": unit.files,
        "architectures": architectures,
        "block_size": int(block) if block.isdecimal() else None,
        "kernels": [vars(kernel) for kernel in unit.kernels],
        "launches": [vars(launch) for launch in unit.launches],
        "markers": unit.markers,
        "mallocs": unit.mallocs,
        "copies": {"to_device": unit.to_device, "to_host": unit.to_host},
    }


def _write_objects(order: Order, parts: list[dict[str, Any]]) -> None:
    if order.output and len(parts) > 1:
        raise Refused("cannot specify -o when generating multiple output files")
    for part in parts:
        stem = os.path.splitext(os.path.basename(part["source"]))[0]
        output = order.output or stem + ".o"
        _write(output, json.dumps(part) + "\n", executable=False)
        _write_dependencies(order, output, part)


def _write_dependencies(order: Order, output: str, part: dict[str, Any]) -> None:
    if order.writes_dependencies:
        target = order.depend_file or os.path.splitext(output)[0] + ".d"
        _write(target, f"{output}: {' '.join(part['files'])}\n", executable=False)


def _write_program(order: Order, parts: list[dict[str, Any]]) -> None:
    program = _linked(parts)
    output = order.output or "a.out"
    motions = os.path.join(os.path.dirname(os.path.abspath(__file__)), "motions.py")
    with open(motions, encoding="utf-8") as file:
        body = file.read().split('"""\n', 1)[1]
    head = _HEAD.format(
        notice=NOTICE[0].upper() + NOTICE[1:],
        version=ROCM_VERSION,
        sources=", ".join(ascii(part["source"])[1:-1] for part in parts).replace('"', "'"),
        architectures=", ".join(program["architectures"]),
    )
    tail = f"\n\nPROGRAM = {json.dumps(program)!r}\nsys.exit(main(json.loads(PROGRAM), sys.argv))\n"
    _write(output, head + body + tail, executable=True)
    for part in parts:
        _write_dependencies(order, output, part)


def _linked(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Join units to one program: launches refer to kernels by number, templates get their arguments."""
    kernels = {kernel["name"]: Kernel(**kernel) for part in parts for kernel in part["kernels"]}
    if not kernels:
        raise SourceError(parts[0]["source"], 1, 1, "no `__global__` function found; the stand-in has nothing to play")
    launches = [Launch(**launch) for part in parts for launch in part["launches"]]
    entries: dict[str, dict[str, Any]] = {}
    numbered = []
    for launch in launches:
        kernel = kernels.get(launch.kernel)
        if kernel is None:
            continue
        display = kernel.shown_as(launch.arguments)
        entries.setdefault(display, {**vars(kernel), "display": display, "number": len(entries)})
        numbered.append({**vars(launch), "kernel": entries[display]["number"]})
    return {
        "stand-in": NOTICE,
        "architectures": parts[0]["architectures"],
        "block_size": next((part["block_size"] for part in parts if part["block_size"]), None),
        "kernels": list(entries.values()),
        "launches": numbered,
        "markers": [text for part in parts for text in part["markers"]],
        "mallocs": sum(part["mallocs"] for part in parts),
        "copies": {way: sum(part["copies"][way] for part in parts) for way in ("to_device", "to_host")},
    }


def _write(path: str, text: str, *, executable: bool) -> None:
    try:
        # A running program may have the old file open: write beside it and rename, as a linker unlinks first.
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise Refused(f"unable to open output file '{path}': '{error.strerror}'") from error
    if executable:
        os.chmod(path + ".tmp", 0o777 & ~_umask())
    os.replace(path + ".tmp", path)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
