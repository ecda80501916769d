"""Serve an embedded cloud from the command line: `python -m chisel.sandbox serve --directory D`."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from pathlib import Path

from chisel.sandbox.cloud import Knobs
from chisel.sandbox.faults import read_fault
from chisel.sandbox.server import Settings, serve


def main(arguments: list[str]) -> int:
    """Serve until told to stop; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m chisel.sandbox", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("serve", help="serve until SIGTERM; DIRECTORY/endpoint.json says where")
    verb.add_argument("--directory", type=Path, required=True, help="where droplets and the endpoint file live")
    verb.add_argument("--droplets", choices=["asyncssh", "openssh"], default="asyncssh", help="kind of SSH server")
    verb.add_argument("--parent", type=int, metavar="PID", help="end when this process is gone")
    verb.add_argument("--knob", action="append", default=[], metavar="NAME=JSON", help="see chisel.sandbox.cloud.Knobs")
    verb.add_argument("--fault", action="append", default=[], metavar="FAULT", help="see chisel.sandbox.faults")
    verb.add_argument("--seed", type=int, default=0, help="of the faults that strike by chance")
    verb.add_argument("--remove", action="store_true", help="remove DIRECTORY at the end")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(format="sandbox: %(message)s", level=logging.WARNING)
    logging.getLogger("asyncssh").setLevel(logging.CRITICAL)
    # As on a droplet, files are made readable; that nobody else looks in is up to the directory around it all.
    os.umask(0o022)
    chosen.directory.mkdir(parents=True, exist_ok=True)
    chosen.directory.chmod(0o700)
    if chosen.droplets == "openssh":
        from chisel.sandbox.openssh_droplet import find_sshd

        try:
            find_sshd()
        except RuntimeError as error:
            sys.stderr.write(f"{error}\n")
            return 1
    directory = chosen.directory.resolve()
    try:
        knobs = Knobs().changed(dict(_knob(text) for text in chosen.knob))
        faults = tuple(read_fault(text) for text in chosen.fault)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    asyncio.run(
        serve(
            Settings(
                directory,
                chosen.droplets,
                knobs=knobs,
                faults=faults,
                seed=chosen.seed,
                parent=chosen.parent,
                removes_directory=chosen.remove,
            )
        )
    )
    return 0


def _knob(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
