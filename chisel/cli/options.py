"""Share the options that several commands take."""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import asyncclick as click

from chisel.cli.session import Session

Command = Callable[..., Awaitable[None]]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(i?)[bB]?")
_UNIT_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
# The command's own words end chisel's options: in `chisel run --all make -j8` the -j8 is make's.
WORDS = {"ignore_unknown_options": False, "allow_interspersed_args": False}


def output_options(command: Command) -> Command:
    """Give a command its session as first argument, with `--json`, `--quiet` and `--debug` applied to it."""

    @functools.wraps(command)
    async def with_session(*, json_lines: bool, quiet: bool, debug: bool, **options: Any) -> None:
        session = click.get_current_context().ensure_object(Session)
        session.json, session.quiet, session.debug = json_lines, quiet, session.debug or debug
        await command(session, **options)

    json_lines = click.option("--json", "json_lines", is_flag=True, help="Write versioned JSON lines to stdout.")
    quiet = click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")
    debug = click.option("--debug", is_flag=True, hidden=True)
    dressed: Command = json_lines(quiet(debug(with_session)))
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
        found = _SIZE.fullmatch(str(value).strip())
        count = (
            int(float(found[1]) * (1024 if found[3] else 1000) ** (" kmgt".index(found[2].lower() or " ")))
            if found
            else 0
        )
        if count < 1:
            self.fail(f"`{value}` is not an amount like 500k, 20M or 1.5G", param, ctx)
        return count


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
