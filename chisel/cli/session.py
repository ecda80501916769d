"""Hold what one command needs around it: its output, its client, signals, questions to the user."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio

from chisel.cli.around import Around, Process

if TYPE_CHECKING:
    from chisel.client import Client, Pool
    from chisel.client.trees import Trees
    from chisel.events import Stream
    from chisel.model import RunId, StatusSource
    from chisel.runner import Resumption
    from chisel.ssh.connector import Connector
    from chisel.ssh.early import Departures
    from chisel.state import StateStore

_COMMANDS_WITH_WORDS = {"run", "profile"}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
DEFAULT_WIDTH = 80


def own_words(arguments: Sequence[str], takes_value: Callable[[str], Mapping[str, int]]) -> list[str]:
    """Return the words that are chisel's own: what follows a remote command belongs to that command.

    `takes_value` names the options of a command that are followed by values, and by how many.
    """
    words = list(arguments)
    if not words or words[0] not in _COMMANDS_WITH_WORDS:
        return words[: words.index("--")] if "--" in words else words
    valued = takes_value(words[0])
    index, found = 1, words[:1]
    while index < len(words) and words[index].startswith("-") and words[index] != "--":
        found.append(words[index])
        index += 1 + valued.get(words[index], 0)
    return found


def wants_json(arguments: Sequence[str], takes_value: Callable[[str], Mapping[str, int]]) -> bool:
    """Say whether `--json` is among chisel's own options."""
    return "--json" in own_words(arguments, takes_value)


class Session:
    """One command's surroundings; `status` is what chisel leaves with, `source` whose status that is.

    `replacement` is the program (path and arguments) that takes this process's place when the command is done,
    `serves_with` the lock with which this process becomes the agent then. `look`
    holds what the command line says about how output looks (see `chisel.render.screen.Look`), `departures` the
    connections that were begun before the command was, `connector`, `store` and `trees` are kept by somebody else.
    `outcome` is what the last line of `--json` holds besides. One that `is_done` only shows what it found: a signal
    ends that, and changes no status.
    `around` is the caller's process, `family` the id that its run is to have. `remains` and `tails` are what an agent
    that died has left of this command: how far it came, and by droplet and stream what was held back of a line.
    """

    def __init__(self, *, debug: bool = False, around: Around | None = None) -> None:
        self.debug = debug
        self.around: Around = around or Process()
        self.departures: Departures | None = None
        self.connector: Connector | None = None
        self.store: StateStore | None = None
        self.trees: Trees | None = None
        self.family: RunId | None = None
        self.remains: Resumption | None = None
        self.tails: dict[str, dict[Stream, bytes]] = {}
        self.has_connected = False
        self.serves_with: int | None = None
        self.json = False
        self.quiet = False
        self.look: dict[str, Any] = {}
        self.outcome: dict[str, Any] = {}
        self.is_done = False
        self.replacement: tuple[str, list[str]] | None = None
        self.status = 0
        self.source: StatusSource = "chisel"
        self._take_signal: Callable[[int], bool] | None = None
        self._screen: Any = None

    # -- output

    @asynccontextmanager
    async def open(
        self, *, cares: bool = True, mends: bool = True, reserve: Mapping[str, int] | None = None
    ) -> AsyncIterator[Client]:
        """Open the output and a client that reports to it; everything is written when the block ends.

        A command that `cares` warns of droplets that have been up for long, and ends those whose time is over; one that
        `mends` rebuilds a state that cannot be read.
        """
        import chisel

        around = self.around
        async with (
            self.output() as screen,
            chisel.open(
                sink=around.sink(screen),
                environ=around.environ,
                cwd=around.cwd,
                departures=self.departures,
                connector=self.connector,
                store=self.store,
                trees=self.trees,
                reserve=reserve,
            ) as client,
        ):
            await client.begin(mends=mends, warns=cares)
            yield client
            self.has_connected = client.has_connected
            if cares:
                await client.end_what_is_over(only_warns=around.is_served)  # the agent does it of its own accord
            if not around.is_served:
                await client.refresh_ssh_config()

    @asynccontextmanager
    async def output(self) -> AsyncIterator[Any]:
        """Open the output alone: the sink that fits the terminal, the pipe or `--json`."""
        from chisel.render import open_sink

        async with open_sink(json=self.json, look=self._look(), writer=self.around.writer()) as screen:
            self._screen = screen
            if self.remains is not None:
                screen.take_up(self.tails, list(self.remains.ended.values()))
            try:
                yield screen
            finally:
                self.around.take_on()
                self._screen = None
                screen.finish()
            screen.end(self.status, self.source, self.outcome)

    def _look(self) -> Any:
        from chisel.render.screen import Look

        around = self.around
        no_colour = bool(around.environ.get("NO_COLOR")) or around.environ.get("TERM") == "dumb"
        _, on_stdout, on_stderr = around.terminals
        return Look(
            width=self._width(),
            stdout_is_terminal=on_stdout,
            stderr_is_terminal=on_stderr,
            colour_stdout=on_stdout and not no_colour,
            colour_stderr=on_stderr and not no_colour,
            quiet=self.quiet,
            cwd=around.cwd,
            **self.look,
        )

    def _width(self) -> int:
        if self.around.columns > 0:
            return self.around.columns
        columns_set = self.around.environ.get("COLUMNS", "")
        return int(columns_set) if columns_set.isdigit() and int(columns_set) > 0 else DEFAULT_WIDTH

    def expect(self, names: Sequence[str]) -> None:
        """Tell the screen whose output is to come."""
        if self._screen is not None:
            self._screen.expect(names)

    @staticmethod
    def harmless(text: str) -> str:
        """Make a message's control characters visible before it reaches a terminal."""
        return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text).encode("utf-8", "replace").decode()

    # -- signals

    def takes_signal(self, number: int) -> bool:
        """Hand a signal to the command under way; False when it does not want it."""
        return self._take_signal is not None and self._take_signal(number)

    def hand_signals_to(self, taker: Callable[[int], bool] | None) -> None:
        """Let `taker` decide about signals from now on; it returns False to have everything cancelled."""
        self._take_signal = taker

    # -- questions

    @property
    def may_ask(self) -> bool:
        """Say whether there is somebody to ask: a terminal on both sides and no machine reading."""
        on_stdin, _, on_stderr = self.around.terminals
        return not self.json and on_stdin and on_stderr

    async def ask(self, question: str) -> str:
        """Ask on the terminal and return the answer's line; end of input is an empty answer."""
        self.around.decline()
        sys.stderr.write(self.harmless(question) + " ")
        sys.stderr.flush()
        answer = b""
        try:
            while not answer.endswith(b"\n"):
                await anyio.wait_readable(sys.stdin)
                piece = os.read(0, 4096)
                if not piece:
                    break
                answer += piece
        finally:
            if not answer.endswith(b"\n"):
                sys.stderr.write("\n")  # the terminal stands behind the question
        return answer.decode("utf-8", "replace").strip()

    async def confirms(self, question: str) -> bool:
        """Ask a yes-or-no question; anything but y or yes is no."""
        return (await self.ask(f"{question} [y/N]")).lower() in {"y", "yes"}


async def choose(client: Client, session: Session, *, pool: str | None, everywhere: bool, on: str | None) -> Pool:
    """Return the droplets a command is meant for; a pool of several needs `--all` or `--on`."""
    from chisel.errors import UsageError

    chosen = await client.pool(pool)
    if on is not None:
        chosen = chosen.on(*[name.strip() for name in on.split(",") if name.strip()])
    elif len(chosen) > 1 and not everywhere:
        raise UsageError(
            f"pool `{chosen.name}` has {len(chosen)} droplets: say `--all`, or `--on NAME[,NAME]`",
            hint=f"names: {', '.join(chosen.names)}",
        )
    session.expect(chosen.names)
    session.around.take_on()
    return chosen
