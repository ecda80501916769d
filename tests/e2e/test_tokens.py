"""Look for both tokens everywhere after a whole day's work: in files, arguments, output, logs, on droplets."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chisel.cli.account import SCOPES
from chisel.sandbox.pytest import Sandbox, sandbox
from tests.support import User

pytestmark = pytest.mark.timeout(180)
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "vector_add"
LOGGED = (
    "import logging, sys; logging.basicConfig(level=1); from chisel.entry import main; sys.argv[0] = 'chisel'; main()"
)


@contextlib.contextmanager
def watched_arguments(*marks: str) -> Iterator[list[str]]:
    """Collect the command line of every process that ever shows one of these marks, looking fifty times a second."""
    found: list[str] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            for entry in os.listdir("/proc"):
                if entry.isdigit():
                    with contextlib.suppress(OSError):
                        line = Path("/proc", entry, "cmdline").read_bytes().decode(errors="replace")
                        found.extend([line] if any(mark in line for mark in marks) else [])

    thread = threading.Thread(target=watch)  # noqa: TID251 - it watches a blocking test
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def files_with(mark: str, *places: Path) -> set[str]:
    """Return the files below these places that hold a mark, compressed or not being all the same to it."""
    found = set()
    for place in places:
        for folder, _, names in os.walk(place):  # which goes on where a destroyed droplet's directory vanishes
            for path in (Path(folder) / name for name in names):
                with contextlib.suppress(OSError):
                    if path.is_file() and not path.is_symlink() and mark.encode() in path.read_bytes():
                        found.add(str(path.relative_to(place)))
    return found


def test_the_tokens_are_where_they_must_be_and_nowhere_else(tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    shutil.copytree(EXAMPLE, work)
    with sandbox(tmp_path / "cloud", per_minute=10**6, per_hour=10**6) as cloud:
        user = User(home=home, cwd=work, cloud={"CHISEL_DO_API_URL": cloud.url})
        first, second = cloud.make_token(*SCOPES.split()), cloud.make_token("droplet:delete")
        with watched_arguments(first, second) as shown:
            said = day(user, cloud, first, second, tmp_path)
        assert shown == []
        for token in (first, second):
            assert token not in said
        assert files_with(first, home) == {".config/chisel/config.toml"}
        assert files_with(second, home) == {".config/chisel/config.toml"}
        places = files_with(second, tmp_path / "cloud" / "droplets")
        assert {place.partition("/")[2] for place in places} == {
            "etc/chisel/self-destruct.json", "etc/chisel/self-destruct.curl",
        }  # fmt: skip
        assert files_with(first, tmp_path / "cloud", work) == set()
        user.does("down", "--all", "--yes")
        assert files_with(second, tmp_path / "cloud", work) == set()


def day(user: User, cloud: Sandbox, first: str, second: str, tmp_path: Path) -> str:
    """Work for a day, with trouble, everything at its most talkative; return all that was said."""
    # Both come from where `auth` reads them without anybody else seeing it: the environment stands for the prompt.
    with user.start("auth", "--debug", CHISEL_SELF_DESTRUCT_TOKEN=second, CHISEL_DO_TOKEN=first) as process:
        said = b"".join(process.communicate(timeout=60))
        assert process.returncode == 0, said
    config = user.home / ".config/chisel/config.toml"
    config.parent.mkdir(parents=True)
    config.touch(mode=0o600)
    config.write_text(f'api_url = "{cloud.url}"\ntoken = "{first}"\nself_destruct_token = "{second}"\n')
    commands = [
        ("up", "-n", "2"),
        ("sync", "--all", "."),
        ("run", "--all", "make -s; env; cat /proc/self/environ | tr '\\0' '\\n'; ps aux"),
        ("profile", "--on", "1", "--out", str(tmp_path / "work/prof"), "./build/vector_add"),
        ("pull", "--on", "1", "Makefile"),
        ("keep", "--all", "2h"),
        ("status",),
        ("sweep",),
        ("recover",),
        ("up", "--size", "no-such-size", "--pool", "other"),
    ]
    for words in commands:
        for json_too in ((), ("--json",)):
            ended = user.chisel(words[0], *json_too, "--debug", *words[1:])
            assert (ended.status == 0) == ("no-such-size" not in words), (words, ended.err)
            said += ended.out + ended.err.encode()
    cloud.fault("any-500x3", "any-htmlx2", "any-garbage")
    said += user.chisel("status", "--debug").err.encode()
    down = user.chisel("status", "--debug", CHISEL_DO_API_URL="http://127.0.0.1:9", CHISEL_DO_TOKEN=first)
    said += down.out + down.err.encode()
    cloud.behave()
    said += logged(user, "status") + logged(user, "run", "--all", "true") + logged(user, "up", "-n", "2")
    return said.decode(errors="replace")


def logged(user: User, *words: str) -> bytes:
    """Run a command with every logger of every library at its lowest level."""
    ended = subprocess.run(
        [sys.executable, "-c", LOGGED, *words],
        cwd=user.cwd,
        env=user.environ(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert b"DEBUG:" in ended.stderr, "the loggers did talk"
    return ended.stdout + ended.stderr
