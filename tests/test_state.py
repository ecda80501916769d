"""State between commands: many processes, sudden deaths, damaged and newer files, and nothing secret in it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chisel.errors import StateError
from chisel.model import DropletId
from chisel.state import (
    CloudState,
    DropletRecord,
    Intent,
    ProjectState,
    State,
    StateStore,
    decode,
    encode,
)

AT = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
RECORD = DropletRecord(
    id=DropletId(1),
    name="bench-1",
    pool="bench",
    address="127.0.0.1",
    port=22,
    host_key="ssh-ed25519 AAAA",
    region="atl1",
    size="gpu-mi300x1-192gb",
    image="gpu-amd-base",
    usd_per_hour=Decimal("1.99"),
    created_at=AT,
    attempt="aa",
    facts={"gpu": ["MI300X"], "rocm": None},
)
INTENT = Intent(
    attempt="bb",
    pool="bench",
    name="bench-2",
    size="gpu-mi300x1-192gb",
    region="atl1",
    image="gpu-amd-base",
    started_at=AT,
    host_key="ssh-ed25519 BBBB",
    next_host_key="ssh-ed25519 CCCC",
    usd_per_hour=Decimal("1.99"),
)
FULL = State(
    owner="0123456789abcdef",
    clouds={"https://x": CloudState(pools={"bench": {"bench-1": RECORD}}, intents={"bb": INTENT})},
    projects={
        "k-1": ProjectState(id="k-1", root="/k", pool="bench", synced_roots={"/k": "~/chisel/k-1"}, last_root="/k")
    },
)

# Adds its own number to the state, again and again, through the same door as every command.
WRITER = """
import sys, anyio
from dataclasses import replace
from pathlib import Path
from chisel.state import ProjectState, StateStore
async def main(file, name, times):
    store = StateStore(Path(file))
    for number in range(int(times)):
        key = f"{name}-{number}"
        await store.update(lambda s: replace(s, projects={**s.projects, key: ProjectState(id=key, root="/")}))
anyio.run(main, *sys.argv[1:])
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "state.json"


def writer(file: Path, name: str, times: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(file), name, str(times)])


async def test_what_is_written_is_read_and_only_ours_to_read(file: Path) -> None:
    store = StateStore(file)
    assert await store.update(lambda _: FULL) == FULL
    assert await StateStore(file).read() == FULL
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert json.loads(file.read_bytes())["version"] == 1
    assert sorted(entry.name for entry in file.parent.iterdir()) == ["state.json", "state.json.lock"]


def test_a_state_of_a_chisel_that_knew_no_private_addresses_is_read(file: Path) -> None:
    tree = json.loads(encode(FULL))
    record = tree["clouds"]["https://x"]["pools"]["bench"]["bench-1"]
    assert record.pop("private_address") is None
    assert decode(json.dumps(tree).encode(), file) == FULL


async def test_the_owner_is_made_once_and_lasts(file: Path) -> None:
    store = StateStore(file)
    owner = (await store.update(lambda state: state)).owner
    assert (await store.read()).owner == owner
    assert (await StateStore(file).update(lambda state: state)).owner == owner


async def test_overlapping_updates_of_one_process_lose_nothing(file: Path) -> None:
    store = StateStore(file)

    async def add(number: int) -> None:
        await store.update(
            lambda state: replace(
                state, projects={**state.projects, str(number): ProjectState(id=str(number), root="/")}
            )
        )

    async with anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(add, number)
    assert len((await store.read()).projects) == 40


def test_many_processes_at_once_lose_nothing(file: Path) -> None:
    writers = [writer(file, f"w{number}", 25) for number in range(4)]
    assert [one.wait(15) for one in writers] == [0] * 4
    assert len(decode(file.read_bytes(), file).projects) == 100


def test_writers_killed_at_any_moment_leave_a_whole_file_and_no_lock(file: Path) -> None:
    for round_ in range(6):
        with writer(file, f"r{round_}", 10_000) as victim:
            size = file.stat().st_size if file.exists() else 0
            while not file.exists() or file.stat().st_size <= size:
                assert victim.poll() is None
            os.kill(victim.pid, signal.SIGKILL)
        decode(file.read_bytes(), file)
    with writer(file, "last", 1) as last:
        assert last.wait(10) == 0
    state = decode(file.read_bytes(), file)
    assert {key.split("-")[0] for key in state.projects} == {"r0", "r1", "r2", "r3", "r4", "r5", "last"}


async def test_a_lock_that_is_held_is_waited_for_and_then_named(file: Path) -> None:
    store = StateStore(file, lock_deadline_s=0.3)
    await store.update(lambda _: FULL)
    descriptor = os.open(file.with_name("state.json.lock"), os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert await store.read() == FULL, "reading needs no lock"
        with pytest.raises(StateError, match=f"locked for 0.3 s by process `{os.getpid()}`") as caught:
            await store.update(lambda state: state)
        assert caught.value.exit_status == 6
        with anyio.move_on_after(0.05) as cancelled:
            await StateStore(file, lock_deadline_s=60).update(lambda _: State())
        assert cancelled.cancelled_caught
    finally:
        os.close(descriptor)
    assert await store.update(lambda state: state) == FULL


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"version": 1}',
        b'{"version": true, "owner": "0123456789abcdef", "clouds": {}, "projects": {}}',
        b'{"version": 1, "owner": "../../../../etc", "clouds": {}, "projects": {}}',
        b'{"version": 1, "owner": "0123456789abcdef", "clouds": {"u": {"pools": [], "intents": {}}}, "projects": {}}',
        encode(FULL)[:-40],
        encode(FULL).replace(b'"1.99"', b'"NaN"'),
        encode(FULL).replace(b"2026-11-01T12:00:00+00:00", b"2026-11-01T12:00:00"),
    ],
)
async def test_a_damaged_file_is_set_aside_and_its_owner_saved(file: Path, damage: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(damage)
    state = await StateStore(file).read()
    kept = file.with_name("state.json.corrupt-1")
    assert (state.clouds, state.recovered_from) == ({}, kept)
    assert kept.read_bytes() == damage
    if b"0123456789abcdef" in damage:
        assert state.owner == "0123456789abcdef", "our droplets must stay ours"
    again = await StateStore(file).read()
    assert (again.owner, again.recovered_from) == (state.owner, None)


async def test_a_newer_chisels_file_is_refused_and_never_touched(file: Path) -> None:
    file.parent.mkdir()
    newer = encode(FULL).replace(b'"version": 1', b'"version": 2')
    file.write_bytes(newer)
    for act in (StateStore(file).read(), StateStore(file).update(lambda _: State())):
        with pytest.raises(StateError, match="written by a newer chisel") as caught:
            await act
        assert caught.value.hint == "upgrade chisel: pip install --upgrade chisel-gpu"
    assert file.read_bytes() == newer


async def test_a_change_that_fails_changes_nothing_and_frees_the_lock(file: Path) -> None:
    store = StateStore(file)
    await store.update(lambda _: FULL)

    unknown = replace(RECORD, facts={"x": object()})

    def fails(state: State) -> State:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.update(fails)
    with pytest.raises(StateError, match="cannot be kept"):
        await store.update(lambda state: replace(state, clouds={"u": CloudState(pools={"p": {"d": unknown}})}))
    assert await store.update(lambda state: state) == FULL


async def test_a_folder_that_cannot_be_written_is_said_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(StateError, match="cannot lock") as caught:
        await StateStore(tmp_path / "cache" / "state.json").update(lambda state: state)
    assert "XDG_CACHE_HOME" in str(caught.value.hint)


async def test_a_link_in_the_locks_place_is_not_followed(file: Path, tmp_path: Path) -> None:
    file.parent.mkdir()
    precious = tmp_path / "precious"
    precious.write_text("untouched")
    file.with_name("state.json.lock").symlink_to(precious)
    with pytest.raises(StateError, match="cannot lock"):
        await StateStore(file).update(lambda _: FULL)
    assert precious.read_text() == "untouched"


NAMES = st.text(max_size=8) | st.sampled_from(["\0x", "\0", "\udcff", "a\udc80b"])


@settings(deadline=None)
@given(st.dictionaries(NAMES, NAMES, max_size=3), NAMES)
def test_any_file_name_survives(roots: dict[str, str], root: str) -> None:
    project = ProjectState(id="p", root=root, synced_roots=roots, last_root=next(iter(roots), None))
    state = State(projects={"p": project})
    assert decode(encode(state), Path("x")) == state
