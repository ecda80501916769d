"""Stand between chisel and a droplet, and be the bad network: cut, swallow, stall, refuse."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time

_RESET = struct.pack("ii", 1, 0)
_PIECE = 1 << 16


class Proxy:
    """Forward connections to one port, in a thread of its own, until told otherwise."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._dead: set[socket.socket] = set()
        self._held_until = 0.0
        self._stall_after: int | None = None
        self._stall_s = 0.0
        self._refuses_until = 0.0
        self._reset_after: int | None = None
        self._is_over = False
        self._near: set[socket.socket] = set()
        self.bytes_up = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    # -- what a test asks for

    def reset(self) -> None:
        """Cut every connection with a TCP reset on both sides."""
        with self._lock:
            for one in list(self._pairs):
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    one.close()
            self._pairs.clear()
            self._dead.clear()

    def swallow(self) -> None:
        """Let every connection live and carry nothing any more: a black hole. New ones work."""
        with self._lock:
            self._dead |= set(self._pairs)

    def stall(self, after: int, seconds: float) -> None:
        """Stop everything after some more bytes, in the middle of whatever that is, for a while."""
        self._stall_after, self._stall_s = after, seconds

    def reset_after(self, count: int) -> None:
        """Cut every connection when so many more bytes have passed, in the middle of whatever that is."""
        self._reset_after = count

    def refuse(self, seconds: float) -> None:
        """Cut everything and let nobody in for a while: sshd restarts."""
        self._refuses_until = time.monotonic() + seconds
        self.reset()

    def behave(self) -> None:
        """Be a good network again, for new connections."""
        self._stall_after, self._held_until, self._refuses_until = None, 0.0, 0.0
        self._reset_after = None

    def close(self) -> None:
        self._is_over = True
        self._thread.join(5)
        self.reset()
        self._listener.close()

    # -- its thread

    def _serve(self) -> None:
        while not self._is_over:
            with self._lock:
                watched = [self._listener, *(one for one in self._pairs if one not in self._dead)]
            if time.monotonic() < self._held_until:
                time.sleep(0.005)
                continue
            with selectors.DefaultSelector() as selector:
                for one in watched:
                    with contextlib.suppress(ValueError, OSError):
                        selector.register(one, selectors.EVENT_READ)
                ready = [key.fileobj for key, _ in selector.select(0.02)]
            for one in ready:
                if one is self._listener:
                    self._join()
                else:
                    self._carry(one)  # type: ignore[arg-type]

    def _join(self) -> None:
        near, _ = self._listener.accept()
        if time.monotonic() < self._refuses_until:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            near.close()
            return
        try:
            far = socket.create_connection(self._target, timeout=5)
        except OSError:
            near.close()
            return
        for one in (near, far):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.settimeout(5)
        with self._lock:
            self._pairs[near], self._pairs[far] = far, near
            self._near.add(near)

    def _carry(self, one: socket.socket) -> None:
        other = self._pairs.get(one)
        if other is None:
            return
        size = _PIECE
        if self._stall_after is not None:
            size = max(1, min(size, self._stall_after))
        if self._reset_after is not None:
            size = max(1, min(size, self._reset_after))
        try:
            data = one.recv(size)
            if data:
                other.sendall(data)
                self.bytes_up += len(data) if one in self._near else 0
            if self._reset_after is not None:
                self._reset_after -= len(data)
                if self._reset_after <= 0:
                    self._reset_after = None
                    self.reset()
                    return
        except OSError:
            data = b""
        if not data:
            with self._lock:
                for end in (one, other):
                    self._pairs.pop(end, None)
                    end.close()
        elif self._stall_after is not None:
            self._stall_after -= len(data)
            if self._stall_after <= 0:
                self._stall_after = None
                self._held_until = time.monotonic() + self._stall_s
