"""Let thousands of hostile droplets send whatever they like to a pull: nothing outside the target may change.

    python -m tests.torture.hostile_trees --count 100000 [--seed N] [--batch 200] [--control]

Every case has a target with a random tree of the user's own in it (links that lead out included), random patterns and
caps, and a stream: hostile names and links, lies about sizes and hashes, copies of what is not there, valid streams
with mutated bytes. Between the pieces directories of the target are replaced by links. After each batch a canary tree
around the target must be as it was, byte for byte.

It never runs as root: it gives up its rights, after its imports, before it writes anything, and works in a directory of
its own. `--control` uses a writer without any care instead, to show that the canary sings.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import stat
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chisel.node import tree
from chisel.node.offer import Entry
from chisel.sync import codec
from chisel.sync.compare import Answers, has_something
from chisel.sync.pulled import Notes
from chisel.sync.wanted import Caps, Wanted
from chisel.sync.writer import NoRoom, TooMuch, Writer

NOBODY = 65534
EXPECTED = (tree.DamagedStream, tree.UnsafePath, TooMuch, NoRoom, OSError)
NAMES = [
    "a",
    "b",
    "A",
    "out",
    "deep",
    "x",
    "\u00e9",
    "e\u0301",
    ".git",
    ".GIT",
    "git~1",
    ".g\u200cit",
    "link",
    "up",
    "-rf",
]
BAD = ["..", ".", "", "a\0b", "n" * 256, "\ud800", "...", ".. ", "..\\..", "~", ".chisel-pull", ".chisel-pull-x", "C:"]
PATTERNS = [["."], ["out"], ["out/*"], ["**"], ["a", "b"], ["*"], ["~/x/a"], ["/s/*/x"], [".git"], ["out/**/x"], [".."]]


@dataclass
class Place:
    """The canary tree with the target in its middle."""

    base: Path
    target: Path = field(init=False)

    def __post_init__(self) -> None:
        self.target = self.base / "work" / "project" / "target"

    def build(self) -> None:
        for name in ("outside/deep/file", "work/sibling/x", "work/project/Makefile", "work/project/out/x", "x", "a/x"):
            file = self.base / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"canary {name}")
        (self.base / "outside" / "script").write_text("#!/bin/sh\n")
        (self.base / "outside" / "script").chmod(0o700)
        (self.base / "work" / "project" / ".git" / "hooks").mkdir(parents=True, exist_ok=True)

    def canary(self) -> dict[str, Any]:
        """Describe everything but what is below the target."""
        found: dict[str, Any] = {}
        for place, directories, files in os.walk(self.base):
            if Path(place) == self.target.parent and self.target.name in directories:
                directories.remove(self.target.name)
            for name in [*directories, *files]:
                path = Path(place) / name
                status = path.lstat()
                content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
                found[str(path)] = status.st_mode, status.st_ino, content
        return found


class Case:
    """One hostile droplet, and the user's target that it meets."""

    def __init__(self, place: Place, chance: random.Random) -> None:
        self.place = place
        self.chance = chance
        self.own_links: set[str] = set()
        self.own_goals: set[str] = set()
        # Most lies end a pull at once: only without them do the others get far.
        self.bad_names = chance.choice([0, 0, 0, 0.02, 0.15])
        self.lies = chance.choice([0, 0, 0.1, 0.5])
        self.mutates = chance.random() < 0.15

    def path(self) -> str:
        chance = self.chance
        names = [chance.choice(NAMES) for _ in range(chance.choice([1, 1, 2, 2, 3, 5]))]
        while chance.random() < self.bad_names:
            names.insert(chance.randrange(len(names) + 1), chance.choice(BAD))
        if chance.random() < self.bad_names / 4:
            names = ["d"] * chance.randrange(50, 400)
        text = "/".join(names)
        if chance.random() < self.bad_names / 4:
            text = f"{self.place.base}/outside/{text}"
        return text

    def goal(self) -> str:
        chance = self.chance
        ups = "../" * chance.randrange(1, 6)
        return chance.choice(
            [
                str(self.place.base / "outside"),
                f"{ups}outside",
                f"{ups}outside/deep/file",
                f"{'/'.join(chance.choice(NAMES[:8]) for _ in range(3))}/{ups}outside",
                "a/../../../outside",
                self.path(),
                ".",
                "..",
                "",
                "x" * chance.choice([10, 5000]),
                f"./{ups}work/sibling",
            ]
        )

    def prepare(self) -> None:
        """Make the user's own tree: files, directories, and links of all kinds."""
        target, chance = self.place.target, self.chance
        target.mkdir(parents=True)
        for _ in range(chance.randrange(8)):
            place = target / "/".join(chance.choice(NAMES[:8]) for _ in range(chance.randrange(1, 4)))
            with contextlib.suppress(OSError):
                if not place.parent.resolve().is_relative_to(target.resolve()):
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                if os.path.lexists(place):
                    continue
                kind = chance.random()
                if kind < 0.4:
                    self.link(place)
                elif kind < 0.7:
                    place.write_bytes(chance.randbytes(chance.choice([0, 1, 5])))
                elif kind < 0.8:
                    os.mkfifo(place)
                elif kind < 0.85:
                    place.mkdir()
                    place.chmod(0o500)
                else:
                    place.mkdir()
        if chance.random() < 0.1:
            with contextlib.suppress(OSError):
                self.link(target / ".chisel-pull")

    def link(self, place: Path) -> None:
        goal = self.chance.choice(
            [self.place.base / "outside", self.place.base / "outside/deep/file", "../../sibling", "nowhere", "..", "/"]
        )
        place.symlink_to(goal)
        self.own_links.add(str(place))
        self.own_goals.add(str(goal))

    def meddle(self) -> None:
        """Replace a directory or file of the target by a link, as something running on this machine might."""
        found = [Path(place) / name for place, some, _ in os.walk(self.place.target) for name in some]
        if not found:
            return
        one = self.chance.choice(found)
        if ".chisel-pull" in one.parts:
            return
        with contextlib.suppress(OSError):
            one.rename(self.place.target / f"moved{self.chance.randrange(9)}")
            self.link(one)

    # -- what the droplet sends

    def entry(self) -> Entry:
        is_lie = self.chance.random() < self.lies
        size = self.chance.choice([70_000, 3 << 20, 1 << 40, -1] if is_lie else [0, 1, 5, 5, 5])
        mode = self.chance.choice([0o644, 0o755, 0o4777, 0o7777, 0, -5])
        return Entry(self.path(), mode, size, 0, self.chance.choice([0, 1, 1 << 60]), 1, 1, False)

    def contents(self, entry: Entry) -> Iterator[bytes]:
        """Give one file's records, mostly with a lie."""
        chance = self.chance
        content = b"" if entry.size < 0 else chance.randbytes(min(entry.size, 5))
        yield tree.pack(["file", *entry])
        kind = chance.random() if chance.random() < self.lies else 0.0
        if kind < 0.2:
            yield tree.pack_bytes(content)
        elif kind < 0.6:
            yield tree.pack_bytes(content + b"more")
        elif kind < 0.7:
            yield tree.pack(["hole", chance.choice([entry.size, 1 << 50, -1, 5])])
        elif kind < 0.9:
            yield tree.pack([chance.choice(["copy", "tail"]), chance.choice([entry.size, 5, 65536, 1 << 45, -3])])
        else:
            yield tree.pack(["again"])
            return
        digest = hashlib.sha256(content).hexdigest() if chance.random() >= self.lies / 5 else "0" * 64
        yield tree.pack(["end", digest, chance.choice(["", "", "it changed"]), *entry])

    def other(self) -> bytes:
        chance = self.chance
        count = chance.choice([5, 16]) if chance.random() < self.lies else 4
        return tree.pack(
            chance.choice(
                [
                    ["dir", self.path()],
                    ["link", self.path(), self.goal()],
                    ["link", self.path(), self.goal()],
                    ["link", self.path(), self.goal()],
                    ["skipped", self.path(), "\x1b[2J"],
                    ["missing", self.path(), [self.path()]],
                    ["total", chance.choice([1, 1 << 40]), chance.choice([1, 1 << 60]), 1],
                    ["same", chance.randrange(9)],
                    ["would", chance.randrange(9)],
                    ["end"],
                    ["file"],
                    [None],
                    [["file"]],
                    ["dir", 5],
                    ["link", self.path()],
                    ["missing"],
                ][:count]
            )
        )

    def stream(self, entries: list[Entry]) -> bytes:
        chance = self.chance
        parts: list[bytes] = []
        for entry in entries:
            while chance.random() < 0.4:
                parts.append(self.other())
            parts += self.contents(entry)
        data = b"".join(parts)
        if self.mutates:
            data = self.mutated(data)
        return data

    def mutated(self, data: bytes) -> bytes:
        found = bytearray(data)
        for _ in range(self.chance.randrange(1, 6)):
            if not found:
                break
            at = self.chance.randrange(len(found))
            kind = self.chance.randrange(4)
            if kind == 0:
                found[at] = self.chance.randrange(256)
            elif kind == 1:
                del found[at : at + self.chance.randrange(1, 30)]
            elif kind == 2:
                found[at:at] = found[at : at + self.chance.randrange(1, 300)]
            else:
                del found[at:]
        return bytes(found)

    def run(self, make: Callable[..., Any]) -> str:
        """Pull from this droplet; returns what became of it."""
        chance, place = self.chance, self.place
        self.prepare()
        patterns = chance.choice(PATTERNS)
        caps = chance.choice(
            [Caps(), Caps(), Caps(), Caps(), Caps(files=3), Caps(bytes=8), Caps(depth=3), Caps(bytes=1 << 21)]
        )
        notes = Notes(place.base / "notes", place.target) if chance.random() < 0.2 else None
        entries = [self.entry() for _ in range(chance.randrange(1, 7))]
        writer = make(place.target, Wanted(patterns), caps, folds=chance.choice([True, False]), notes=notes)
        try:
            writer.is_dry = chance.random() < 0.03
            writer.is_asking = make is Writer and (writer.is_dry or has_something(writer))
            if writer.is_asking:
                for record in tree.Records().feed(zlib.compress(b"".join(map(self.listed, entries)))):
                    writer.offer(record)
                list(Answers(writer).records())
            wire = self.wire(self.stream(entries))
            for codec_name, data in wire:
                writer.expect(codec_name)
                for start in range(0, len(data), 300):
                    writer.feed(data[start : start + 300])
                    if chance.random() < 0.05:
                        self.meddle()
            writer.end()
        except EXPECTED as error:
            return type(error).__name__
        finally:
            writer.close()
        return "written" if writer.files else "nothing"

    def listed(self, entry: Entry) -> bytes:
        return tree.pack(["file", *entry]) if self.chance.random() < 0.7 else self.other()

    def wire(self, data: bytes) -> list[tuple[str, bytes]]:
        name = self.chance.choice(["zlib", "zlib", "none", "zstd"])
        packed = zlib.compress(data) if name == "zlib" else data
        if name == "zstd":
            packed = codec._zstd().compress(data)
        if name == "zlib" and self.mutates and self.chance.random() < 0.3:
            packed = self.mutated(packed)
        return [(name, packed)] if name != "zstd" else [(name, packed), ("none", b"")]

    def check(self) -> str | None:
        """Say what is wrong in the target itself: a link that leads out, a set-uid bit, something left over."""
        root = str(self.place.target.resolve())
        for where, directories, files in os.walk(self.place.target):
            for name in [*directories, *files]:
                path = os.path.join(where, name)
                status = os.lstat(path)
                if stat.S_ISLNK(status.st_mode):
                    text = os.readlink(path)
                    is_own = text in self.own_goals
                    if (
                        not is_own
                        and not self.passes_own(path)
                        and not (os.path.realpath(path) + "/").startswith(f"{root}/")
                    ):
                        return f"{path} leads out, to {text}"
                elif status.st_mode & 0o7000 and stat.S_ISREG(status.st_mode):
                    return f"{path} has mode {status.st_mode:o}"
                if (
                    ".chisel-pull" in path
                    and path not in self.own_links
                    and not name.startswith((".chisel-pull", "part-", ".git"))
                ):
                    return f"{path} is left over"
        return None

    def passes_own(self, path: str) -> bool:
        """Say whether a link leads through one of the user's own: what lies behind that is not the droplet's doing."""
        place = os.path.dirname(path)
        for name in os.readlink(path).split("/"):
            place = os.path.normpath(os.path.join(place, name))
            if os.path.islink(place) and os.readlink(place) in self.own_goals:
                return True
        return False


class Careless:
    """A writer without any care: the control."""

    is_dry = is_asking = False

    def __init__(self, target: Path, *_: Any, **__: Any) -> None:
        self._target, self._out, self.files = target, None, 0
        self._records = tree.Records()

    def expect(self, name: str) -> None:
        self._records = tree.Records(unpacker=codec.open_unpacker(name))

    def feed(self, data: bytes) -> None:
        for record in self._records.feed(data):
            if isinstance(record, bytes):
                if self._out:
                    self._out.write_bytes(record)
            elif record[0] == "file" and len(record) > 1:
                self._out = self._target / str(record[1])
                self._out.parent.mkdir(parents=True, exist_ok=True)
                self._out = None if self._out.is_fifo() else self._out
            elif record[0] == "link" and len(record) > 2:
                with contextlib.suppress(OSError):
                    (self._target / str(record[1])).symlink_to(str(record[2]))

    def end(self) -> None:
        pass

    def close(self) -> None:
        pass


def drop_rights(directory: Path) -> None:
    """Become nobody, for good, with bounded means. Does nothing for somebody who is not root."""
    if os.geteuid() == 0:
        os.chown(directory, NOBODY, NOBODY)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    if 0 in os.getresuid() or 0 in os.getresgid():
        raise SystemExit("it still has the rights of root: not run")
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 20, 256 << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(directory)


def wipe(target: Path) -> None:
    for place, _, _ in os.walk(target):
        with contextlib.suppress(OSError):
            os.chmod(place, 0o700)
    shutil.rmtree(target, ignore_errors=True)


def run(count: int, seed: int, batch: int, *, is_control: bool) -> int:
    directory = Path(tempfile.mkdtemp(prefix="hostile-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    codec._zstd()  # what is loaded late is loaded before the rights to read it are gone
    for name in ("ascii", "latin-1", "utf-8", "idna", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        codecs.lookup(name)
    drop_rights(directory)
    place = Place(directory)
    place.build()
    tally: Counter[str] = Counter()
    escapes, wrong = 0, list[str]()
    before, began = place.canary(), time.monotonic()
    for number in range(count):
        case = Case(place, random.Random(f"{seed}/{number}"))
        try:
            tally[case.run(Careless if is_control else Writer)] += 1
        except Exception as error:  # noqa: BLE001 - whatever is not expected is what is looked for
            if not is_control:
                wrong.append(f"case {seed}/{number}: {type(error).__name__}: {error}")
        if not is_control and (found := case.check()):
            wrong.append(f"case {seed}/{number}: {found}")
        wipe(place.target)
        if number % batch == batch - 1 or number == count - 1:
            shutil.rmtree(place.base / "notes", ignore_errors=True)
            if (now := place.canary()) != before:
                escapes += 1
                changed = sorted(path for path in {*now, *before} if now.get(path) != before.get(path))
                print(f"ESCAPE up to case {seed}/{number}: {changed[:5]}", file=sys.stderr)
                before = now
    seconds = time.monotonic() - began
    for line in wrong[:20]:
        print(line, file=sys.stderr)
    shutil.rmtree(directory, ignore_errors=True)
    outcome = {
        "cases": count,
        "escapes": escapes,
        "wrong": len(wrong),
        "seconds": round(seconds, 1),
        "uid": os.getuid(),
    }
    print(json.dumps({**outcome, **dict(tally.most_common())}))
    return 1 if escapes or wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--control", action="store_true")
    asked = parser.parse_args()
    return run(asked.count, asked.seed, asked.batch, is_control=asked.control)


if __name__ == "__main__":
    sys.exit(main())
