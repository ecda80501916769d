"""Open sockets without waiting for them: with so few imports that it comes before all others."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress

Sockets = Mapping[tuple[str, int], socket.socket]
"""Non-blocking sockets on their way to an address and port, connected or not."""


def open_socket(address: str, port: int) -> socket.socket | None:
    """Open a connection and return its socket at once; None for an address that is no number or has no route."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError, ValueError):
            socket.inet_pton(family, address)
            return _begin(socket.socket(family, socket.SOCK_STREAM), address, port)
    return None


def _begin(fresh: socket.socket, address: str, port: int) -> socket.socket | None:
    fresh.setblocking(False)
    try:
        fresh.connect((address, port))
    except BlockingIOError:
        pass
    except OSError:
        fresh.close()
        return None
    return fresh
