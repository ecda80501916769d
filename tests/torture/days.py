"""Hold the watchdog's rule against 10,000 simulated lives of droplets: python -m tests.torture.days."""

from __future__ import annotations

import sys
import time
from random import Random

from tests.node.days import DAY_S, a_life, check


def main(lives: int) -> int:
    began, lived_s = time.monotonic(), 0.0
    for seed in range(lives):
        try:
            lived_s += check(a_life(Random(seed)))
        except AssertionError as error:
            print(f"WRONG: seed {seed}: {error}")
            return 1
    print(f"{lives} lives, {lived_s / DAY_S:,.0f} days: all ended in time, none while a command ran,"
          f" {time.monotonic() - began:.0f} s")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
