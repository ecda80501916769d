"""What a neighbour forwards counts only when the client says that it is right; all else goes back to the client."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from chisel.node import frames, incoming, links, stdio
from chisel.node.frames import Frame, Kind
from chisel.node.incoming import Incoming, LostError
from chisel.ssh.relaykeys import RelayKey, make_relay_key

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.0/8 is all ours on Linux only"),
]

STREAM = [
    Frame(Kind.PROGRESS, b'{"codec":"zlib"}'),
    Frame(Kind.DATA, b"x" * 100_000),
    Frame(Kind.DATA_END, b'{"next":"none"}'),
    Frame(Kind.DATA, b"y" * 50_000),
    Frame(Kind.DATA_END, b'{"tree":"foreign"}'),
]
KEY = make_relay_key()


def digest(stream: list[Frame]) -> str:
    return hashlib.sha256(b"".join(frames.encode(*frame) for frame in stream)).hexdigest()


class Droplet:
    """One droplet's incoming stream, and the client at the other end of its session."""

    def __init__(self) -> None:
        here_in, self._client_out = os.pipe()
        self._client_in, here_out = os.pipe()
        self.incoming = Incoming(stdio.Channel(here_in, here_out))
        self._client = stdio.Channel(self._client_in, self._client_out)
        self.taken: list[Frame | None] = []
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._take)  # noqa: TID251 - the role blocks, the test is its client
        self._handles = [here_in, here_out, self._client_in]

    def _take(self) -> None:
        try:
            while True:
                self.taken.append(self.incoming.receive(30.0))
                last = self.taken[-1]
                if last is None or (last.kind == Kind.DATA_END and "next" not in last.json()):
                    return
        except (LostError, frames.FrameError) as error:
            self.error = error
        finally:
            self.incoming.close()

    def start(self, **order: Any) -> int:
        """Begin; returns the port of a droplet that listens."""
        self._thread.start()
        self.say(Kind.RELAY, {"certificate": KEY.certificate, "key": KEY.key, **order})
        if "listen" not in order:
            return 0
        said = self._client.receive(10.0)
        assert said is not None
        return int(said.json()["port"])

    def say(self, kind: int, facts: Any) -> None:
        self._client.send_json(kind, facts)

    def send(self, stream: list[Frame]) -> None:
        for frame in stream:
            self._client.send(*frame)

    def ended(self) -> list[Frame | None]:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.taken

    def hang_up(self) -> None:
        if self._client_out >= 0:
            os.close(self._client_out)
            self._client_out = -1

    def close(self) -> None:
        self.hang_up()
        self._thread.join(30)
        for handle in self._handles:
            os.close(handle)


@contextlib.contextmanager
def a_droplet() -> Iterator[Droplet]:
    droplet = Droplet()
    try:
        yield droplet
    finally:
        droplet.close()


def neighbour(port: int, key: RelayKey = KEY) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.9.0.1", port), 5)
    try:
        return links.Credentials(key.certificate, key.key).connected(plain)
    except BaseException:
        plain.close()
        raise


def test_a_stream_goes_through_one_droplet_to_the_next() -> None:
    with a_droplet() as parent, a_droplet() as child:
        port = child.start(listen="127.9.0.1")
        parent.start(feed=[["127.9.0.1", port]])
        parent.send(STREAM)
        assert parent.ended() == STREAM
        child.say(Kind.DATA_END, {"tree": "right", "digest": digest(STREAM)})
        found = child.ended()
        assert found[:-1] == STREAM[:-1]
        assert found[-1] is not None
        assert found[-1].json()["tree"] == "right"
        assert child.incoming.relayed_bytes == 150_000


def test_a_stream_of_more_than_all_buffers_goes_through() -> None:
    stream = [STREAM[0], *[Frame(Kind.DATA, os.urandom(1 << 18)) for _ in range(200)], STREAM[-1]]
    with a_droplet() as parent, a_droplet() as child:
        port = child.start(listen="127.9.0.1")
        parent.start(feed=[["127.9.0.1", port]])
        parent.send(stream)
        child.say(Kind.DATA_END, {"tree": "right", "digest": digest(stream)})
        assert child.ended()[:-1] == stream[:-1]


def test_nothing_that_was_altered_on_the_way_is_taken() -> None:
    altered = [*STREAM[:1], Frame(Kind.DATA, b"x" * 99_999 + b"!"), *STREAM[2:]]
    with a_droplet() as child:
        with neighbour(child.start(listen="127.9.0.1")) as liar:
            liar.sendall(b"".join(frames.encode(*frame) for frame in altered))
            child.say(Kind.DATA_END, {"tree": "right", "digest": digest(STREAM)})
            found = child.ended()
        assert isinstance(child.error, LostError)
        assert not any(frame and frame.kind == Kind.DATA_END and b"tree" in frame.payload for frame in found)


@pytest.mark.parametrize("said", [b"\xff" * 64, frames.encode(Kind.DATA_END, b"no json"), frames.encode(Kind.ERROR)])
def test_what_is_no_stream_is_refused(said: bytes) -> None:
    with a_droplet() as child:
        with neighbour(child.start(listen="127.9.0.1")) as liar:
            liar.sendall(said)
            child.ended()
        assert child.error is not None


def test_a_stranger_is_sent_away_and_the_neighbour_still_let_in() -> None:
    stranger = make_relay_key()
    with a_droplet() as child:
        port = child.start(listen="127.9.0.1")
        with socket.create_connection(("127.9.0.1", port), 5) as plain:
            plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(OSError, match=r"(?i)certificate"):
            neighbour(port, stranger)
        with neighbour(port) as friend:
            friend.sendall(b"".join(frames.encode(*frame) for frame in STREAM))
            child.say(Kind.DATA_END, {"tree": "right", "digest": digest(STREAM)})
            assert child.ended()[:-1] == STREAM[:-1]


def test_who_does_not_know_the_key_is_fed_nothing() -> None:
    stranger = make_relay_key()
    with socket.create_server(("127.9.0.1", 0)) as server, a_droplet() as parent:
        parent.start(feed=[["127.9.0.1", server.getsockname()[1]]])
        plain, _ = server.accept()
        with plain, pytest.raises(OSError, match=r"."):
            # It lets the parent in whatever certificate that shows, and has none of its own that the parent accepts.
            links.Credentials(stranger.certificate, stranger.key).accepted(plain).recv(1)
        parent.send(STREAM)
        assert parent.ended() == STREAM


def test_a_cut_link_is_lost_and_its_port_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_droplet() as child:
        port = child.start(listen="127.9.0.1")
        with neighbour(port) as cut:
            cut.sendall(b"".join(frames.encode(*frame) for frame in STREAM[:2]))
        found = child.ended()
        assert isinstance(child.error, LostError)
        assert Kind.DATA_END not in [frame.kind for frame in found if frame]
        with pytest.raises(ConnectionRefusedError):
            neighbour(port)


def test_a_neighbour_that_never_comes_is_waited_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "LINK_S", 0.5)
    with a_droplet() as child:
        child.start(listen="127.9.0.1")
        child.ended()
        assert str(child.error) == "no neighbour came"


def test_a_neighbour_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "SILENCE_S", 0.5)
    with a_droplet() as child, neighbour(child.start(listen="127.9.0.1")):
        child.ended()
        assert str(child.error) == "the neighbour fell silent"


def test_a_stalled_neighbour_holds_the_stream_up_for_so_long_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "STALL_S", 0.5)
    stream = [STREAM[0], *[Frame(Kind.DATA, bytes(1 << 18)) for _ in range(100)], STREAM[-1]]
    with socket.create_server(("127.9.0.1", 0)) as server, a_droplet() as parent:
        parent.start(feed=[["127.9.0.1", server.getsockname()[1]]])
        plain, _ = server.accept()
        with links.Credentials(KEY.certificate, KEY.key).accepted(plain):
            parent.send(stream)
            assert parent.ended() == stream


def test_the_client_gives_it_up_or_goes() -> None:
    with a_droplet() as child:
        child.start(listen="127.9.0.1")
        child.say(Kind.RELAY, {"give_up": True})
        child.ended()
        assert isinstance(child.error, LostError)
    with a_droplet() as child:
        child.start(listen="127.9.0.1")
        child.hang_up()
        assert child.ended() == [None]


def test_an_address_that_is_not_this_machines_is_lost_at_once() -> None:
    with a_droplet() as child:
        child._thread.start()
        child.say(Kind.RELAY, {"listen": "192.0.2.1", "certificate": KEY.certificate, "key": KEY.key})
        child.ended()
        assert "cannot listen" in str(child.error)
