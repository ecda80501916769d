"""Shorten kernels' names for the eye: a C++ signature of two kilobytes says little, and must still tell kernels apart.

Pure. What is shortened is only shown; whoever compares or counts uses the whole name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

ELLIPSIS = "…"
_RETURN_TYPE = re.compile(r"^(?:static |inline )?void\s+")
_WORD = re.compile(r"\w+")
_ANONYMOUS = "(anonymous namespace)::"


def shorten(name: str, width: int) -> str:
    """Return a name in at most `width` characters: what says least goes first, and at last the middle."""
    for step in _STEPS:
        if len(name) <= width:
            return name
        name = step(name) or name
    if len(name) <= width:
        return name
    if width < 2:
        return name[:width]
    tail = (width - 1) // 3
    return name[: width - 1 - tail] + ELLIPSIS + (name[-tail:] if tail else "")


def shorten_all(names: Sequence[str], width: int, marks: Sequence[str]) -> list[str]:
    """Shorten names that stand together; those that become alike are told apart.

    By their `marks` where these differ, else by what comes where the names begin to differ.
    """
    short = [shorten(name, width) for name in names]
    groups: dict[str, list[int]] = {}
    for index, text in enumerate(short):
        groups.setdefault(text, []).append(index)
    for alike in groups.values():
        if len({names[index] for index in alike}) < 2:
            continue
        has_marks = len({marks[index] for index in alike}) == len(alike)
        for index in alike:
            if has_marks and marks[index]:
                room = max(1, width - len(marks[index]) - 1)
                short[index] = f"{shorten(names[index], room)} {marks[index]}"
            else:
                short[index] = _at_difference(names[index], [names[other] for other in alike], width)
    return short


def _at_difference(name: str, alike: Sequence[str], width: int) -> str:
    """Show how a name begins, and from where it differs from the others: `scan<…Policy<8>, float>`."""
    first, last = min(alike), max(alike)
    common = next((at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    start = max((found.start() for found in _WORD.finditer(name, 0, common + 1)), default=common)
    head = name
    for step in _STEPS:
        head = step(head) or head
    head = head.partition("<")[0][: width // 2] + ("<" if "<" in name else "")
    rest = name[start:]
    room = width - len(head) - 1
    return f"{head}{ELLIPSIS}{rest if len(rest) <= room else rest[: max(0, room - 1)] + ELLIPSIS}"[:width]


def _without_return_type(name: str) -> str:
    return _RETURN_TYPE.sub("", name)


def _without_parameters(name: str) -> str:
    """Drop the parameter list of a function at the end of a name, and qualifiers after it."""
    cut = name.rfind(")")
    if cut < 0 or name[cut + 1 :].strip() not in {"", "const", "[clone .kd]"}:
        return name
    depth = 0
    for index in range(cut, -1, -1):
        depth += {")": 1, "(": -1}.get(name[index], 0)
        if depth == 0:
            return name[:index].rstrip() or name
    return name


def _without_inner_arguments(name: str) -> str:
    """Replace what template arguments hold in their own brackets: `a<b<c>, d>` becomes `a<b<…>, d>`."""
    return _collapsed(name, 2)


def _without_arguments(name: str) -> str:
    return _collapsed(name, 1)


def _collapsed(name: str, depth: int) -> str:
    """Replace what stands in template brackets that are nested `depth` deep."""
    found: list[str] = []
    level = 0
    for index, character in enumerate(name):
        if character == "<" and not name[:index].rstrip("<").endswith("operator"):
            level += 1
            if level == depth:
                found.append(f"<{ELLIPSIS}")
                continue
        elif character == ">" and level and name[index - 1] != "-":
            level -= 1
            if level == depth - 1:
                found.append(">")
                continue
        if level < depth:
            found.append(character)
    return "".join(found)


def _without_namespaces(name: str) -> str:
    """Keep the last component of a qualified name: `rocprim::detail::scan<…>` becomes `scan<…>`."""
    name = name.replace(_ANONYMOUS, "")
    head = name.partition("<")[0]
    cut = head.rfind("::")
    return name[cut + 2 :] if cut >= 0 else name


_STEPS: tuple[Callable[[str], str], ...] = (
    _without_return_type,
    _without_parameters,
    _without_inner_arguments,
    _without_arguments,
    _without_namespaces,
)
