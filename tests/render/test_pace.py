"""Progress says how far, how fast and how long, for each droplet and for all of them."""

from __future__ import annotations

from pathlib import Path

from chisel.events import Progress
from chisel.model import PullResult, PushResult
from chisel.render import transfers
from chisel.render.pace import Pace


def progress(at: float, done: int, host: str = "a", **more: object) -> Progress:
    return Progress(at=at, host=host, task="pull", done=done, **{"total": 100_000_000, **more})  # type: ignore[arg-type]


def test_rate_and_time_left_are_those_of_the_last_seconds() -> None:
    pace = Pace()
    for second in range(20):
        pace.take(progress(second, min(second, 10) * 1_000_000 + max(0, second - 10) * 2_000_000))
    last = progress(20, 30_000_000, done_files=3, total_files=9)
    pace.take(last)
    assert pace.text(last) == "30.0 MB of 100 MB, 3 of 9 files, 2.0 MB/s, 35 s left"


def test_without_a_total_or_time_it_says_less() -> None:
    pace = Pace()
    first = progress(1.0, 5_000_000, total=None)
    pace.take(first)
    assert pace.text(first) == "5.0 MB"
    step = Progress(task="ended", done=2, total=4, unit="steps")
    pace.take(step)
    assert pace.text(step) == "2 steps of 4"


def test_all_together() -> None:
    pace = Pace()
    for second in range(3):
        for host in ("a", "b"):
            pace.take(progress(second, second * 10_000_000, host, done_files=second, total_files=5))
    ((whole, said),) = pace.sums()
    assert (whole.done, whole.total) == (40_000_000, 200_000_000)
    assert said == "40.0 MB of 200 MB, 4 of 10 files, 20.0 MB/s, 8.0 s left"
    for host in ("a", "b"):
        pace.take(progress(3, 100_000_000, host, is_done=True))
    assert pace.sums() == []
    pace.take(progress(9, 1_000_000, "a"))
    assert pace.sums() == [], "the next one is not added to what is done"
    pace.take(progress(9, 1_000_000, "b"))
    assert pace.sums()[0][0].done == 2_000_000


def test_results_in_words() -> None:
    pulled = PullResult("a", Path("x"), files=2, bytes=1000, unchanged=3, seconds=1.0)
    assert list(transfers.pulled(pulled, "./x")) == ["a: 2 files (1.0 kB) into ./x, 3 unchanged, 1.0 s"]
    dry = PullResult("a", Path("x"), is_dry=True, would=(("p/q", 5),))
    assert list(transfers.pulled(dry, "./x")) == ["a: would write p/q (5 B)", "a: would write 1 file (5 B) into ./x"]
    assert list(transfers.pulled(PullResult("a", Path("x"), error="no"), "./x")) == []
    pushed = PushResult("a", "/scratch", files=1, bytes=2000, sent_bytes=900, unchanged=1, seconds=2.0)
    assert list(transfers.pushed(pushed)) == ["a: 1 file (2.0 kB) into /scratch, 1 already there, 900 B sent, 2.0 s"]
    assert transfers.in_all([pushed, PushResult("b", "", error="no")]) == "2 droplets: 1 file (2.0 kB) in all, 1 failed"
