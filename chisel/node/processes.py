"""Start a command in its own session and know everything that descends from it, until nothing does.

On Linux this process is made the reaper of orphans (PR_SET_CHILD_SUBREAPER, prctl(2)), so that a descendant which
left the group by setsid is found as a child of ours once its parent has ended; where control groups allow it the
command has one of its own, which holds its descendants whatever they do. `subprocess` cannot start it: the group is to
be entered as root, then the user changed, then the parent's death tied to it, in this order.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

from . import cgroup
from .stdio import Refused

PIPE_BYTES = 1 << 20
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_F_SETPIPE_SZ = 1031
_EIO = 5
_ALIVE = b"."


class Account(NamedTuple):
    """Who runs a command: ids, and the variables that go with them."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    environ: Mapping[str, str]


class Launch(NamedTuple):
    """What to start: a shell line, where, with which environment, as whom, and what its standard streams are.

    `terminal` is (rows, columns) for a pseudo-terminal instead of pipes.
    """

    line: str
    cwd: str
    environ: Mapping[str, str]
    wants_stdin: bool = False
    terminal: tuple[int, int] | None = None
    account: Account | None = None


class Command:
    """One shell line running under bash, its pipes non-blocking; `counts` are bytes read of each stream."""

    def __init__(self, launch: Launch, group: cgroup.Cgroup | None = None) -> None:
        self._group = group
        prctl = _prctl()
        if prctl:
            prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._began_at = time.monotonic()
        self.has_terminal = launch.terminal is not None
        self.pipes: dict[str, int] = {}
        self._stdin_pipe: tuple[int, ...] = ()
        self.pid = self._start(launch, prctl)
        for descriptor in {*self.pipes.values(), *self._stdin_pipe}:
            os.set_blocking(descriptor, False)
            with suppress(OSError):
                fcntl.fcntl(descriptor, _F_SETPIPE_SZ, PIPE_BYTES)
        self._status: int | None = None
        self._seconds = 0.0
        self._peak_rss_bytes = 0
        self._left_behind = 0
        self._has_children = True

    def _start(self, launch: Launch, prctl: Callable[..., int] | None) -> int:
        theirs = self._terminal(launch.terminal) if launch.terminal is not None else self._pipes(launch.wants_stdin)
        self._own_rss_bytes = _rss_bytes()
        try:
            pid = self._forked(launch, theirs, prctl)
        finally:
            for descriptor in set(theirs):
                os.close(descriptor)
        return pid

    def _forked(self, launch: Launch, theirs: tuple[int, int, int], prctl: Callable[..., int] | None) -> int:
        """Fork, into the control group where there is one.

        A kernel that was told to kill the group of this process may kill what is born in another (`kill_seq`, Linux
        6.14): a child that never came to its senses has done nothing, and is started again the slow way.
        """
        if self._group is not None:
            with suppress(OSError):
                pid, words = _started(self._group.fork, lambda failed: _become(launch, theirs, -1, failed, prctl))
                if words:
                    return _checked(pid, words)
                os.waitpid(pid, 0)
        door = self._group.open_door() if self._group is not None else -1
        try:
            return _checked(*_started(os.fork, lambda failed: _become(launch, theirs, door, failed, prctl)))
        finally:
            if door >= 0:
                os.close(door)

    def _pipes(self, wants_stdin: bool) -> tuple[int, int, int]:
        out, out_end = os.pipe()
        err, err_end = os.pipe()
        self.pipes = {"stdout": out, "stderr": err}
        if wants_stdin:
            in_end, ours = os.pipe()
            self._stdin_pipe = (ours,)
        else:
            in_end = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return in_end, out_end, err_end

    def _terminal(self, size: tuple[int, int]) -> tuple[int, int, int]:
        master, slave = os.openpty()
        self.pipes = {"stdout": master}
        self._stdin_pipe = (master,)
        self.resize(*size)
        return slave, slave, slave

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal's programs its size, in characters (tty_ioctl(4))."""
        if self.has_terminal and self.stdin is not None:
            with suppress(OSError, struct.error):
                fcntl.ioctl(self.stdin, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def stdin(self) -> int | None:
        """Return where the command's input is written, None when it takes none (any more)."""
        return self._stdin_pipe[0] if self._stdin_pipe else None

    def identity(self) -> dict[str, int]:
        """Return the leader's process and group ids."""
        return {"pid": self.pid, "pgid": self.pid}

    @property
    def has_leader_ended(self) -> bool:
        """Say whether the shell itself has ended."""
        return self._status is not None

    def is_over(self) -> bool:
        """Say whether nothing runs any more and every byte was read."""
        return self.has_leader_ended and not self._has_children and not self.pipes and not self._is_group_populated()

    def _is_group_populated(self) -> bool:
        return self._group is not None and self._group.is_populated()

    def read(self, name: str, size: int) -> bytes | None:
        """Return what is in a pipe, None when nothing is or it has ended."""
        try:
            data = os.read(self.pipes[name], size)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != _EIO:  # a terminal that its last program has left
                raise
            data = b""
        if not data:
            descriptor = self.pipes.pop(name)
            if self.has_terminal:
                self._stdin_pipe = ()
            os.close(descriptor)
            return None
        return data

    def close_stdin(self) -> None:
        """End the command's standard input; a terminal has no end but the one that is typed."""
        if self.stdin is not None and not self.has_terminal:
            os.close(self.stdin)
            self._stdin_pipe = ()

    def signal(self, number: int) -> None:
        """Send a signal to the process group (with a terminal, to what runs in its foreground)."""
        group = self.pid
        if self.has_terminal and self.stdin is not None:
            with suppress(OSError):
                group = os.tcgetpgrp(self.stdin) or self.pid
        with suppress(OSError):
            os.killpg(group, number)

    def signal_everything(self, number: int) -> None:
        """Send a signal to the group, to every orphan that came to us, and to all that its control group holds."""
        orphans = [pid for pid in _children() if pid != self.pid] if self._has_children else []
        if self.has_leader_ended and number == signal.SIGTERM:
            self._left_behind += len(orphans)
        with suppress(OSError):
            os.killpg(self.pid, number)
        for pid in orphans:
            with suppress(OSError):
                os.kill(pid, number)
        if self._group is not None:
            self._group.signal(number)

    def reap(self) -> None:
        """Collect every child that has ended; remember how the leader did."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                self._has_children = False
                return
            if pid == 0:
                return
            if pid == self.pid:
                self._status = os.waitstatus_to_exitcode(status)
                self._seconds = time.monotonic() - self._began_at
                self._peak_rss_bytes = _as_bytes(usage.ru_maxrss)

    def end(self) -> dict[str, Any]:
        """Return the facts of the end, once it is over, and let the control group go."""
        if self._group is not None:
            self._group.remove()
        status = self._status if self._status is not None else 0
        return {
            "status": status if status >= 0 else None,
            "signal": -status if status < 0 else None,
            "seconds": self._seconds,
            # A forked process begins with its parent's size (getrusage(2)): up to there nothing can be told.
            "peak_rss_bytes": self._peak_rss_bytes if self._peak_rss_bytes > self._own_rss_bytes else None,
            "left_behind": self._left_behind,
        }


def _started(fork: Callable[[], int], become: Callable[[int], NoReturn]) -> tuple[int, bytes]:
    """Return a new process and what it said before it became something else, or failed to: exec closes the pipe."""
    failing, failed = os.pipe()
    pid = fork()
    if pid == 0:
        become(failed)
    os.close(failed)
    with open(failing, "rb") as source:
        return pid, source.read()


def _checked(pid: int, words: bytes) -> int:
    """Return the id of a process that has become the command; raises Refused for one that could not."""
    if words == _ALIVE:
        return pid
    os.waitpid(pid, 0)
    why = os.fsdecode(words.removeprefix(_ALIVE)) or "it was killed"
    raise Refused("not-started", f"the command could not be started: {why}")


def _become(
    launch: Launch, streams: tuple[int, int, int], door: int, failed: int, prctl: Callable[..., int] | None
) -> NoReturn:
    """Turn this forked process into the command; what fails goes through `failed`."""
    try:
        os.setsid()
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
        if launch.terminal is not None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if door >= 0:
            with suppress(OSError):
                os.write(door, b"0")
        if launch.account is not None:
            os.setgroups(launch.account.groups)
            os.setgid(launch.account.gid)
            os.setuid(launch.account.uid)
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))  # nobody else would end it then
        os.chdir(launch.cwd)
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        os.write(failed, _ALIVE)
        os.execvpe("bash", ["bash", "-c", launch.line], dict(launch.environ))
    except BaseException as error:  # noqa: BLE001 - a forked process must not run its parent's code
        os.write(failed, os.fsencode(str(error) or type(error).__name__))
    os._exit(127)


def _rss_bytes() -> int:
    return _as_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _as_bytes(maxrss: int) -> int:
    return maxrss * (1 if sys.platform == "darwin" else 1024)


def _prctl() -> Callable[..., int] | None:
    """Return prctl(2) where there is one."""
    if not sys.platform.startswith("linux"):
        return None
    function: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
    return function


def _children() -> list[int]:
    """Return this process's children, orphans that came to it included; empty where /proc does not tell."""
    mine = os.getpid()
    found = []
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    for name in names:
        try:
            with open(f"/proc/{name}/stat", "rb") as source:
                fields = source.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == mine and fields[0] != b"Z":
            found.append(int(name))
    return found
