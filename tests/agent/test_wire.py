"""What goes over the socket, where that is, and that the thin client is thin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chisel.agent import wire

THIN = {"__future__", "chisel", "chisel.agent", "chisel.agent.wire", "chisel.entry", "_socket"}


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_fields_come_out_as_they_went_in(fields: list[bytes]) -> None:
    assert wire.unpack(wire.pack(fields)) == fields


@given(st.binary(max_size=40))
def test_garbage_is_refused_or_whole(data: bytes) -> None:
    try:
        found = wire.unpack(data)
    except ValueError:
        return
    assert sum(4 + len(one) for one in found) >= len(data)


def test_the_thin_client_loads_next_to_nothing() -> None:
    """What it loads every warm command pays for; `sys.modules` of a bare interpreter is the measure."""
    code = "import sys; before = set(sys.modules); import chisel.entry; print(*sorted(set(sys.modules) - before))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)
    assert set(ended.stdout.split()) <= THIN


def test_a_long_place_is_replaced_by_a_short_one(tmp_path: Path) -> None:
    deep = os.fsencode(tmp_path / ("d" * 90))
    directory, path = wire.place_of({b"HOME": deep})
    assert directory == b"/tmp/chisel-%d" % os.geteuid()
    assert len(path) < 104


def test_the_place_depends_on_the_state_and_the_api(tmp_path: Path) -> None:
    base = {b"HOME": b"/h"}
    others = [
        {b"HOME": b"/i"},
        {b"HOME": b"/h", b"XDG_CACHE_HOME": b"/c"},
        {b"HOME": b"/h", b"XDG_CONFIG_HOME": b"/c"},
        {b"HOME": b"/h", b"CHISEL_DO_API_URL": b"http://127.0.0.1:1"},
    ]
    places = {wire.place_of(one)[1] for one in [base, *others]}
    assert len(places) == 5
    assert wire.place_of({**base, b"XDG_CACHE_HOME": b"relative"}) == wire.place_of(base)


def test_the_sessions_directory_is_used_when_it_is_ours_alone(tmp_path: Path) -> None:
    runtime = Path("/tmp") / f"chisel-test-{os.getpid()}"
    runtime.mkdir(mode=0o700)
    try:
        environ = {b"HOME": b"/h", b"XDG_RUNTIME_DIR": os.fsencode(runtime)}
        assert wire.place_of(environ)[0] == os.fsencode(runtime) + b"/chisel"
        runtime.chmod(0o755)
        assert wire.place_of(environ)[0] == b"/h/.cache/chisel/agent"
    finally:
        runtime.rmdir()


@pytest.mark.parametrize("value", ["off", "OFF", "0", "no", "false"])
def test_it_can_be_turned_off(value: str) -> None:
    assert wire.call(["run", "true"], {b"CHISEL_AGENT": value.encode()}) is None


def test_only_what_is_served_is_asked_for() -> None:
    for words in (
        [],
        ["up"],
        ["down"],
        ["status"],
        ["ssh"],
        ["profile", "x"],
        ["run", "--no-agent", "x"],
        ["run", "--tty", "x"],
    ):
        assert wire.call(words, {b"HOME": b"/nowhere"}) is None
