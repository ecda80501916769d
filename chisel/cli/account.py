"""The account: auth, and the shell's completion."""

from __future__ import annotations

import getpass
import sys

import asyncclick as click

from chisel.cli.options import output_options
from chisel.cli.session import Session

TOKEN_LINK = "https://cloud.digitalocean.com/account/api/tokens"
SELF_DESTRUCT_SCOPE = "droplet:delete"
SCOPES = (
    "account:read actions:read droplet:create droplet:delete droplet:read droplet:update image:read regions:read"
    " sizes:read ssh_key:create ssh_key:read tag:create tag:delete tag:read"
)


@click.command()
@click.option(
    "--token", help="The token; better: leave it out and paste it, or pipe it in (arguments are visible to others)."
)
@click.option(
    "--self-destruct-token",
    metavar="T",
    help="A second token, which may only delete: droplets get it to end themselves.",
)
@click.option("--allow-broad-token", is_flag=True, help="Take a self-destruct token that may create droplets as well.")
@click.option("--api-url", metavar="URL", help="Another API host: a sandbox's, or AMD Developer Cloud's.")
@output_options
async def auth(
    session: Session, token: str | None, self_destruct_token: str | None, allow_broad_token: bool, api_url: str | None
) -> None:
    """Store and verify DigitalOcean tokens, show what the account may do.

    The first is chisel's own and stays on this machine. The second is optional: with it droplets destroy themselves
    when they are idle, also while this machine is off. Every droplet gets it, so it should be able to delete and
    nothing more. It can delete any droplet of its team, and whatever runs as root on a droplet can read it: use a team
    of its own.
    """
    from chisel.events import Notice

    async with session.open(cares=False, mends=False) as client:
        if token or self_destruct_token:
            client.sink.emit(
                Notice(level="warning", message="a token on the command line shows in `ps` and in history")
            )
        text = token or (None if self_destruct_token and client.config.token else _from_elsewhere(session))
        second = self_destruct_token or _second_from_terminal(session, is_known=bool(client.config.self_destruct_token))
        client.sink.emit(
            await client.authenticate(
                text, self_destruct_token=second, takes_broad_token=allow_broad_token, api_url=api_url
            )
        )


def _second_from_terminal(session: Session, *, is_known: bool) -> str | None:
    """Ask for the token that droplets get, where there is somebody to ask and none is stored."""
    if is_known or not session.may_ask:
        return None
    print(  # noqa: T201
        "\nA second token lets droplets destroy themselves when idle, also while this machine is off.\n"
        f"Make it with the scope {SELF_DESTRUCT_SCOPE} alone, in a team of its own if you can: it can delete\n"
        f"any droplet of its team, and whatever runs as root on a droplet can read it.\nat {TOKEN_LINK}",
        file=sys.stderr,
    )
    return getpass.getpass("Self-destruct token (empty: none): ").strip() or None


def _from_elsewhere(session: Session) -> str | None:
    """Read the token from a prompt without echo, or from standard input; None leaves it to CHISEL_DO_TOKEN."""
    if session.around.environ.get("CHISEL_DO_TOKEN"):
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
