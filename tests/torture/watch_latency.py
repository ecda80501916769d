"""Measure how long it takes from a save to the set that holds it, and what a listing and an idle watch cost.

    python -m tests.torture.watch_latency [FILES [SAVES]]

The tree is a checkout of so many tracked files in a twelfth as many directories. Saved are files here and there, in
place and by rename, at random pauses; the time is from before the save to when the stream gives the set.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio

from chisel.sync.listing import listing_of
from chisel.sync.watching import watching


def make_tree(top: Path, files: int) -> list[Path]:
    paths = []
    for number in range(files):
        folder = top / f"d{number // 12 // 27}" / f"e{number // 12}"
        if number % 12 == 0:
            folder.mkdir(parents=True)
        paths.append(folder / f"f{number}.hip")
        paths[-1].write_text(f"// {number}\n" * 40)
    (top / ".gitignore").write_text("*.o\n*.so\n/build/\n.venv/\n__pycache__/\n")
    for words in (
        ["init", "-q"],
        ["config", "gc.auto", "0"],
        ["add", "."],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", "-C", str(top), *words], check=True)
    for number in range(200):
        (top / "build" / f"o{number}").mkdir(parents=True)
    return paths


def save(path: Path, by_rename: bool) -> None:
    text = f"{time.monotonic()}\n" * 40
    if by_rename:
        other = path.with_name(f".{path.name}.tmp")
        other.write_text(text)
        other.replace(path)
    else:
        path.write_text(text)


async def measure(top: Path, paths: list[Path], saves: int) -> None:
    chance = random.Random(1)
    began = time.perf_counter()
    async with watching(top) as changes:
        print(f"started listening in {(time.perf_counter() - began) * 1e3:.0f} ms")
        cpu, at = time.process_time(), time.monotonic()
        await anyio.sleep(3)
        print(f"idle: {(time.process_time() - cpu) / (time.monotonic() - at) * 100:.3f} % of a core")
        for by_rename in (False, True):
            times = []
            for _ in range(saves):
                path = chance.choice(paths)
                await anyio.sleep(chance.uniform(0.02, 0.06))
                start = time.perf_counter()
                save(path, by_rename)
                while os.path.relpath(path, top) not in (await changes.receive()).paths:
                    pass
                times.append((time.perf_counter() - start) * 1e3)
            times.sort()
            name = "by rename" if by_rename else "in place"
            print(f"{name}: median {statistics.median(times):.1f} ms, 95 % {times[len(times) * 95 // 100]:.1f} ms")


def main(files: int, saves: int) -> None:
    top = Path(tempfile.mkdtemp(prefix="chisel-watch-"))
    try:
        paths = make_tree(top, files)
        times = []
        for _ in range(5):
            began = time.perf_counter()
            found = listing_of(top)
            times.append((time.perf_counter() - began) * 1e3)
        print(f"listing of {sum(1 for _ in found.files)} files: median {statistics.median(times):.0f} ms")
        anyio.run(measure, top, paths, saves)
    finally:
        shutil.rmtree(top)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8600, int(sys.argv[2]) if len(sys.argv) > 2 else 100)
