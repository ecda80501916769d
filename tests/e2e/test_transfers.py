"""Pull and push as their users meet them: one process a command."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.support import User

pytestmark = pytest.mark.timeout(180)
MB = 1 << 20


def make_outputs(user: User, *, each: str) -> None:
    user.does("sync", "--all")
    user.does("run", "--all", "--", "sh", "-c", f"mkdir -p out/deep; echo {each} > out/deep/result; echo x > out/a")


@pytest.fixture
def two(user: User) -> User:
    (user.cwd / "k.hip").write_text("// kernel")
    user.does("up", "-n", "2")
    make_outputs(user, each="$CHISEL_RANK-$HOME")
    return user


def test_pull_from_a_pool(two: User) -> None:
    dry = two.does("pull", "--all", "-n", "out", "--json").of("pull_ended")
    assert [[path for path, _ in event["result"]["would"]] for event in dry] == [["out/a", "out/deep/result"]] * 2
    assert not (two.cwd / "chisel-dev-1").exists() or not any((two.cwd / "chisel-dev-1").iterdir())
    ended = two.does("pull", "--all", "out")
    assert "2 droplets: 4 files" in ended.err
    assert (two.cwd / "chisel-dev-2" / "out" / "deep" / "result").read_text()
    again = two.does("pull", "--all", "out", "--json").of("pull_ended")
    assert [(event["result"]["files"], event["result"]["unchanged"]) for event in again] == [(0, 2), (0, 2)]
    refused = two.chisel("pull", "--all", "--flat", "out", "--to", "flat")
    assert (refused.status, "several droplets have `out/a`" in refused.err) == (2, True)
    assert not list((two.cwd / "flat").iterdir())
    two.does("run", "--on", "2", "mv out/a out/b; mv out/deep/result out/deep/result2")
    two.does("pull", "--all", "--flat", "out", "--to", "flat")
    assert {path.name for path in (two.cwd / "flat" / "out").iterdir()} == {"a", "b", "deep"}
    assert {path.name for path in (two.cwd / "flat" / "out" / "deep").iterdir()} == {"result", "result2"}


def test_a_missing_name_is_said_with_what_is_near(two: User) -> None:
    ended = two.chisel("pull", "--on", "1", "out/deep/reslut", "out/a")
    assert ended.status == 255
    assert "`out/deep/reslut` is not there on `chisel-dev-1`; there is `out/deep/result`" in ended.err
    assert (two.cwd / "out" / "a").exists()


def test_caps_can_be_raised_and_lowered(two: User) -> None:
    ended = two.chisel("pull", "--on", "1", "--max-files", "2", "out")
    assert ended.status == 255
    assert "--max-files allows more" in ended.err
    assert two.chisel("pull", "--on", "1", "--max-bytes", "1", "out").status == 255
    two.does("pull", "--on", "1", "--max-files", "20", "--max-bytes", "1k", "--max-depth", "3", "out")
    assert two.chisel("pull", "--bwlimit", "fast", "out").status == 2


def test_push_to_a_pool(two: User, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "set").mkdir(parents=True)
    content = random.Random(1).randbytes(3 * MB)
    (data / "weights.bin").write_bytes(content)
    (data / "set" / "rows.csv").write_text("1,2\n" * 10_000)
    first = two.does("push", "--all", str(data / "weights.bin"), str(data / "set"), "--json").of("push_ended")
    assert [(event["result"]["files"], event["result"]["error"]) for event in first] == [(2, None), (2, None)]
    place = Path(first[0]["result"]["target"])
    assert (place / "weights.bin").read_bytes() == content
    again = two.does("push", "--all", str(data / "weights.bin"), str(data / "set"))
    assert "2 already there" in again.err
    assert again.out == b""
    two.does("push", "--on", "1", "--to", "~/models/v1", os.path.relpath(data / "set", two.cwd))
    assert two.does("run", "--on", "1", "cat ~/models/v1/set/rows.csv | wc -l").out.strip() == b"10000"
    missing = two.chisel("push", "--all", "nothing")
    assert (missing.status, "`" in missing.err and "No such file" in missing.err) == (2, True)
