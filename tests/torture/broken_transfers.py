"""Break pushes and pulls at random bytes: the next one is exact, and sends no more than a block of it again.

    python -m tests.torture.broken_transfers --breaks 500 [--droplets openssh] [--seed N]

Three ways: the link is reset at a byte, the client is killed (SIGKILL) at a moment, or the link becomes a black hole.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from chisel.node.contents import block_size
from chisel.sandbox.pytest import sandbox
from tests.support import User, processes_with, until
from tests.torture.cuts import through_proxies
from tests.torture.proxy import Proxy

MB = 1 << 20
KINDS = ("reset", "reset", "kill", "kill", "black hole")
OVERHEAD = 1.002


@dataclass
class Tally:
    """What became of the breaks; `resumed` counts those that had something to go on from."""

    right: int = 0
    resumed: int = 0
    again: int = 0
    wrong: list[str] = field(default_factory=list)


class Bench:
    """One user, one droplet behind a bad network, and files on both sides."""

    def __init__(self, user: User, proxy: Proxy, home: Path, chance: random.Random) -> None:
        self.user, self.proxy, self.home, self.chance = user, proxy, home, chance
        self.work = user.cwd

    def break_once(self, number: int, tally: Tally) -> None:
        is_push = bool(self.chance.randrange(2))
        name, kind = f"file{number}", self.chance.choice(KINDS)
        content = self.chance.randbytes(self.chance.randrange(6 * MB, 30 * MB))
        here, there = self.work / name, self.home / ("data" if is_push else "") / name
        source, target = (here, there) if is_push else (there, here)
        source.write_bytes(content)
        words = ["push", "--to", "~/data", name] if is_push else ["pull", f"~/{name}"]
        self.proxy.behave()
        self.spoil(kind, len(content), words)
        self.proxy.behave()
        had = self.arrived(is_push, len(content))
        ended = self.user.chisel(*words, "--json")
        self.judge(tally, f"{kind} {words[0]} {number}", ended, content, target, had)
        for file in (source, target):
            file.unlink(missing_ok=True)

    def spoil(self, kind: str, size: int, words: list[str]) -> None:
        count = self.chance.randrange(100_000, size)
        if kind == "reset":
            self.proxy.reset_after(count)
        with self.user.start(*words, "--json", "--bwlimit", "40M") as process:
            assert process.stdout
            for line in process.stdout if kind != "reset" else ():
                event = json.loads(line)
                if event["event"] == "progress" and event["done"] >= count:
                    process.kill() if kind == "kill" else self.proxy.swallow()
                    break
            process.communicate(timeout=60)

    def arrived(self, is_push: bool, size: int) -> int:
        """Return how many bytes the broken one left to go on from."""
        if not is_push:
            return sum(part.stat().st_size for part in self.work.glob(".chisel-pull/part-*"))
        found = 0
        for journal in (self.home / ".chisel" / "store").glob("*"):
            if journal.name != "index":
                found += max(0, journal.stat().st_size - len(journal.read_bytes().split(b"\n")[0]) - 1) // 32
        return found * block_size(size)

    def judge(self, tally: Tally, what: str, ended: object, content: bytes, target: Path, had: int) -> None:
        events = getattr(ended, "events", [])
        results = [event["result"] for event in events if event["event"] in ("pull_ended", "push_ended")]
        is_exact = target.exists() and target.read_bytes() == content
        result = results[0] if results else {}
        moved = result.get("sent_bytes", result.get("wire_bytes", -1))
        most = (len(content) - had + block_size(len(content))) * OVERHEAD + 20_000
        left = [*self.work.glob(".chisel*"), *(self.home / "data").glob(".chisel-part-*")]
        if is_exact and 0 <= moved <= most and not left and result.get("error") is None:
            tally.right += 1
            tally.resumed += had > 0
            tally.again += max(0, moved - (len(content) - had))
        else:
            said = json.dumps(result)[:300]
            tally.wrong.append(
                f"{what}: exact {is_exact}, {moved} of {len(content)} moved, {had} there, {left}; {said}"
            )


def torture(place: Path, breaks: int, seed: int, droplets: str) -> Tally:
    """Make so many breaks, one after the other."""
    tally = Tally()
    with sandbox(place / "cloud", droplets=droplets, per_minute=10**6, per_hour=10**6) as cloud:
        for name in ("home", "work"):
            (place / name).mkdir()
        user = User(home=place / "home", cwd=place / "work", cloud=cloud.environ)
        user.does("up", "--idle", "0")
        (proxy,) = through_proxies(user).values()
        home = Path(user.does("run", "mkdir -p ~/data; cd; pwd").out.decode().strip())
        bench = Bench(user, proxy, home, random.Random(seed))
        began = time.monotonic()
        for number in range(breaks):
            bench.break_once(number, tally)
            if number % 50 == 49:
                print(f"{number + 1} breaks, {len(tally.wrong)} wrong, {time.monotonic() - began:.0f} s", flush=True)
        with contextlib.suppress(AssertionError):
            until(lambda: not roles(home), what="the roles to end", deadline_s=100)
        if roles(home):
            tally.wrong.append(f"left running: {roles(home)}")
        proxy.close()
    return tally


def roles(home: Path) -> list[str]:
    """Return what still runs of the node program's transfers."""
    return [line for line in processes_with(str(home)) if line.split()[-1] in {"store", "send"}]


def main() -> int:
    """Run it as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--breaks", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--droplets", choices=["asyncssh", "openssh"], default="asyncssh")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        tally = torture(Path(place), chosen.breaks, chosen.seed, chosen.droplets)
    for text in tally.wrong:
        print(f"WRONG: {text}")
    print(
        f"{tally.right} of {chosen.breaks} right, {tally.resumed} went on from something,"
        f" {tally.again / max(1, tally.resumed):.0f} bytes sent again each"
    )
    return 1 if tally.wrong or tally.right != chosen.breaks else 0


if __name__ == "__main__":
    os.environ.pop("CHISEL_DO_TOKEN", None)
    sys.exit(main())
