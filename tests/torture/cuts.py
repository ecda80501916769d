"""Cut the link under running commands at random, a thousand times: every byte and every status is still right.

    python -m tests.torture.cuts --cuts 1000 --workers 4 [--droplets openssh] [--seed N]

Five ways: a reset, a black hole, a stall in the middle of a packet, sshd restarting, and the laptop asleep (SIGSTOP).
The command prints known bytes on both streams at an uneven pace and ends with a known status.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from chisel.sandbox.pytest import sandbox
from tests.support import User
from tests.torture.proxy import Proxy

KINDS = ("reset", "black hole", "stall", "sshd restart", "sleep")
DEADLINE_S = 120.0

PROGRAM = """
import os, random, sys, time
seed, seconds, status = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
r = random.Random(seed)
steps = 60
for step in range(steps):
    for fd in (1, 2):
        data = r.randbytes(r.choice([0, 1, 7, 100, 5000, 70000]))
        while data:
            data = data[os.write(fd, data):]
    time.sleep(seconds / steps * r.random() * 2)
sys.exit(status)
"""


def expected(seed: int) -> tuple[bytes, bytes]:
    """Return what the program prints: stdout and stderr."""
    r = random.Random(seed)
    found = bytearray(), bytearray()
    for _ in range(60):
        for stream in found:
            stream += r.randbytes(r.choice([0, 1, 7, 100, 5000, 70000]))
        r.random()
    return bytes(found[0]), bytes(found[1])


@dataclass
class Tally:
    """What became of the cuts."""

    right: int = 0
    resumed: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def cut_once(user: User, proxy: Proxy, droplet: str, chance: random.Random, tally: Tally) -> None:
    """Run the command once, with one cut at a random moment of its life."""
    seed, seconds, status = chance.randrange(1 << 30), chance.uniform(0.6, 2.0), chance.choice([0, 1, 7, 42, 200])
    kind, at = chance.choice(KINDS), chance.uniform(0, seconds * 1.2)
    proxy.behave()
    words = ["run", "--json", "--on", droplet, "--", "python3", "-c", PROGRAM, str(seed), str(seconds), str(status)]
    with user.start(*words) as process:
        started = threading.Event()
        found: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        ended: dict[str, object] = {}
        notes: list[str] = []

        def read() -> None:
            assert process.stdout
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "run_started":
                    started.set()
                elif event["event"] == "output":
                    data = event["text"].encode() if "text" in event else base64.b64decode(event["base64"])
                    if event["offset"] != len(found[event["stream"]]):
                        notes.append(f"{event['stream']} jumps to {event['offset']}")
                    found[event["stream"]] += data
                elif event["event"] in ("ended", "link_lost", "link_resumed", "notice", "run_ended"):
                    notes.append(line.decode()[:300])
                    ended.update({event["event"]: event})
            started.set()

        reader = threading.Thread(target=read)
        reader.start()
        started.wait(30)
        time.sleep(at)
        cut(kind, proxy, process, chance)
        try:
            process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
        reader.join(10)
        said = process.stderr.read().decode(errors="replace") if process.stderr else ""
    out, err = expected(seed)
    is_right = (bytes(found["stdout"]), bytes(found["stderr"]), process.returncode) == (out, err, status)
    with tally.lock:
        tally.right += is_right
        tally.resumed += "link_resumed" in ended
        if not is_right:
            tally.wrong.append(
                f"{kind} at {at:.2f} s of {seconds:.2f} s, seed {seed}: status {process.returncode}, not {status}; "
                f"{len(found['stdout'])} of {len(out)} and {len(found['stderr'])} of {len(err)} bytes\n"
                + "\n".join(notes[-6:])
                + said[-500:]
            )


def cut(kind: str, proxy: Proxy, process: subprocess.Popen[bytes], chance: random.Random) -> None:
    """Do it."""
    if kind == "reset":
        proxy.reset()
    elif kind == "black hole":
        proxy.swallow()
    elif kind == "stall":
        proxy.stall(chance.randrange(1, 40_000), chance.uniform(0.2, 5.0))
    elif kind == "sshd restart":
        proxy.refuse(chance.uniform(0.2, 2.0))
    elif process.poll() is None:
        process.send_signal(signal.SIGSTOP)
        if chance.random() < 0.5:
            proxy.reset()
        time.sleep(chance.uniform(0.3, 6.0))
        process.send_signal(signal.SIGCONT)


def through_proxies(user: User) -> dict[str, Proxy]:
    """Put a proxy before each droplet of the user's state."""
    path = next(user.home.rglob("state.json"))
    state = json.loads(path.read_bytes())
    proxies: dict[str, Proxy] = {}

    def visit(node: object) -> None:
        if isinstance(node, dict):
            if "port" in node and "address" in node and node.get("address"):
                name = str(node["name"])
                proxies[name] = Proxy((node["address"], int(node["port"])))
                node["address"], node["port"] = "127.0.0.1", proxies[name].port
            for inner in node.values():
                visit(inner)
        elif isinstance(node, list):
            for inner in node:
                visit(inner)

    visit(state)
    path.write_text(json.dumps(state))
    return proxies


def torture(place: Path, cuts: int, workers: int, seed: int, droplets: str) -> Tally:
    """Make so many cuts, `workers` of them at a time."""
    tally = Tally()
    with sandbox(place / "cloud", droplets=droplets, per_minute=10**6, per_hour=10**6) as cloud:
        for name in ("home", "work"):
            (place / name).mkdir()
        user = User(home=place / "home", cwd=place / "work", cloud=cloud.environ)
        user.does("up", "-n", str(workers), "--idle", "0")
        proxies = through_proxies(user)
        left = iter(range(cuts))
        began = time.monotonic()

        def work(droplet: str, chance: random.Random) -> None:
            while True:
                with tally.lock:
                    index = next(left, None)
                if index is None:
                    return
                cut_once(user, proxies[droplet], droplet, chance, tally)
                with tally.lock:
                    if (index + 1) % 50 == 0:
                        print(
                            f"{index + 1} cuts, {len(tally.wrong)} wrong, {time.monotonic() - began:.0f} s", flush=True
                        )

        threads = [
            threading.Thread(target=work, args=(droplet, random.Random(f"{seed} {droplet}"))) for droplet in proxies
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for proxy in proxies.values():
            proxy.close()
    return tally


def main() -> int:
    """Run it as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--droplets", choices=["asyncssh", "openssh"], default="asyncssh")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        tally = torture(Path(place), chosen.cuts, chosen.workers, chosen.seed, chosen.droplets)
    for text in tally.wrong:
        print(f"WRONG: {text}")
    print(f"{tally.right} of {chosen.cuts} right, {tally.resumed} of them over a link that was opened again")
    return 1 if tally.wrong or tally.right != chosen.cuts else 0


if __name__ == "__main__":
    os.environ.pop("CHISEL_DO_TOKEN", None)
    sys.exit(main())
