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
        found = np.stack(
            [self.played.value[-1].sum(axis=0), self.played.paid[-1].sum(axis=0), self.budgets], axis=1
        )
        result: Array = found if kind is None else found[self.kinds == kind]
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
        np.stack([one.played.paid[-1].sum(axis=1), one.played.value[-1].sum(axis=1)], axis=1)
        for one in seeds
    ]
    below = [np.repeat(one.users[-1][:, None], 2, axis=1) for one in seeds]
    found: dict[str, Any] = {
        name: bounded(one, 0)
        for name, one in zip(("revenue", "welfare"), quotients(above, below, resamples, rng), strict=True)
    }
    found |= _advertisers([one.advertisers() for one in seeds], resamples, rng)
    found["price_of_anarchy"] = _over_seeds([_ratio(one.own, one.liquid)[-1] for one in seeds])
    found["price_of_anarchy_any"] = _over_seeds([_ratio(one.any, one.liquid)[-1] for one in seeds])
    found["moved"] = _over_seeds([one.moved()[-1] for one in seeds])
    kinds = list(dict.fromkeys(str(kind) for one in seeds for kind in one.kinds))
    found["bidders"] = {
        kind: _advertisers([one.advertisers(kind) for one in seeds if kind in one.kinds], resamples, rng)
        | {"moved": _over_seeds([one.moved(kind)[-1] for one in seeds if kind in one.kinds])}
        for kind in kinds
    }
    candidates = sum(one.played.entered + one.played.kept_out.total() for one in seeds)
    reasons = sorted({reason for one in seeds for reason in one.played.kept_out})
    found["kept_out"] = {
        reason: sum(one.played.kept_out[reason] for one in seeds) / max(1, candidates) for reason in reasons
    }
    found["days"] = _course(seeds)
    found["curves"] = {kind: _curves([one for one in seeds if kind in one.kinds], kind) for kind in kinds}
    found["seeds"] = len(seeds)
    return found


def _advertisers(tables: Sequence[Array], resamples: int, rng: np.random.Generator) -> dict[str, Any]:
    """Of tables of value, payment and budget [n, 3]: the share of budgets spent, value per unit spent,
    not defined where nothing was, and the share of advertisers whose budget is used up."""
    above, below = [one[:, [1, 0]] for one in tables], [one[:, [2, 1]] for one in tables]
    use, back = quotients(above, below, resamples, rng)
    spent = any(one[:, 1].any() for one in tables)
    full = [(one[:, [1]] >= USED_UP * one[:, [2]]).astype(float) for one in tables]
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
                "revenue": one.played.paid[day].sum() / one.users[day].sum(),
                "welfare": one.played.value[day].sum() / one.users[day].sum(),
                "liquid_welfare": one.liquid[day] / one.users[day].sum(),
                "budget_use": one.played.paid[day].sum() / one.budgets.sum(),
                "beyond_budgets": one.played.unpaid[day]
                / max(one.played.unpaid[day] + one.played.paid[day].sum(), np.finfo(float).tiny),
                "price_of_anarchy": _ratio(one.own, one.liquid)[day],
                "price_of_anarchy_any": _ratio(one.any, one.liquid)[day],
                "moved": one.moved()[day],
            }
            for one in seeds
        ]
        days.append({name: float(np.mean([one[name] for one in figures])) for name in figures[0]})
    return days


def _curves(seeds: Sequence[DayAccount], kind: str) -> dict[str, list[float]]:
    """Of one kind of bidder, means over seeds: the share of its budgets that is gone after each period of
    the last day, and its mean multiple in each period of all days."""
    spent = [
        one.played.spent[-1][:, one.kinds == kind].sum(axis=1).cumsum()
        / one.budgets[one.kinds == kind].sum()
        for one in seeds
    ]
    multiples = [one.played.multiples[:, :, one.kinds == kind].mean(axis=2).ravel() for one in seeds]
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
    return bounded(means([[[one]] for one in values], 1, np.random.default_rng(0))[0], 0)
