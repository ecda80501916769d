"""What is kept of trees between syncs is lent to one at a time, and forgotten when others know better."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from anyio import to_thread

from chisel.client import trees
from chisel.client.trees import Trees
from chisel.sync.index import Index, index_file_for
from tests.agent.conftest import WarmUser

LOOK = (1, 2, 3, 4, 5)


async def test_the_second_user_gets_it_warm(tmp_path: Path) -> None:
    kept = Trees()
    async with kept.lent(tmp_path, Path("/tree")) as first:
        pass
    async with kept.lent(tmp_path, Path("/tree")) as second:
        assert second is first
    async with kept.lent(tmp_path, Path("/other")) as third:
        assert third is not first


async def test_two_at_a_time_have_one_each(tmp_path: Path) -> None:
    kept = Trees()
    async with kept.lent(tmp_path, Path("/tree")) as first, kept.lent(tmp_path, Path("/tree")) as second:
        assert second is not first


async def test_what_another_process_wrote_is_read(tmp_path: Path) -> None:
    kept = Trees()
    async with kept.lent(tmp_path, Path("/tree")) as first:
        await to_thread.run_sync(first.index.change, {"a": (LOOK, "mine")})
    other = await to_thread.run_sync(Index.load, index_file_for(tmp_path, Path("/tree")))
    await to_thread.run_sync(other.change, {"a": (LOOK, "of another")})
    async with kept.lent(tmp_path, Path("/tree")) as second:
        assert second is not first
        assert second.index.files["a"][1] == "of another"


async def test_one_that_was_cut_short_is_not_lent_again(tmp_path: Path) -> None:
    kept = Trees()
    with pytest.raises(RuntimeError):
        async with kept.lent(tmp_path, Path("/tree")) as first:
            raise RuntimeError
    async with kept.lent(tmp_path, Path("/tree")) as second:
        assert second is not first


async def test_of_too_many_the_oldest_is_forgotten(tmp_path: Path) -> None:
    kept, lent = Trees(), []
    for number in range(trees.MOST_TREES + 1):
        async with kept.lent(tmp_path, Path(f"/tree{number}")) as one:
            lent.append(one)
    kept.forget_unused()
    async with kept.lent(tmp_path, Path("/tree1")) as again:
        assert again is lent[1]
    async with kept.lent(tmp_path, Path("/tree0")) as again:
        assert again is not lent[0]


@pytest.mark.timeout(180)
def test_an_edit_before_a_warm_sync_is_never_missed(user: WarmUser) -> None:
    served = user.served
    for number in range(20):
        text = f"{number:04}\n"
        if number % 2:
            (user.cwd / "edited").write_text(text)
        else:
            (user.cwd / "edited.new").write_text(text)
            os.replace(user.cwd / "edited.new", user.cwd / "edited")
        assert user.does("run", "-s", "--on", "1", "cat edited").out == text.encode()
    assert user.served >= served + 20, "the agent ran them"
