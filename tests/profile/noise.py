"""Draw profiling sessions with the noise of real GPUs: sessions apart, drift within, heavy right tails."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from chisel.figures import QUANTILES, KernelStats

DISPATCHES = 150


@dataclass(frozen=True)
class Noise:
    """How sessions of the same code differ.

    `between` is the standard deviation of a session's level, of which the kernels share `common` (by variance);
    `slow_chance` of the sessions are slower by up to `slow_by` (throttled), or all by just so much (`two_states`);
    `wander` is the step of a random walk from session to session, `trend` that of a steady change; `drift` the most a
    level changes within a session.
    """

    between: float
    common: float = 0.7
    slow_chance: float = 0.0
    slow_by: float = 0.2
    two_states: bool = False
    wander: float = 0.0
    trend: float = 0.0
    drift: float = 0.03

    def levels(self, source: random.Random, sessions: int, kernels: int) -> Iterator[list[float]]:
        """Give each session's factors, one for each kernel, in the order the sessions are measured."""
        walk = 0.0
        for _ in range(sessions):
            walk += self.trend + (source.gauss(0, self.wander) if self.wander else 0.0)
            is_slow = source.random() < self.slow_chance
            slow = self.slow_by * (1 if self.two_states else source.random()) if is_slow else 0.0
            common = source.gauss(0, self.between * self.common**0.5) + slow + walk
            own = self.between * (1 - self.common) ** 0.5
            yield [1 + common + source.gauss(0, own) for _ in range(kernels)]


MILD = Noise(between=0.02)
ROUGH = Noise(between=0.05, slow_chance=0.15)
TWO_STATES = Noise(between=0.005, slow_chance=0.5, slow_by=0.15, two_states=True)
WANDERING = Noise(between=0.01, wander=0.03)
TREND = Noise(between=0.01, trend=0.02)


class Shapes:
    """A stock of dispatch durations of one session each, around 1: with drift and a heavy right tail."""

    def __init__(self, source: random.Random, noise: Noise, count: int = 200) -> None:
        self.durations = [self._shape(source, noise) for _ in range(count)]
        self.quantiles = [quantiles_of(sorted(one)) for one in self.durations]
        self.means = [sum(one) / len(one) for one in self.durations]

    @staticmethod
    def _shape(source: random.Random, noise: Noise) -> list[float]:
        slope = source.uniform(-noise.drift, noise.drift)
        return [
            (1 + slope * (k / DISPATCHES - 0.5)) * (1 + abs(source.gauss(0, 0.03)))
            * (1 + (source.paretovariate(2) - 0.5 if source.random() < 0.03 else 0))
            for k in range(DISPATCHES)
        ]  # fmt: skip


def quantiles_of(ordered: Sequence[float]) -> tuple[float, ...]:
    def at(fraction: float) -> float:
        place = fraction * (len(ordered) - 1)
        low = min(int(place), max(len(ordered) - 2, 0))
        return ordered[low] + (ordered[min(low + 1, len(ordered) - 1)] - ordered[low]) * (place - low)

    return tuple(at(k / QUANTILES) for k in range(QUANTILES + 1))


def kernel(name: str, durations: Sequence[float]) -> KernelStats:
    """Take real durations together."""
    ordered = sorted(durations)
    total = sum(ordered)
    found = quantiles_of(ordered)
    return KernelStats(
        name, len(ordered), round(total), total / len(ordered), found[QUANTILES // 2], found[-1], ordered[0],
        ordered[-1], 0.0, quantiles=found,
    )  # fmt: skip


@dataclass
class Lab:
    """Draws sides to compare: kernels of geometric time shares, `changes` as factors of B by kernel number.

    `order` is that of the measurements: A's, then B's (`blocks`), A B A B (`turns`), A B B A (`balanced`).
    """

    source: random.Random
    noise: Noise
    shapes: Shapes
    kernels: int = 8

    @classmethod
    def of(cls, seed: int, noise: Noise, kernels: int = 8) -> Lab:
        source = random.Random(seed)
        return cls(source, noise, Shapes(source, noise), kernels)

    def sides(
        self, sessions: int, changes: Mapping[int, float] | None = None, *, order: str = "blocks"
    ) -> tuple[list[dict[str, KernelStats]], list[dict[str, KernelStats]]]:
        drawn = [self._session(levels) for levels in self.noise.levels(self.source, 2 * sessions, self.kernels)]
        a, b = drawn[:sessions], drawn[sessions:]
        if order != "blocks":
            a, b = drawn[::2], drawn[1::2]
        if order == "balanced":
            a[1::2], b[1::2] = b[1::2], a[1::2]
        return [self._stats(one, {}) for one in a], [self._stats(one, changes or {}) for one in b]

    def _session(self, levels: Sequence[float]) -> list[tuple[int, float]]:
        return [(self.source.randrange(len(self.shapes.means)), level) for level in levels]

    def _stats(self, session: Sequence[tuple[int, float]], changes: Mapping[int, float]) -> dict[str, KernelStats]:
        found = {}
        for number, (shape, level) in enumerate(session):
            factor = 1e6 * 0.7**number * level * changes.get(number, 1.0)
            quantiles = tuple(factor * one for one in self.shapes.quantiles[shape])
            mean = factor * self.shapes.means[shape]
            found[f"k{number}"] = KernelStats(
                f"k{number}", DISPATCHES, round(mean * DISPATCHES), mean, quantiles[QUANTILES // 2],
                None, quantiles[0], quantiles[-1], 0.0, quantiles=quantiles,
            )  # fmt: skip
        return found

    def dispatches(self, sessions: int) -> list[list[float]]:
        """Return the first kernel's durations, session by session."""
        drawn = [self._session(levels) for levels in self.noise.levels(self.source, sessions, self.kernels)]
        return [[level * ns for ns in self.shapes.durations[shape]] for ((shape, level), *_) in drawn]
