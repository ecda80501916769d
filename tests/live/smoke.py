"""Try the whole loop on one real droplet, for at most three dollars, and report where the embedded cloud differs.

    python -m tests.live.smoke --i-will-pay [--size SLUG] [--region R]    # with CHISEL_DO_TOKEN set
    python -m tests.live.smoke --sandbox                                  # the same on the embedded cloud, at no cost

The droplet is destroyed whatever happens: at the end, on Ctrl-C, by its own limits (`--max-usd 3 --ttl 1h`, and by
itself with CHISEL_SELF_DESTRUCT_TOKEN). State and configuration are in a directory of their own. Nobody has run this on
a real account yet.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chisel import guard
from chisel.cloud.digitalocean import open_digitalocean
from chisel.errors import NotFoundError
from chisel.model import DropletId, Secret
from chisel.sandbox.pytest import sandbox

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "vector_add"
POOL = "chisel-smoke"
CAP = ("--max-usd", "3", "--ttl", "1h", "--idle", "15m")
_COMMAND_DEADLINE_S = 1800


@dataclass
class Smoke:
    """One attempt: its surroundings, and what was found."""

    work: Path
    environ: dict[str, str]
    found: list[dict[str, Any]] = field(default_factory=list)

    def chisel(self, *words: str, must: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in front of the user and keep how it went."""
        print(f"\n$ chisel {' '.join(words)}", flush=True)
        began = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-m", "chisel", *words], cwd=self.work, env=self.environ, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=_COMMAND_DEADLINE_S, check=False,
        )  # fmt: skip
        print(ended.stdout + ended.stderr, end="", flush=True)
        seconds = round(time.monotonic() - began, 1)
        self.found.append({"step": words[0], "status": ended.returncode, "seconds": seconds})
        if must and ended.returncode:
            raise SystemExit(f"`chisel {words[0]}` ended with {ended.returncode}")
        return ended

    def note(self, what: str, sandbox_says: object, here: object) -> None:
        """Compare a fact with what the embedded cloud does."""
        self.found.append({"fact": what, "sandbox": sandbox_says, "here": here, "differs": sandbox_says != here})


async def look(smoke: Smoke, token: str, url: str) -> None:
    """Look at the droplet through the API, for what the sandbox had to guess."""
    async with open_digitalocean(Secret(token), api_url=url) as cloud:
        by_tag = await cloud.list_droplets(tag=guard.TAG)
        mine = [one for one in by_tag if guard.read_label(one.tags).pool == POOL]
        smoke.note("a listing by tag shows the droplet", True, bool(mine))
        for droplet in mine:
            alone = await cloud.get_droplet(droplet.id)
            smoke.note("listing and single read agree", True, alone == droplet)
            smoke.note("status once it answers", "active", alone.status)
            smoke.note("price as in /v2/sizes", True, alone.usd_per_hour > 0)
        try:
            await cloud.get_droplet(DropletId(2**53 - 1))
        except NotFoundError:
            smoke.note("an impossible id", "404", "404")


def loop(smoke: Smoke, size: Sequence[str], token: str, url: str) -> None:
    """Go through the whole loop."""
    smoke.chisel("auth")
    smoke.chisel("up", "--pool", POOL, *CAP, *size)
    asyncio.run(look(smoke, token, url))
    status = json.loads(smoke.chisel("status", "--json").stdout.splitlines()[0])
    droplet = next(pool for pool in status["pools"] if pool["name"] == POOL)["droplets"][0]
    smoke.note("the droplet answers", True, droplet["is_reachable"])
    target = ("--pool", POOL)
    smoke.chisel("sync", *target)
    smoke.chisel("run", *target, "ls -la && rocminfo | head -40; rocm-smi; cat /etc/os-release", must=False)
    smoke.chisel(
        "run", *target, "systemctl list-timers --no-pager; curl -m 3 -s 169.254.169.254/metadata/v1/id", must=False
    )
    smoke.chisel("run", *target, "make -s && ./bench.sh", must=False)
    smoke.chisel("profile", *target, "--out", "prof", "./build/vector_add", must=False)
    smoke.chisel("pull", *target, "out/", must=False)
    smoke.chisel("up", "--pool", POOL, *CAP, *size)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--i-will-pay", action="store_true", help="at most three dollars")
    parser.add_argument("--sandbox", action="store_true")
    parser.add_argument("--size")
    parser.add_argument("--region")
    parser.add_argument("--report", type=Path, default=Path("smoke.json"))
    chosen = parser.parse_args()
    if not (chosen.i_will_pay or chosen.sandbox):
        parser.error("a real droplet costs money: --i-will-pay, or --sandbox")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    size = [*(["--size", chosen.size] if chosen.size else []), *(["--region", chosen.region] if chosen.region else [])]
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chisel-smoke-")))
        environ = {**os.environ, "XDG_CONFIG_HOME": str(scratch / "config"), "XDG_CACHE_HOME": str(scratch / "cache")}
        if chosen.sandbox:
            environ.update(stack.enter_context(sandbox(scratch / "cloud")).environ)
        token = environ.get("CHISEL_DO_TOKEN", "")
        url = environ.get("CHISEL_DO_API_URL", "https://api.digitalocean.com")
        work = scratch / "vector_add"
        shutil.copytree(EXAMPLE, work)
        smoke = Smoke(work, environ)
        try:
            loop(smoke, size, token, url)
        finally:
            gone = smoke.chisel("down", "--pool", POOL, "--all", "--yes", must=False)
            smoke.chisel("sweep", must=False)
            if gone.returncode:
                print("\nIT MAY STILL BILL: look at https://cloud.digitalocean.com/droplets", file=sys.stderr)
            chosen.report.write_text(json.dumps(smoke.found, indent=1, default=str) + "\n")
        differing = [one for one in smoke.found if one.get("differs") or one.get("status")]
        print(f"\n{len(smoke.found)} findings in {chosen.report}; {len(differing)} differ, or failed:")
        for one in differing:
            print(f"  {one}")
        return int(any(one.get("status") for one in smoke.found))


if __name__ == "__main__":
    sys.exit(main())
