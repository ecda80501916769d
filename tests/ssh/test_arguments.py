"""Argument lists come back unchanged through a real sshd, a hundred thousand of them."""

from __future__ import annotations

import random
import shlex
import subprocess
from pathlib import Path

import pytest

from chisel.client.lines import shell_line
from chisel.errors import UsageError
from chisel.events import NullSink
from chisel.runner import Order, run_pool
from chisel.ssh.connector import open_connector
from tests.ssh.conftest import Sshd

pytestmark = pytest.mark.timeout(180)
LISTS, LISTS_ON_DROPLET, AT_ONCE = 100_000, 4_000, 400
"""A kernel takes no argument above 128 KiB (execve(2), MAX_ARG_STRLEN): so many lists go into one line."""

NASTY = ["", *" '\"\\*?~#!|;\n\t\r", "$HOME", "`id`", "$(id)", "-x", "--", "&&"]


def random_word(chance: random.Random) -> str:
    kind = chance.randrange(4)
    if kind == 0:
        return chance.choice(NASTY)
    if kind == 1:
        return "".join(chance.choice(NASTY) or "x" for _ in range(chance.randrange(1, 4)))
    if kind == 2:
        letters = [*range(1, 0x7F), 0xE9, 0x3B1, 0x4E2D, 0x1F600]
        return "".join(chr(chance.choice(letters)) for _ in range(chance.randrange(1, 9)))
    return "".join(chr(chance.randrange(1, 0xD800)) for _ in range(chance.randrange(1, 5)))


SHOW = 'show() { printf "%s\\0" "$#" "$@"; }\n'


def random_lists(chance: random.Random, size: int) -> list[list[str]]:
    return [[random_word(chance) for _ in range(chance.randrange(1, 6))] for _ in range(size)]


def line_of(lists: list[list[str]]) -> str:
    """Return a line that shows every list: `shell_line` is what Pool.run makes of one, bash gives it back."""
    return SHOW + "\n".join(shell_line(["show", *words]) for words in lists)


def check_shown(said: bytes, lists: list[list[str]]) -> None:
    found = iter(said.decode().split("\0"))
    for words in lists:
        assert [next(found) for _ in range(int(next(found)))] == words
    assert list(found) == [""]


@pytest.mark.real_part("sshd")
async def test_arguments_come_back_unchanged(sshd: Sshd) -> None:
    chance = random.Random(20261124)
    async with open_connector(sshd.key) as connector:
        for _ in range(LISTS_ON_DROPLET // AT_ONCE):
            lists = random_lists(chance, AT_ONCE)
            (result,) = await run_pool(connector, [sshd.host], Order(line=line_of(lists), capture=True), NullSink())
            assert result.status == 0, result.error
            assert result.stdout is not None
            check_shown(result.stdout, lists)


def test_arguments_come_back_from_a_shell(tmp_path: Path) -> None:
    """The same with so many that the network would only take time."""
    lists = random_lists(random.Random(20261126), LISTS)
    script = tmp_path / "script"
    script.write_bytes(line_of(lists).encode())
    check_shown(subprocess.run(["bash", script], check=True, capture_output=True, timeout=150).stdout, lists)


@pytest.mark.parametrize(
    ("words", "place"), [(["a", "b\0c"], "word 2"), (["x\ud800"], "word 1"), ("ls \udcff", "word 1")]
)
def test_what_no_command_line_can_carry_is_refused_with_its_place(words: list[str] | str, place: str) -> None:
    with pytest.raises(UsageError, match=place):
        shell_line(words)


def test_one_word_is_a_shell_line_and_several_are_words() -> None:
    assert shell_line(["make && ./bench.sh"]) == "make && ./bench.sh"
    assert shell_line(["echo", "a b"]) == shlex.join(["echo", "a b"])
