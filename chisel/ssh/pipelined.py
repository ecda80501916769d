"""Log in and start a first session in three round trips instead of twelve: nothing waits for an answer it can foresee.

A plain asyncssh connection sends one message, waits, and sends the next. Here a connection sends, at once:

1. the version, KEXINIT and its half of the key exchange (`chisel.ssh.early`, possibly sent before);
2. when the host key has been verified, and never before: NEWKEYS, the service request, the signed public key, and,
   where the server is OpenSSH, the first session with its environment and command. sshd numbers channels from 0
   (channels.c) and handles what it is sent in order; asyncssh as a server does not wait for its own login, so it gets
   the session in the usual way.

What asyncssh writes in one turn of the loop goes out as one piece, and the IGNORE before each packet, a measure for CBC
ciphers (RFC 4253, 9.3.1), is left out: only AEAD ciphers are offered. Written against asyncssh's private parts of the
versions in `READ_IN`; any other version connects in the usual way (`chisel.ssh.connector`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import asyncssh
from asyncssh import connection as internals
from asyncssh.auth import ClientAuth
from asyncssh.constants import (
    MSG_CHANNEL_OPEN,
    MSG_IGNORE,
    MSG_USERAUTH_REQUEST,
    OPEN_REQUEST_SESSION_FAILED,
)
from asyncssh.kex_dh import MSG_KEX_ECDH_INIT
from asyncssh.packet import Boolean, SSHPacket, String, UInt32

from chisel.model import Host
from chisel.ssh.channel import NodeSession
from chisel.ssh.early import CIPHERS, KEX, PACKETS, VERSION, Departure, Opening

READ_IN = frozenset({"2.24.1"})
PACKET_BYTES = 32768
AGREED = {"kex_algs": [KEX.decode()], "encryption_algs": [name.decode() for name in CIPHERS]}
"""What an opening has asked for, as asyncssh's options."""

_OPENSSH = b"SSH-2.0-OpenSSH_"
_GATHER_BYTES = 64 << 10
_KEXINIT_LISTS = 17  # behind the type and the cookie (RFC 4253, 7.1)
_PUBLICKEY = b"publickey"


@dataclass(slots=True)
class Ahead:
    """A session wanted as soon as the host key is verified; `channel` is there when it has been sent."""

    session: NodeSession
    line: str
    env: Mapping[str | bytes, str | bytes]
    window: int
    channel: PipelinedChannel | None = None


class NotPipelined(Exception):
    """The server probably wants something else than what was foreseen: nothing but the opening was sent to it.

    It may also have been a link that was cut: sshd resets a connection on which more has come than it will read.
    """


async def connect_pipelined(
    host: Host, departure: Departure, options: asyncssh.SSHClientConnectionOptions, ahead: Ahead | None
) -> asyncssh.SSHClientConnection:
    """Return a connection that is logged in, made of a socket that is on its way; closes the socket when it fails.

    Raises NotPipelined when it is to be tried in the usual way, else what asyncssh and the socket raise.
    """
    loop = asyncio.get_running_loop()
    made: PipelinedConnection | None = None

    def make() -> PipelinedConnection:
        nonlocal made
        made = PipelinedConnection(loop, options, departure.opening, ahead)
        return made

    try:
        await departure.send()
        if departure.error is not None:
            raise departure.error
    except BaseException:
        departure.socket.close()
        raise
    try:
        said = f"Pipelined SSH connection to {host.address} over"
        return await internals._connect(options, None, loop, 0, departure.socket, make, said)
    except asyncssh.HostKeyNotVerifiable:
        raise
    except (asyncssh.KeyExchangeFailed, asyncssh.ProtocolError, asyncssh.ConnectionLost, ConnectionError) as error:
        if made is None or made.is_verified or not made.has_met_ssh:
            raise
        raise NotPipelined(str(error)) from error


def would_agree(raw: asyncssh.SSHClientConnection) -> bool:
    """Say whether a server that was met in the usual way offers what an opening foresees."""
    rest = SSHPacket(raw._server_kexinit[_KEXINIT_LISTS:])
    methods, _, there, back = (rest.get_namelist() for _ in range(4))
    return KEX in methods and all(set(CIPHERS) & set(ciphers) for ciphers in (there, back))


class PipelinedConnection(asyncssh.SSHClientConnection):
    """An SSH connection whose opening has been sent; `is_verified` says that the host has proved its key."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: asyncssh.SSHClientConnectionOptions,
        opening: Opening,
        ahead: Ahead | None,
    ) -> None:
        super().__init__(loop, options, wait="auth")
        self._opening: Opening | None = opening
        self._ahead = ahead
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self.is_verified = False

    @property
    def has_met_ssh(self) -> bool:
        """Say whether the server has said its version."""
        return bool(self._server_version)

    # -- the opening, which has been sent

    def _send_version(self) -> None:
        assert self._opening is not None
        self._client_version = VERSION
        self.set_extra_info(client_version=VERSION.decode("ascii"))
        self._client_kexinit = self._opening.kexinit
        self._kex_complete = False
        self._send_seq = PACKETS

    def _send_kexinit(self) -> None:
        if self._opening is None:
            super()._send_kexinit()
        elif self._rekey_seconds:
            self._rekey_time = self._loop.time() + self._rekey_seconds

    def send_packet(self, pkttype: int, *args: bytes, handler: Any = None) -> None:
        """Send a packet, unless it has been sent or is of no use with these ciphers."""
        if pkttype == MSG_IGNORE:
            return
        if pkttype == MSG_KEX_ECDH_INIT and self._opening is not None:
            kex: Any = self._kex
            kex._priv._priv_key, kex._client_pub = self._opening.private_key, self._opening.public_key
            self._opening = None
            return
        super().send_packet(pkttype, *args, handler=handler)

    # -- the login, behind the verified key

    def send_service_request(self, service: bytes) -> None:
        """Send the request, and all that follows from it; asyncssh calls this when it has verified the host key."""
        super().send_service_request(service)
        self.is_verified = True
        key: Any = self._client_keys[0] if self._client_keys else None
        if key is None or not self._choose_signature_alg(key):
            return
        self._auth = _SentAuth(self, _PUBLICKEY)
        self._auth_in_progress = True
        packet = self._get_userauth_request_packet(
            _PUBLICKEY, (Boolean(True), String(key.algorithm), String(key.public_data))
        )
        packet += String(key.sign(String(self._session_id) + packet))
        self.send_userauth_packet(MSG_USERAUTH_REQUEST, packet[1:], trivial=False)
        if self._ahead is not None and self._server_version.startswith(_OPENSSH):
            self._open_ahead(self._ahead)

    def _open_ahead(self, ahead: Ahead) -> None:
        self._auth_complete = True  # or asyncssh would hold these packets back
        try:
            self._update_recv_pktlen(PACKET_BYTES)
            channel = PipelinedChannel(self, self._loop, "strict", None, "strict", ahead.window, PACKET_BYTES)
            channel.open_ahead(ahead)
            ahead.channel = channel
        finally:
            self._auth_complete = False

    def try_next_auth(self, *, next_method: bool = False) -> None:
        """Wait for the answer to what was sent; when it is a no, a session sent behind it has ended the connection."""
        if isinstance(self._auth, _SentAuth):
            if not self._auth.has_failed:
                return
            if self._ahead is not None and self._ahead.channel is not None:
                self._force_close(asyncssh.PermissionDenied(f"Permission denied for user {self._username}"))
                return
        super().try_next_auth(next_method=next_method)

    # -- one turn of the loop, one piece

    def _send(self, data: bytes) -> None:
        if self._transport is None:
            return
        if not self._gathered:
            self._loop.call_soon(self._flush)
        self._gathered.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes >= _GATHER_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._gathered and self._transport is not None:
            super()._send(b"".join(self._gathered))
        self._gathered.clear()
        self._gathered_bytes = 0

    def _force_close(self, exc: Exception | None) -> None:
        self._flush()
        super()._force_close(exc)


class _SentAuth(ClientAuth):
    """A login request that has been sent: only its answer is awaited."""

    has_failed = False

    async def _start(self) -> None:
        pass

    def auth_failed(self) -> None:
        self.has_failed = True


class PipelinedChannel(asyncssh.SSHClientChannel[bytes]):
    """A session whose opening and command are sent before anything about it is confirmed."""

    def open_ahead(self, ahead: Ahead) -> None:
        """Send the opening, the environment and the command, for the number that sshd gives a first channel."""
        self._session = ahead.session
        self._session.connection_made(self)
        self._opened: asyncio.Future[Any] = self._loop.create_future()
        self._open_waiter = self._opened
        self._conn.send_packet(
            MSG_CHANNEL_OPEN,
            String(b"session"),
            UInt32(self._recv_chan or 0),
            UInt32(self._recv_window),
            UInt32(self._recv_pktsize),
            handler=self,
        )
        self._send_chan = 0
        self._command = ahead.line
        for name, value in ahead.env.items():
            self._send_request(b"env", String(name), String(value))
        self._begun: asyncio.Future[bool] = self._loop.create_future()
        self._request_waiters.append(self._begun)
        self._send_request(b"exec", String(ahead.line), want_reply=True)
        for waiter in (self._opened, self._begun):
            waiter.add_done_callback(_look)

    def process_open_confirmation(self, send_chan: int, send_window: int, send_pktsize: int, packet: Any) -> None:
        """Take the number that the server gave: it has to be the one that was foreseen."""
        if send_chan != 0:
            raise asyncssh.ProtocolError(f"the first channel has the number {send_chan}")
        super().process_open_confirmation(send_chan, send_window, send_pktsize, packet)

    async def begun(self) -> None:
        """Wait until the command was started; raises ChannelOpenError when it was not."""
        packet = await self._opened
        packet.check_end()
        if not await self._begun:
            self.close()
            raise asyncssh.ChannelOpenError(OPEN_REQUEST_SESSION_FAILED, "Session request failed")
        self._session.session_started()
        self._conn.create_task(self._start_reading(), self.logger)


def _look(waiter: asyncio.Future[Any]) -> None:
    """Take note of a failure that nobody may be waiting for any more."""
    if not waiter.cancelled():
        waiter.exception()
