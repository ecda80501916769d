"""The account: auth, and the shell's completion."""

from __future__ import annotations

import getpass
import os
import sys

import asyncclick as click

from chisel.cli.options import output_options
from chisel.cli.session import Session

TOKEN_LINK = "https://cloud.digitalocean.com/account/api/tokens"
SCOPES = (
    "account:read actions:read droplet:create droplet:delete droplet:read droplet:update image:read regions:read"
    " sizes:read ssh_key:create ssh_key:read tag:create tag:delete tag:read"
)


@click.command()
@click.option(
    "--token", help="The token; better: leave it out and paste it, or pipe it in (arguments are visible to others)."
)
@click.option("--api-url", metavar="URL", help="Another API host: a sandbox's, or AMD Developer Cloud's.")
@output_options
async def auth(session: Session, token: str | None, api_url: str | None) -> None:
    """Store and verify a DigitalOcean token, show what the account may do."""
    from chisel.events import Notice

    async with session.open() as client:
        if token:
            client.sink.emit(
                Notice(level="warning", message="a token on the command line shows in `ps` and in history")
            )
        text = token or _from_elsewhere(session)
        client.sink.emit(await client.authenticate(text, api_url=api_url))


def _from_elsewhere(session: Session) -> str | None:
    """Read the token from a prompt without echo, or from standard input; None leaves it to CHISEL_DO_TOKEN."""
    if os.environ.get("CHISEL_DO_TOKEN"):
        return None
    if session.may_ask:
        print(f"Make a token with these scopes: {SCOPES}\nat {TOKEN_LINK}", file=sys.stderr)  # noqa: T201
        return getpass.getpass("DigitalOcean token: ").strip() or None
    return None if sys.stdin.isatty() else sys.stdin.readline().strip() or None


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@output_options
async def completion(session: Session, shell: str) -> None:
    """Print the code that completes chisel's commands: eval "$(chisel completion bash)"."""
    from asyncclick.shell_completion import get_completion_class

    from chisel.cli.app import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for `{shell}`")
    click.echo(kind(cli, {}, "chisel", "_CHISEL_COMPLETE").source())
