"""The spool gives every byte from any place that is kept, in memory and on disk, however it is read."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chisel.node import frames
from chisel.node.frames import Kind
from chisel.node.spool import MEMORY_BYTES, Mark, Reader, Spool, behind
from chisel.node.stdio import Refused

steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from([Kind.STDOUT, Kind.STDERR]), st.binary(min_size=1, max_size=300)),
        st.tuples(st.just("read"), st.integers(1, 2000)),
        st.tuples(st.just("ack"), st.integers(0, 100)),
        st.tuples(st.just("lose")),
        st.tuples(st.just("to_disk")),
    ),
    max_size=60,
)


class Client:
    """Read a spool as a client does: check each frame, and know the place."""

    def __init__(self) -> None:
        self.place = Mark()
        self.found = {Kind.STDOUT: bytearray(), Kind.STDERR: bytearray()}

    def take(self, row: list[bytes]) -> None:
        for frame in frames.Decoder().feed(b"".join(row)):
            if frame.kind in self.found:
                into = self.found[Kind(frame.kind)]
                offset, crc32 = frames.OUTPUT.unpack_from(frame.payload)
                assert offset == len(into)
                into += frame.payload[frames.OUTPUT.size :]
                assert crc32 == zlib.crc32(into)
        for frame in row:
            self.place = behind(self.place, frame)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_every_byte_arrives_once_whatever_happens(
    steps: list[tuple[object, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    spool, client = Spool(str(tmp_path_factory.mktemp("run")), segment_bytes=500, limit_bytes=1 << 20), Client()
    written = {Kind.STDOUT: bytearray(), Kind.STDERR: bytearray()}
    for step in steps:
        if step[0] == "write":
            spool.append(int(step[1]), bytes(step[2]))  # type: ignore[call-overload]
            written[Kind(step[1])] += step[2]  # type: ignore[index,operator]
        elif step[0] == "read":
            client.take(spool.next(int(step[1])))  # type: ignore[call-overload]
        elif step[0] == "ack":
            spool.ack(client.place.position * int(step[1]) // 100)  # type: ignore[call-overload]
        elif step[0] == "lose":
            spool.next(1000)  # was sent, and never arrived
            spool.seek(client.place)
        else:
            spool.to_disk()
    while spool.has_more:
        client.take(spool.next(1000))
    assert client.found == written
    assert client.place == spool.end
    spool.close()


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_place_that_is_not_kept_or_not_the_same_is_refused(tmp_path: Path, on_disk: bool) -> None:
    spool = Spool(str(tmp_path))
    for _ in range(40):
        spool.append(Kind.STDOUT, bytes(64 << 10))
        spool.ack(spool.end.position)
        spool.next(1 << 20)
    if on_disk:
        spool.to_disk()
    with pytest.raises(Refused, match="not kept"):
        spool.seek(Mark())
    with pytest.raises(Refused, match="not what the command wrote"):
        spool.seek(spool.end._replace(stdout_crc32=1))
    with pytest.raises(Refused):
        spool.seek(Mark(stdout=spool.end.stdout + 1))
    spool.seek(spool.end)
    assert not spool.has_more


def test_memory_is_bounded_and_the_command_has_to_wait(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path))
    while not spool.is_full:
        spool.append(Kind.STDERR, bytes(64 << 10))
    assert MEMORY_BYTES <= spool.end.position <= MEMORY_BYTES + (64 << 10)
    spool.next(1 << 30)
    spool.ack(spool.end.position)
    assert not spool.is_full
    assert not list(tmp_path.iterdir())


def test_a_full_spool_on_disk_gives_room_when_its_reader_has_read(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path), limit_bytes=1 << 20, segment_bytes=100 << 10)
    spool.to_disk()
    client, written = Client(), bytearray()
    for number in range(100):
        while spool.is_full:
            client.take(spool.next(200 << 10))
            spool.ack(client.place.position)
        piece = bytes([number]) * (50 << 10)
        spool.append(Kind.STDOUT, piece)
        written += piece
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1.2 * (1 << 20)
    while spool.has_more:
        client.take(spool.next(1 << 20))
    assert client.found[Kind.STDOUT] == written


def test_a_disk_without_room_holds_the_command_back_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(str(tmp_path))
    spool.to_disk()
    spool.append(Kind.STDOUT, b"one")
    with monkeypatch.context() as full:
        full.setattr("chisel.node.spool._write_whole", lambda *_: False)
        spool.append(Kind.STDOUT, b"two")
        assert spool.is_full
    spool.retry()
    assert not spool.is_full
    client = Client()
    client.take(spool.next(1000))
    assert client.found[Kind.STDOUT] == b"onetwo"
    other = Spool(str(tmp_path / "none"))
    other.append(Kind.STDOUT, b"kept in memory")
    other.to_disk()
    assert not other.is_on_disk
    assert other.has_more


def test_what_a_power_cut_left_half_written_is_not_read(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path))
    spool.to_disk()
    spool.append(Kind.STDOUT, b"whole")
    (segment,) = tmp_path.iterdir()
    with segment.open("ab") as out:
        out.write(frames.HEADER.pack(Kind.STDOUT, 1000) + b"half")
    reader = Reader(str(tmp_path))
    reader.seek(Mark())
    client = Client()
    client.take(reader.next(1 << 20))
    assert client.found[Kind.STDOUT] == b"whole"
    assert reader.next(1 << 20) == []
    reader.close()
