"""Translate what asyncssh and the socket raise into chisel's errors, once, at this boundary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb

import asyncssh

from chisel.errors import HostKeyMismatch, HostUnreachable
from chisel.model import Host


@contextmanager
def translated(host: Host, doing: str) -> Iterator[None]:
    """Turn every failure inside the block into HostUnreachable or HostKeyMismatch with the cause kept.

    asyncssh 2.24 calls what it has let go when a connection ends just as a session begins (`SSHClientChannel.create`):
    an AttributeError of its own is such a failure, any other is a bug of ours.
    """
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
    except (asyncssh.Error, OSError, AttributeError) as error:
        if isinstance(error, AttributeError) and not _comes_from_asyncssh(error):
            raise
        raise HostUnreachable(
            f"`{host.name}`: {doing} failed: {str(error) or type(error).__name__}", host=host.name
        ) from error


def _comes_from_asyncssh(error: BaseException) -> bool:
    *_, (frame, _) = walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] == asyncssh.__name__
