"""Take what users give as a command or a pattern, and refuse what is none."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from chisel.errors import UsageError


def check_pattern(pattern: str | None) -> str | None:
    """Return a regular expression as it is; raises UsageError for one that is none."""
    if pattern is not None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"`{pattern}` is no regular expression: {error}") from error
    return pattern


def shell_line(command: str | Sequence[str]) -> str:
    """Return a command as a shell line: a string as it is, several words quoted, one word as a line of its own.

    Raises UsageError for NUL bytes and lone surrogates, which no command line can carry.
    """
    words = [command] if isinstance(command, str) else list(command)
    if not words or not any(words):
        raise UsageError("there is no command to run", hint="chisel run make")
    for index, word in enumerate(words):
        for position, character in enumerate(word):
            if character == "\0" or 0xD800 <= ord(character) < 0xE000:
                raise UsageError(f"word {index + 1} of the command has {character!r} at position {position}")
    return words[0] if len(words) == 1 else shlex.join(words)
