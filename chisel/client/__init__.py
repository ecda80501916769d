"""Compose the engines into the public async API: `chisel.open()`, `Client`, `Pool`."""

from chisel.client.client import Client, open
from chisel.client.lines import shell_line
from chisel.client.pool import Pool

__all__ = ["Client", "Pool", "open", "shell_line"]
