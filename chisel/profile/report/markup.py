"""Build HTML and SVG in which text cannot become markup: every string is escaped unless this module made it. Pure."""

from __future__ import annotations

from chisel.profile.report.escape import LONGEST_TEXT, escaped

_VOID = {"meta", "br", "input", "col"}


class Markup(str):
    """Hold text that is HTML already; only `tag`, `join` and `raw` make it."""

    __slots__ = ()


Inside = str | Markup | None
Value = str | int | float | bool | None


def tag(name: str, /, *inside: Inside, **attributes: Value) -> Markup:
    """Return an element; attributes are named as in Python (`class_`, `stroke_width`), None and False leave one out.

    Strings inside and in attributes are escaped and cut at `LONGEST_TEXT` characters.
    """
    said = "".join(
        _attribute(key, value) for key, value in attributes.items() if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{said}>")
    return Markup(f"<{name}{said}>{join(*inside)}</{name}>")


def join(*inside: Inside) -> Markup:
    """Return pieces one after the other; plain strings are escaped, None is nothing."""
    return Markup("".join(one if isinstance(one, Markup) else escaped(one) for one in inside if one is not None))


def raw(text: str) -> Markup:
    """Take text of our own as it is: a style sheet, a script, a path's numbers."""
    return Markup(text)


def _attribute(key: str, value: Value) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = number(value) if isinstance(value, float) else str(value)
    return f' {name}="{escaped(text, LONGEST_TEXT)}"'


def number(value: float) -> str:
    """Return a coordinate with at most one decimal, within bounds that every browser draws."""
    if value != value:
        return "0"
    return f"{min(max(value, -1e6), 1e6):.1f}".removesuffix(".0")
