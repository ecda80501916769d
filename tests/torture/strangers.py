"""Hold 10,000 random accounts with look-alike droplets against the ledger: python -m tests.torture.strangers."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from random import Random

import anyio

from tests.lifecycle.test_nothing_foreign import an_account, use


def main(accounts: int) -> int:
    began, destroyed, refused, strangers, foreign = time.monotonic(), 0, 0, 0, 0
    for seed in range(accounts):
        random = Random(seed)
        ledger = an_account(random)
        strangers += len(ledger.account.droplets.keys() - ledger.mine.keys())
        with tempfile.TemporaryDirectory() as scratch:
            errors, _ = anyio.run(use, ledger, random, Path(scratch))
        destroyed, refused = destroyed + len(ledger.account.destroyed), refused + errors
        foreign += len(ledger.account.foreign)
    seconds = time.monotonic() - began
    print(
        f"{accounts} accounts, {strangers} look-alikes among them: {destroyed} droplets destroyed, {refused} refused,"
        f" {foreign} foreign destroyed, {seconds:.0f} s"
    )
    return 1 if foreign or not destroyed or not refused else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
