"""Where bidders settle on an allocation curve, all auctions at once, and what that comes to.

Bidders of a goal (`raylla.auction.incentives`) improve their bids in turn, all rivals' bids known.  Under
first price such bids need not come to rest: who cannot win lets go, the winner follows, and the first comes
back.  So not one round counts but the mean of the last ones.  `shading` is the other reading of a utility
maximizer, who knows how bids are distributed and not the rivals' own: all bid one share of their values, at
which no other share pays better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raylla.auction.checks import Array
from raylla.auction.incentives import Goal
from raylla.pricing.curve import AllocationCurve, Contests
from raylla.pricing.rule import bid_grid, click_prices

ROUNDS, _KEPT = 12, 2
"""Rounds of best responses, and the last of them that count."""
FACTORS = np.round(np.arange(0.2, 1.001, 0.05), 2)
"""Shares of their values that shading bidders choose from."""
LEAST_GAIN = 0.01
"""Who gains less than this share of its value, per answer of its own, keeps its bid: above the truth a
higher bid costs next to nothing where it wins nothing, and bids would drift on the error of a fit."""
_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Settling:
    """The bids [a, n] of the rounds that count, and in which share of the auctions the last one changed
    nothing."""

    rounds: tuple[Array, ...]
    settled: float


def best_respond(
    curve: AllocationCurve,
    values: Contests,
    reserves: Array | None,
    goal: Goal,
    rng: np.random.Generator,
    charged: AllocationCurve | None = None,
) -> Settling:
    """Best responses of bidders whose values are the bids of ``values``, under ``reserves`` [a, n] or first
    price (None); value maximizers want a return on spend of 1.

    ``curve`` is what they know of the allocation; prices above reserves are those on ``charged``, where
    that is another.  All begin with their values.  In a round each takes the lowest of its best bids of
    the grid, or keeps its own where that is as good but for `LEAST_GAIN`.
    """
    game = _Game(curve, charged or curve, values, reserves, goal)
    grid = bid_grid(curve.largest)
    bids, rounds = values.bids.copy(), []
    moved = np.ones(len(values), np.bool_)
    for _ in range(ROUNDS):
        moved = np.zeros(len(values), np.bool_)
        for place in rng.permutation(values.bids.shape[1]).tolist():
            worth = game.worth(bids, place, grid)
            own = np.take_along_axis(worth, np.searchsorted(grid, bids[:, place])[:, None], axis=1)[:, 0]
            best = worth.max(axis=1)
            better = values.there[:, place] & (own < best - LEAST_GAIN * values.bids[:, place])
            lowest = grid[(worth >= best[:, None] - _SLACK).argmax(axis=1)]
            bids[:, place] = np.where(better, lowest, bids[:, place])
            moved |= better
        rounds.append(bids.copy())
        if not moved.any():
            break
    kept = rounds[-1:] if not moved.any() else rounds[-_KEPT:]
    return Settling(tuple(kept), float(1 - moved.mean()))


@dataclass(frozen=True, slots=True)
class _Game:
    """What bidders know, are charged by, and want."""

    curve: AllocationCurve
    charged: AllocationCurve
    values: Contests
    reserves: Array | None
    goal: Goal

    def worth(self, bids: Array, place: int, grid: Array) -> Array:
        """What each bid of the grid [a, g] is worth to the bidder at ``place``, beside the ``bids``
        [a, n] of the others, per click once it is placed."""
        contests, reserves, there = self.values.at(bids), self.reserves, self.values.there
        entered = there if reserves is None else there & (bids >= reserves)
        shares = self.curve.along(contests, entered, grid, [place])[:, 0]
        prices = np.broadcast_to(grid, shares.shape)
        if reserves is not None:
            along = shares
            if self.charged is not self.curve:
                along = self.charged.along(contests, entered, grid, [place])[:, 0]
            prices = click_prices(along, grid, reserves[:, place])
            shares = np.where(np.isnan(prices), 0.0, shares)
            prices = np.nan_to_num(prices)
        value = self.values.bids[:, place, None]
        if self.goal == "utility":
            return shares * (value - prices)
        return np.where(value + _SLACK >= prices, shares * value, -np.inf)


def shade(curve: AllocationCurve, values: Contests, clicks: Array) -> tuple[Array, float]:
    """Bids [a, n] of shading bidders under first price, and their share of the value.

    It is the share of `FACTORS` from which a single bidder gains least by taking another; ``clicks``
    [a, n] are the click rates once placed.
    """
    grid, worth = bid_grid(curve.largest), np.where(values.there, clicks, 0.0)
    gains = []
    for factor in FACTORS:
        along = curve.along(values.at(shaded(values.bids, factor)), values.there, grid)
        earned = []
        for other in FACTORS:
            bids = shaded(values.bids, other)
            shares = np.take_along_axis(along, np.searchsorted(grid, bids)[..., None], axis=2)[..., 0]
            earned.append(float((worth * shares * (values.bids - bids)).sum()))
        gains.append(max(earned) - earned[int(np.flatnonzero(factor == FACTORS)[0])])
    chosen = float(FACTORS[int(np.argmin(gains))])
    return shaded(values.bids, chosen), chosen


def shaded(values: Array, factor: float) -> Array:
    """``factor`` of the values, on the grid."""
    result: Array = np.maximum(1.0, np.round(values * factor))
    return result
