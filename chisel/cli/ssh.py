"""A shell on a droplet: the system's own ssh, told what chisel knows."""

from __future__ import annotations

import shlex
import shutil

import asyncclick as click

from chisel.cli.options import output_options, pool_option
from chisel.cli.session import Session, choose

_COMMAND = "chisel.cli.ssh.command"


class _Separated(click.Command):
    """A command whose arguments end at `--`: what follows is kept apart."""

    async def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            args, ctx.meta[_COMMAND] = args[:at], args[at + 1 :]
        return await super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND...]"]


@click.command(cls=_Separated)
@click.argument("name", required=False)
@pool_option
@click.option("-L", "forwards", multiple=True, metavar="PORT", help="Forward a port here: 8888, or 8080:8888.")
@click.option("-N", "no_command", is_flag=True, help="Only forward: no shell.")
@click.option("--config", "writes_config", is_flag=True, help="Write Host blocks for ssh, rsync and editors.")
@output_options
async def ssh(
    session: Session, name: str | None, pool: str | None, forwards: tuple[str, ...], no_command: bool,
    writes_config: bool,
) -> None:  # fmt: skip
    """Open a shell on a droplet, in your working copy, with the system's own ssh.

    The pinned host key is checked, chisel's key is used, nothing of that is left to your own configuration.
    """
    from chisel.client.openssh import only_host, write_files
    from chisel.errors import UsageError
    from chisel.events import Notice
    from chisel.ssh.openssh import ssh_arguments

    command = list(click.get_current_context().meta.get(_COMMAND, []))
    async with session.open() as client:
        place = await write_files(client, makes_config=writes_config)
        if writes_config:
            client.sink.emit(Notice(message=f"Host blocks are in {place}; chisel keeps them up to date"))
            client.sink.emit(Notice(message="first line of ~/.ssh/config:", hint=f"Include {place}"))
            return
        program = shutil.which("ssh")
        if program is None:
            raise UsageError("there is no `ssh` on this machine (OpenSSH's client)")
        chosen = await choose(client, session, pool=pool, everywhere=False, on=name)
        host = only_host(chosen.hosts())
        more = ["-N"] if no_command else []
        if not command and not no_command:
            directory = await client.remote_cwd()
            home = directory.removeprefix("~/") if directory != "~" else "."
            command = [f"cd {shlex.quote(home)} 2>/dev/null; exec ${{SHELL:-/bin/sh}} -l"]
            more = ["-t"]
        elif len(command) > 1:
            command = [shlex.join(command)]
        session.replacement = (
            program,
            ssh_arguments(
                host,
                command,
                key=client.paths.client_key,
                known=client.paths.known_hosts_file,
                forwards=forwards,
                more=more,
            ),
        )
