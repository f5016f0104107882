"""Interleaved A/B measurement: sides, repeats, medians and spreads. Pure but for the calls."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Note = float | int | str


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure's values, one a repeat, in order."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The largest value."""
        return max(self.values)


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: each call of ``run`` does the work once and returns its figure."""

    name: str
    run: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one side gave."""

    name: str
    spread: Spread


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    ``value`` is the ratio of the two ``sides``, the first over the second, or a figure in ``unit``
    where there are no sides.  ``side_unit`` is that of the sides; ``notes`` are further figures by name.
    """

    name: str
    value: Spread
    unit: str = "x"
    sides: tuple[Measured, ...] = ()
    side_unit: str = ""
    notes: Mapping[str, Note] = field(default_factory=dict)


def interleave(sides: Sequence[Side], repeats: int) -> list[Measured]:
    """Run every side once unmeasured, then ``repeats`` times, the order turned round each time."""
    for side in sides:
        side.run()
    taken: dict[int, list[float]] = {place: [] for place in range(len(sides))}
    for repeat in range(repeats):
        order = range(len(sides)) if repeat % 2 == 0 else reversed(range(len(sides)))
        for place in order:
            taken[place].append(sides[place].run())
    return [Measured(side.name, Spread(tuple(taken[place]))) for place, side in enumerate(sides)]


def compare(
    name: str,
    ours: Side,
    other: Side,
    repeats: int,
    unit: str,
    notes: Mapping[str, Note] | None = None,
) -> Row:
    """The ratio ours / other of the sides' figures in ``unit``, taken repeat by repeat."""
    first, second = interleave([ours, other], repeats)
    return ratio(name, first, second, unit, notes)


def ratio(
    name: str, ours: Measured, other: Measured, unit: str, notes: Mapping[str, Note] | None = None
) -> Row:
    """A row of two sides that were measured in the same repeats."""
    pairs = zip(ours.spread.values, other.spread.values, strict=True)
    return Row(name, Spread(tuple(a / b for a, b in pairs)), "x", (ours, other), unit, notes or {})
