"""Ctrl-C in the middle of any verb, while the API drips or hangs: it ends at once, and nothing is lost."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chisel.sandbox.pytest import Sandbox, sandbox
from tests.support import User, until

pytestmark = pytest.mark.timeout(120)
DEADLINE_S = 4.0
"""The promise is 1 s; this machine is shared, and a test that fails by its noise is worth nothing."""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox(tmp_path_factory.mktemp("cloud"), per_minute=10**6, per_hour=10**6) as running:
        yield running


@pytest.fixture(scope="module")
def user(cloud: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    place: Path = tmp_path_factory.mktemp("user")
    for name in ("home", "work"):
        (place / name).mkdir()
    someone = User(home=place / "home", cwd=place / "work", cloud=cloud.environ)
    someone.does("up", "-n", "2", "--idle", "0")
    yield someone
    cloud.behave()
    someone.does("down", "--all", "--yes")


@pytest.mark.parametrize("fault", ["any-dripx*", "any-hangx*"])
@pytest.mark.parametrize(
    "words",
    [
        ("auth",),
        ("up", "-n", "3"),
        ("status",),
        ("status", "--watch"),
        ("sweep",),
        ("sweep", "--yes"),
        ("recover",),
        ("keep", "--all", "1h"),
        ("down", "--all", "--yes"),
    ],
    ids=" ".join,
)
def test_ctrl_c_ends_a_verb_at_once_while_the_api_hangs(
    user: User, cloud: Sandbox, words: tuple[str, ...], fault: str
) -> None:
    before, alive = len(cloud.requests), cloud.alive
    cloud.fault(fault)
    try:
        with user.start(*words) as process:
            until(lambda: len(cloud.requests) > before, what="a request")
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
            took_s = time.monotonic() - began
    finally:
        cloud.behave()
    assert process.returncode == 130, said
    assert took_s < DEADLINE_S
    assert b"Traceback" not in said
    assert [name for name in cloud.alive if name in alive] == alive


def test_ctrl_c_while_a_create_hangs_leaves_what_down_finds(cloud: Sandbox, user: User) -> None:
    cloud.fault("create-then-hang")
    creates = cloud.requests.count(("POST", "/v2/droplets"))
    with user.start("up", "--pool", "bench") as process:
        until(lambda: cloud.requests.count(("POST", "/v2/droplets")) > creates, what="the create")
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, time.monotonic() - began < DEADLINE_S) == (130, True), said
    cloud.behave()
    assert "bench-1" in cloud.alive
    user.does("up", "--pool", "bench")
    assert cloud.alive.count("bench-1") == 1
    assert "bench-2" not in cloud.alive
    user.does("down", "--pool", "bench", "--yes")
    assert "bench-1" not in cloud.alive
