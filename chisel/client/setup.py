"""Run the project's setup script on droplets where its text has not run yet."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from chisel.errors import ChiselError, ConfigError
from chisel.events import Notice
from chisel.model import Host
from chisel.runner import Order, run_pool

if TYPE_CHECKING:
    from pathlib import Path

    from chisel.client.client import Client

_ASK_TIMEOUT_S = 15.0


async def set_up(client: Client, hosts: Sequence[Host], root: Path, remote: PurePosixPath) -> dict[str, str]:
    """Run `setup` of chisel.toml where needed, in the working copy; return what went wrong, by droplet.

    It runs after the sync of the project's own root, and once more when its text has changed or it failed. Raises
    ConfigError when the script is not there.
    """
    project = client.where.project
    script = project.settings.setup
    if script is None or root != project.root:
        return {}
    digest = await to_thread.run_sync(_digest, project.root / script)
    mark = f'"$HOME"/.chisel/setup-{shlex.quote(project.id)}'
    connector, needy, troubles = await client.connector(), list[Host](), dict[str, str]()

    async def ask(host: Host) -> None:
        try:
            connection = await connector.connect(host)
            answer = await connection.shell(f"cat {mark} 2>/dev/null; true", timeout_s=_ASK_TIMEOUT_S)
            if answer.stdout.decode("ascii", "replace").strip() != digest:
                needy.append(host)
        except ChiselError as error:
            troubles[host.name] = error.message

    async with anyio.create_task_group() as tasks:
        for host in hosts:
            tasks.start_soon(ask, host)
    if needy:
        client.sink.emit(Notice(message=f"running `{script}` on {', '.join(sorted(host.name for host in needy))}"))
        quoted = shlex.quote(script if "/" in script else f"./{script}")
        run = f"if [ -x {quoted} ]; then {quoted}; else bash {quoted}; fi"
        line = f"{{ {run}; }} </dev/null && mkdir -p ~/.chisel && printf %s {digest} > {mark}"
        owner = (await client.store.read()).owner
        order = Order(line=line, cwd=str(remote), env=client.command_env(None), owner=owner, shown=script)
        for result in await run_pool(connector, needy, order, client.sink):
            if result.status:
                troubles[result.host] = result.error or f"`{script}` ended with status {result.status}"
    return troubles


def _digest(script: Path) -> str:
    try:
        return hashlib.sha256(script.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"`setup` in chisel.toml names `{script}`: {error.strerror}") from error
