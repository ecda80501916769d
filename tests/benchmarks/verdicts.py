"""Measure how often `chisel profile`'s verdicts cry wolf, and what they find: `python -m tests.benchmarks.verdicts`.

Prints one row for each kind of noise, number of kernels, way of measuring and number of sessions a side. `false`: the
comparisons of identical code in which any row is called. Then the power for kernels that became 2, 5 and 10 % slower:
how often they are called slower. `hot` is the hottest kernel (30 % of the time among 20), `mid` the sixth (5 %).
`detectable` is the median of what the comparisons say of themselves. Seeded: the same figures each time.

The optional argument is the number of comparisons behind each figure of power; false alarms have three times as many
(the default 200: 95 % of such figures are within 7 points of 50 %, and within 1.8 points of 5 %). About half an hour.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from chisel.figures import Comparison
from chisel.profile.compare import compare
from tests.profile.noise import MILD, ROUGH, TREND, TWO_STATES, WANDERING, Lab, Noise

ALL, SOME = (3, 5, 7, 10), (5, 10)
NOISES = {
    "mild": (MILD, ALL, "sessions 2 % apart (standard deviation)"),
    "rough": (ROUGH, ALL, "sessions 5 % apart, 15 % of them up to 20 % slower"),
    "two states": (TWO_STATES, SOME, "every other session by chance 15 % slower"),
    "wandering": (WANDERING, SOME, "a random walk from session to session, steps of 3 %"),
    "trend": (TREND, SOME, "every session 2 % slower than the one before, 1 % apart"),
}
EFFECTS = (0.02, 0.05, 0.10)
HOT, MID = 0, 5
WAYS = {"blocks": "A then B", "turns": "A B A B", "balanced": "A B B A"}


@dataclass
class Setting:
    noise: Noise
    way: str
    sessions: int
    kernels: int
    comparisons: int

    @property
    def changed(self) -> tuple[int, ...]:
        return (HOT,) if self.kernels == 1 else (HOT, MID)

    def each(self, count: int, effect: float = 0.0) -> Iterator[Comparison]:
        seed = random.Random(f"{self.noise}{self.way}{self.sessions}{self.kernels}{effect}").randrange(1 << 30)
        lab = Lab.of(seed, self.noise, self.kernels)
        for _ in range(count):
            a, b = lab.sides(self.sessions, dict.fromkeys(self.changed, 1 + effect), order=self.way)
            yield compare(a, b, label_a="A", label_b="B", paired=self.way != "blocks")

    def false_alarms(self) -> float:
        count = 3 * self.comparisons
        return sum(any(one.verdict != "can't tell" for one in found.verdicts) for found in self.each(count)) / count

    def found(self, effect: float) -> list[tuple[float, float]]:
        """Return for each changed kernel how often it is called slower, and what is said to be detectable."""
        verdicts = [{one.name: one for one in found.verdicts} for found in self.each(self.comparisons, effect)]
        rows = [[one[f"k{number}"] for one in verdicts] for number in self.changed]
        return [
            (
                sum(one.verdict == "slower" for one in kernel) / len(kernel),
                statistics.median(one.detectable or 0.0 for one in kernel),
            )
            for kernel in rows
        ]


def row(name: str, setting: Setting) -> str:
    by_effect = [setting.found(effect) for effect in EFFECTS]
    cells = [f"{setting.false_alarms():6.1%} "]
    for number in range(len(setting.changed)):
        cells += [f"{found[number][0]:5.0%}" for found in by_effect] + [f"{by_effect[0][number][1]:8.1%}   "]
    return f"{name:10}  {WAYS[setting.way]:8} {setting.kernels:7} {setting.sessions:8} " + " ".join(cells)


def main(comparisons: int = 200) -> None:
    for name, (_, _, meaning) in NOISES.items():
        print(f"{name}: {meaning}")
    print("\nnoise       way      kernels sessions  false   hot 2%   5%  10% detectable  mid 2%   5%  10% detectable")
    for name, (noise, sessions, _) in NOISES.items():
        for kernels in (1, 20):
            for way in WAYS:
                if way == "turns" and noise is not TREND:
                    continue  # the order within pairs matters where there is a trend only
                for count in sessions:
                    print(row(name, Setting(noise, way, count, kernels, comparisons)), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
