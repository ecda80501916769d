"""Run every check of the project, the same ones locally and in CI: `python -m tests.check`.

Format, lint, types (also the node program's as Python 3.10), then the test-suite unless `--no-tests` is given.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
CHECKS = [
    ["ruff", "format", "--check", "."],
    ["ruff", "check", "."],
    ["mypy"],
    ["mypy", "--python-version", "3.10", "chisel/node"],
]
TESTS = ["pytest"]


def main() -> int:
    checks = CHECKS if "--no-tests" in sys.argv else [*CHECKS, TESTS]
    for module, *arguments in checks:
        print("$", module, *arguments, flush=True)
        ended = subprocess.run([sys.executable, "-m", module, *arguments], cwd=PROJECT, check=False)
        if ended.returncode:
            return ended.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
