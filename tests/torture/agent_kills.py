"""Kill the agent at random under running commands and syncs, 500 times: every byte and every status is still right.

    python -m tests.torture.agent_kills --kills 500 --workers 3 [--droplets openssh] [--seed N]

The commands print known bytes on both streams at an uneven pace, or send back what they are given, and end with a known
status; syncs are followed by a look at what arrived. Each worker has a directory and a droplet of its own, all share
one agent, and one thread kills it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from chisel.sandbox.pytest import sandbox
from tests.agent.conftest import WarmUser
from tests.torture.cuts import PROGRAM, expected

DEADLINE_S = 120.0


@dataclass
class Tally:
    """What became of it all."""

    kills: int = 0
    runs: int = 0
    resumed: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_over: threading.Event = field(default_factory=threading.Event)


def work(user: WarmUser, droplet: str, chance: random.Random, tally: Tally) -> None:
    """Run commands until there have been enough kills."""
    while not tally.is_over.is_set():
        kind = chance.choice([run_known, run_known, echo_back, sync_and_look])
        try:
            trouble, said = kind(user, droplet, chance)
        except subprocess.TimeoutExpired:
            trouble, said = "it does not end", ""
        with tally.lock:
            tally.runs += 1
            tally.resumed += "connected again" in said
            if trouble:
                tally.wrong.append(f"{kind.__name__}: {trouble}\n{said[-500:]}")
                print(f"WRONG: {tally.wrong[-1]}", flush=True)


def run_known(user: WarmUser, droplet: str, chance: random.Random) -> tuple[str, str]:
    """Have known bytes printed."""
    seed, seconds, status = chance.randrange(1 << 30), chance.uniform(0.2, 1.5), chance.choice([0, 1, 7, 42, 200])
    words = ["run", "--on", droplet, "--", "python3", "-c", PROGRAM, str(seed), str(seconds), str(status)]
    found, out, err = chisel(user, words)
    wanted_out, wanted_err = expected(seed)
    is_right = (found, out) == (status, wanted_out) and without_notes(err) == wanted_err
    sizes = f"{len(out)} of {len(wanted_out)} and {len(err)} of {len(wanted_err)}"
    return "" if is_right else f"seed {seed}: status {found}, not {status}; {sizes}", notes_of(err)


def echo_back(user: WarmUser, droplet: str, chance: random.Random) -> tuple[str, str]:
    """Have input sent back."""
    data = chance.randbytes(chance.choice([0, 5, 70_000, 2_000_000]))
    found, out, err = chisel(user, ["run", "--on", droplet, "cat; exit 3"], data)
    return "" if (found, out) == (3, data) else f"{len(out)} of {len(data)} bytes, status {found}", notes_of(err)


def sync_and_look(user: WarmUser, droplet: str, chance: random.Random) -> tuple[str, str]:
    """Have a changed tree sent, then see that it is there."""
    data = chance.randbytes(chance.choice([10, 100_000, 3_000_000]))
    (user.cwd / "tree").mkdir(exist_ok=True)
    (user.cwd / "tree" / "file").write_bytes(data)
    found, out, err = chisel(user, ["sync", "--on", droplet, "tree"])
    if (found, out) != (0, b""):
        return f"sync: status {found}, {out!r}", err.decode(errors="replace")
    found, out, err = chisel(user, ["run", "--on", droplet, "sha256sum < file"])
    is_right = (found, out.split()[:1]) == (0, [hashlib.sha256(data).hexdigest().encode()])
    return "" if is_right else f"another file is there: status {found}, {out!r}", notes_of(err)


MARK = b"chisel-dev-"


def without_notes(err: bytes) -> bytes:
    """Take out what chisel itself says when it goes on: a line that the test's random bytes do not hold."""
    at = err.find(MARK)
    while at >= 0:
        err = err[:at] + err[err.index(b"checked\n", at) + len(b"checked\n") :]
        at = err.find(MARK)
    return err


def notes_of(err: bytes) -> str:
    return err[err.find(MARK) :][:300].decode(errors="replace") if MARK in err else err[:200].decode(errors="replace")


def chisel(user: WarmUser, words: list[str], data: bytes = b"") -> tuple[int, bytes, bytes]:
    """Run a command with this input."""
    ended = subprocess.run(
        [sys.executable, "-m", "chisel", *words], input=data, capture_output=True, cwd=user.cwd, env=user.environ(),
        timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    return ended.returncode, ended.stdout, ended.stderr


def kill(user: WarmUser, kills: int, chance: random.Random, tally: Tally) -> None:
    """Kill whatever agent there is, at any moment of its life."""
    began = time.monotonic()
    while tally.kills < kills and time.monotonic() - began < kills * 30:
        time.sleep(chance.choice([0.0, chance.uniform(0, 0.3), chance.uniform(0.3, 3.0)]))
        facts = user.facts()
        if facts is None:
            continue
        time.sleep(chance.uniform(0, 0.5))
        with suppress(ProcessLookupError):
            os.kill(int(str(facts["pid"])), signal.SIGKILL)
            tally.kills += 1
            if tally.kills % 50 == 0:
                print(f"{tally.kills} kills, {tally.runs} commands, {len(tally.wrong)} wrong", flush=True)
    tally.is_over.set()


def torture(place: Path, kills: int, workers: int, seed: int, droplets: str) -> Tally:
    """Kill so often, under so many workers."""
    tally = Tally()
    with sandbox(place / "cloud", droplets=droplets, per_minute=10**6, per_hour=10**6) as cloud:
        (place / "home").mkdir()
        users = []
        for number in range(workers):
            (place / f"work{number}").mkdir()
            users.append(WarmUser(home=place / "home", cwd=place / f"work{number}", cloud=cloud.environ))
        users[0].does("up", "-n", str(workers), "--idle", "0", CHISEL_AGENT="off")
        users[0].warm_up()
        threads = [
            threading.Thread(target=work, args=(user, str(number), random.Random(f"{seed} {number}"), tally))
            for number, user in enumerate(users, 1)
        ]
        for thread in threads:
            thread.start()
        kill(users[0], kills, random.Random(seed), tally)
        for thread in threads:
            thread.join()
        users[0].does("agent", "stop")  # the last one may have only just begun
    return tally


def main() -> int:
    """Run it as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--droplets", choices=["asyncssh", "openssh"], default="openssh")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        tally = torture(Path(place), chosen.kills, chosen.workers, chosen.seed, chosen.droplets)
    went_on = f"{tally.resumed} of them went on without it"
    print(f"{tally.kills} kills, {tally.runs} commands, {went_on}, {len(tally.wrong)} wrong")
    return 1 if tally.wrong or tally.kills < chosen.kills else 0


if __name__ == "__main__":
    sys.exit(main())
