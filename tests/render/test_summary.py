"""The table of runs is the same whether rich lays it out or not."""

from __future__ import annotations

import random
import re

from chisel.model import RunId, RunResult
from chisel.render import summary, tables

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def some_results(dice: random.Random) -> list[RunResult]:
    def one(number: int) -> RunResult:
        status = dice.choice([0, 0, 1, 139, 255])
        return RunResult(
            host=f"bench-{number}",
            run_id=RunId("a"),
            status=status,
            source="remote",
            seconds=dice.random() * 10 ** dice.randrange(5),
            stdout_bytes=dice.randrange(10 ** dice.randrange(1, 12)),
            peak_rss_bytes=dice.choice([None, 10 ** dice.randrange(3, 11)]),
            error=dice.choice([None, None, "the connection was lost", "x" * dice.randrange(1, 60)]),
        )

    return [one(number) for number in range(1, dice.randrange(2, 40))]


def test_it_is_what_rich_would_have_made_of_it() -> None:
    dice = random.Random(7)
    shown = 0
    for _ in range(60):
        results, width = some_results(dice), dice.choice([60, 80, 120, 200])
        text = summary.runs(results, width=width, colour=False)
        coloured = summary.runs(results, width=width, colour=True)
        assert (text is None) == (coloured is None)
        if text is None or coloured is None:
            continue
        shown += 1
        assert text == tables.to_text(tables.runs(results), width=width, colour=False)
        assert ANSI.sub("", coloured) == text
        with_rich = tables.to_text(tables.runs(results), width=width, colour=True)
        assert set(ANSI.findall(coloured)) == set(ANSI.findall(with_rich))
    assert 20 < shown < 60


def test_what_does_not_fit_or_is_not_plain_is_left_to_rich() -> None:
    def result(**facts: object) -> RunResult:
        return RunResult(host="a", run_id=RunId("a"), status=0, source="remote", **facts)  # type: ignore[arg-type]

    assert summary.runs([result(error="x" * 60)], width=80, colour=False) is None
    assert summary.runs([result(error="x" * 60)], width=200, colour=False) is not None
    assert summary.runs([result(error="\x1b[2J")], width=200, colour=False) is None
    assert summary.runs([result(error="日本")], width=200, colour=False) is None
