"""Make text from a droplet harmless for a terminal: no control sequence survives, nothing is read as markup."""

from __future__ import annotations

_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if code not in (0x09, 0x0A)}
_C1_AND_DELETE = {code: f"\\x{code:02x}" for code in range(0x7F, 0xA0)}
_INVISIBLE = {
    code: f"\\u{code:04x}"
    for code in (0x061C, 0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF)
}
_HARMLESS = {**_PICTURES, **_C1_AND_DELETE, **_INVISIBLE}


def clean(text: str) -> str:
    r"""Return `text` with control, C1 and bidirectional characters made visible; tab and line feed stay.

    >>> clean("a\x1b[2Jb")
    'a␛[2Jb'
    """
    return text.translate(_HARMLESS).encode("utf-8", "backslashreplace").decode("utf-8")


def clean_lines(data: bytes) -> bytes:
    """Make whole lines of remote output harmless; of a line redrawn with carriage returns only the last text stays."""
    text = data.decode("utf-8", "replace").replace("\r\n", "\n")
    if "\r" in text:
        text = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))
    return clean(text).encode()
