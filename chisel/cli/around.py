"""Hold what one command sees of the process around it: nothing else in `cli` looks at the process itself.

A command runs in the user's own process, or for a user's process inside the agent, beside others: what the environment,
the current directory, the terminals and standard input are has to come from here (`Process`, `chisel.cli.served`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from chisel.cli import keyboard


class Around(Protocol):
    """One caller. `terminals` says of standard input, output and error whether each is one.

    `columns` is the width of the first terminal among them, 0 where there is none. `may_read` says whether standard
    input is there to be read. `is_served` says that this is not the caller's own process.
    """

    is_served: bool

    @property
    def environ(self) -> Mapping[str, str]:
        """Return the caller's environment."""

    @property
    def cwd(self) -> Path:
        """Return the caller's current directory; raises OSError when it is gone."""

    @property
    def terminals(self) -> tuple[bool, bool, bool]:
        """Say which of the standard streams are terminals."""

    @property
    def columns(self) -> int:
        """Return the terminal's width, 0 where there is none."""

    @property
    def may_read(self) -> bool:
        """Say whether standard input is there to be read."""

    async def read(self) -> bytes:
        """Return the next piece of standard input, an empty one at its end."""

    def taken(self, offset: int) -> None:
        """Note that the command has taken the input up to `offset`."""

    def say(self, descriptor: int, data: bytes) -> None:
        """Write something short behind all output."""

    def writer(self) -> Any:
        """Return what writes the output, None for the usual way (`chisel.render.writer.Writer`)."""

    def sink(self, screen: Any) -> Any:
        """Return the sink to hand to the engines in place of the screen."""

    def take_on(self) -> None:
        """Note that the command is answered for from here on: what it says may be shown, and it runs to its end."""

    def decline(self) -> None:
        """Leave the command to the caller's own process (`Declined`), where it is not there already."""


class Declined(Exception):
    """The agent leaves a command to its caller's own process: it has had no effect and said nothing so far."""


class Process:
    """The user's own process. `begun` is what was read of standard input already, from `begins_at` on."""

    is_served = False

    def __init__(self, begun: bytes = b"", *, has_input_ended: bool = False) -> None:
        self._begun = begun
        self._has_input_ended = has_input_ended

    @property
    def environ(self) -> Mapping[str, str]:
        """Return the process's environment."""
        return os.environ

    @property
    def cwd(self) -> Path:
        """Return the current directory."""
        return Path.cwd()

    @property
    def terminals(self) -> tuple[bool, bool, bool]:
        """Ask the descriptors."""
        return is_terminal(0), is_terminal(1), is_terminal(2)

    @property
    def columns(self) -> int:
        """Ask the descriptors."""
        for descriptor in (2, 1, 0):
            with suppress(OSError):
                columns = os.get_terminal_size(descriptor).columns
                if columns > 0:
                    return columns
        return 0

    @property
    def may_read(self) -> bool:
        """Ask the descriptor."""
        return keyboard.may_read()

    async def read(self) -> bytes:
        """Read descriptor 0, behind what was read before."""
        if self._begun:
            found, self._begun = self._begun, b""
            return found
        return b"" if self._has_input_ended else await keyboard.read_stdin()

    def taken(self, offset: int) -> None:
        """Need not know."""

    def say(self, descriptor: int, data: bytes) -> None:
        """Write it with what Python buffers."""
        (sys.stdout if descriptor == 1 else sys.stderr).buffer.write(data)

    def writer(self) -> None:
        """Use the usual one."""

    def sink(self, screen: Any) -> Any:
        """Use the screen itself."""
        return screen

    def take_on(self) -> None:
        """Need not know."""

    def decline(self) -> None:
        """Go on: it is here."""


def is_terminal(descriptor: int) -> bool:
    """Say whether a descriptor is a terminal; a closed one is none."""
    try:
        return os.isatty(descriptor)
    except OSError:
        return False
