"""Turn what a droplet says of a profile into values, believing nothing. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from chisel.figures import KernelStats, Ranking

MAX_FIGURES_BYTES = 256 << 20
_LONGEST_NAME = 1 << 16
_NO_FILES = "the profiler wrote nothing: did the command start a HIP program at all?"
_PSEUDO_ONLY = "the profiler saw barriers only: the program launched no kernel"
_NOTHING_IN_FILES = (
    "the profiler's files hold none: did the program launch one, and was it run directly? A wrapper that clears the "
    "environment hides it"
)


def decode_ranking(data: bytes) -> Ranking:
    """Decode the droplet's answer (a zlib stream of JSON); raises ValueError for anything else."""
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, MAX_FIGURES_BYTES)
    except zlib.error as error:
        raise ValueError(f"no zlib stream: {error}") from error
    if not unpacker.eof:
        raise ValueError("the figures are cut, or too many")
    found = orjson.loads(text)
    if not isinstance(found, dict):
        raise ValueError("no object")  # noqa: TRY004 - one kind of error for a peer that speaks nonsense
    kernels, pseudo = _objects(found, "kernels"), _objects(found, "pseudo")
    whole_ns = sum(_whole(one, "total_ns") for one in kernels)
    return Ranking(
        kernels=tuple(_stats(one, whole_ns) for one in kernels),
        pseudo=tuple(_stats(one, 0) for one in pseudo),
        source=_text_or_none(found, "source"),
        files=_whole(found, "files"),
        notes=tuple(str(note)[:1000] for note in _list(found, "notes")),
        stand_in=_text_or_none(found, "stand_in"),
    )


def diagnosis(ranking: Ranking, status: int) -> str | None:
    """Say why there is no kernel, None when there are some."""
    if ranking.kernels:
        return None
    if status > 128:
        said = f"the program was ended by signal {status - 128} before the profiler could write"
    elif status == 127:
        said = "the command was not found on the droplet"
    else:
        said = _PSEUDO_ONLY if ranking.pseudo else _NOTHING_IN_FILES if ranking.files else _NO_FILES
    return "; ".join(["no kernels: " + said, *ranking.notes])


def _objects(found: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    values = _list(found, name)
    if not all(isinstance(value, dict) for value in values):
        raise ValueError(f"`{name}` holds something that is no object")
    return values


def _stats(one: Mapping[str, Any], whole_ns: int) -> KernelStats:
    total = _whole(one, "total_ns")
    name = one.get("name")
    if not isinstance(name, str) or len(name) > _LONGEST_NAME:
        raise ValueError("a kernel has no name")
    return KernelStats(
        name=name,
        calls=_whole(one, "calls"),
        total_ns=total,
        mean_ns=_number(one, "mean_ns") or 0.0,
        p50_ns=_number(one, "p50_ns"),
        p99_ns=_number(one, "p99_ns"),
        min_ns=_number(one, "min_ns"),
        max_ns=_number(one, "max_ns"),
        share=total / whole_ns if whole_ns else 0.0,
    )


def _list(found: Mapping[str, Any], name: str) -> Sequence[Any]:
    value = found.get(name)
    if not isinstance(value, list):
        raise ValueError(f"`{name}` is no list")  # noqa: TRY004 - see above
    return value


def _whole(found: Mapping[str, Any], name: str) -> int:
    value = found.get(name)
    if type(value) is not int or value < 0:
        raise ValueError(f"`{name}` is no whole number")
    return value


def _number(found: Mapping[str, Any], name: str) -> float | None:
    value = found.get(name)
    if value is None:
        return None
    if type(value) not in (int, float):
        raise ValueError(f"`{name}` is no number")
    return float(value)


def _text_or_none(found: Mapping[str, Any], name: str) -> str | None:
    value = found.get(name)
    return value[:1000] if isinstance(value, str) else None
