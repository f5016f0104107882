"""The price rule `reserve`: Myerson's price above a reserve on an allocation curve, in bid units per click.

With x the share of an ad at each bid it could make (`raylla.pricing.curve`), r its reserve, and nobody
below it in the auction, a click costs

    p(b) = b - (integral of x from r to b) / x(b)        for b >= r

(Myerson 1981; the integral by trapezoids over whole bids, as `raylla.auction.optimum.myerson`).  For x that
does not fall: r <= p(b) <= b, so nobody pays more than it bids; p rises with b; and x(b) p(b) is the
payment that makes the truth a best response, as far as x is right.  How often an ad is clicked once it is
placed cancels out where its own bid does not change it.  The reserve may depend on anything but the bid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raylla.auction.checks import Array
from raylla.pricing.curve import AllocationCurve, Contests, Flags


def bid_grid(largest: float) -> Array:
    """All bids [g] of the grid that models are trained on: whole units from 1."""
    result: Array = np.arange(1, round(largest) + 1).astype(float)
    return result


def click_prices(shares: Array, grid: Array, reserves: Array) -> Array:
    """The price of a click [..., g] at each bid of ``grid`` [g], NaN below the reserve.

    ``shares`` [..., g] are the ad's at those bids, above 0 and not falling; ``reserves`` [...] are bids of
    the grid.
    """
    pieces = (shares[..., 1:] + shares[..., :-1]) / 2 * np.diff(grid)
    area = np.concatenate([np.zeros((*shares.shape[:-1], 1)), np.cumsum(pieces, axis=-1)], axis=-1)
    at = np.searchsorted(grid, reserves)[..., None]
    below = np.take_along_axis(area, at, axis=-1)
    # an area of rounding errors must not put a price outside of [r, b]
    price = np.clip(grid - (area - below) / shares, reserves[..., None], grid)
    return np.where(grid >= reserves[..., None], price, np.nan)


@dataclass(frozen=True, slots=True)
class Quotes:
    """What auctions come to on a curve: who entered [a, n], the shares and prices of a click [a, n], 0
    for those who did not."""

    entered: Flags
    shares: Array
    prices: Array


def quote(curve: AllocationCurve, contests: Contests, reserves: Array | None) -> Quotes:
    """Shares and prices of a click under ``reserves`` [a, n], or under first price (None)."""
    if reserves is None:
        shares = curve.shares(contests, contests.there)
        return Quotes(contests.there, shares, np.where(contests.there, contests.bids, 0.0))
    entered = contests.there & (contests.bids >= reserves)
    grid = bid_grid(curve.largest)
    along = curve.along(contests, entered, grid)
    at = np.searchsorted(grid, contests.bids)[..., None]
    prices = np.take_along_axis(click_prices(along, grid, reserves), at, axis=2)[..., 0]
    shares = np.take_along_axis(along, at, axis=2)[..., 0]
    return Quotes(entered, np.where(entered, shares, 0.0), np.where(entered, prices, 0.0))
