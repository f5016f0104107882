"""Personalised reserves: a least bid for what an ad is to a question, learned by simulated revenue.

A reserve is looked up by the ad's category and its traits, else by its theme and traits, else by its
traits, else there is one for all.  What is learned at one depth begins at what was learned above it, so
that a cell with few auctions keeps its parent's.  No auction price and no reserve of the log is read, only
bids, which count as values: under first price bidders may shade theirs, and then the reserves are too low,
not too high.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from raylla.auction.checks import Array
from raylla.pricing.curve import AllocationCurve, Flags
from raylla.pricing.logs import AuctionLog, rates_at
from raylla.pricing.rule import quote

DEPTHS = ("none", "one", "traits", "theme", "category")
"""How far reserves are personal, from not at all."""
_STEPS = 20
"""Reserves tried for each cell, evenly over the bids."""
LEAST_ADS = 40
"""Candidates that a cell needs in the log for a reserve of its own."""


@dataclass(frozen=True, slots=True)
class Reserves:
    """Least bids in units: for all, and by `key` where there is one of its own."""

    all: float = 1.0
    by: Mapping[str, float] = field(default_factory=dict)

    def of(self, category: str, theme: str, traits: str) -> float:
        """That of an ad."""
        for depth in reversed(DEPTHS[2:]):
            reserve = self.by.get(key(depth, category, theme, traits))
            if reserve is not None:
                return reserve
        return self.all

    def table(self, log: AuctionLog) -> Array:
        """That of each candidate [a, n]; 1 where there is none."""
        return np.array([*(self.of(*name) for name in log.names), 1.0])[log.cells]


def key(depth: str, category: str, theme: str, traits: str) -> str:
    """The cell of an ad at a depth, such as ``category=tea 110``."""
    return {
        "none": "",
        "one": "",
        "traits": traits,
        "theme": f"theme={theme} {traits}",
        "category": f"category={category} {traits}",
    }[depth]


@dataclass(frozen=True, slots=True)
class Simulated:
    """What each auction comes to, [a]: revenue, welfare and the advertisers' surplus, in bid units."""

    revenue: Array
    welfare: Array

    @property
    def surplus(self) -> Array:
        """Welfare that the advertisers keep."""
        return self.welfare - self.revenue


def simulate_truth(
    curve: AllocationCurve, rates: dict[str, float], log: AuctionLog, reserves: Array
) -> Simulated:
    """What auctions come to at Myerson's prices above ``reserves`` [a, n] where all bid their values."""
    quoted = quote(curve, log.contests, reserves)
    clicks = quoted.shares * rates_at(rates, log.contests.traits)
    return Simulated((clicks * quoted.prices).sum(axis=1), (clicks * log.contests.bids).sum(axis=1))


@dataclass(slots=True)
class _Market:
    """A log with what its auctions come to under the reserves so far."""

    log: AuctionLog
    reserves: Array
    now: Simulated

    def cells(self, depth: str) -> NDArray[np.object_]:
        """The cell [a, n] of each candidate at a depth; None where there is none."""
        return np.array([*(key(depth, *name) for name in self.log.names), None], dtype=object)[
            self.log.cells
        ]


def learn_reserves(
    curve: AllocationCurve, logs: Sequence[AuctionLog], rates: dict[str, float], least_surplus: float
) -> dict[str, Reserves]:
    """The reserves of each of `DEPTHS` that earn most over ``logs``, whose names are the same.

    Coordinate ascent over the cells, from the widest.  In total the advertisers' surplus is never brought
    below ``least_surplus`` (bid units); where it is there without reserves, there are none.
    """
    markets = []
    for log in logs:
        reserves = np.ones_like(log.contests.bids)
        markets.append(_Market(log, reserves, simulate_truth(curve, rates, log, reserves)))
    tried = np.unique(np.round(np.linspace(1, curve.largest, _STEPS)))
    by_depth, values = {DEPTHS[0]: Reserves()}, dict[str, float]()
    for depth in DEPTHS[1:]:
        tables = [market.cells(depth) for market in markets]
        for cell in sorted({key(depth, *name) for name in logs[0].names}):
            members = [table == cell for table in tables]
            if sum(int(member.sum()) for member in members) >= LEAST_ADS:
                best = _best(curve, rates, markets, members, tried, least_surplus)
                values |= {} if best is None else {cell: best}
        own = dict(values)
        by_depth[depth] = Reserves(own.pop("", 1.0), own)
    return by_depth


def _best(
    curve: AllocationCurve,
    rates: dict[str, float],
    markets: Sequence[_Market],
    members: Sequence[Flags],
    tried: Array,
    floor: float,
) -> float | None:
    """The reserve of ``tried`` that earns most where the candidates ``members`` [a, n] of each market have
    it, which they then do; None where theirs are as good."""
    rows: list[Flags] = [np.asarray(member.any(axis=1)) for member in members]
    best = sum(float(market.now.revenue.sum()) for market in markets)
    kept = sum(float(market.now.revenue[~here].sum()) for market, here in zip(markets, rows, strict=True))
    left = sum(float(market.now.surplus[~here].sum()) for market, here in zip(markets, rows, strict=True))
    chosen: tuple[float, list[tuple[Array, Simulated]]] | None = None
    for reserve in tried.tolist():
        changes = []
        for market, member, here in zip(markets, members, rows, strict=True):
            changed = np.where(member[here], reserve, market.reserves[here])
            changes.append((changed, simulate_truth(curve, rates, market.log.rows(here), changed)))
        revenue = kept + sum(float(now.revenue.sum()) for _, now in changes)
        surplus = left + sum(float(now.surplus.sum()) for _, now in changes)
        if revenue > best * (1 + 1e-9) and surplus >= floor:
            best, chosen = revenue, (reserve, changes)
    if chosen is None:
        return None
    for market, here, (changed, now) in zip(markets, rows, chosen[1], strict=True):
        market.reserves[here] = changed
        market.now.revenue[here], market.now.welfare[here] = now.revenue, now.welfare
    return chosen[0]
