"""The embedded cloud: `sandbox start|status|stop` in the background, and `demo`, the whole loop on one of its own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import anyio
import asyncclick as click
from anyio import to_thread

from chisel.cli.options import output_options
from chisel.cli.session import Session
from chisel.errors import ChiselError, ConfigError

START_DEADLINE_S = 20.0
STOP_DEADLINE_S = 20.0
_LOOK_AGAIN_S = 0.05
_ANSWER_TIMEOUT_S = 5.0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
async def sandbox() -> None:
    """Start, show or stop the embedded cloud: DigitalOcean's API and SSH droplets on this machine, at no cost.

    It plays the GPU, hipcc and the profiler, and says so in everything they print.
    """


@sandbox.command()
@click.option(
    "--droplets", type=click.Choice(["asyncssh", "openssh"]), default="asyncssh", help="What the droplets are."
)
@click.option("--knob", "knobs", multiple=True, metavar="NAME=JSON", help="How it behaves, such as active_after_s=5.")
@click.option("--fault", "faults", multiple=True, metavar="F", help="What fails, such as create-then-504@2.")
@click.option("--seed", type=int, default=0, help="Of faults that happen by chance.")
@output_options
async def start(session: Session, droplets: str, knobs: tuple[str, ...], faults: tuple[str, ...], seed: int) -> None:
    """Start it in the background and print what to export: eval "$(chisel sandbox start)".

    Knobs and faults are those of `chisel.sandbox.cloud.Knobs` and `chisel.sandbox.faults`.
    """
    from chisel.events import Facts

    directory = _directory()
    endpoint = await _living(directory)
    behaviour = [*(f"--knob={knob}" for knob in knobs), *(f"--fault={fault}" for fault in faults)]
    if endpoint is not None and behaviour:
        raise click.UsageError("a sandbox runs already: chisel sandbox stop")
    if endpoint is None:
        endpoint = await _start(directory, droplets, parent=None, behaviour=[*behaviour, f"--seed={seed}"])
    if session.json:
        async with session.output() as sink:
            sink.emit(Facts(title="sandbox", facts=endpoint))
        return
    click.echo(f"export CHISEL_DO_API_URL={shlex.quote(endpoint['url'])}")
    click.echo(f"export CHISEL_DO_TOKEN={shlex.quote(endpoint['token'])}")


@sandbox.command(name="status")
@output_options
async def show(session: Session) -> None:
    """Show whether it runs, its droplets and its bill."""
    from chisel.events import Facts

    endpoint = await _living(_directory())
    async with session.output() as sink:
        if endpoint is None:
            sink.emit(Facts(title="sandbox", facts={"running": "no"}))
            return
        bill = await to_thread.run_sync(_bill, endpoint)
        sink.emit(
            Facts(
                title="sandbox",
                facts={"running": "yes", "url": endpoint["url"], "pid": endpoint["pid"], **bill},
            )
        )


@sandbox.command()
@output_options
async def stop(session: Session) -> None:
    """Stop it and everything that runs on its droplets."""
    from chisel.events import Notice

    endpoint = await _living(_directory())
    if endpoint is not None:
        await _stop(int(endpoint["pid"]))
    async with session.output() as sink:
        sink.emit(Notice(message="the sandbox is stopped" if endpoint else "no sandbox runs"))


@click.command()
@click.option("-n", "--count", type=click.IntRange(1, 64), default=3, show_default=True, help="How many droplets.")
@click.pass_context
async def demo(ctx: click.Context, count: int) -> None:
    """Show the whole loop on an embedded cloud of its own: no account, no network, no cost.

    The real commands run one after another, each shown first. Everything is removed at the end, also after Ctrl-C.
    """
    session = ctx.ensure_object(Session)
    with tempfile.TemporaryDirectory(prefix="chisel-demo-") as scratch:
        root = Path(scratch)
        await to_thread.run_sync(shutil.copytree, _example(), root / "vector_add")
        try:
            async with _own_sandbox(root / "cloud") as endpoint:
                environ = _demo_environment(root, endpoint)
                session.status = await _play(_script(count), environ, root / "vector_add")
                _show_bill(await to_thread.run_sync(_bill, endpoint))
        except anyio.get_cancelled_exc_class():
            click.echo("\nInterrupted: the demo's cloud and everything on it is gone.", err=True)
            raise


def _script(count: int) -> list[list[str]]:
    everywhere = ["--all"] if count > 1 else []
    first = ["--on", "1"] if count > 1 else []
    return [
        ["auth"],
        ["up", "-n", str(count)],
        ["sync", *everywhere, "."],
        ["run", *everywhere, "make -s && ./bench.sh 16777216"],
        ["profile", *first, "--top", "5", "./build/vector_add"],
        ["pull", *everywhere, "out/", "--to", "results"],
        ["status"],
        ["down", *everywhere, "--yes"],
    ]


async def _play(script: list[list[str]], environ: Mapping[str, str], directory: Path) -> int:
    """Run the commands one after another in front of the user; stop at the first that fails."""
    for words in script:
        sys.stdout.flush()
        sys.stderr.write(f"\n$ chisel {shlex.join(words)}\n")
        sys.stderr.flush()
        status = await _run_child([sys.executable, "-m", "chisel", *words], environ, directory)
        if status:
            return status
    return 0


async def _run_child(command: list[str], environ: Mapping[str, str], directory: Path) -> int:
    """Run a command on this terminal, from which it reads nothing; cancelled, it ends it, in bounded time."""
    async with await anyio.open_process(
        command, stdin=subprocess.DEVNULL, stdout=None, stderr=None, env=dict(environ), cwd=directory
    ) as child:
        try:
            return await child.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(STOP_DEADLINE_S, shield=True):
                with suppress(ProcessLookupError):
                    child.send_signal(signal.SIGTERM)
                await child.wait()
            raise


def _demo_environment(root: Path, endpoint: Mapping[str, Any]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CHISEL_")}
    return {
        **kept,
        "CHISEL_DO_API_URL": endpoint["url"],
        "CHISEL_DO_TOKEN": endpoint["token"],
        "XDG_CONFIG_HOME": str(root / "config"),
        "XDG_CACHE_HOME": str(root / "cache"),
    }


def _show_bill(bill: Mapping[str, Any]) -> None:
    click.echo(
        f"\n{bill['droplets_alive']} droplets are left of {bill['droplets_total']}; the sandbox's bill: ${bill['usd']}"
        " (made up, as every figure of the sandbox)",
        err=True,
    )


@asynccontextmanager
async def _own_sandbox(directory: Path) -> AsyncIterator[dict[str, Any]]:
    """Run a sandbox that ends with the block, or with this process, however it ends."""
    endpoint = await _start(directory, "asyncssh", parent=os.getpid())
    try:
        yield endpoint
    finally:
        with anyio.CancelScope(shield=True):
            await _stop(int(endpoint["pid"]))


def _directory() -> Path:
    from chisel.paths import resolve_paths

    return resolve_paths(os.environ, Path.home()).cache_dir / "sandbox"


def _example() -> Path:
    """Find the example's sources: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for place in (package / "_examples" / "vector_add", package.parent / "examples" / "vector_add"):
        if place.is_dir():
            return place
    raise ConfigError("the example that the demo builds is not installed", hint="reinstall chisel")


async def _start(
    directory: Path, droplets: str, *, parent: int | None, behaviour: Sequence[str] = ()
) -> dict[str, Any]:
    """Start the server process and wait for its endpoint file; raises ChiselError with its words when it fails."""
    await to_thread.run_sync(_make_private, directory)
    command = [sys.executable, "-m", "chisel.sandbox", "serve", "--directory", str(directory), "--droplets", droplets]
    command += behaviour
    if parent is not None:
        command += ["--parent", str(parent), "--remove"]
    child = await to_thread.run_sync(_spawn, command, directory / "log")
    with anyio.move_on_after(START_DEADLINE_S):
        while child.poll() is None:
            endpoint = await _living(directory)
            if endpoint is not None and endpoint["pid"] == child.pid:
                return endpoint
            await anyio.sleep(_LOOK_AGAIN_S)
    child.kill()
    said = await to_thread.run_sync(lambda: (directory / "log").read_text(errors="replace")[-2000:])
    raise ChiselError(f"the sandbox did not start: {said.strip() or 'it said nothing'}")


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    (directory / "endpoint.json").unlink(missing_ok=True)


def _spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)


async def _living(directory: Path) -> dict[str, Any] | None:
    """Return the endpoint of the sandbox that runs in a directory, None when none does."""

    def look() -> dict[str, Any] | None:
        try:
            endpoint: dict[str, Any] = json.loads((directory / "endpoint.json").read_bytes())
            _bill(endpoint)
        except (OSError, ValueError, KeyError):
            return None
        return endpoint

    return await to_thread.run_sync(look)


def _bill(endpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Ask a sandbox for its bill, an address DigitalOcean does not have; OSError when nobody answers."""
    request = Request(f"{endpoint['url']}/sandbox/bill", headers={"Authorization": f"Bearer {endpoint['token']}"})
    with build_opener(ProxyHandler({})).open(request, timeout=_ANSWER_TIMEOUT_S) as answer:
        bill: dict[str, Any] = json.loads(answer.read())
    return bill


async def _stop(pid: int) -> None:
    """End the server and wait until it is gone; after the deadline kill it."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        with anyio.move_on_after(STOP_DEADLINE_S):
            while _is_alive(pid):  # noqa: ASYNC110 - another process's end sends no event
                await anyio.sleep(_LOOK_AGAIN_S)
            return
        os.kill(pid, signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
