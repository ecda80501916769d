"""Make text from a droplet fit for HTML: nothing hidden in it acts, everything hidden in it shows. Pure."""

from __future__ import annotations

import html

SHOWN_NAME = 160
"""So many characters of a kernel's name are shown; the whole name is one click away."""
LONGEST_TEXT = 4000

_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if code not in (0x09, 0x0A)}
_C1_AND_DELETE = {code: f"\\x{code:02x}" for code in range(0x7F, 0xA0)}
_INVISIBLE = {
    code: f"\\u{code:04x}"
    for code in (
        *(0x00AD, 0x034F, 0x061C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180E, 0x3164, 0xFEFF, 0xFFA0),
        *range(0x200B, 0x2010),
        *range(0x2028, 0x202F),
        *range(0x2060, 0x2070),
        *range(0xFFF0, 0xFFFC),
        0xFFFE,
        0xFFFF,
    )
}
_TAGS = {code: f"\\U{code:08x}" for code in range(0xE0000, 0xE0080)}
_HARMLESS = {**_PICTURES, **_C1_AND_DELETE, **_INVISIBLE, **_TAGS}


def visible(text: str) -> str:
    r"""Return `text` with control, bidirectional and invisible characters spelt out, and no lone surrogate.

    >>> visible("a\x00b\u202ec")
    'a␀b\\u202ec'
    """
    return text.translate(_HARMLESS).encode("utf-8", "backslashreplace").decode("utf-8")


def shortened(text: str, most: int) -> str:
    """Return at most `most` characters of `text`, with its two ends where the middle had to go."""
    if len(text) <= most:
        return text
    head = most * 2 // 3
    return f"{text[:head]}…{text[len(text) - (most - head - 1) :]}"


def fitted(text: str, most_bytes: int) -> str:
    """Return visible `text` escaped, in at most `most_bytes` of UTF-8; where it is too long, its two ends.

    A character escaped takes at most six bytes (`&quot;`), so a sixth of the bytes always fits.
    """
    whole = html.escape(text)
    if len(whole.encode()) <= most_bytes:
        return whole
    return html.escape(shortened(text, max(most_bytes // 6, 2)))


def brief(text: str, most: int) -> str:
    """Return at most `most` visible characters of `text`; the work does not grow with what is left out."""
    if len(text) > 4 * most:
        text = f"{text[: 2 * most]}{text[-2 * most :]}"
    return shortened(visible(text), most)


def escaped(text: str, most: int = LONGEST_TEXT) -> str:
    """Return `text` visible, at most `most` characters of it, escaped for HTML text and quoted attributes."""
    return html.escape(brief(text, most))
