"""Compute Student's t distribution: what the standard library lacks. Pure.

The tail is a regularised incomplete beta function (Abramowitz and Stegun 26.5.27), by its continued fraction (26.5.8)
in Lentz's form; ten digits, which the tests check against published tables.
"""

from __future__ import annotations

import math
from statistics import NormalDist

_SMALLEST = 1e-300
_STEPS = 500
_CLOSE = 1e-13


def two_sided(t: float, freedom: float) -> float:
    """Return the probability of a value at least as far from zero as `t`, for degrees of freedom above 0."""
    return _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def critical(probability: float, freedom: float) -> float:
    """Return the `t` above 0 whose `two_sided` is the given probability, from above 0 to below 1.

    Newton's method on the logarithms of both: the curve is concave there, so it converges from every start.
    """
    normal = NormalDist().inv_cdf(1 - probability / 2) if probability > 1e-12 else 7.0
    place = math.log(max(normal * (1 + (normal * normal + 1) / (4 * freedom)), 1e-6))
    wanted = math.log(probability)
    for _ in range(_STEPS):
        t = math.exp(place)
        tail = two_sided(t, freedom)
        step = (math.log(max(tail, _SMALLEST)) - wanted) * tail / (2 * _density(t, freedom) * t)
        place += step
        if abs(step) < 1e-10:
            break
    return math.exp(place)


def _density(t: float, freedom: float) -> float:
    constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    return math.exp(constant - (freedom + 1) / 2 * math.log1p(t * t / freedom))


def _incomplete_beta(x: float, a: float, b: float) -> float:
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x < (a + 1) / (a + b + 2):
        return math.exp(front) * _fraction(x, a, b) / a
    return 1.0 - math.exp(front) * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """Return the continued fraction; it converges fast for x below (a + 1) / (a + b + 2)."""
    upper, lower = 1.0, 1.0 / _away(1.0 - (a + b) * x / (a + 1))
    value = lower
    for m in range(1, _STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = value
        for term in (even, odd):
            lower = 1.0 / _away(1.0 + term * lower)
            upper = _away(1.0 + term / upper)
            value *= lower * upper
        if abs(value - before) <= _CLOSE * abs(value):
            break
    return value


def _away(value: float) -> float:
    """Keep a divisor off zero."""
    return value if abs(value) > _SMALLEST else _SMALLEST
