"""Rank what a profiler wrote, on the droplet, before anything is sent: the `aggregate` role.

The conversation: REQUEST `{"directory", "top", "kernel", "skip_warmup", "secrets", "convert"}`; DATA frames, one zlib
stream of a JSON object (the table of the first kernels, see `table.first_part`); DATA_END; when kernels rank behind
those, DATA frames of the whole figures; DATA_END; then, when the files are fit to leave the droplet and, where asked
for, converted, REPLY `{"withheld", "pftrace", "raw_bytes", "notes"}`.
Standard library only, Python 3.10.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import zlib
from typing import Any

from . import env, formats, frames
from .ranking import files_below, rank
from .scrub import make_fit_to_leave
from .stdio import Channel, Refused
from .table import DETAILED, Wishes, first_part
from .tally import FormatError

RAW_DIRECTORY = "raw"
PFTRACE = "trace.pftrace"
LEAST_SHOWN = 64
"""So many kernels are in the first answer at least, however few are asked for."""

FIRST_ANSWER_BYTES = 96_000
"""What the first answer may take on the wire: details of the distribution are left out of it until it does."""

CONVERT_DEADLINE_S = 900.0
_CHUNK = 1 << 18
_MOST_SECRETS = 10_000


def main(channel: Channel, request: dict[str, Any]) -> int:
    """Serve one profile: its figures first, then its files made ready; return 0."""
    directory = env.expand(str(request.get("directory") or ""))
    raw = os.path.join(directory, RAW_DIRECTORY)
    if not os.path.isdir(raw):
        raise Refused("no-profile", f"there is no profile in `{request.get('directory')}`")
    try:
        figures = rank(raw, _wishes(request))
    except FormatError as error:
        raise Refused("bad-expression", str(error)) from error
    _send(channel, first_answer(figures, _count(request, "top")))
    if len(figures["kernels"]) > _shown(_count(request, "top")):
        _send(channel, _packed(first_part(figures, len(figures["kernels"]))))
    else:
        channel.send(frames.Kind.DATA_END)
    secrets = [text for text in request.get("secrets") or [] if isinstance(text, str)][:_MOST_SECRETS]
    withheld = make_fit_to_leave(raw, secrets)
    is_converted, notes = False, list[str]()
    if request.get("convert"):
        notes = [note] if (note := convert(raw, directory)) else []
        is_converted = os.path.exists(os.path.join(directory, PFTRACE))
    raw_bytes = sum(os.path.getsize(path) for path in files_below(raw))
    answer = {"withheld": withheld, "pftrace": is_converted, "raw_bytes": raw_bytes, "notes": notes}
    channel.send_json(frames.Kind.REPLY, answer)
    return 0


def _wishes(request: dict[str, Any]) -> Wishes:
    kernel = request.get("kernel")
    return Wishes(kernel if isinstance(kernel, str) else None, _count(request, "skip_warmup"))


def _count(request: dict[str, Any], name: str) -> int:
    value = request.get(name)
    return value if type(value) is int and value > 0 else 0


def _shown(top: int) -> int:
    return max(top, LEAST_SHOWN)


def first_answer(figures: dict[str, Any], top: int) -> bytes:
    """Return the first answer as it is sent, within `FIRST_ANSWER_BYTES` as far as names allow."""
    data = b""
    for detailed in (DETAILED, DETAILED // 2, DETAILED // 4, 0):
        data = _packed(first_part(figures, _shown(top), detailed=detailed))
        if len(data) <= FIRST_ANSWER_BYTES:
            break
    return data


def _packed(figures: dict[str, Any]) -> bytes:
    return zlib.compress(json.dumps(figures, separators=(",", ":")).encode("ascii"), 6)


def _send(channel: Channel, data: bytes) -> None:
    for start in range(0, len(data), _CHUNK):
        channel.send(frames.Kind.DATA, data[start : start + _CHUNK])
    channel.send(frames.Kind.DATA_END)


def convert(raw: str, directory: str) -> str | None:
    """Convert the databases to one Perfetto trace where `rocpd` is installed; return what went wrong.

    Without `rocpd` or databases nothing is done and nothing is wrong: chisel makes a trace itself.
    """
    databases = [path for path in files_below(raw) if _is_rocpd(path)]
    environment = env.command_environment({})
    program = shutil.which("rocpd", path=environment.get("PATH", os.defpath))
    if program is None or not databases:
        return None
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=directory) as place:
        command = [program, "convert", "-i", *databases, "-f", "pftrace", "-d", place, "-o", "trace"]
        try:
            ended = subprocess.run(
                command, env=environment, cwd=place, stdin=subprocess.DEVNULL, capture_output=True,
                timeout=CONVERT_DEADLINE_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"`rocpd convert` did not end within {CONVERT_DEADLINE_S:.0f} s; chisel makes the trace itself"
        except OSError as error:
            return f"`rocpd convert` cannot be run: {error.strerror}; chisel makes the trace itself"
        made = [path for path in files_below(place) if path.endswith(".pftrace") and os.path.getsize(path)]
        if not made or ended.returncode:
            last = (ended.stderr or ended.stdout).decode("utf-8", "replace").strip().splitlines()[-1:]
            said = f": {last[0][:300]}" if last else ""
            return f"`rocpd convert` ended with status {ended.returncode}{said}; chisel makes the trace itself"
        os.replace(max(made, key=os.path.getsize), os.path.join(directory, PFTRACE))
    return None


def _is_rocpd(path: str) -> bool:
    try:
        return formats.kind_of(path) == "rocpd"
    except (FormatError, OSError):
        return False
