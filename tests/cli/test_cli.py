"""The command line itself: help, usage, completion, what a start costs. No cloud is needed here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import chisel
from chisel.cli.app import COMMANDS, takes_value
from chisel.cli.session import wants_json
from tests.support import User

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path, tmp_path)


def test_help_reads_as_the_loop(user: User) -> None:
    text = user.does("--help").out.decode()
    places = [text.index(f"\n  {verb} ") for verb in COMMANDS]
    assert places == sorted(places)


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_command_has_help(user: User, verb: str) -> None:
    ended = user.does(verb, "--help")
    assert f"chisel {verb}" in ended.out.decode()
    assert ended.err == ""


def test_version(user: User) -> None:
    assert chisel.__version__ in user.does("--version").out.decode()


@pytest.mark.parametrize(
    "words", [["nosuch"], ["run"], ["up", "-n", "0"], ["up", "-n", "x"], ["up", "--ttl", "8"], ["pull"], ["--nosuch"]]
)
def test_wrong_words_are_usage_with_a_hint(user: User, words: list[str]) -> None:
    ended = user.chisel(*words)
    assert ended.status == 2
    assert ended.err.startswith("error: ")
    assert "--help" in ended.err
    assert "Traceback" not in ended.err


def test_usage_errors_are_json_when_asked(user: User) -> None:
    ended = user.chisel("up", "--json", "-n", "0")
    assert ended.status == 2
    assert [event["event"] for event in ended.events] == ["error", "ended"]


def test_no_token_is_configuration(user: User) -> None:
    ended = user.chisel("up")
    assert ended.status == 3
    assert "chisel auth" in ended.err


def test_a_pool_name_that_is_none(user: User) -> None:
    assert user.chisel("run", "--pool", "../x", "true").status == 2


def test_a_broken_state_file_says_so(user: User) -> None:
    state = user.home / ".cache" / "chisel" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text('{"version": 999}')
    ended = user.chisel("run", "true")
    assert ended.status == 6
    assert state.read_text() == '{"version": 999}'


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_code_is_printed(user: User, shell: str) -> None:
    assert "_CHISEL_COMPLETE" in user.does("completion", shell).out.decode()


def test_completion_completes(user: User) -> None:
    ended = user.chisel(_CHISEL_COMPLETE="bash_complete", COMP_WORDS="chisel sy", COMP_CWORD="1")
    assert "sync" in ended.out.decode()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["up", "--json"], True),
        (["run", "--all", "--json", "make"], True),
        (["run", "make", "--json"], False),
        (["run", "--", "x", "--json"], False),
        (["run", "--pool", "p", "--json", "make"], True),
        (["run", "--pool", "p", "make", "--json"], False),
        (["profile", "--ab", "a", "b", "--json"], True),
        (["profile", "--top", "5", "./a", "--json"], False),
        (["run", "--timeout", "5m", "--json", "make"], True),
        (["run", "-t", "gdb", "--json"], False),
    ],
)
def test_whose_json_it_is(words: list[str], expected: bool) -> None:
    assert wants_json(words, takes_value) is expected


def test_a_closed_reader_is_no_traceback(user: User) -> None:
    line = f'"{sys.executable}" -m chisel --help | true; exit ${{PIPESTATUS[0]}}'
    ended = subprocess.run(["bash", "-c", line], env=user.environ(), capture_output=True, check=False, timeout=30)
    assert b"Traceback" not in ended.stderr
