"""Draw the README's picture from a real run of the demo: `python -m tests.readme.picture [OUT.svg]`.

The demo runs on a pseudo-terminal, so it looks as it does for a user; what stood on the screen at the end is drawn by
rich's own SVG export.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS, ROWS = 112, 50
PICTURE = Path(__file__).resolve().parents[2] / "examples" / "demo.svg"
_ERASE = re.compile(r"\x1b\[(\d+)F\x1b\[J")


def record(command: list[str]) -> str:
    """Run a command on a terminal of its own and return what it wrote."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, close_fds=True) as process:
        os.close(follower)
        written = b""
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            written += piece
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}:\n{written.decode(errors='replace')}")
    return written.decode("utf-8", "replace").replace("\r\n", "\n")


def last_screen(written: str) -> list[str]:
    """Play the one cursor movement chisel uses (up and erase), and return the lines that stand in the end."""
    lines: list[str] = [""]
    position = 0
    for found in [*_ERASE.finditer(written), None]:
        text = written[position : found.start() if found else len(written)]
        pieces = text.split("\n")
        lines[-1] += pieces[0]
        lines += pieces[1:]
        if found is not None:
            del lines[-1 - int(found[1]) :]
            lines.append("")
            position = found.end()
    return lines


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    lines = last_screen(record([sys.executable, "-m", "chisel", "demo", "-n", "2"]))
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    for line in lines:
        console.print(Text.from_ansi(line), highlight=False)
    console.save_svg(str(out), title="chisel demo")
    print(f"{out}: {len(lines)} lines")


if __name__ == "__main__":
    main()
