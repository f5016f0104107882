"""Shares with their intervals, and what one of something costs."""

from __future__ import annotations

from fractions import Fraction
from math import sqrt

from raylla.serving.money.money import Micros

Z = 1.959963984540054
"""Of the normal distribution, for 95 %."""


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, ``hits`` of ``of`` > 0: it holds at shares near 0 and 1 too."""
    share = hits / of
    middle = share + Z**2 / (2 * of)
    half = Z * sqrt(share * (1 - share) / of + Z**2 / (4 * of**2))
    scale = 1 + Z**2 / of
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def each(micros: Micros, count: int) -> Micros | None:
    """What one of ``count`` costs, rounded half to even; None where there is none."""
    return round(Fraction(micros, count)) if count else None
