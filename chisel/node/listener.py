"""Let other sessions come to a running supervisor: a Unix socket in the run's own directory, for its owner only.

A visitor sends one line of JSON, and with `attach` the descriptors of its own session (SCM_RIGHTS, unix(7)): the
supervisor then speaks with the client itself, and no byte is copied twice.
"""

from __future__ import annotations

import array
import json
import os
import socket
from contextlib import suppress
from typing import Any

NAME = "door"
_LONGEST = 1 << 16
_MOST_VISITORS = 32


class Visitor:
    """One connection: its request once that is complete, and the descriptors that came along."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._text = b""
        self.request: dict[str, Any] = {}
        self.descriptors: list[int] = []

    def fileno(self) -> int:
        """Return the connection's descriptor."""
        return self._connection.fileno()

    def read(self) -> bool | None:
        """Take what came; True when the request is complete, None when there will be none."""
        try:
            data, ancillary, _, _ = self._connection.recvmsg(_LONGEST, socket.CMSG_SPACE(2 * 4))
        except BlockingIOError:
            return False
        except OSError:
            return None
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                found = array.array("i")
                found.frombytes(content[: len(content) - len(content) % found.itemsize])
                self.descriptors += found
        self._text += data
        if not data or len(self._text) > _LONGEST:
            return None
        if not self._text.endswith(b"\n"):
            return False
        try:
            self.request = json.loads(self._text)
        except ValueError:
            return None
        return isinstance(self.request, dict)

    def nudge(self) -> bool:
        """Say that something is new; False when nobody listens any more."""
        try:
            self._connection.send(b".", socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def close(self, *, also_descriptors: bool = False) -> None:
        """Let the connection go."""
        self._connection.close()
        for descriptor in self.descriptors if also_descriptors else ():
            os.close(descriptor)


class Listener:
    """The socket of one run, its visitors, and those that stay to be told of news."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        here = os.getcwd()
        os.chdir(directory)  # a socket's path may have 107 bytes only
        try:
            with suppress(FileNotFoundError):
                os.unlink(NAME)
            self._socket.bind(NAME)
        finally:
            os.chdir(here)
        self._socket.listen(8)
        self._socket.setblocking(False)
        self._coming: dict[int, Visitor] = {}
        self._staying: dict[int, Visitor] = {}

    def filenos(self) -> list[int]:
        """Return what is to be watched."""
        if self._socket.fileno() < 0:
            return []
        return [self._socket.fileno(), *self._coming, *self._staying]

    def take(self, descriptor: int) -> list[Visitor]:
        """Look at a descriptor that has something; return the visitor whose request is complete now."""
        if descriptor == self._socket.fileno():
            with suppress(OSError):
                connection, _ = self._socket.accept()
                connection.setblocking(False)
                if len(self._coming) < _MOST_VISITORS:
                    self._coming[connection.fileno()] = Visitor(connection)
                else:
                    connection.close()
            return []
        if descriptor in self._staying:
            self._staying.pop(descriptor).close()  # nothing is expected but its end
            return []
        visitor = self._coming[descriptor]
        state = visitor.read()
        if state is False:
            return []
        del self._coming[descriptor]
        if state:
            return [visitor]
        visitor.close(also_descriptors=True)
        return []

    def keep(self, visitor: Visitor) -> None:
        """Let a visitor stay until the command is over."""
        self._staying[visitor.fileno()] = visitor

    def nudge(self) -> None:
        """Tell those who stay that something is new."""
        for descriptor, visitor in list(self._staying.items()):
            if not visitor.nudge():
                del self._staying[descriptor]
                visitor.close()

    def close(self) -> None:
        """Close the door: those who stay learn that the command is over."""
        for visitor in [*self._coming.values(), *self._staying.values()]:
            visitor.close(also_descriptors=True)
        self._coming.clear()
        self._staying.clear()
        self._socket.close()
        with suppress(OSError):
            os.unlink(os.path.join(self._directory, NAME))


def call(directory: str, request: dict[str, Any], descriptors: tuple[int, ...] = ()) -> socket.socket | None:
    """Go to a run's supervisor with a request; return the connection, None when nobody is there."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    here = os.getcwd()
    os.chdir(directory)
    try:
        connection.connect(NAME)
        text = json.dumps(request).encode("ascii") + b"\n"
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        sent = connection.sendmsg([text], rights)
        if sent < len(text):  # an empty send would find a supervisor gone that has done what was asked
            connection.sendall(text[sent:])
    except OSError:
        connection.close()
        return None
    finally:
        os.chdir(here)
    return connection
