"""Start an agent in the background, at most one for a user and state, whoever else tries at the same time."""

from __future__ import annotations

import fcntl
import os
import sys
from contextlib import suppress

from chisel.agent import wire

STARTS = frozenset({"up", "run", "sync", "profile", "pull", "push", "logs", "attach", "kill", "status"})
Environ = dict[bytes, bytes]
LOG_NAME = "agent.log"
_PROGRAM = "import sys; from chisel.entry import main; main(['agent', 'serve', '--lock', sys.argv[1]])"


def start(words: list[str], environ: Environ) -> None:
    """Start the agent unless there is one, or the command or the environment says that none is wanted.

    Returns at once; nothing raises: without an agent everything works.
    """
    if words[0] not in STARTS or "--no-agent" in words or wire.is_off(environ):
        return
    with suppress(OSError):
        descriptor = take_lock(environ)
        if descriptor is None:
            return
        try:
            os.set_inheritable(descriptor, True)
            _spawn(descriptor, environ)
        finally:
            os.close(descriptor)


def take_lock(environ: Environ) -> int | None:
    """Return a descriptor that holds the agent's lock until it and its copies are closed; None where somebody has it.

    Makes the directory. Raises OSError where it is not ours alone or cannot be made.
    """
    directory, path = wire.place_of(environ)
    with suppress(FileExistsError):
        os.makedirs(directory, 0o700)
    if not wire.is_ours(directory):
        raise PermissionError(f"{os.fsdecode(directory)} is not a directory of this user alone")
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path + b".lock", flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def is_one_starting(environ: Environ) -> bool:
    """Say whether somebody has the agent's lock: where nobody listens as well, an agent begins or ends just now."""
    from chisel.node import registry  # not needed to start one, which follows every command without an agent

    directory, path = wire.place_of(environ)
    return wire.is_ours(directory) and registry.is_locked(os.fsdecode(path) + ".lock")


def _spawn(descriptor: int, environ: Environ) -> None:
    """Start Python with nothing of ours but the lock; it makes itself a session of its own."""
    nowhere = os.devnull
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, nowhere, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, nowhere, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    # -P: what lies in the current directory is not to be imported
    os.posix_spawn(
        sys.executable, [sys.executable, "-P", "-c", _PROGRAM, str(descriptor)], environ, file_actions=actions
    )
