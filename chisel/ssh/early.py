"""Begin SSH handshakes before asyncssh is there: what a client says first needs no answer, and no asyncssh.

A client may send its version, its KEXINIT and its half of the key exchange at once (RFC 4253, 4.2 and 7), when it knows
what will be agreed on: chisel offers one key exchange method, `KEX`, and asks for the pinned key's algorithm. Sockets
are opened and these bytes sent while Python still imports asyncssh, which takes longer than a round trip;
`chisel.ssh.pipelined` goes on from there. Nothing in these bytes is secret or depends on who reads them.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import anyio
from anyio import to_thread
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from chisel.model import Host
from chisel.ssh.sockets import Sockets, open_socket

VERSION = b"SSH-2.0-chisel_1"
KEX = b"curve25519-sha256"
CIPHERS = (b"aes128-gcm@openssh.com", b"aes256-gcm@openssh.com", b"chacha20-poly1305@openssh.com")
HOST_KEY = "ssh-ed25519"
PACKETS = 2
"""How many packets an opening holds: the sequence number of the next one."""

_EXTENSIONS = (b"ext-info-c", b"kex-strict-c-v00@openssh.com")
_MACS = (b"hmac-sha2-256-etm@openssh.com", b"hmac-sha2-256")
_KEXINIT, _KEX_ECDH_INIT = 20, 30
_FRESH_S = 10.0
_COOKIE_BYTES, _BLOCK, _LEAST_PADDING = 16, 8, 4


@dataclass(frozen=True, slots=True)
class Opening:
    """What a client says first: `data` as sent, and the parts of it that the exchange hash is made of."""

    private_key: X25519PrivateKey
    public_key: bytes
    kexinit: bytes
    data: bytes


def may_begin_early(host: Host) -> bool:
    """Say whether a host's pinned keys are of the one algorithm that an opening asks for."""
    keys = [key for key in (host.host_key, host.next_host_key) if key is not None]
    return host.pipelines and all(key.split(maxsplit=1)[0] == HOST_KEY for key in keys)


def make_opening() -> Opening:
    """Return an opening with a key of its own: it is good for one connection."""
    private = X25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    lists = (
        (KEX, *_EXTENSIONS),
        (HOST_KEY.encode(),),
        CIPHERS,
        CIPHERS,
        _MACS,
        _MACS,
        (b"none",),
        (b"none",),
        (),
        (),
    )
    named = b"".join(_string(b",".join(names)) for names in lists)
    kexinit = bytes([_KEXINIT]) + os.urandom(_COOKIE_BYTES) + named + bytes(5)
    init = bytes([_KEX_ECDH_INIT]) + _string(public)
    return Opening(private, public, kexinit, VERSION + b"\r\n" + _packet(kexinit) + _packet(init))


class Departure:
    """One socket on its way: `error` is why it did not get there, `was_sent` says whether the opening has left."""

    def __init__(self, connection: socket.socket, opening: Opening) -> None:
        self.socket = connection
        self.opening = opening
        self.begun_at = time.monotonic()
        self.was_sent = False
        self.error: OSError | None = None

    async def send(self) -> None:
        """Send the opening when the socket is connected; nothing raises. Cancelled, it can be called again."""
        if self.error is not None or self.was_sent:
            return
        await anyio.wait_writable(self.socket)
        number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self.error = OSError(number, os.strerror(number))
            return
        try:
            sent = self.socket.send(self.opening.data)
        except OSError as error:
            self.error = error
            return
        self.was_sent = sent == len(self.opening.data)
        if not self.was_sent:
            self.error = OSError("a fresh connection does not take what is said first")


class Departures:
    """Sockets on their way, by address and port, until somebody claims them."""

    def __init__(self, sockets: Sockets | None = None) -> None:
        """Take over sockets that have been opened."""
        self._waiting = {place: Departure(opened, make_opening()) for place, opened in (sockets or {}).items()}

    def add(self, hosts: Iterable[Host]) -> None:
        """Open sockets to hosts that have none yet, without waiting."""
        for host in hosts:
            if (host.address, host.port) not in self._waiting and may_begin_early(host):
                departure = depart(host)
                if departure is not None:
                    self._waiting[host.address, host.port] = departure

    async def send_while(self, work: Callable[[], None]) -> None:
        """Send what can be sent while `work` runs in a thread; it is what takes the time."""
        async with anyio.create_task_group() as tasks:
            for departure in self._waiting.values():
                tasks.start_soon(departure.send)
            await to_thread.run_sync(work)
            tasks.cancel_scope.cancel()

    def claim(self, host: Host) -> Departure | None:
        """Hand a socket over to the caller, who closes it; None when there is none of use."""
        departure = self._waiting.pop((host.address, host.port), None)
        if departure is None:
            return None
        if not may_begin_early(host) or time.monotonic() - departure.begun_at > _FRESH_S:  # a server loses its patience
            departure.socket.close()
            return None
        return departure

    def close(self) -> None:
        """Close what nobody claimed."""
        for departure in self._waiting.values():
            departure.socket.close()
        self._waiting.clear()


def depart(host: Host) -> Departure | None:
    """Open a socket without waiting for it; the caller closes it. None for an address that is no number."""
    opened = open_socket(host.address, host.port)
    return Departure(opened, make_opening()) if opened is not None else None


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _packet(payload: bytes) -> bytes:
    """Return an unencrypted packet (RFC 4253, 6)."""
    padding = -(5 + len(payload)) % _BLOCK
    padding += _BLOCK if padding < _LEAST_PADDING else 0
    return _string(bytes([padding]) + payload + bytes(padding))
