"""Learning a price sheet: the curve, then reserves as personal as cross-fitting bears out, within bounds.

    every fold k of questions    curve, click rates and the reserves of each depth, without k
                                 what they earn on k, whose own curve says what is allocated and clicked
    the depth                    the simplest within one standard error of the best that keeps the bounds
    the sheet                    the curve, and the reserves of that depth, of the whole log

Bounds: the regret of bidding the truth (`most_regret`; none: that of first price), and the advertisers'
surplus as a share of what first price leaves to bidders who shade (`least_surplus`); bidders who circle
would keep more for as long as they do.  No one loses: prices are never above the bid.  Each auction counts
as it was logged and with fewer of its candidates, for in thin markets reserves matter most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raylla.auction.checks import Array
from raylla.errors import DataError
from raylla.pricing.bidders import best_respond, shade
from raylla.pricing.curve import AllocationCurve, fit_curve
from raylla.pricing.logs import AuctionLog, by_question, click_rates, rates_at
from raylla.pricing.reserves import DEPTHS, Reserves, learn_reserves
from raylla.pricing.rule import bid_grid, click_prices
from raylla.pricing.sheet import PriceSheet, written

LEAST_LOGGED = 50
MOST_AUCTIONS = 400
"""Auctions on which reserves are searched; the curve is fitted to all."""
BINS = 10


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a sheet must keep: ``most_regret`` of the truth, bid units per advertiser and auction (None: no
    more than first price's), and ``least_surplus``, a share of what shading leaves them there."""

    most_regret: float | None = None
    least_surplus: float = 0.8


@dataclass(frozen=True, slots=True)
class _Held:
    """What came of some auctions [a] or questions: revenue, welfare, and the regret of the truth."""

    revenue: Array
    welfare: Array
    regret: Array

    @property
    def surplus(self) -> Array:
        """Welfare that the advertisers keep."""
        return self.welfare - self.revenue

    @classmethod
    def made(cls, parts: Sequence[_Held], how: Callable[[list[Array]], Array]) -> _Held:
        """``how`` of each of the parts' figures."""
        return cls(
            how([part.revenue for part in parts]),
            how([part.welfare for part in parts]),
            how([part.regret for part in parts]),
        )


def learn_sheet(
    log: AuctionLog,
    largest: float,
    folds: int,
    bidders: Sequence[int],
    bounds: Bounds,
    seed: int,
    about: dict[str, Any],
) -> PriceSheet:
    """The sheet that a log teaches; its report has what was found on the way and ``about``.

    Raises:
        DataError: fewer than `LEAST_LOGGED` auctions, or a fold without an answer.
    """
    if len(log) < LEAST_LOGGED:
        raise DataError(f"{len(log)} logged auctions are too few to learn prices from; give {LEAST_LOGGED}")
    held: dict[str, list[_Held]] = {}
    calibrated = []
    for fold in range(folds):
        inside, outside = log.rows(log.folds != fold), log.rows(log.folds == fold)
        if min(inside.placed.sum(), outside.placed.sum()) <= 0:
            raise DataError(f"fold {fold} of {folds} has no placed ad to learn from; give more auctions")
        curve = fit_curve(inside.contests, inside.placed, inside.answers, largest)
        calibrated.append(_predicted(curve, outside))
        for name, outcome in _fold(curve, inside, outside, bidders, bounds, seed + fold).items():
            held.setdefault(name, []).append(outcome)
    table = {name: _joined(parts) for name, parts in held.items()}
    depth = _chosen(table, bounds)
    curve = fit_curve(log.contests, log.placed, log.answers, largest)
    rates, markets = click_rates(log), _markets(_some(log, seed), bidders, seed)
    floor = bounds.least_surplus * sum(_shaded(curve, rates, market).surplus.sum() for market in markets)
    reserves = learn_reserves(curve, markets, rates, floor)[depth]
    report = {
        **about,
        "auctions": len(log),
        "answers": int(log.answers.sum()),
        "folds": folds,
        "bidders": list(bidders),
        "bounds": {"most_regret": bounds.most_regret, "least_surplus": bounds.least_surplus},
        "depth": depth,
        "cross_fitted": {name: _summary(held) for name, held in table.items()},
        "calibration": _calibration(calibrated),
    }
    return written(curve, reserves, rates, report)


def _fold(
    curve: AllocationCurve,
    inside: AuctionLog,
    outside: AuctionLog,
    bidders: Sequence[int],
    bounds: Bounds,
    seed: int,
) -> dict[str, _Held]:
    """What first price and every depth learned ``inside`` come to ``outside``, by its own curve, a number
    per question."""
    rates, real = click_rates(inside), click_rates(outside)
    true = fit_curve(outside.contests, outside.placed, outside.answers, curve.largest)
    markets = _markets(_some(inside, seed), bidders, seed)
    floor = bounds.least_surplus * sum(_shaded(curve, rates, market).surplus.sum() for market in markets)
    tested = _markets(outside, bidders, seed)
    by_rule = {"first_price": _mean([_first(true, real, market, seed) for market in tested])}
    by_rule["first_price_shading"] = _mean([_shaded(true, real, market) for market in tested])
    for depth, reserves in learn_reserves(curve, markets, rates, floor).items():
        by_rule[depth] = _mean([_priced(curve, reserves, true, real, market) for market in tested])
    return {
        name: _Held.made([outcomes], lambda parts: by_question(parts[0], outside.asked))
        for name, outcomes in by_rule.items()
    }


def _first(curve: AllocationCurve, rates: dict[str, float], log: AuctionLog, seed: int) -> _Held:
    """First price where utility maximizers settle; the regret is that of the truth."""
    contests, clicks = log.contests, rates_at(rates, log.contests.traits)
    settled = best_respond(curve, contests, None, "utility", np.random.default_rng(seed))
    revenue, welfare = [], []
    for bids in settled.rounds:
        got = clicks * curve.shares(contests.at(bids), contests.there)
        revenue.append((got * bids).sum(axis=1))
        welfare.append((got * contests.bids).sum(axis=1))
    return _Held(np.mean(revenue, axis=0), np.mean(welfare, axis=0), _forgone(curve, clicks, log))


def _shaded(curve: AllocationCurve, rates: dict[str, float], log: AuctionLog) -> _Held:
    """First price where all bid one share of their values; the regret is that of the truth."""
    contests, clicks = log.contests, rates_at(rates, log.contests.traits)
    bids, _ = shade(curve, contests, clicks)
    got = clicks * curve.shares(contests.at(bids), contests.there)
    welfare = (got * contests.bids).sum(axis=1)
    return _Held((got * bids).sum(axis=1), welfare, _forgone(curve, clicks, log))


def _forgone(curve: AllocationCurve, clicks: Array, log: AuctionLog) -> Array:
    """What the truth forgoes under first price, where it gains nothing [a]."""
    contests, grid = log.contests, bid_grid(curve.largest)
    along = curve.along(contests, contests.there, grid)
    return _each((along * (contests.bids[..., None] - grid)).max(axis=2) * clicks, log)


def _priced(
    curve: AllocationCurve,
    reserves: Reserves,
    true: AllocationCurve,
    rates: dict[str, float],
    log: AuctionLog,
) -> _Held:
    """Truthful bids at the prices of ``curve`` where ``true`` allocates; the regret of that truth."""
    contests, clicks = log.contests, rates_at(rates, log.contests.traits)
    table, grid = reserves.table(log), bid_grid(curve.largest)
    entered = contests.there & (contests.bids >= table)
    prices = click_prices(curve.along(contests, entered, grid), grid, table)
    shares = np.where(np.isnan(prices), 0.0, true.along(contests, entered, grid))
    prices = np.nan_to_num(prices)
    at = np.searchsorted(grid, contests.bids)[..., None]
    utility = shares * (contests.bids[..., None] - prices)
    regret = (utility.max(axis=2) - np.take_along_axis(utility, at, axis=2)[..., 0]) * clicks
    got = np.where(entered, np.take_along_axis(shares, at, axis=2)[..., 0], 0.0) * clicks
    paid = np.take_along_axis(prices, at, axis=2)[..., 0]
    return _Held((got * paid).sum(axis=1), (got * contests.bids).sum(axis=1), _each(regret, log))


def _each(regret: Array, log: AuctionLog) -> Array:
    """Mean over an auction's candidates."""
    there = log.contests.there
    result: Array = np.where(there, regret, 0.0).sum(axis=1) / np.maximum(1, there.sum(axis=1))
    return result


def _markets(log: AuctionLog, bidders: Sequence[int], seed: int) -> list[AuctionLog]:
    return [log, *(log.thinned(count, seed) for count in bidders)]


def _some(log: AuctionLog, seed: int) -> AuctionLog:
    if len(log) <= MOST_AUCTIONS:
        return log
    return log.rows(np.sort(np.random.default_rng(seed).permutation(len(log))[:MOST_AUCTIONS]))


def _mean(markets: Sequence[_Held]) -> _Held:
    return _Held.made(markets, lambda values: np.mean(values, axis=0))


def _joined(parts: Sequence[_Held]) -> _Held:
    return _Held.made(parts, np.concatenate)


def _summary(held: _Held) -> dict[str, float]:
    summary = {"revenue": held.revenue, "surplus": held.surplus, "regret": held.regret}
    return {name: float(value.mean()) for name, value in summary.items()}


def _chosen(table: dict[str, _Held], bounds: Bounds) -> str:
    """The simplest depth within a standard error of the best of those that keep the bounds; "none" where
    none does.

    A fold's reserves keep the floor of the surplus to the unit where they were searched, and about so on
    the rest: a depth that is short there by a standard error or less keeps it.
    """
    first, shading = table["first_price"], table["first_price_shading"]
    regret = first.regret.mean() if bounds.most_regret is None else bounds.most_regret
    kept = [
        depth
        for depth in DEPTHS
        if table[depth].regret.mean() <= regret
        and not _short(bounds.least_surplus * shading.surplus - table[depth].surplus)
    ]
    if not kept:
        return "none"
    best = max(kept, key=lambda depth: float(table[depth].revenue.mean()))
    return next((depth for depth in kept if not _short(table[best].revenue - table[depth].revenue)), best)


def _short(missing: Array) -> bool:
    """Whether what is missing, a number per question, is more than its standard error."""
    return bool(missing.mean() > missing.std() / np.sqrt(len(missing)))


def _predicted(curve: AllocationCurve, log: AuctionLog) -> tuple[Array, Array, Array, Array]:
    """Predicted and placed answers of each candidate, and its answers; log loss, that of equal shares, and
    answers of all."""
    there = log.contests.there
    shares = curve.shares(log.contests, there)
    none = log.answers - log.placed.sum(axis=1)
    least = 1e-12
    loss = -(log.placed * np.log(np.maximum(shares, least))).sum()
    loss -= (none * np.log(np.maximum(1 - shares.sum(axis=1), least))).sum()
    even = (log.answers * np.log(1 + there.sum(axis=1))).sum()
    answers = np.broadcast_to(log.answers[:, None], there.shape)[there]
    return shares[there] * answers, log.placed[there], answers, np.array([loss, even, log.answers.sum()])


def _calibration(parts: Sequence[tuple[Array, Array, Array, Array]]) -> dict[str, Any]:
    """How the shares of held-out auctions were predicted: by tenths of the candidates, the mean predicted
    and the mean found; their mean distance; nats per answer, beside equal shares for all and for no ad."""
    wanted, placed, answers = (np.concatenate([part[at] for part in parts]) for at in range(3))
    order = np.argsort(wanted / answers)
    bins = [
        (float(wanted[some].sum()), float(placed[some].sum()), float(answers[some].sum()))
        for some in np.array_split(order, BINS)
    ]
    total = sum(count for _, _, count in bins)
    loss, even, asked = np.sum([part[3] for part in parts], axis=0).tolist()
    return {
        "bins": [{"predicted": a / c, "found": b / c} for a, b, c in bins if c],
        "error": sum(abs(a - b) for a, b, _ in bins) / total,
        "log_loss": loss / asked,
        "log_loss_of_equal_shares": even / asked,
    }
