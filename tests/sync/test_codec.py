"""What a droplet compresses arrives as it was, by whichever codec both ends have, in bounded memory."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chisel.node import packing, tree
from chisel.node.stdio import Refused
from chisel.sync.codec import CODECS, open_unpacker

pytestmark = pytest.mark.real_part("zstd")
PACKED = [codec for codec in CODECS if codec != packing.NONE]


def press(packer: packing.Packer, pieces: list[bytes]) -> bytes:
    try:
        return b"".join(map(packer.compress, pieces)) + packer.flush()
    finally:
        packer.close()


def through(pieces: list[bytes], codecs: tuple[str, ...], step: int) -> tuple[str, bytes]:
    packer = packing.open_packer(codecs)
    packed = press(packer, pieces)
    unpacker = open_unpacker(packer.codec)
    found = bytearray()
    for start in range(0, len(packed), step):
        found += unpacker.unpack(packed[start : start + step], 1 << 16)
        while unpacker.has_more:
            found += unpacker.unpack(b"", 1 << 16)
    assert unpacker.is_at_end
    assert not unpacker.is_overfull
    return packer.codec, bytes(found)


@pytest.mark.parametrize("codecs", [("zstd", "zlib"), ("zlib",), ("none",), ()])
def test_what_goes_in_comes_out(codecs: tuple[str, ...]) -> None:
    pieces = [random.Random(1).randbytes(3 << 20), b"a" * (5 << 20), b"", b"end"]
    codec, found = through(pieces, codecs, 100_000)
    assert codec == (codecs or ("zlib",))[0]
    assert found == b"".join(pieces)


@given(st.lists(st.binary(max_size=2000), max_size=5), st.integers(1, 700))
def test_pieces_of_any_size_come_out(pieces: list[bytes], step: int) -> None:
    for codecs in (("zstd",), ("zlib",), ("none",)):
        assert through(pieces, codecs, step)[1] == b"".join(pieces)


def test_a_droplet_without_zstd_uses_zlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert packing.open_packer(CODECS).codec == "zlib"


@pytest.mark.parametrize("line", ["exit 0", "head -c 1000 >/dev/null; exit 1", "cat >/dev/null; exit 3"])
def test_a_zstd_that_fails_is_said_and_not_waited_for(tmp_path: Path, line: str) -> None:
    program = tmp_path / "zstd"
    program.write_text(f"#!/bin/sh\n{line}\n")
    program.chmod(0o755)
    packer = packing.ZstdPacker(str(program))
    with pytest.raises(Refused, match="zstd"):
        press(packer, [b"x" * (1 << 16)] * 100)


def records(data: bytes, codec: str, max_bytes: int | None = None) -> list[object]:
    reader = tree.Records(max_bytes, open_unpacker(codec))
    found = list(reader.feed(data))
    reader.end()
    return found


def packed(data: bytes, codec: str) -> bytes:
    return press(packing.open_packer([codec]), [data])


@pytest.mark.parametrize("codec", PACKED)
def test_streams_that_are_cut_damaged_or_too_long_are_refused(codec: str) -> None:
    whole = packed(tree.pack(["item", 1]) + tree.pack_bytes(b"x" * 1000), codec)
    assert records(whole, codec) == [["item", 1], b"x" * 1000]
    for wrong in (whole[:-2], b"nonsense" * 9, whole + b"more"):
        with pytest.raises(tree.DamagedStream):
            records(wrong, codec)


@pytest.mark.parametrize("codec", PACKED)
def test_a_small_stream_that_unpacks_to_much_is_stopped(codec: str) -> None:
    bomb = packed(tree.pack_bytes(bytes(1 << 20)) * 50, codec)
    assert len(bomb) < 1 << 20
    with pytest.raises(tree.DamagedStream, match="longer than allowed"):
        records(bomb, codec, 10 << 20)


@pytest.mark.parametrize("codec", ["", "gzip", "zstd\n"])
def test_a_codec_that_nobody_asked_for_is_refused(codec: str) -> None:
    with pytest.raises(tree.DamagedStream, match="no codec"):
        open_unpacker(codec)


def test_zlib_streams_of_older_node_programs_are_read() -> None:
    assert records(zlib.compress(tree.pack(["x"])), "zlib") == [["x"]]
