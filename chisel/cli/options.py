"""Share the options that several commands take."""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncclick as click

from chisel.cli.session import Session

Command = Callable[..., Awaitable[None]]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(i?)[bB]?")
_UNIT_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
# The command's own words end chisel's options: in `chisel run --all make -j8` the -j8 is make's.
WORDS = {"ignore_unknown_options": False, "allow_interspersed_args": False}


def with_options(options: Sequence[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    """Add many options at once, in the order they are to be shown."""

    def dress(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return dress


def output_options(command: Command) -> Command:
    """Give a command its session as first argument, with `--json`, `--quiet` and `--debug` applied to it."""

    @functools.wraps(command)
    async def with_session(*, json_lines: bool, quiet: bool, debug: bool, no_agent: bool, **options: Any) -> None:
        del no_agent  # whoever starts this process looks at it
        session = click.get_current_context().ensure_object(Session)
        session.json, session.quiet, session.debug = json_lines, quiet, session.debug or debug
        await command(session, **options)

    json_lines = click.option("--json", "json_lines", is_flag=True, help="Write versioned JSON lines to stdout.")
    quiet = click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")
    debug = click.option("--debug", is_flag=True, hidden=True)
    agent = click.option("--no-agent", is_flag=True, help="Do it without the background agent (see chisel agent).")
    dressed: Command = json_lines(quiet(agent(debug(with_session))))
    return dressed


def pool_option(command: Command) -> Command:
    """Add `--pool`."""
    return click.option("--pool", metavar="NAME", help="The pool (default: the project's, at first chisel-dev).")(
        command
    )


def target_options(command: Command) -> Command:
    """Add `--pool`, `--all` and `--on`."""
    everywhere = click.option("--all", "everywhere", is_flag=True, help="On every droplet of the pool.")
    on = click.option("--on", metavar="NAME[,NAME]", help="On these droplets of the pool.")
    return pool_option(everywhere(on(command)))


class Duration(click.ParamType[timedelta]):
    """A duration as people write it: 90s, 15m, 2h, 1.5h, 1d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the duration; a bare number has no unit and is refused, but for 0."""
        if isinstance(value, timedelta):
            return value
        if str(value).strip() == "0":
            return timedelta(0)
        found = _DURATION.fullmatch(str(value).strip())
        if not found:
            self.fail(f"`{value}` is not a duration like 90s, 15m or 2h", param, ctx)
        return timedelta(seconds=float(found[1]) * _UNIT_S[found[2]])


class Size(click.ParamType[int]):
    """An amount of bytes as people write it: 500k, 20M, 1.5G, 2T (powers of ten), 1Mi (of two), a bare number."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the amount in bytes, at least one."""
        if isinstance(value, int):
            return value
        count = _bytes(str(value))
        if count < 1:
            self.fail(f"`{value}` is not an amount like 500k, 20M or 1.5G", param, ctx)
        return count


class Rate(click.ParamType[float]):
    """Bytes a second, as people write them: 500k, 2M, 1.5MB/s, 1Mi."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return bytes a second, at least one."""
        if isinstance(value, float):
            return value
        count = _bytes(str(value).strip().removesuffix("/s"))
        if count < 1:
            self.fail(f"`{value}` is not a rate like 500k or 2M (bytes a second)", param, ctx)
        return float(count)


def _bytes(text: str) -> int:
    """Return the bytes that an amount comes to, 0 for what is none."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        return 0
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2].lower() or " "))


def bandwidth_option(command: Command) -> Command:
    """Add `--bwlimit`."""
    said = "Move at most so many bytes a second, all droplets together: 500k, 2M."
    return click.option("--bwlimit", "bytes_per_s", type=Rate(), metavar="RATE", help=said)(command)


def relay_option(command: Command) -> Command:
    """Add `--relay`."""
    said = "Whether droplets pass on to each other what all of them need (default: auto, where it clearly pays)."
    return click.option("--relay", type=click.Choice(["auto", "on", "off"]), default="auto", help=said)(command)


class Dollars(click.ParamType[Decimal]):
    """An amount of dollars, to the cent."""

    name = "dollars"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        """Return the amount, which must be positive."""
        if isinstance(value, Decimal):
            return value
        if not re.fullmatch(r"\$?\d{1,6}(\.\d{1,2})?", str(value).strip()) or not float(str(value).strip().lstrip("$")):
            self.fail(f"`{value}` is not an amount like 3 or 12.50", param, ctx)
        return Decimal(str(value).strip().lstrip("$"))


def environment(pairs: tuple[str, ...], environ: Any) -> dict[str, str]:
    """Read `K=V` words, and `K` alone as the value it has here; a name unset here is refused."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            if name not in environ:
                raise click.BadParameter(f"`{name}` is not set here", param_hint="--env")
            value = environ[name]
        found[name] = value
    return found


def env_file(path: Path, cwd: Path) -> dict[str, str]:
    """Read `K=V` lines: comments and empty lines are skipped, quotes around a value fall away, nothing is expanded."""
    try:
        lines = (cwd / path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"`{path}` cannot be read: {error}", param_hint="--env-file") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip().removeprefix("export ").lstrip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise click.BadParameter(f"`{path}`, line {number}: `{line}` is no K=V", param_hint="--env-file")
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[name.strip()] = value
    return found
