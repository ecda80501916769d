"""Carry a stream from droplet to droplet: TLS links on the private network between the droplets of one pool.

Both ends show the one certificate that the client made for this stream and handed over its verified SSH sessions, and
accept no other. The key never lies on a disk. Standard library only, Python 3.10.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import ssl
import threading
import time

from . import frames
from .frames import Frame, Kind

CONNECT_S = 2.0
"""How long a connection, and the handshake on it, may each take."""
STALL_S = 10.0
"""How long a neighbour may take nothing of what is sent."""
BEAT_S = 2.0
_WAITING_FRAMES = 32
_LOOK_S = 0.2
_PIECE = 1 << 18


class Credentials:
    """The certificate (PEM) of one stream and its key (PEM); raises OSError where keys need files."""

    def __init__(self, certificate: str, key: str) -> None:
        if not hasattr(os, "memfd_create"):
            raise OSError(errno.ENOSYS, "there are no files in memory here")
        self._certificate = certificate
        self._key = key
        self._der = ssl.PEM_cert_to_DER_cert(certificate)

    def accepted(self, plain: socket.socket) -> ssl.SSLSocket:
        """Shake hands with whoever connected; raises OSError for all but a holder of the certificate."""
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0  # nobody comes back, and unread tickets would cut the link when the other end closes
        return self._shaken(context, plain, is_server=True)

    def connected(self, plain: socket.socket) -> ssl.SSLSocket:
        """Shake hands with whom this end connected to; raises OSError for all but a holder of the certificate."""
        return self._shaken(self._context(ssl.PROTOCOL_TLS_CLIENT), plain, is_server=False)

    def _context(self, side: int) -> ssl.SSLContext:
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the certificate itself is compared
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=self._certificate)
        handle = os.memfd_create("relay", os.MFD_CLOEXEC)  # the only way to hand a key to OpenSSL without a file
        try:
            os.write(handle, f"{self._key}\n{self._certificate}".encode("ascii"))
            context.load_cert_chain(f"/proc/self/fd/{handle}")
        finally:
            os.close(handle)
        return context

    def _shaken(self, context: ssl.SSLContext, plain: socket.socket, *, is_server: bool) -> ssl.SSLSocket:
        plain.settimeout(CONNECT_S)
        secure = context.wrap_socket(plain, server_side=is_server)
        if secure.getpeercert(binary_form=True) != self._der:
            secure.close()
            raise OSError("the neighbour shows another certificate")
        return secure


class Listener:
    """Wait on the private address for one neighbour; raises OSError where that address is not this machine's."""

    def __init__(self, address: str, credentials: Credentials) -> None:
        self._credentials = credentials
        self._socket = socket.create_server((address, 0), backlog=4)
        self._socket.setblocking(False)
        self.port = int(self._socket.getsockname()[1])

    def fileno(self) -> int:
        """Return what is readable when somebody comes."""
        return self._socket.fileno()

    def accept(self) -> Upstream | None:
        """Let in whoever came; None for a stranger, who is sent away."""
        plain = None
        try:
            plain, _ = self._socket.accept()
            return Upstream(self._credentials.accepted(plain))
        except OSError:
            if plain is not None:
                plain.close()
            return None

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


class Upstream:
    """The neighbour that forwards the stream to this droplet."""

    def __init__(self, secure: ssl.SSLSocket) -> None:
        self._socket = secure
        self._socket.setblocking(False)
        self._decoder = frames.Decoder()

    def fileno(self) -> int:
        """Return what is readable when something came."""
        return self._socket.fileno()

    @property
    def has_more(self) -> bool:
        """Say whether something has come that no poll shows any more."""
        return self._socket.pending() > 0

    def read(self) -> list[Frame] | None:
        """Return the frames that are complete now, None at the end; raises OSError, FrameError."""
        try:
            data = self._socket.recv(_PIECE)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return []
        return self._decoder.feed(data) if data else None

    def close(self) -> None:
        """Cut the link."""
        self._socket.close()


class Downstream:
    """A neighbour that this droplet forwards the stream to, in a thread of its own: it may fail alone.

    What it has not taken yet is kept, up to some megabytes: then the stream waits for it, `STALL_S` at the longest.
    """

    def __init__(self, address: str, port: int, credentials: Credentials) -> None:
        self._target = address, port
        self._credentials = credentials
        self._waiting: queue.Queue[bytes | None] = queue.Queue(_WAITING_FRAMES)
        self._is_over = False
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name=f"relay to {address}", daemon=True)
        self._thread.start()

    def put(self, data: bytes | None) -> None:
        """Have whole frames sent, None for the end; waits while too much waits, and gives a stalled neighbour up."""
        end = time.monotonic() + STALL_S
        while not self._is_over:
            try:
                self._waiting.put(data, timeout=_LOOK_S)
            except queue.Full:
                if time.monotonic() > end:
                    self.cut()
                continue
            return

    def join(self) -> None:
        """Wait until everything up to the end is on its way, `STALL_S` at the longest."""
        self._thread.join(STALL_S)
        self.cut()

    def cut(self) -> None:
        """Send nothing more: the neighbour sees a stream without an end."""
        self._is_over = True
        opened = self._socket
        if opened is not None:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        try:
            with socket.create_connection(self._target, CONNECT_S) as plain:
                self._socket = plain
                with self._credentials.connected(plain) as secure:
                    self._socket = secure
                    secure.settimeout(STALL_S)
                    self._forward(secure)
        except (OSError, ValueError):
            pass  # the neighbour tells the client that nothing, or not all, came
        finally:
            self._is_over = True

    def _forward(self, secure: ssl.SSLSocket) -> None:
        while not self._is_over:
            try:
                data = self._waiting.get(timeout=BEAT_S)
            except queue.Empty:
                data = frames.encode(Kind.HEARTBEAT)
            if data is None:
                return
            secure.sendall(data)
