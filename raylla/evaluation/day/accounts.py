"""What the days of a mechanism and a market came to: figures of the last day, and how it got there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raylla.auction.checks import Array
from raylla.config import Config
from raylla.evaluation.day.market import PERIODS
from raylla.evaluation.day.play import Played
from raylla.figures.intervals import Figure, bounded, means, quotients

QUARTER = PERIODS // 4
USED_UP = 0.95
"""Share of a budget from which on it counts as used up."""
_DIGITS = 4
"""Decimals of what is only plotted."""


@dataclass(frozen=True, slots=True)
class DayAccount:
    """The days of one training seed: ``users`` [days, q] of each query, each advertiser's daily budget
    [n] and kind [n], what was played, and of each day [days] the liquid welfare and the most of it with
    hindsight, by the mechanism's ``own`` answers and by ``any`` that were seen."""

    users: NDArray[np.int64]
    budgets: Array
    kinds: NDArray[np.str_]
    played: Played
    liquid: Array
    own: Array
    any: Array

    def advertisers(self, kind: str | None = None) -> Array:
        """Value, payment and budget of each on the last day [n, 3], perhaps of one kind."""
        sums = np.stack(
            [self.played.value[-1].sum(axis=0), self.played.paid[-1].sum(axis=0), self.budgets], axis=1
        )
        result: Array = sums if kind is None else sums[self.kinds == kind]
        return result

    def moved(self, kind: str | None = None) -> Array:
        """How far multiples still move on each day [days]: between the means of its last quarter and of
        the one before, the mean over advertisers."""
        chosen = self.played.multiples[:, :, self.kinds == kind if kind else slice(None)]
        before, last = (chosen[:, PERIODS - part * QUARTER :][:, :QUARTER].mean(axis=1) for part in (2, 1))
        result: Array = np.abs(last - before).mean(axis=1)
        return result


def market_row(seeds: Sequence[DayAccount], config: Config) -> dict[str, Any]:
    """A mechanism's row in one market: figures of the last day with their intervals, the same by kind of
    bidder, each day's course, and the curves of the plots.

    Intervals over queries (``revenue``, ``welfare``: per user) and over advertisers (``budget_use``,
    ``return``) hold the others fixed; the price of anarchy has one over seeds alone.
    """
    resamples, rng = config.evaluation.bootstrap, np.random.default_rng(config.seed)
    above = [
        np.stack([seed.played.paid[-1].sum(axis=1), seed.played.value[-1].sum(axis=1)], axis=1)
        for seed in seeds
    ]
    below = [np.repeat(seed.users[-1][:, None], 2, axis=1) for seed in seeds]
    row: dict[str, Any] = {
        name: bounded(figure, 0)
        for name, figure in zip(
            ("revenue", "welfare"), quotients(above, below, resamples, rng), strict=True
        )
    }
    row |= _advertisers([seed.advertisers() for seed in seeds], resamples, rng)
    row["price_of_anarchy"] = _over_seeds([_ratio(seed.own, seed.liquid)[-1] for seed in seeds])
    row["price_of_anarchy_any"] = _over_seeds([_ratio(seed.any, seed.liquid)[-1] for seed in seeds])
    row["moved"] = _over_seeds([seed.moved()[-1] for seed in seeds])
    kinds = list(dict.fromkeys(str(kind) for seed in seeds for kind in seed.kinds))
    row["bidders"] = {
        kind: _advertisers([seed.advertisers(kind) for seed in seeds if kind in seed.kinds], resamples, rng)
        | {"moved": _over_seeds([seed.moved(kind)[-1] for seed in seeds if kind in seed.kinds])}
        for kind in kinds
    }
    candidates = sum(seed.played.entered + seed.played.kept_out.total() for seed in seeds)
    reasons = sorted({reason for seed in seeds for reason in seed.played.kept_out})
    row["kept_out"] = {
        reason: sum(seed.played.kept_out[reason] for seed in seeds) / max(1, candidates)
        for reason in reasons
    }
    row["days"] = _course(seeds)
    row["curves"] = {kind: _curves([seed for seed in seeds if kind in seed.kinds], kind) for kind in kinds}
    row["seeds"] = len(seeds)
    return row


def _advertisers(tables: Sequence[Array], resamples: int, rng: np.random.Generator) -> dict[str, Any]:
    """Of tables of value, payment and budget [n, 3]: the share of budgets spent, value per unit spent,
    not defined where nothing was, and the share of advertisers whose budget is used up."""
    above, below = [table[:, [1, 0]] for table in tables], [table[:, [2, 1]] for table in tables]
    use, back = quotients(above, below, resamples, rng)
    spent = any(table[:, 1].any() for table in tables)
    full = [(table[:, [1]] >= USED_UP * table[:, [2]]).astype(float) for table in tables]
    return {
        "budget_use": bounded(use, 0, 1),
        "return": bounded(back, 0) if spent else dict.fromkeys(back, math.nan),
        "used_up": bounded(means(full, resamples, rng)[0], 0, 1),
        "advertisers": sum(map(len, tables)),
    }


def _course(seeds: Sequence[DayAccount]) -> list[dict[str, float]]:
    """Each day's figures, means over seeds."""
    days = []
    for day in range(len(seeds[0].users)):
        figures = [
            {
                "revenue": seed.played.paid[day].sum() / seed.users[day].sum(),
                "welfare": seed.played.value[day].sum() / seed.users[day].sum(),
                "liquid_welfare": seed.liquid[day] / seed.users[day].sum(),
                "budget_use": seed.played.paid[day].sum() / seed.budgets.sum(),
                "beyond_budgets": seed.played.unpaid[day]
                / max(seed.played.unpaid[day] + seed.played.paid[day].sum(), np.finfo(float).tiny),
                "price_of_anarchy": _ratio(seed.own, seed.liquid)[day],
                "price_of_anarchy_any": _ratio(seed.any, seed.liquid)[day],
                "moved": seed.moved()[day],
            }
            for seed in seeds
        ]
        days.append({name: float(np.mean([figure[name] for figure in figures])) for name in figures[0]})
    return days


def _curves(seeds: Sequence[DayAccount], kind: str) -> dict[str, list[float]]:
    """Of one kind of bidder, means over seeds: the share of its budgets that is gone after each period of
    the last day, and its mean multiple in each period of all days."""
    spent = [
        seed.played.spent[-1][:, seed.kinds == kind].sum(axis=1).cumsum()
        / seed.budgets[seed.kinds == kind].sum()
        for seed in seeds
    ]
    multiples = [seed.played.multiples[:, :, seed.kinds == kind].mean(axis=2).ravel() for seed in seeds]
    return {
        "spent": np.mean(spent, axis=0).round(_DIGITS).tolist(),
        "multiples": np.mean(multiples, axis=0).round(_DIGITS).tolist(),
    }


def _ratio(best: Array, had: Array) -> Array:
    """Optimum over what was had [days]; not defined where nothing was."""
    return np.divide(best, had, out=np.full_like(best, np.nan), where=had > 0)


def _over_seeds(values: Sequence[float]) -> Figure:
    """The mean, with an interval where there are several."""
    if len(values) == 1 or not np.isfinite(values).all():
        return {"mean": float(np.mean(values)), "low": math.nan, "high": math.nan}
    return bounded(means([[[value]] for value in values], 1, np.random.default_rng(0))[0], 0)
