"""Speak with the agent over its Unix socket, and be its client: what a warm command costs is what this module costs.

Standard library only, and of that only what is built in: no `os`, no `socket`, no `typing`. A conversation is

1. the agent says HELLO: its protocol, version, package, what it is for, and whether it still takes commands;
2. the client sends CALL: everything the command is to know of its caller;
3. the agent answers DECLINED before the command has had an effect, or PARTs of output and at last END with the status;
   meanwhile the client sends SIGNAL, INPUT (when told to by WANT) and SEEN (how many parts it has written).

The client writes the output itself. So its descriptors are never touched by anybody else, a reader that stalls holds up
nobody but its own command, and when the agent dies the client knows to the byte what has been written: each PART
carries, beside its bytes, the place in every droplet's output that is reached with it (`Remains`), and nothing of it is
written before all of it has come. From there the command goes on without the agent.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed knows the module around it only
import _socket
import posix
import sys
import time

import chisel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROTOCOL = b"1"
HELLO, DECLINED, PART, WANT, GIVEN, END, REPLY = b"H", b"D", b"P", b"W", b"G", b"E", b"R"
CALL, SIGNAL, INPUT, SEEN, BROKEN, FINISH, STATUS = b"C", b"S", b"I", b"N", b"B", b"F", b"Q"
READY, FINISHING = b"ready", b"finishing"
SERVED = frozenset({"run", "sync", "pull", "push", "logs", "attach", "kill"})
HELLO_DEADLINE_S = 0.5
_LOOK_US, _STOPPED_LOOKS = 500_000, 3
LONGEST_CALL = 16 << 20
PIECE_BYTES = 1 << 16
_SEEN_EVERY_BYTES = 1 << 16
HEAD_BYTES = 5
_LONGEST_PATH = 96
_AF_UNIX, _SOCK_STREAM = 1, 1
_SOL_SOCKET, _SO_PEERCRED, _SO_RCVTIMEO = 1, 17, 20
_INT, _TERM, _HUP, _KILL = 2, 15, 1, 9
_OFF = {b"off", b"0", b"no", b"false"}


class Mute(OSError):
    """An agent is there that did not say hello in time; `pid` is its process, 0 where the system does not say."""

    def __init__(self, pid: int) -> None:
        super().__init__("no hello in time")
        self.pid = pid


class Remains:
    """What is left of a command whose agent died: enough to go on where its output stopped.

    `places` is what the last parts said, by key; `held` is standard input that was read and may not have arrived, from
    `base` on; `signals` were sent on.
    """

    def __init__(self, family: str) -> None:
        self.family = family
        self.places: dict[bytes, bytes] = {}
        self.base = 0
        self.held = b""
        self.has_input_ended = False
        self.signals: list[int] = []


# -- where the agent is


def whose(environ: dict[bytes, bytes]) -> bytes:
    """Return what an agent is for, one text per user and state: the two folders, and the API where one is set."""
    home = environ.get(b"HOME", b"")
    return b"\n".join(
        [
            _base(environ, b"XDG_CONFIG_HOME", home + b"/.config"),
            _base(environ, b"XDG_CACHE_HOME", home + b"/.cache"),
            environ.get(b"CHISEL_DO_API_URL", b""),
        ]
    )


def _base(environ: dict[bytes, bytes], name: bytes, default: bytes) -> bytes:
    value = environ.get(name, b"")
    return value if value.startswith(b"/") else default


def place_of(environ: dict[bytes, bytes]) -> tuple[bytes, bytes]:
    """Return the agent's directory and the path of its socket; nothing is made or looked for but XDG_RUNTIME_DIR.

    A directory of the session where there is one that is ours alone, else the cache; `/tmp` where that path is longer
    than a socket's may be (107 bytes on Linux, 103 on macOS: unix(7), unix(4)).
    """
    mine = whose(environ)
    name = b"%016x.sock" % _digest(mine)
    runtime = environ.get(b"XDG_RUNTIME_DIR", b"")
    if runtime.startswith(b"/") and is_ours(runtime):
        directory = runtime + b"/chisel"
    else:
        directory = mine.split(b"\n")[1] + b"/chisel/agent"
    if len(directory) + 1 + len(name) > _LONGEST_PATH:
        directory = b"/tmp/chisel-%d" % posix.geteuid()
    return directory, directory + b"/" + name


def _digest(data: bytes) -> int:
    """Return FNV-1a of 64 bits: the agent says in full what it is for, so that equal sums do no harm."""
    found = 0xCBF29CE484222325
    for byte in data:
        found = ((found ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return found


def is_ours(directory: bytes) -> bool:
    """Say whether a path is a directory, no link, that belongs to this user alone."""
    try:
        found = posix.lstat(directory)
    except OSError:
        return False
    return found.st_mode & 0o170077 == 0o040000 and found.st_uid == posix.geteuid()


def peer_uid(connection: _socket.socket) -> int:
    """Return the user at the other end: SO_PEERCRED on Linux (unix(7)), LOCAL_PEERCRED elsewhere (unix(4))."""
    if sys.platform == "linux":
        return int.from_bytes(connection.getsockopt(_SOL_SOCKET, _SO_PEERCRED, 12)[4:8], sys.byteorder)
    return int.from_bytes(connection.getsockopt(0, 1, 76)[4:8], sys.byteorder)


def peer_pid(connection: _socket.socket) -> int:
    """Return the process at the other end, 0 where the system does not say (unix(7): 0 also when not connected)."""
    if sys.platform != "linux":
        return 0
    return int.from_bytes(connection.getsockopt(_SOL_SOCKET, _SO_PEERCRED, 12)[:4], sys.byteorder)


def surroundings() -> bytes:
    """Return what a process has that no message carries: an agent that has it otherwise may not act for it."""
    mask = posix.umask(0o077)
    posix.umask(mask)
    try:
        mounts = posix.readlink("/proc/self/ns/mnt")
    except OSError:
        mounts = ""
    groups = ",".join(map(str, sorted(posix.getgroups())))
    return f"{posix.geteuid()}:{posix.getegid()}:{groups}:{mask:o}:{mounts}".encode()


# -- frames


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """Return a frame: its kind, the payload's length (u32, big-endian), the payload."""
    return kind + len(payload).to_bytes(4, "big") + payload


def pack(fields: list[bytes]) -> bytes:
    """Return byte strings as one, each behind its length."""
    return b"".join([len(one).to_bytes(4, "big") + one for one in fields])


def unpack(data: bytes) -> list[bytes]:
    """Return the byte strings; raises ValueError for what was not packed."""
    found, at = [], 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            raise ValueError("a packed field is cut")
        found.append(data[at + 4 : end])
        at = end
    return found


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything, waiting for whoever reads; raises OSError when nobody does."""
    view = memoryview(data)
    while view:
        try:
            view = view[posix.write(descriptor, view) :]
        except BlockingIOError:  # whoever gave us the descriptor made it so
            import select

            select.select([], [descriptor], [])


# -- the client


def call(words: list[str], environ: dict[bytes, bytes]) -> int | Remains | None:
    """Have the agent run a command line; return its status, None to go the full way, or what remains of it."""
    if not words or words[0] not in SERVED or is_off(environ):
        return None
    if "--no-agent" in words or "--tty" in words or sys.getfilesystemencoding() != "utf-8":
        return None
    connection = connect(environ)
    if connection is None:
        return None
    try:
        return _Call(connection, words, environ).run()
    except OSError:  # the current directory is gone: that is said elsewhere
        return None
    finally:
        connection.close()


def is_off(environ: dict[bytes, bytes]) -> bool:
    """Say whether the user wants no agent."""
    return environ.get(b"CHISEL_AGENT", b"").lower() in _OFF


def connect(environ: dict[bytes, bytes]) -> _socket.socket | None:
    """Return a connection to an agent that is ready and the same as this program, None when there is none.

    One of another version is asked to finish.
    """
    connection = reach(environ, greeting(environ, READY))
    if connection is not None:
        connection.settimeout(None)
    return connection


def reach(environ: dict[bytes, bytes], wanted: list[bytes]) -> _socket.socket | None:
    """Return a connection to an agent that has said hello in time; one that says something else than `wanted` is none.

    That one is asked to finish.
    """
    try:
        found = greeted(environ, HELLO_DEADLINE_S)
    except (OSError, ValueError):
        return None
    if found is None:
        return None
    connection, hello = found
    if hello == wanted:
        return connection
    try:  # noqa: SIM105 - `contextlib` is not loaded here
        connection.sendall(frame(FINISH))
    except OSError:
        pass
    connection.close()
    return None


def greeted(environ: dict[bytes, bytes], within_s: float) -> tuple[_socket.socket, list[bytes]] | None:
    """Return a connection to whatever agent there is, and its hello; None where nobody of this user listens.

    Raises Mute when it does not say hello in time, ValueError or another OSError when something else is wrong with it.
    """
    directory, path = place_of(environ)
    if not is_ours(directory):
        return None
    connection = _socket.socket(_AF_UNIX, _SOCK_STREAM)
    try:
        connection.settimeout(within_s)
        connection.connect(path)
        if peer_uid(connection) == posix.geteuid():
            found = receive(connection)
            if found is not None and found[0] == HELLO:
                return connection, unpack(found[1])
    except (FileNotFoundError, ConnectionError):
        pass
    except (TimeoutError, BlockingIOError) as error:
        pid = peer_pid(connection)
        connection.close()
        raise Mute(pid) from error
    except BaseException:
        connection.close()
        raise
    connection.close()
    return None


def greeting(environ: dict[bytes, bytes], state: bytes) -> list[bytes]:
    """Return what an agent says first: a client goes on only when it would have said the same."""
    package = chisel.__file__.encode("utf-8", "surrogateescape")
    return [PROTOCOL, chisel.__version__.encode(), package, sys.version.encode(), whose(environ), state]


def receive(connection: _socket.socket | _Lookout) -> tuple[bytes, bytes] | None:
    """Return a whole frame, None at the end of the connection."""
    head = _exactly(connection, HEAD_BYTES)
    if head is None:
        return None
    payload = _exactly(connection, int.from_bytes(head[1:], "big"))
    return None if payload is None else (head[:1], payload)


def _exactly(connection: _socket.socket | _Lookout, size: int) -> bytes | None:
    data = connection.recv(size) if size else b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            return None
        data += more
    return data


class _Lookout:
    """Receive from an agent, looking now and then whether it was stopped (SIGSTOP): one that stays so is killed.

    It cannot be left alone: once it went on it would act for a caller that has gone on by itself. Killed, it is one of
    those that the command survives. Only Linux says which process that is, and how it is.
    """

    def __init__(self, connection: _socket.socket) -> None:
        self._connection = connection
        self._looks = 0
        self.may_look = sys.platform == "linux" and sys.maxsize > 1 << 32
        if self.may_look:  # socket(7): a struct timeval; recv(2) then gives up with EAGAIN
            after = (0).to_bytes(8, sys.byteorder) + _LOOK_US.to_bytes(8, sys.byteorder)
            connection.setsockopt(_SOL_SOCKET, _SO_RCVTIMEO, after)

    def recv(self, size: int) -> bytes:
        """Return at most so many bytes, none when the agent is gone; raises OSError."""
        while True:
            try:
                data = self._connection.recv(size)
            except BlockingIOError:
                self.look()
            else:
                self._looks = 0
                return data

    def look(self) -> None:
        """Look once; several looks on end must find it stopped, for a whole machine may just have woken up."""
        pid = peer_pid(self._connection)
        self._looks = self._looks + 1 if _is_stopped(pid) else 0
        if self._looks >= _STOPPED_LOOKS:
            posix.kill(pid, _KILL)


def _is_stopped(pid: int) -> bool:
    try:
        descriptor = posix.open(f"/proc/{pid}/stat", posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return False
    try:
        return posix.read(descriptor, 4096).rpartition(b")")[2].split()[:1] == [b"T"]
    finally:
        posix.close(descriptor)


class _Call:
    """One command that the agent runs for this process."""

    def __init__(self, connection: _socket.socket, words: list[str], environ: dict[bytes, bytes]) -> None:
        self._connection = connection
        self._lookout = _Lookout(connection)
        self._remains = Remains(f"{int(time.time()):x}-{posix.urandom(4).hex()}")
        self._parts = 0
        self._unseen_bytes = 0
        self._wants_input = False
        self._is_sending = False
        self._waiting = b""
        self._broken: set[int] = set()
        self._request = self._described(words, environ)

    def _described(self, words: list[str], environ: dict[bytes, bytes]) -> bytes:
        facts = [
            *(b"1" if _is_terminal(number) else b"0" for number in (0, 1, 2)),
            b"1" if _may_read() else b"0",
            str(_columns()).encode(),
        ]
        return pack(
            [
                surroundings(),
                _encoded(posix.getcwd()),
                self._remains.family.encode(),
                pack(facts),
                pack([_encoded(word) for word in words]),
                pack([name + b"=" + value for name, value in environ.items()]),
            ]
        )

    def run(self) -> int | Remains | None:
        """Send the call and do what comes; the agent's end without a status leaves what remains."""
        before = self._forward_signals()
        try:
            self._send(frame(CALL, self._request))
            while True:
                found = self._next()
                if found is None:
                    return self._remains
                kind, payload = found
                if kind == PART:
                    self._write(payload)
                elif kind == END:
                    return payload[0]
                elif kind == DECLINED:
                    return None
                elif kind == WANT:
                    self._wants_input = True
                elif kind == GIVEN:
                    self._given(int.from_bytes(payload, "big"))
        except OSError:
            return self._remains
        finally:
            for number, handler in before:
                _signal.signal(number, handler)

    def _send(self, data: bytes) -> None:
        """Send whole frames, then the signals that came meanwhile; that the agent is gone is found out by receiving."""
        self._waiting = data + self._waiting
        while self._waiting:
            data, self._waiting = self._waiting, b""
            self._is_sending = True
            try:
                self._connection.sendall(data)
            except OSError:
                self._waiting = b""
            finally:
                self._is_sending = False

    # -- signals

    def _forward_signals(self) -> list[tuple[int, Any]]:
        """Send signals on; what the parent ignores stays ignored. Returns what handled them before."""

        def send(number: int, _: object) -> None:
            self._remains.signals.append(number)
            self._waiting += frame(SIGNAL, bytes([number]))
            if not self._is_sending:  # a handler may run in the middle of a frame
                self._send(b"")

        heeded = [number for number in (_INT, _TERM, _HUP) if _signal.getsignal(number) != _signal.SIG_IGN]
        return [(number, _signal.signal(number, send)) for number in heeded]

    # -- output

    def _write(self, payload: bytes) -> None:
        """Write a part: places, then a descriptor before each run of bytes; from then on the places hold."""
        fields = unpack(payload)
        places = fields[0]
        for index in range(1, len(fields), 2):
            descriptor, data = fields[index][0], fields[index + 1]
            if descriptor not in self._broken:
                try:
                    write_all(descriptor, data)
                except OSError:
                    self._broken.add(descriptor)
                    self._send(frame(BROKEN, bytes([descriptor])))
        if places:
            found = unpack(places)
            for index in range(0, len(found), 2):
                self._remains.places[found[index]] = found[index + 1]
        self._parts += 1
        self._unseen_bytes += len(payload)
        if self._unseen_bytes >= _SEEN_EVERY_BYTES:
            self._unseen_bytes = 0
            self._send(frame(SEEN, self._parts.to_bytes(8, "big")))

    # -- input

    def _next(self) -> tuple[bytes, bytes] | None:
        """Return the next frame; while it waits, one piece of standard input is read if the agent wants it."""
        while self._wants_input:
            import select

            number = self._connection.fileno()
            ready = select.select([number, 0], [], [], _LOOK_US / 1e6 if self._lookout.may_look else None)[0]
            if not ready:
                self._lookout.look()
                continue
            if number in ready:
                break
            self._wants_input = False
            try:
                data = posix.read(0, PIECE_BYTES)
            except OSError:  # the terminal was closed
                data = b""
            self._remains.held += data
            self._remains.has_input_ended = not data
            self._send(frame(INPUT, data))
        return receive(self._lookout)

    def _given(self, offset: int) -> None:
        remains = self._remains
        if offset > remains.base:
            remains.held = remains.held[offset - remains.base :]
            remains.base = offset


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _is_terminal(descriptor: int) -> bool:
    try:
        return posix.isatty(descriptor)
    except OSError:
        return False


def _columns() -> int:
    for descriptor in (2, 1, 0):
        try:
            columns: int = posix.get_terminal_size(descriptor).columns
        except OSError:
            continue
        if columns > 0:
            return columns
    return 0


def _may_read() -> bool:
    """Say what `chisel.cli.keyboard.may_read` says."""
    try:
        mode = posix.fstat(0).st_mode
        if posix.isatty(0):
            return posix.tcgetpgrp(0) == posix.getpgrp()
    except OSError:
        return False
    return mode & 0o170000 != 0o020000
