"""Turn what a droplet, or the worker here, says of a profile into values, believing nothing. Pure."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import orjson

from chisel.figures import QUANTILES, SLICES, Copies, KernelStats, Launch, Part, Ranking

MAX_FIGURES_BYTES = 256 << 20
_LONGEST_NAME = 1 << 16
_LONGEST_NOTE = 1000
_MOST = 1 << 20
_SEVERAL = 256
_LARGEST = 1 << 63


@dataclass(frozen=True, slots=True)
class Facts:
    """What `diagnosis` knows besides the files: the user's line, and what was asked to be left out."""

    line: str = ""
    kernel: str | None = None
    skip_warmup: int = 0


def decode_ranking(data: bytes) -> Ranking:
    """Decode the droplet's answer (a zlib stream of JSON); raises ValueError for anything else."""
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, MAX_FIGURES_BYTES)
    except zlib.error as error:
        raise ValueError(f"no zlib stream: {error}") from error
    if not unpacker.eof:
        raise ValueError("the figures are cut, or too many")
    return decode_figures(orjson.loads(text))


def decode_figures(found: object) -> Ranking:
    """Decode figures (see `node.table`) into a Ranking; raises ValueError for anything else."""
    if not isinstance(found, dict):
        raise ValueError("no object")  # noqa: TRY004 - one kind of error for a peer that speaks nonsense
    kernels, pseudo = _objects(found, "kernels"), _objects(found, "pseudo")
    rest_ns = _whole_or_none(found, "rest_ns") or 0
    whole_ns = sum(_whole(one, "total_ns") for one in kernels) + rest_ns
    stats = tuple(_stats(one, whole_ns) for one in kernels)
    return Ranking(
        kernels=stats,
        pseudo=tuple(_stats(one, 0) for one in pseudo),
        parts=tuple(_part(one, stats) for one in _objects(found, "parts", optional=True)),
        copies=tuple(_copies(one) for one in _objects(found, "copies", optional=True)),
        source=_text_or_none(found, "source"),
        files=_whole(found, "files"),
        dispatches=_whole_or_none(found, "dispatches") or 0,
        rest=_whole_or_none(found, "rest") or 0,
        rest_ns=rest_ns,
        notes=_texts(found, "notes"),
        stand_in=_text_or_none(found, "stand_in"),
        filtered=_whole_or_none(found, "filtered") or 0,
        unfinished=_texts(found, "unfinished", optional=True),
    )


# -- why there is nothing

_NO_FILES = "the profiler wrote nothing: did the command start a HIP program at all?"
_PSEUDO_ONLY = "the profiler saw barriers only: the program launched no kernel"
_NOTHING_IN_FILES = (
    "the profiler's files hold none: did the program launch one, and was it run directly? A wrapper that clears the "
    "environment hides it"
)
_FIRST = r"(?:^|[;&|(]|\bthen|\bdo|\bexec|\btime|\bnohup)\s*(?:\w+=\S*\s+)*"
_CLEARING = "clears the environment that the profiler works by: leave it out"
_INSIDE = "starts the program where the profiler does not reach: profile what it starts, in there"
_WRAPPERS = (
    (re.compile(_FIRST + r"(sudo)\s(?!(?:\S+\s+)*(?:-\w*E|--preserve-env)\b)"), _CLEARING + ", or say `sudo -E`"),
    (re.compile(_FIRST + r"(env\s+(?:-i|-|--ignore-environment))\s"), _CLEARING),
    (re.compile(_FIRST + r"(su|runuser|systemd-run)\s"), _CLEARING),
    (re.compile(_FIRST + r"((?:docker|podman|nerdctl)\s+(?:run|exec)|singularity|apptainer|kubectl)\s"), _INSIDE),
    (re.compile(_FIRST + r"(ssh|srun)\s"), _INSIDE),
)
_SIGNALS = {
    4: "SIGILL",
    6: "SIGABRT",
    7: "SIGBUS",
    8: "SIGFPE",
    9: "SIGKILL",
    11: "SIGSEGV",
    2: "SIGINT",
    15: "SIGTERM",
}


def diagnosis(ranking: Ranking, status: int, facts: Facts | None = None) -> str | None:
    """Say why there is no kernel, None when there are some; `status` is the profiled command's own."""
    if ranking.kernels:
        return None
    said = _why(ranking, status, facts or Facts())
    return "; ".join(["no kernels: " + said, *ranking.notes])


def _why(ranking: Ranking, status: int, facts: Facts) -> str:
    if ranking.filtered:
        return _filtered(ranking, facts)
    if status == 127:
        return "the command was not found on the droplet (status 127)"
    if status == 126:
        return "the command cannot be executed on the droplet (status 126)"
    if ranking.unfinished:
        return (
            f"the profiler was killed while it wrote: {', '.join(f'`{name}`' for name in ranking.unfinished[:3])} "
            "is left over; let it finish (one Ctrl-C only), or give it more memory and disk"
        )
    if status > 128:
        name = _SIGNALS.get(status - 128)
        return (
            f"the program was ended by signal {status - 128}{f' ({name})' if name else ''} before the profiler could "
            "write; does it run without the profiler?"
        )
    wrapper = _wrapper(facts.line)
    if wrapper:
        return wrapper
    if ranking.pseudo:
        return _PSEUDO_ONLY
    return _NOTHING_IN_FILES if ranking.files else _NO_FILES


def _filtered(ranking: Ranking, facts: Facts) -> str:
    wishes = [
        *([f"--kernel `{facts.kernel}`"] if facts.kernel else []),
        *([f"--skip-warmup {facts.skip_warmup}"] if facts.skip_warmup else []),
    ]
    return f"all {ranking.filtered} dispatches are left out by {' and '.join(wishes) or 'what was asked for'}"


def _wrapper(line: str) -> str | None:
    for pattern, advice in _WRAPPERS:
        found = pattern.search(f"{line} ")
        if found:
            return f"`{' '.join(found[1].split())[:40]}` in the command {advice}"
    return None


# -- decoding


def _objects(found: Mapping[str, Any], name: str, *, optional: bool = False) -> Sequence[Mapping[str, Any]]:
    values = [] if optional and found.get(name) is None else _list(found, name)
    if not all(isinstance(value, dict) for value in values) or len(values) > _MOST:
        raise ValueError(f"`{name}` holds something that is no object")
    return values


def _stats(one: Mapping[str, Any], whole_ns: int) -> KernelStats:
    total, calls = _whole(one, "total_ns"), _whole(one, "calls")
    launch = one.get("launch")
    return KernelStats(
        name=_name(one),
        calls=calls,
        total_ns=total,
        mean_ns=_number(one, "mean_ns") or 0.0,
        p50_ns=_number(one, "p50_ns"),
        p99_ns=_number(one, "p99_ns"),
        min_ns=_number(one, "min_ns"),
        max_ns=_number(one, "max_ns"),
        share=total / whole_ns if whole_ns else 0.0,
        std_ns=_number(one, "std_ns"),
        launch=_launch(launch) if isinstance(launch, dict) else None,
        quantiles=_quantiles(one),
        drift=_drift(one),
        counters=_counters(one),
    )


def _name(one: Mapping[str, Any]) -> str:
    name = one.get("name")
    if not isinstance(name, str) or len(name) > _LONGEST_NAME:
        raise ValueError("something has no name, or an endless one")
    return name


def _launch(one: Mapping[str, Any]) -> Launch:
    return Launch(
        workgroup=_volume(one, "workgroup"),
        grid=_volume(one, "grid"),
        grids=_whole_or_none(one, "grids") or 0,
        vgprs=_whole_or_none(one, "vgprs"),
        agprs=_whole_or_none(one, "agprs"),
        sgprs=_whole_or_none(one, "sgprs"),
        lds_bytes=_whole_or_none(one, "lds_bytes"),
        scratch_bytes=_whole_or_none(one, "scratch_bytes"),
    )


def _volume(one: Mapping[str, Any], name: str) -> tuple[int, int, int] | None:
    value = one.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError(f"`{name}` is no volume")
    x, y, z = (_is_whole(part, name) for part in value)
    return x, y, z


def _quantiles(one: Mapping[str, Any]) -> tuple[float, ...]:
    values = one.get("quantiles") or []
    if not isinstance(values, list) or len(values) not in {0, QUANTILES + 1}:
        raise ValueError("the quantiles are not as many as they are")
    found = tuple(_is_number(value, "quantiles") for value in values)
    if any(low > high for low, high in pairwise(found)):
        raise ValueError("the quantiles do not ascend")
    return found


def _drift(one: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    values = one.get("drift") or []
    if not isinstance(values, list) or len(values) > SLICES:
        raise ValueError("the drift has too many parts")
    if not all(isinstance(value, list) and len(value) == 2 for value in values):
        raise ValueError("the drift holds something that is no part")
    return tuple((_is_whole(calls, "drift"), _is_number(median, "drift")) for calls, median in values)


def _counters(one: Mapping[str, Any]) -> dict[str, float]:
    found = one.get("counters") or {}
    if not isinstance(found, dict) or len(found) > _SEVERAL:
        raise ValueError("the counters are no object, or too many")
    return {str(name)[:_LONGEST_NOTE]: _is_number(value, "counters") for name, value in found.items()}


def _part(one: Mapping[str, Any], kernels: Sequence[KernelStats]) -> Part:
    kind: Literal["process", "gpu"] = "process" if one.get("kind") == "process" else "gpu"
    if one.get("kind") not in {"process", "gpu"}:
        raise ValueError("a part is of no kind")
    hottest = []
    for row in _list(one, "kernels")[:_SEVERAL]:
        if not isinstance(row, list) or len(row) != 3:
            raise ValueError("a part's kernel is none")
        which = row[0]
        if type(which) is int and 0 <= which < len(kernels):
            which = kernels[which].name
        hottest.append((_name({"name": which}), _is_whole(row[1], "calls"), _is_whole(row[2], "total_ns")))
    return Part(kind, _name(one), _whole(one, "calls"), _whole(one, "total_ns"), tuple(hottest))


def _copies(one: Mapping[str, Any]) -> Copies:
    return Copies(_name(one), _whole(one, "calls"), _whole(one, "total_ns"), _whole_or_none(one, "bytes"))


def _list(found: Mapping[str, Any], name: str) -> Sequence[Any]:
    value = found.get(name)
    if not isinstance(value, list):
        raise ValueError(f"`{name}` is no list")  # noqa: TRY004 - see above
    return value


def _texts(found: Mapping[str, Any], name: str, *, optional: bool = False) -> tuple[str, ...]:
    values = [] if optional and found.get(name) is None else _list(found, name)
    return tuple(str(value)[:_LONGEST_NOTE] for value in values[:_SEVERAL])


def _whole(found: Mapping[str, Any], name: str) -> int:
    return _is_whole(found.get(name), name)


def _whole_or_none(found: Mapping[str, Any], name: str) -> int | None:
    value = found.get(name)
    return None if value is None else _is_whole(value, name)


def _is_whole(value: object, name: str) -> int:
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise ValueError(f"`{name}` is no whole number")
    return value


def _number(found: Mapping[str, Any], name: str) -> float | None:
    value = found.get(name)
    return None if value is None else _is_number(value, name)


def _is_number(value: object, name: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]  # a number, it was asked
        raise ValueError(f"`{name}` is no number")
    return float(value)  # type: ignore[arg-type]  # see above


def _text_or_none(found: Mapping[str, Any], name: str) -> str | None:
    value = found.get(name)
    return value[:_LONGEST_NOTE] if isinstance(value, str) else None
