"""Edit, kill, cut and race syncs against the real receiver, over pipes: nothing is missed, torn, or left behind.

python -m tests.torture.sync_edits [--edits 1000] [--kills 500] [--cuts 500] [--races 200] [--walks 200] [--seed 1]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import os
import random
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from chisel.errors import HostUnreachable
from tests.support import processes_with
from tests.torture.pipes import Droplet, sync

_FILE_BYTES = 40_000
_SLACK_BYTES = 8_000


@dataclass
class World:
    """A local tree, its index, and a droplet."""

    place: Path
    local: Path = field(init=False)
    index: Path = field(init=False)
    droplet: Droplet = field(init=False)

    def __post_init__(self) -> None:
        self.local, self.index = self.place / "local", self.place / "index" / "one"
        self.local.mkdir(parents=True)
        self.droplet = Droplet(self.place)

    @property
    def copy(self) -> Path:
        return self.droplet.copy_of(self.local)

    async def sync(self, **how: Any) -> Any:
        return await sync(self.local, self.index, self.droplet, **how)


@contextlib.contextmanager
def a_world() -> Iterator[World]:
    place = Path(tempfile.mkdtemp(prefix="chisel-torture-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        yield World(place)
    finally:
        shutil.rmtree(place)


def snapshot(root: Path) -> dict[str, Any]:
    """Describe a tree exactly: kinds, modes, contents."""
    found: dict[str, Any] = {}
    for place, folders, files in os.walk(root):
        for name in folders + files:
            path = Path(place, name)
            status = path.lstat()
            key = str(path.relative_to(root))
            if stat.S_ISLNK(status.st_mode):
                found[key] = str(path.readlink())
            elif stat.S_ISDIR(status.st_mode):
                found[key] = "directory"
            else:
                found[key] = (status.st_mode & 0o777, path.read_bytes())
    return found


def check_nothing_is_left(world: World) -> None:
    left = [path.name for path in world.copy.parent.iterdir() if path != world.copy]
    assert not left, f"left beside the working copy: {left}"
    assert not processes_with(str(world.place)), "a receiver is left"


# -- edits of the same size, as fast as it goes


async def edits(count: int) -> int:
    """Return how many of so many edits, of the same size and within a second each, a sync missed."""
    missed = 0
    with a_world() as world:
        for number in range(count):
            (world.local / "kernel.h").write_text(f"#define BLOCK {number:06}\n")
            await world.sync()
            missed += (world.copy / "kernel.h").read_text() != f"#define BLOCK {number:06}\n"
    return missed


# -- interruptions


def change_some(world: World, chance: random.Random) -> int:
    """Make a handful of changes; return about how many bytes a sync of them sends."""
    total = 0
    for _ in range(chance.randint(1, 12)):
        path = world.local / f"d{chance.randrange(4)}" / f"f{chance.randrange(12)}"
        path.parent.mkdir(exist_ok=True)
        if path.exists() and chance.random() < 0.2:
            path.unlink()
        else:
            size = chance.choice([100, 3000, _FILE_BYTES])
            path.write_bytes(chance.randbytes(size))
            total += size
    return total


async def interruptions(count: int, seed: int, *, is_deadly: bool) -> int:
    """Kill the client, or cut the line, at a random byte; one sync later everything is right. Return the bad ones."""
    chance, bad, interrupted = random.Random(seed), 0, 0
    with a_world() as world:
        await world.sync()
        for number in range(count):
            about = change_some(world, chance)
            before, wanted = snapshot(world.copy), snapshot(world.local)
            at = chance.randrange(1, about + 3000)
            if is_deadly:
                await to_thread.run_sync(functools.partial(_killed, world, at))
            else:
                with contextlib.suppress(HostUnreachable):
                    await world.sync(cut_after=at)
            found = await to_thread.run_sync(_settled, world)
            interrupted += found != wanted
            problems = [] if found in (before, wanted) else [f"torn at byte {at}"]
            kept = _kept_bytes(world)
            await world.sync()
            if snapshot(world.copy) != wanted:
                problems.append("not exact")
            missing = max(0, about - kept) if found != wanted else 0
            if world.droplet.sent_bytes > missing + _FILE_BYTES + _SLACK_BYTES:
                problems.append(f"{world.droplet.sent_bytes} bytes again, {missing} were missing")
            check_nothing_is_left(world)
            if problems:
                bad += 1
                print(f"{number}: {', '.join(problems)}", file=sys.stderr)
    assert 4 * interrupted >= count, f"only {interrupted} of {count} came in the middle"
    return bad


def _killed(world: World, at: int) -> None:
    """Sync in a child that kills itself once it has sent so many bytes."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with contextlib.suppress(BaseException):
                anyio.run(functools.partial(world.sync, cut_after=at, is_deadly=True))
                status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)


def _settled(world: World) -> dict[str, Any]:
    """Wait until no receiver runs, and describe the working copy."""
    for _ in range(2000):
        if not processes_with(str(world.place)):
            return snapshot(world.copy)
        os.sched_yield()
    raise AssertionError("a receiver is left")


def _kept_bytes(world: World) -> int:
    return sum(file.stat().st_size for place in world.copy.parent.glob(".chisel-stage-*") for file in place.iterdir())


# -- a writer at work meanwhile

_WRITER = """
import os, random, sys, time
sys.path.insert(0, sys.argv[3])
from tests.torture.sync_edits import content
root, chance, number = sys.argv[1], random.Random(int(sys.argv[2])), 0
while True:
    number += 1
    name = f"f{chance.randrange(6)}"
    path = os.path.join(root, name)
    where = path if chance.random() < 0.5 else path + ".tmp"
    with open(where, "wb") as out:
        out.write(content(name, number))
    if where != path:
        os.rename(where, path)
    if chance.random() < 0.1:
        os.unlink(path)
"""


def content(name: str, number: int) -> bytes:
    """Return what the writer's file holds at a moment: its first line tells all the rest."""
    head = f"{name} {number}\n".encode()
    return head + hashlib.sha256(head).hexdigest().encode() * (1 + number % 200)


def _is_some_content(path: str, data: bytes) -> bool:
    """Say whether a file held that at some moment: whole, or as far as it was written."""
    name = path.removesuffix(".tmp")
    head, line_end, _ = data.partition(b"\n")
    words = head.split(b" ")
    if not line_end:
        return f"{name} ".encode().startswith(data[: len(name) + 1])
    return words[0] == name.encode() and content(name, int(words[1])).startswith(data)


async def races(count: int, seed: int) -> int:
    """Sync while a writer edits the tree; return how many times the droplet had what no file had ever held."""
    bad = 0
    with a_world() as world:
        top = str(Path(__file__).resolve().parents[2])
        command = [sys.executable, "-c", _WRITER, str(world.local), str(seed), top]
        async with await anyio.open_process(command, stdin=None, stdout=None, stderr=None) as writer:
            try:
                for _ in range(count):
                    await world.sync()
                    for path, found in snapshot(world.copy).items():
                        if not _is_some_content(path, found[1]):
                            bad += 1
                            print(f"{path}: {found[1][:80]!r}", file=sys.stderr)
            finally:
                writer.kill()
        await world.sync()
        bad += snapshot(world.copy) != snapshot(world.local)
        check_nothing_is_left(world)
    return bad


# -- random commands against a model


class Walk:
    """Change both sides at random; `own` is what the droplet made itself and nobody pushed."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.world = world
        self.chance = chance
        self.own: dict[str, bytes] = {}
        self.edited: set[str] = set()

    def step(self) -> None:
        getattr(self, self.chance.choice(["edit", "edit", "rename", "chmod", "delete", "switch", "build", "meddle"]))()

    def _files(self) -> list[Path]:
        return sorted(path for path in self.world.local.rglob("*") if path.is_file() and not path.is_symlink())

    def edit(self) -> None:
        path = self.world.local / "/".join(self.chance.choices("abc", k=self.chance.randint(1, 3)))
        path = path / f"{self.chance.choice('xyz')}.c"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.chance.randbytes(self.chance.choice([0, 10, 5000])))

    def rename(self) -> None:
        places = sorted(path for path in self.world.local.rglob("*") if not path.is_symlink())
        if places:
            path = self.chance.choice(places)
            other = path.with_name(f"{self.chance.choice('pqr')}{self.chance.randrange(100)}")
            if not other.exists():
                path.rename(other)

    def chmod(self) -> None:
        if files := self._files():
            self.chance.choice(files).chmod(self.chance.choice([0o644, 0o755, 0o400]))

    def delete(self) -> None:
        places = sorted(self.world.local.rglob("*"))
        if places:
            path = self.chance.choice(places)
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def switch(self) -> None:
        """Touch everything, change a few, swap some contents."""
        files = self._files()
        for path in files:
            os.utime(path)
        for path in self.chance.sample(files, min(2, len(files))):
            path.chmod(0o644)
            path.write_bytes(b"branch" * self.chance.randint(1, 500))

    def build(self) -> None:
        """Make something on the droplet, in a directory that is there or in one of its own."""
        folders = [path for path in self.world.copy.rglob("*") if path.is_dir()] + [self.world.copy / "build"]
        path = self.chance.choice(sorted(folders)) / f"own{self.chance.randrange(5)}.o"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.chance.randbytes(50))
        self.own[str(path.relative_to(self.world.copy))] = path.read_bytes()

    def meddle(self) -> None:
        """Change or remove on the droplet what was pushed."""
        pushed = [path for path in self.world.copy.rglob("*") if path.is_file() and path.suffix == ".c"]
        if pushed:
            path = self.chance.choice(sorted(pushed))
            if self.chance.random() < 0.5:
                path.unlink()
            else:
                path.chmod(0o644)
                path.write_bytes(b"meddled")

    async def check(self) -> list[str]:
        """Sync, and compare both sides and what the droplet made."""
        await self.world.sync()
        here, there = snapshot(self.world.local), snapshot(self.world.copy)
        wrong = [path for path, what in here.items() if there.get(path) != what]
        lost = [path for path, data in self.own.items() if not self._is_kept(path, data, there)]
        folders = {above for path in self.own for above in _above(path)}
        more = [path for path in there if path not in here and path not in self.own and path not in folders]
        more = [path for path in more if ".chisel-kept-" not in path and not path.endswith(".o")]
        return [f"wrong: {wrong}"] * bool(wrong) + [f"lost: {lost}"] * bool(lost) + [f"more: {more}"] * bool(more)

    @staticmethod
    def _is_kept(path: str, data: bytes, there: dict[str, Any]) -> bool:
        found = there.get(path)
        is_here = isinstance(found, tuple) and found[1] == data
        name = path.rpartition("/")[2]
        return is_here or any(
            other.rpartition("/")[2] == name and ".chisel-kept-" in other and what[1] == data
            for other, what in there.items()
        )


def _above(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


async def walks(count: int, seed: int) -> int:
    """Return how many of so many random sequences of changes ended wrong."""
    bad = 0
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        with a_world() as world:
            await world.sync()
            walk = Walk(world, chance)
            for _ in range(6):
                for _ in range(chance.randint(1, 8)):
                    walk.step()
                problems = await walk.check()
                if problems:
                    bad += 1
                    print(f"walk {number}: {'; '.join(problems)}", file=sys.stderr)
                    break
            check_nothing_is_left(world)
    return bad


async def torture(*, edit: int, kills: int, cuts: int, race: int, walk: int, seed: int) -> dict[str, int]:
    """Do so much of each; return the failures of each."""
    return {
        "edits": await edits(edit),
        "kills": await interruptions(kills, seed, is_deadly=True),
        "cuts": await interruptions(cuts, seed + 1, is_deadly=False),
        "races": await races(race, seed) if race else 0,
        "walks": await walks(walk, seed),
    }


def main() -> int:
    """Run it all and say what failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("edits", 1000), ("kills", 500), ("cuts", 500), ("races", 200), ("walks", 200), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    failed = anyio.run(
        functools.partial(
            torture,
            edit=asked.edits,
            kills=asked.kills,
            cuts=asked.cuts,
            race=asked.races,
            walk=asked.walks,
            seed=asked.seed,
        )
    )
    print(failed)
    return 1 if any(failed.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
