"""Serve an embedded cloud from the command line: `python -m chisel.sandbox serve --directory D`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from chisel.sandbox.server import Settings, serve


def main(arguments: list[str]) -> int:
    """Serve until told to stop; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m chisel.sandbox", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("serve", help="serve until SIGTERM; DIRECTORY/endpoint.json says where")
    verb.add_argument("--directory", type=Path, required=True, help="where droplets and the endpoint file live")
    verb.add_argument("--droplets", choices=["asyncssh", "openssh"], default="asyncssh", help="kind of SSH server")
    verb.add_argument("--parent", type=int, metavar="PID", help="end when this process is gone")
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
    asyncio.run(serve(Settings(directory, chosen.droplets, chosen.parent, chosen.remove)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
