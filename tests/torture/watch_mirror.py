"""Keep a mirror of a tree by nothing but what a watch tells, while the tree is changed at random: it must end up equal.

    python -m tests.torture.watch_mirror [ROUNDS [SEED]]

What is told of is read again, a directory with all below it; what is not told of is never looked at. Changed is by
writing, renaming, linking, moving directories over and into each other, removing, through git, and by new rules, as
fast as it goes and with pauses.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import anyio
from anyio import to_thread

from chisel.sync.ignore import Rules, Surroundings, Verdict, default_surroundings
from chisel.sync.listing import listing_of
from chisel.sync.sieve import Changes
from chisel.sync.watching import WatchMaker, watching

NAMES = ["a", "b", "c", "d", "x.o", "y.c", "build", ".hidden"]
HELD_S = 0.1
DEADLINE_S = 30

Mirror = dict[str, str]


class Changer:
    """Change a tree by one random step after another."""

    def __init__(self, top: Path, chance: random.Random, *, links: bool) -> None:
        self.top = top
        self.chance = chance
        self.links = links

    def _folder(self) -> Path:
        folders = [self.top]
        for folder, inner, _ in os.walk(self.top):
            inner[:] = [name for name in inner if name != ".git"]
            folders += [Path(folder) / name for name in inner]
        return self.chance.choice([folder for folder in folders if not folder.is_symlink()])

    def _any(self) -> Path:
        found = [path for path in self._folder().iterdir() if path.name != ".git"]
        return self.chance.choice(found) if found else self.top / "a"

    def step(self) -> None:
        kinds = [self._write] * 6 + [self._replace, self._append, self._make, self._make, self._move, self._move]
        kinds += [self._remove, self._link if self.links else self._deep, self._chmod, self._swap, self._deep]
        kinds += [self._git, self._ignore] if self.chance.random() < 0.2 else []
        try:
            self.chance.choice(kinds)()
        except OSError:
            return  # a directory into itself, a file where a directory is: nothing was changed

    def _new(self) -> Path:
        return self._folder() / self.chance.choice(NAMES)

    def _text(self) -> str:
        return f"{self.chance.random()}\n" * self.chance.choice((1, 1, 50))

    def _write(self) -> None:
        self._new().write_text(self._text())

    def _replace(self) -> None:
        other = self._folder() / ".tmp"
        other.write_text(self._text())
        other.replace(self._new())

    def _append(self) -> None:
        with self._any().open("a") as file:
            for _ in range(3):
                file.write(self._text())
                file.flush()

    def _make(self) -> None:
        self._new().mkdir()

    def _deep(self) -> None:
        path = self._folder().joinpath(*(self.chance.choice(NAMES) for _ in range(4)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._text())

    def _move(self) -> None:
        self._any().rename(self._new())

    def _swap(self) -> None:
        one, two, between = self._any(), self._any(), self.top / ".between"
        one.rename(between)
        try:
            two.rename(one)
        finally:
            between.rename(two if not os.path.lexists(two) else one)

    def _remove(self) -> None:
        path = self._any()
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _link(self) -> None:
        if self.chance.random() < 0.5:
            self._new().symlink_to(self.chance.choice(NAMES))
        else:
            os.link(self._any(), self._new())

    def _chmod(self) -> None:
        path = self._any()
        if path.is_file() and not path.is_symlink():
            path.chmod(self.chance.choice((0o600, 0o755)))

    def _git(self) -> None:
        words = self.chance.choice((["add", "-A"], ["add", "-f", "."], ["stash", "-u"], ["rm", "-rq", "--cached", "."]))
        who = ["-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run(["git", "-C", str(self.top), *who, *words], capture_output=True, check=False)

    def _ignore(self) -> None:
        lines = self.chance.sample(["*.o", "build/", "/a/", "!x.o", "d", "*.c"], 2)
        file = self._folder() / self.chance.choice((".gitignore", ".gitignore", ".chiselignore"))
        file.write_text("\n".join(lines) + "\n")


def seen(path: str) -> str | None:
    """Return what a path is and holds, None when it is not there."""
    try:
        if os.path.islink(path):
            return f"link {os.readlink(path)}"
        if os.path.isdir(path):
            return "directory"
        with open(path, encoding="utf-8") as file:
            return f"file {os.fstat(file.fileno()).st_mode:o} {file.read()}"
    except OSError:
        return None


def whole(top: Path, around: Surroundings) -> Mirror:
    found = {path: seen(os.path.join(top, path)) for path in listing_of(top, around).entries}
    return {path: what for path, what in found.items() if what is not None}


def apply(mirror: Mirror, change: Changes, top: Path, around: Surroundings) -> Mirror:
    """Read again what was told of."""
    if change.is_everything:
        return whole(top, around)
    rules = Rules(top, around, trusts_listing=False)
    for path in change.paths:
        for known in [one for one in mirror if one == path or one.startswith(path + "/")]:
            del mirror[known]
    for path in change.paths:
        _take(mirror, path, rules)
    return mirror


def _take(mirror: Mirror, path: str, rules: Rules) -> None:
    place = os.path.join(rules.root, path)
    what = seen(place)
    if what is None:
        return
    is_directory = what == "directory"
    if rules.decide(path, is_directory=is_directory).is_sent:
        mirror[path] = what
    if is_directory and not isinstance(rules.place(path), Verdict):
        for name in os.listdir(place) if os.path.isdir(place) else ():
            _take(mirror, f"{path}/{name}", rules)


def differences(mirror: Mirror, truth: Mirror) -> list[str]:
    paths = sorted(mirror.keys() | truth.keys())
    # A directory that only leads to what is taken in is there when something below is: the mirror need not know.
    return [
        f"{path}: mirrored {mirror.get(path, 'nothing')[:60]!r}, is {truth.get(path, 'nothing')[:60]!r}"
        for path in paths
        if mirror.get(path) != truth.get(path) and "directory" not in _kinds(path, mirror, truth)
    ]


def _kinds(path: str, mirror: Mirror, truth: Mirror) -> set[str]:
    found = {mirror.get(path, "none"), truth.get(path, "none")}
    return {"directory"} if found == {"directory", "none"} else set()


async def one_round(
    top: Path, chance: random.Random, steps: int, way: WatchMaker | None, told: list[Changes]
) -> list[str]:
    """Change a tree while it is mirrored; returns what differs in the end, and in `told` what was told."""
    around = default_surroundings()
    changer = Changer(top, chance, links=way is None)
    for _ in range(30):
        changer.step()
    async with watching(top, around, make_watch=way) as changes:
        mirror = await to_thread.run_sync(whole, top, around)
        is_done = anyio.Event()

        async def change() -> None:
            for _ in range(steps):
                await to_thread.run_sync(changer.step)
                if chance.random() < 0.3:
                    await anyio.sleep(chance.choice((0.001, 0.01, 0.03)))
            is_done.set()

        async def hear() -> Changes:
            nonlocal mirror
            told.append(await changes.receive())
            with anyio.CancelScope(shield=True):
                mirror = await to_thread.run_sync(apply, mirror, told[-1], top, around)
            return told[-1]

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(change)
            while not is_done.is_set():
                with anyio.move_on_after(0.1):
                    await hear()
        with anyio.fail_after(DEADLINE_S):
            for mark in (".mark1", ".mark2"):  # the second comes after what is held back for a moment
                (top / mark).touch()
                while True:
                    change_told = await hear()
                    if change_told.is_everything or mark in change_told.paths:
                        break
                await anyio.sleep(HELD_S)
    return differences(mirror, await to_thread.run_sync(whole, top, around))


def run(rounds: int, seed: int, place: Path, *, steps: int = 150, way: WatchMaker | None = None) -> list[Changes]:
    """Mirror so many trees; the error names the seed of the one that failed. Returns what was told.

    Hard links are made only for inotify: the other way does not notice them.
    """
    told: list[Changes] = []
    for number in range(seed, seed + rounds):
        top = place / str(number)
        top.mkdir()
        subprocess.run(["git", "-C", str(top), "init", "-q"], check=True)
        wrong = anyio.run(one_round, top, random.Random(number), steps, way, told)
        assert not wrong, f"round {number} in {top}: {wrong}"
        shutil.rmtree(top)
    return told


if __name__ == "__main__":
    how_many = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    first = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(10**9)
    print(f"{how_many} rounds from seed {first}")
    scratch = Path(tempfile.mkdtemp(prefix="chisel-mirror-"))
    heard = run(how_many, first, scratch)
    print(f"{len(heard)} sets told, {sum(one.is_everything for one in heard)} of them a change of everything")
    scratch.rmdir()
