"""Bring 1 and 64 droplets up in a sandbox and count time and requests: python -m tests.torture.sixty_four [N]."""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from chisel.sandbox.pytest import Sandbox, sandbox
from tests.support import User


def timed(user: User, *words: str) -> float:
    began = time.monotonic()
    with user.start(*words) as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return time.monotonic() - began


def measured(count: int, droplets: str) -> str:
    """Measure one pool on a cloud of its own, with DigitalOcean's own limits of requests."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name in ("home", "work"):
            (root / name).mkdir()
        with sandbox(root / "cloud", droplets=droplets, droplet_limit=count + 1, active_after_s=2.0) as cloud:
            user = User(home=root / "home", cwd=root / "work", cloud=cloud.environ)
            up_s = timed(user, "up", "-n", str(count), "--idle", "0")
            up = requests(cloud)
            again_s = timed(user, "up", "-n", str(count), "--idle", "0")
            again = requests(cloud) - up
            down_s = timed(user, "down", "--all", "--yes")
            down = requests(cloud) - up - again
            assert cloud.alive == []
    return (
        f"{count} droplets: up {up_s:.1f} s, {up.total()} requests ({shown(up)}); up again {again_s:.1f} s,"
        f" {again.total()} requests; down {down_s:.1f} s, {down.total()} requests ({shown(down)})"
    )


def requests(cloud: Sandbox) -> Counter[str]:
    return Counter(f"{method} {path.split('/')[2]}" for method, path in cloud.requests if path.startswith("/v2/"))


def shown(counted: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counted.most_common())


if __name__ == "__main__":
    for size in (1, int(sys.argv[1]) if len(sys.argv) > 1 else 64):
        print(measured(size, "asyncssh"), flush=True)
