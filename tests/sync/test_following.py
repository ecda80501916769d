"""A change ends the command, is synced, and runs it again; nothing that fails ends the watch."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.memory import MemoryObjectSendStream

from chisel.errors import ChiselError, HostUnreachable
from chisel.sync.following import follow
from chisel.sync.sieve import Changes
from chisel.sync.watching import watching
from tests.support import processes_with
from tests.sync.test_push import write

SHORT_S = 0.3


class Real:
    """A command as a process of its own, in a group of its own."""

    def __init__(self, *words: str) -> None:
        self._words = words
        self._process: Process | None = None

    async def wait(self) -> None:
        with anyio.CancelScope(shield=True):  # a start that is cut in the middle leaves a process to nobody
            process = await anyio.open_process(self._words, start_new_session=True, stdout=None, stderr=None)
        self._process = process
        try:
            await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with anyio.CancelScope(shield=True):
                await process.aclose()

    def signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


class Place:
    """Where a sync copies to by a process, and what happened in which order."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.local, self.remote, self.log = top / "local", top / "remote", top / "log"
        self.local.mkdir()
        self.synced: list[Changes] = []
        self.failures: list[ChiselError] = []
        self.is_down = False
        self.gate: Path | None = None
        self.log.touch()

    async def sync(self, changes: Changes) -> None:
        if self.is_down:
            raise HostUnreachable("the link is down", host="one")
        self.synced.append(changes)
        waits = f"while [ ! -e '{self.gate}' ]; do sleep 0.01; done; " if self.gate else ""
        script = f"echo sync >> '{self.log}'; {waits}rm -rf '{self.remote}'; cp -r '{self.local}' '{self.remote}'"
        await Real("sh", "-c", script).wait()

    def command(self, script: str) -> Callable[[], Real]:
        return lambda: Real("bash", "-c", f"echo run >> '{self.log}'; cd '{self.remote}'; {script}", str(self.top))

    @property
    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    async def until(self, holds: Callable[[], object]) -> None:
        with anyio.fail_after(10):
            while not holds():  # noqa: ASYNC110 - a process's log sends no event
                await anyio.sleep(0.01)

    async def until_log(self, *expected: str) -> None:
        await self.until(lambda: self.lines == list(expected))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@asynccontextmanager
async def following(
    place: Place, run: Callable[[], Real] | None, **patience: object
) -> AsyncIterator[MemoryObjectSendStream[Changes]]:
    """Follow a stream that the test feeds; ended by the end of the block."""
    send, receive = anyio.create_memory_object_stream[Changes](0)
    async with send, receive, anyio.create_task_group() as tasks:

        async def start() -> None:
            await follow(receive, place.sync, run, failed=place.failures.append, **patience)  # type: ignore[arg-type]

        tasks.start_soon(start)
        yield send
        tasks.cancel_scope.cancel()


def changed(*paths: str) -> Changes:
    return Changes(0.0, frozenset(paths))


TRAP = "trap 'echo INT >> ../log; exit 1' INT; echo ready >> ../log; sleep 100 & wait"


async def test_a_change_ends_the_command_is_synced_and_runs_it_again(place: Place) -> None:
    async with following(place, place.command(TRAP)) as send:
        await place.until_log("sync", "run", "ready")
        await send.send(changed("a"))
        await place.until_log("sync", "run", "ready", "INT", "sync", "run", "ready")
    assert [change.is_everything for change in place.synced] == [True, False]
    assert place.failures == []
    assert processes_with(str(place.top)) == []


async def test_a_command_that_ends_by_itself_is_not_run_again_without_a_change(place: Place) -> None:
    async with following(place, place.command("exit 3")) as send:
        await place.until_log("sync", "run")
        await send.send(changed("a"))
        await place.until_log("sync", "run", "sync", "run")


async def test_a_command_that_does_not_heed_the_interrupt_is_killed(place: Place) -> None:
    async with following(place, place.command("trap '' INT; echo ready >> ../log; sleep 100"), grace_s=SHORT_S) as send:
        await place.until_log("sync", "run", "ready")
        await send.send(changed("a"))
        await place.until_log("sync", "run", "ready", "sync", "run", "ready")
    assert place.failures == []
    assert processes_with(str(place.top)) == []


async def test_one_that_does_not_even_die_is_given_up_and_that_is_said(place: Place) -> None:
    class Undead(Real):
        def signal(self, number: int) -> None:
            """Be out of reach."""

    runs = iter([Undead("bash", "-c", f"echo run >> '{place.log}'; sleep 100"), Real("true")])
    async with following(place, lambda: next(runs), grace_s=0.05) as send:
        await place.until_log("sync", "run")
        await send.send(changed("a"))
        await place.until_log("sync", "run", "sync")
    assert [error.message for error in place.failures] == ["the command that runs does not end, not even killed"]


async def test_what_changes_during_a_sync_is_one_more_before_the_command_runs(place: Place) -> None:
    place.gate = place.top / "gate"
    async with watching(place.local) as changes, anyio.create_task_group() as tasks:

        async def start() -> None:
            await follow(changes, place.sync, place.command("cat a b c >> ../log"), failed=place.failures.append)

        tasks.start_soon(start)
        await place.until_log("sync")
        for name in ("a", "b", "c"):
            write(place.local / name, f"{name}\n")
            await anyio.sleep(0.05)
        place.gate.touch()
        await place.until_log("sync", "sync", "run", "a", "b", "c")
        tasks.cancel_scope.cancel()
    assert place.synced[1].paths == {"a", "b", "c"}


async def test_a_tree_that_never_rests_does_not_keep_the_command_from_running(place: Place) -> None:
    async with following(place, place.command("true"), catch_up_s=SHORT_S) as send:
        with anyio.fail_after(10):
            while "run" not in place.lines:
                await send.send(changed("log"))
    assert place.lines.count("sync") >= 2


async def test_a_failing_sync_is_told_and_its_changes_stay_due(place: Place) -> None:
    async with following(place, place.command("true"), retry_after_s=(60.0,)) as send:
        await place.until_log("sync", "run")
        place.is_down = True
        await send.send(changed("a"))
        await place.until(lambda: len(place.failures) == 1)
        place.is_down = False
        assert place.lines == ["sync", "run"], "nothing runs on what is not synced"
        await send.send(changed("b"))
        await place.until_log("sync", "run", "sync", "run")
    assert place.synced[-1].paths == {"a", "b"}


async def test_a_failing_sync_is_tried_again_by_itself(place: Place) -> None:
    place.is_down = True
    async with following(place, place.command("true"), retry_after_s=(0.01, 0.02)):
        await place.until(lambda: len(place.failures) >= 3)
        place.is_down = False
        await place.until_log("sync", "run")
    assert place.synced[0].is_everything


async def test_a_command_that_cannot_be_started_does_not_end_the_watch(place: Place) -> None:
    class Broken(Real):
        async def wait(self) -> None:
            raise HostUnreachable("it is gone", host="one")

    async with following(place, lambda: Broken("true")) as send:
        await place.until(lambda: len(place.failures) == 1)
        await send.send(changed("a"))
        await place.until(lambda: len(place.failures) == 2)


async def test_without_a_command_every_change_is_synced(place: Place) -> None:
    async with following(place, None) as send:
        await place.until_log("sync")
        await send.send(changed("a"))
        await place.until_log("sync", "sync")


async def test_the_end_of_the_stream_waits_for_the_command(place: Place) -> None:
    send, receive = anyio.create_memory_object_stream[Changes](0)
    await send.aclose()
    async with receive:
        with anyio.fail_after(10):
            await follow(
                receive, place.sync, place.command("sleep 0.2; echo end >> ../log"), failed=place.failures.append
            )
    assert place.lines == ["sync", "run", "end"]


async def test_a_bug_comes_out_as_it_is(place: Place) -> None:
    async def broken(changes: Changes) -> None:
        raise ZeroDivisionError

    send, receive = anyio.create_memory_object_stream[Changes](0)
    async with send, receive:
        with pytest.raises(ZeroDivisionError):
            await follow(receive, broken, failed=place.failures.append)


@pytest.mark.parametrize("moment", ["sync", "run", "ready", "ending"])
async def test_a_cancelled_watch_leaves_no_process(place: Place, moment: str) -> None:
    if moment == "sync":
        place.gate = place.top / "never"
    script = "trap '' INT; echo ready >> ../log; sleep 100"
    async with following(place, place.command(script), grace_s=60) as send:
        await place.until(lambda: ("ready" if moment == "ending" else moment) in place.lines)
        if moment == "ending":
            await send.send(changed("a"))
    assert processes_with(str(place.top)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="counts processes in /proc")
async def test_edit_sync_run_by_a_real_watch(place: Place) -> None:
    write(place.local / "value", "1\n")
    async with watching(place.local) as changes, anyio.create_task_group() as tasks:

        async def start() -> None:
            await follow(
                changes, place.sync, place.command("cat value >> ../log; sleep 100"), failed=place.failures.append
            )

        tasks.start_soon(start)
        await place.until_log("sync", "run", "1")
        for number in range(2, 5):
            write(place.local / "value", f"{number}\n")
            await place.until(lambda number=number: place.lines[-1] == str(number))
        tasks.cancel_scope.cancel()
    assert place.lines == [word for number in range(1, 5) for word in ("sync", "run", str(number))]
    assert place.failures == []
    assert processes_with(str(place.top)) == []
