"""The words of `chisel profile`: which are chisel's, which are the command's."""

from __future__ import annotations

import pytest

from chisel.cli.profile import reordered

VALUED = {**dict.fromkeys(("--trace", "--out", "--top", "--pool", "-e", "--env"), 1), "--ab": 2}


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("./bench.sh", "./bench.sh"),
        ("./bench.sh --trace hip,hsa", "--trace hip,hsa ./bench.sh"),
        ("./bench.sh --trace=hip --out d --open", "--trace=hip --out d --open ./bench.sh"),
        ("--pool b -e K=V ./bench.sh --open", "--pool b -e K=V --open ./bench.sh"),
        # what follows is the command's own
        ("./bench.sh --top", "./bench.sh --top"),
        ("./bench.sh --open=x", "./bench.sh --open=x"),
        ("./bench.sh 4 --top 5", "./bench.sh 4 --top 5"),
        ("./bench.sh --top 5 more", "./bench.sh --top 5 more"),
        ("./bench.sh --pool b", "./bench.sh --pool b"),
        ("-- ./bench.sh --open", "-- ./bench.sh --open"),
        ("--top 5", "--top 5"),
        ("--ab a b --open", "--ab a b --open"),
        ("", ""),
    ],
)
def test_the_original_order_is_taken_where_the_command_is_one_word(given: str, taken: str) -> None:
    assert reordered(given.split(), VALUED) == taken.split()
