"""Compose the engines into the public async API: `chisel.open()`, `Client`, `Pool`."""

from chisel.client.client import Client, open
from chisel.client.pool import Pool, shell_line

__all__ = ["Client", "Pool", "open", "shell_line"]
