"""A droplet with the right certificate that lies gets nothing of its own onto another: neither a tree nor a file."""

from __future__ import annotations

import hashlib
import socket
import ssl
import sys
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from chisel.node import frames, links, tree
from chisel.node.frames import Frame, Kind
from chisel.node.tree import FILE, Item
from chisel.ssh.relaykeys import make_relay_key
from tests.node.session import Session

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.0/8 is all ours on Linux only"),
]
KEY = make_relay_key()
START = Callable[..., AbstractContextManager[Session]]
MTIME_NS = 1_700_000_000_000_000_000


def sync_stream(content: bytes) -> tuple[list[Frame], str]:
    """Return the frames that make a tree of one file, which agree with themselves, and the tree's hash."""
    digest = hashlib.sha256(content).hexdigest()
    records = [tree.pack(["put", "kernel.hip", 0o644, len(content), MTIME_NS]), tree.pack_bytes(content)]
    records.append(tree.pack(["end", digest[: tree.CHECK_DIGITS]]))
    whole = tree.tree_hash([Item("kernel.hip", FILE, 0o644, digest, len(content), MTIME_NS)])
    return [
        Frame(Kind.PROGRESS, b'{"codec":"zlib"}'),
        Frame(Kind.DATA, zlib.compress(b"".join(records))),
        Frame(Kind.DATA_END, frames.as_json({"tree": whole})),
    ], whole


def push_stream(content: bytes) -> list[Frame]:
    """Return the frames that make one pushed file, which agree with themselves."""
    digest = hashlib.sha256(content).hexdigest()
    orders = [b'J["begin",0]', b"B" + content, f'J["end","{digest}",{MTIME_NS}]'.encode("ascii")]
    return [*(Frame(Kind.DATA, order) for order in orders), Frame(Kind.DATA_END, b"")]


def digest_of(stream: list[Frame]) -> str:
    return hashlib.sha256(b"".join(frames.encode(*frame) for frame in stream)).hexdigest()


def linked(session: Session) -> ssl.SSLSocket:
    """Have a droplet listen, and come as its neighbour."""
    session.send_json(Kind.RELAY, {"listen": "127.9.0.1", "certificate": KEY.certificate, "key": KEY.key})
    port = session.until(Kind.RELAY).json()["port"]
    plain = socket.create_connection(("127.9.0.1", port), 5)
    return links.Credentials(KEY.certificate, KEY.key).connected(plain)


def asked(session: Session) -> None:
    """Hear what a receiver has, which is nothing."""
    assert session.until(Kind.REPLY).json()["done"] is False
    session.until(Kind.DATA_END)


REQUEST: dict[str, Any] = {"root": "~/chisel/tree", "owner": "me", "asks": True}


def test_an_honest_neighbour_brings_a_tree(start: START, home: Path) -> None:
    stream, whole = sync_stream(b"right\n")
    with start("receive", REQUEST) as session:
        asked(session)
        with linked(session) as friend:
            friend.sendall(b"".join(frames.encode(*frame) for frame in stream))
            session.send_json(Kind.DATA_END, {"tree": whole, "digest": digest_of(stream)})
            reply = session.until(Kind.REPLY).json()
        assert (reply["done"], reply["tree"], reply["relayed"] > 0) == (True, whole, True)
    assert (home / "chisel" / "tree" / "kernel.hip").read_bytes() == b"right\n"


def test_a_foreign_tree_that_agrees_with_itself_is_refused(start: START, home: Path) -> None:
    (foreign, _), (stream, whole) = sync_stream(b"wrong\n"), sync_stream(b"right\n")
    with start("receive", REQUEST) as session:
        asked(session)
        with linked(session) as liar:
            liar.sendall(b"".join(frames.encode(*frame) for frame in foreign))
            session.send_json(Kind.DATA_END, {"tree": whole, "digest": digest_of(stream)})
            assert "lost" in session.until(Kind.RELAY).json()
        assert not (home / "chisel" / "tree" / "kernel.hip").exists()
        for frame in stream:
            session.send(*frame)
        reply = session.until(Kind.REPLY).json()
        assert (reply["done"], reply["tree"]) == (True, whole)
    assert (home / "chisel" / "tree" / "kernel.hip").read_bytes() == b"right\n"
    assert not list((home / "chisel").glob(".chisel-stage-*"))


def offered(session: Session, content: bytes) -> None:
    for data in tree.compress([["file", "weights", 0o644, len(content), MTIME_NS, ""]]):
        session.send(Kind.DATA, data)
    session.send(Kind.DATA_END)
    session.until(Kind.REPLY)
    session.until(Kind.DATA_END)


def test_an_honest_neighbour_brings_a_file(start: START, home: Path) -> None:
    stream = push_stream(b"right\n")
    with start("store", {"to": "~/data"}) as session:
        offered(session, b"right\n")
        with linked(session) as friend:
            friend.sendall(b"".join(frames.encode(*frame) for frame in stream))
            session.send_json(Kind.RELAY, {"promised": [[0, hashlib.sha256(b"right\n").hexdigest()]]})
            session.send_json(Kind.DATA_END, {"tree": "", "digest": digest_of(stream)})
            assert session.until(Kind.REPLY).json()["files"] == 1
    assert (home / "data" / "weights").read_bytes() == b"right\n"


@pytest.mark.parametrize("says_same", [False, True])
def test_a_foreign_file_never_appears(start: START, home: Path, says_same: bool) -> None:
    stream, foreign = push_stream(b"right\n"), push_stream(b"wrong\n")
    if says_same:  # ... nor is believed to be there what is not
        foreign = [Frame(Kind.DATA, b'J["same",0,"' + b"0" * 64 + b'"]'), Frame(Kind.DATA_END, b"")]
    with start("store", {"to": "~/data"}) as session:
        offered(session, b"right\n")
        with linked(session) as liar:
            liar.sendall(b"".join(frames.encode(*frame) for frame in foreign))
            session.send_json(Kind.RELAY, {"promised": [[0, hashlib.sha256(b"right\n").hexdigest()]]})
            session.send_json(Kind.DATA_END, {"tree": "", "digest": digest_of(stream)})
            assert session.until(Kind.ERROR).json()["code"] == "relay-lost"
    assert not (home / "data" / "weights").exists()
