"""Keep the sessions of a profile under a name, and read them back to compare with: `--save NAME`, `--against NAME`.

One JSON file a name. It may come from a colleague, a build server or an older chisel: nothing in it is believed.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import orjson

from chisel.errors import UsageError
from chisel.figures import QUANTILES, Fingerprint, KernelStats
from chisel.paths import sync_directory
from chisel.profile.compare import REST, Session

VERSION = 1
FORMAT = "chisel profile"
PROFILE_FILE = "profile.json"
LARGEST_BYTES = 64 << 20
LEAST_SHARE = 0.0001

_MODE = 0o644
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_MOST_SESSIONS = 1000
_MOST_KERNELS = 100_000
_MOST_FACTS = 200
_LONGEST_NAME = 1 << 16
_LONGEST_TEXT = 10_000
_LARGEST_NUMBER = 2**63 - 1
# What is meant to differ between two builds, by the words in a fact's label.
_MEANT_TO_DIFFER = ("command", "tree", "label", "when", "commit")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Saved:
    """What was measured, by which profiler, on what: one side of a comparison.

    `generation` is what may be compared with what (see `ProfileResult`); `saved_at` is aware; `host` names the droplet,
    empty where it is not known.
    """

    label: str
    tool: str
    generation: str
    sessions: tuple[Session, ...]
    saved_at: datetime
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    host: str = ""


class _NotSavedError(ValueError):
    """The bytes are no saved profile; says why."""


def save(directory: Path, name: str, saved: Saved) -> Path:
    """Write a profile under a name and return its file (0644); another of that name is replaced at once.

    Kernels below 0.01 % of their session's time are kept in sum only. The directory is made when it is missing. Raises
    UsageError for a name that is no plain file name, for no session at all, where a newer chisel's profile stands, and
    when it cannot be written: what stood there is then still there, and nothing else is left.
    """
    _check_name(name)
    if not saved.sessions:
        raise UsageError(f"there is no profiling session to keep as `{name}`")
    file = directory / f"{name}.json"
    with contextlib.suppress(OSError, _NotSavedError):
        _version_checked(_read(file), file)
    data = encode(saved)
    if len(data) > LARGEST_BYTES:
        raise UsageError(f"the profile `{name}` is too large to keep: {len(data) >> 20} MiB", hint="--sessions 5")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _replace(file, data)
    except OSError as error:
        raise UsageError(f"`{file}` cannot be written: {error.strerror}") from error
    return file


def load(directory: Path, name: str) -> Saved:
    """Read the profile kept under a name; else a file of that path, or a profile's directory that holds one.

    Raises UsageError when there is none, when it is damaged or too large, and when a newer chisel wrote it.
    """
    file = _file_of(directory, name)
    try:
        return _decode(_version_checked(_read(file), file))
    except FileNotFoundError:
        _refuse_missing(directory, name)
    except OSError as error:
        raise UsageError(f"`{file}` cannot be read: {error.strerror}") from error
    except _NotSavedError as error:
        raise UsageError(f"`{file}` is no profile that chisel saved: {error}", hint="save it again") from error


def encode(saved: Saved) -> bytes:
    """Return a profile as JSON, in the form that `load` reads."""
    tree = {
        "format": FORMAT,
        "version": VERSION,
        "label": _clean(saved.label),
        "tool": _clean(saved.tool),
        "generation": _clean(saved.generation),
        "host": _clean(saved.host),
        "saved_at": saved.saved_at.astimezone(UTC).isoformat(),
        "fingerprint": {_clean(label): _clean(value) for label, value in saved.fingerprint.facts.items()},
        "sessions": [[_kernel_tree(kernel) for kernel in limited(session).values()] for session in saved.sessions],
    }
    return orjson.dumps(tree, option=orjson.OPT_APPEND_NEWLINE)


def limited(session: Session) -> Session:
    """Return a session without kernels below 0.01 % of its time; their time is added to `REST`."""
    whole = sum(kernel.total_ns for kernel in session.values())
    kept = {n: k for n, k in session.items() if n != REST and k.total_ns >= LEAST_SHARE * whole}
    rest = [kernel for name, kernel in session.items() if name not in kept]
    total, calls = sum(kernel.total_ns for kernel in rest), sum(kernel.calls for kernel in rest)
    if total > 0:
        kept[REST] = KernelStats(REST, calls, total, total / max(calls, 1), None, None, None, None, total / whole)
    return kept


def check_comparable(a: Saved, b: Saved) -> tuple[str, ...]:
    """Return what a comparison of two profiles has to say first; raises UsageError where there must not be one.

    Profilers of different generations differ by up to 20 % for the same kernel (ROCm/rocm-systems pull request 3609):
    those are never compared.
    """
    if a.generation != b.generation:
        raise UsageError(
            f"`{a.label}` was measured with {_or_unknown(a.generation)}, `{b.label}` with {_or_unknown(b.generation)}: "
            "their times differ by up to 20 % for the same kernel, so they are not compared",
            hint="measure both with the same profiler (`--driver`)",
        )
    found = [] if a.generation else ["it is not known which profiler measured either side"]
    found += [f"{label} differs: {_both(*values)}" for label, values in _differences(a, b).items()]
    return tuple(found)


def _differences(a: Saved, b: Saved) -> dict[str, tuple[str, str]]:
    """Return the facts that differ and should not, by their labels."""
    here, there = a.fingerprint.facts, b.fingerprint.facts
    pairs = {"droplet": (a.host, b.host), "profiler": (a.tool, b.tool)}
    pairs |= {label: (here.get(label, ""), there.get(label, "")) for label in dict.fromkeys([*here, *there])}
    return {
        label: values
        for label, values in pairs.items()
        if values[0] != values[1] and not any(word in label.casefold() for word in _MEANT_TO_DIFFER)
    }


def _both(one: str, other: str) -> str:
    return f"{_or_unknown(one)}, then {_or_unknown(other)}"


def _or_unknown(value: str) -> str:
    return f"`{value[:200]}`" if value else "something unknown"


# -- names and files


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"`{name}` cannot be the name of a profile: it becomes a file's",
            hint="use letters, digits, `.`, `_`, `+` and `-`, beginning with a letter or digit",
        )


def _file_of(directory: Path, name: str) -> Path:
    if "\0" in name:
        raise UsageError("a profile's name cannot hold a NUL byte")
    kept = directory / f"{name}.json"
    if _NAME.fullmatch(name) and (kept.exists() or not Path(name).exists()):
        return kept
    path = Path(name)
    return path / PROFILE_FILE if path.is_dir() else path


def _refuse_missing(directory: Path, name: str) -> NoReturn:
    known = sorted(file.stem for file in directory.glob("*.json") if _NAME.fullmatch(file.stem))[:10]
    raise UsageError(
        f"there is no profile `{name}`",
        hint="known: " + ", ".join(known) if known else f"save one first: chisel profile --save {name} CMD",
    ) from None


def _read(file: Path) -> bytes:
    """Return a regular file's bytes, a bounded number of them; raises OSError."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would wait for a writer
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _NotSavedError("it is no regular file")
    with open(descriptor, "rb") as stream:
        data = stream.read(LARGEST_BYTES + 1)
    if len(data) > LARGEST_BYTES:
        raise _NotSavedError(f"it is larger than {LARGEST_BYTES >> 20} MiB")
    return data


def _replace(file: Path, data: bytes) -> None:
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        with open(descriptor, "wb") as stream:
            os.fchmod(descriptor, _MODE)  # whatever the umask: a colleague's build server reads it
            stream.write(data)
            stream.flush()
            os.fsync(descriptor)
        temporary.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(file.parent)


# -- the form, strictly


def _clean(text: str) -> str:
    """Return a text that JSON can carry: a lone surrogate (a byte that was no UTF-8) becomes a question mark."""
    return text.encode("utf-8", "replace").decode()[:_LONGEST_TEXT]


def _kernel_tree(kernel: KernelStats) -> dict[str, Any]:
    return {
        "name": kernel.name.encode("utf-8", "replace").decode(),
        "calls": kernel.calls,
        "total_ns": kernel.total_ns,
        "mean_ns": kernel.mean_ns,
        "p50_ns": kernel.p50_ns,
        "quantiles": [int(ns) if ns == int(ns) else ns for ns in kernel.quantiles],
    }


def _version_checked(data: bytes, file: Path) -> Mapping[str, Any]:
    """Return the JSON object of a saved profile; raises UsageError when a newer chisel wrote it."""
    try:
        tree = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _NotSavedError(f"it is no JSON ({error})") from error
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise _NotSavedError("it is something else")
    version = tree.get("version")
    if type(version) is not int or version < 1:
        raise _NotSavedError("it has no version")
    if version > VERSION:
        raise UsageError(
            f"`{file}` was written by a newer chisel (format {version}, this one knows {VERSION})",
            hint="upgrade chisel: pip install --upgrade chisel-gpu",
        )
    return tree


def _decode(tree: Mapping[str, Any]) -> Saved:
    sessions = _get(tree, "sessions", list)
    if not 1 <= len(sessions) <= _MOST_SESSIONS:
        raise _NotSavedError("it holds no session" if not sessions else "it holds too many sessions")
    return Saved(
        label=_text(tree, "label"),
        tool=_text(tree, "tool"),
        generation=_text(tree, "generation"),
        sessions=tuple(_session(_is(one, list, "a session")) for one in sessions),
        saved_at=_instant(tree),
        fingerprint=Fingerprint(_facts(_get(tree, "fingerprint", dict))),
        host=_text(tree, "host"),
    )


def _session(kernels: Sequence[Any]) -> Session:
    if len(kernels) > _MOST_KERNELS:
        raise _NotSavedError("a session holds too many kernels")
    trees = [_is(one, dict, "a kernel") for one in kernels]
    whole = sum(_whole(tree, "total_ns") for tree in trees)
    session = {kernel.name: kernel for kernel in (_kernel(tree, whole) for tree in trees)}
    if len(session) < len(trees):
        raise _NotSavedError("a session holds a kernel twice")
    return session


def _kernel(tree: Mapping[str, Any], whole_ns: int) -> KernelStats:
    quantiles = tuple(_duration(ns, "quantiles") for ns in _get(tree, "quantiles", list)[: QUANTILES + 2])
    if quantiles and (len(quantiles) != QUANTILES + 1 or list(quantiles) != sorted(quantiles)):
        raise _NotSavedError("`quantiles` are no quantiles")
    p50 = tree.get("p50_ns")
    total = _whole(tree, "total_ns")
    name = _get(tree, "name", str)
    if len(name) > _LONGEST_NAME:
        raise _NotSavedError("a kernel's name is too long")
    return KernelStats(
        name=name,
        calls=_whole(tree, "calls"),
        total_ns=total,
        mean_ns=_duration(tree.get("mean_ns"), "mean_ns"),
        p50_ns=None if p50 is None else _duration(p50, "p50_ns"),
        p99_ns=None,
        min_ns=quantiles[0] if quantiles else None,
        max_ns=quantiles[-1] if quantiles else None,
        share=total / whole_ns if whole_ns else 0.0,
        quantiles=quantiles,
    )


def _facts(tree: Mapping[str, Any]) -> dict[str, str]:
    if len(tree) > _MOST_FACTS:
        raise _NotSavedError("`fingerprint` is too long")
    return {label[:_LONGEST_TEXT]: _is(value, str, "a fact")[:_LONGEST_TEXT] for label, value in tree.items()}


def _instant(tree: Mapping[str, Any]) -> datetime:
    try:
        instant = datetime.fromisoformat(_text(tree, "saved_at"))
    except ValueError as error:
        raise _NotSavedError("`saved_at` is no instant") from error
    if instant.tzinfo is None:
        raise _NotSavedError("`saved_at` has no time zone")
    return instant


def _text(tree: Mapping[str, Any], key: str) -> str:
    return _get(tree, key, str)[:_LONGEST_TEXT]


def _whole(tree: Mapping[str, Any], key: str) -> int:
    value = _get(tree, key, int)
    if not 0 <= value <= _LARGEST_NUMBER:
        raise _NotSavedError(f"`{key}` is out of range")
    return value


def _duration(value: Any, key: str) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise _NotSavedError(f"`{key}` is no duration")
    return float(value)


def _get(tree: Mapping[str, Any], key: str, kind: type[T]) -> T:
    return _is(tree.get(key), kind, f"`{key}`")


def _is(value: Any, kind: type[T], what: str) -> T:
    if type(value) is not kind:
        raise _NotSavedError(f"{what} is no {kind.__name__}")
    return value
