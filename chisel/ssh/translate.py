"""Translate what asyncssh and the socket raise into chisel's errors, once, at this boundary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import asyncssh

from chisel.errors import HostKeyMismatch, HostUnreachable
from chisel.model import Host


@contextmanager
def translated(host: Host, doing: str) -> Iterator[None]:
    """Turn every failure inside the block into HostUnreachable or HostKeyMismatch with the cause kept."""
    try:
        yield
    except asyncssh.HostKeyNotVerifiable as error:
        raise HostKeyMismatch(
            f"`{host.name}` ({host.address}) does not hold the pinned host key: nothing was sent to it",
            host=host.name,
            hint="its address may belong to another droplet now: chisel status",
        ) from error
    except asyncssh.PermissionDenied as error:
        raise HostUnreachable(f"`{host.name}` refuses chisel's SSH key", host=host.name) from error
    except TimeoutError as error:
        raise HostUnreachable(f"`{host.name}` did not answer in time ({doing})", host=host.name) from error
    except (asyncssh.Error, OSError) as error:
        raise HostUnreachable(
            f"`{host.name}`: {doing} failed: {str(error) or type(error).__name__}", host=host.name
        ) from error
