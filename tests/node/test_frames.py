"""Frames come out as they went in, whatever the chunks, and nothing else is taken for one."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chisel.node import frames
from chisel.node.frames import Frame, Kind

FRAMES = st.lists(st.tuples(st.sampled_from(sorted(Kind)), st.binary(max_size=300)))


@given(FRAMES, st.integers(1, 50))
def test_any_chunks_give_the_same_frames(sent: list[tuple[Kind, bytes]], size: int) -> None:
    stream = b"".join(frames.encode(kind, payload) for kind, payload in sent)
    decoder = frames.Decoder()
    found = [frame for at in range(0, len(stream), size) for frame in decoder.feed(stream[at : at + size])]
    assert found == [Frame(kind, payload) for kind, payload in sent]
    assert not decoder.has_rest


@given(st.binary(max_size=12))
def test_names_that_are_no_text_travel(name: bytes) -> None:
    text = os.fsdecode(name)
    frame = frames.Decoder().feed(frames.encode_json(Kind.REQUEST, {"path": text}))[0]
    assert os.fsencode(frame.json()["path"]) == name


@pytest.mark.parametrize(
    "data", [b"Please wait while we get your droplet ready...\n", b"\x63\0\0\0\0", b"\x01\xff\0\0\0"]
)
def test_what_is_no_frame_is_told(data: bytes) -> None:
    with pytest.raises(frames.FrameError):
        frames.Decoder().feed(data)


@pytest.mark.parametrize("payload", [b"", b"{", b"[1]", b"3", b"\xff"])
def test_a_payload_that_is_no_object_is_told(payload: bytes) -> None:
    with pytest.raises(frames.FrameError):
        Frame(Kind.REPLY, payload).json()


def test_a_payload_that_does_not_fit_is_refused() -> None:
    with pytest.raises(frames.FrameError):
        frames.encode(Kind.DATA, bytes(frames.MAX_PAYLOAD + 1))


def test_a_cut_frame_is_seen() -> None:
    decoder = frames.Decoder()
    assert decoder.feed(frames.encode(Kind.DATA, b"abc")[:-1]) == []
    assert decoder.has_rest
