"""How well predictions agree with judges, with intervals over questions. Pure numpy.

n impressions, j judges.  Impressions of one question hang together, so that whole questions are resampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from raylla.auction.checks import Array
from raylla.figures.intervals import Figure
from raylla.reward.calibration import auc, calibration_error, calibration_floor, log_loss

Clicks = NDArray[np.bool_]
Measure = Callable[[NDArray[np.int64]], float]
"""A figure of the impressions at some places, which may repeat."""


def against_judge(
    predicted: Array, clicked: Clicks, questions: Sequence[str], resamples: int, seed: int
) -> dict[str, Figure | float]:
    """AUC, log loss (nats) and calibration error of ``predicted`` [n] on one judge's clicks [n].

    Beside the calibration error is the one that a perfect model of these rows has (`calibration_floor`).
    """
    return _figures(predicted, clicked, clicked[:, None], questions, resamples, seed)


def against_all(
    predicted: Array, clicks: Clicks, questions: Sequence[str], resamples: int, seed: int
) -> dict[str, Figure | float]:
    """The same on the decisions [n, j] of several judges.

    The AUC is that of the impressions which at least half of the judges click; log loss and calibration
    error are of every single decision, so that the mean of the judges is what a perfect model predicts.
    """
    return _figures(predicted, clicks.mean(axis=1) >= 0.5, clicks, questions, resamples, seed)


def difference(
    first: Array,
    second: Array,
    clicked: Clicks,
    questions: Sequence[str],
    resamples: int,
    seed: int,
) -> Figure:
    """AUC of ``first`` less that of ``second`` on the same clicks [n], questions resampled in pairs."""

    def measure(at: NDArray[np.int64]) -> float:
        return auc(first[at], clicked[at]) - auc(second[at], clicked[at])

    return _intervals({"": measure}, questions, resamples, seed)[""]


def share_of_others(clicks: Clicks, judge: int) -> Array:
    """Share [n] of the other judges that click: what is known of an impression who knows their opinion.

    Raises:
        ValueError: there are no others.
    """
    if clicks.shape[1] < 2:
        raise ValueError(f"clicks of {clicks.shape[1]} judge; give those of two or more")
    result: Array = np.delete(clicks, judge, axis=1).mean(axis=1)
    return result


def rate_of_share(learned: Array, clicked: Clicks, shares: Array) -> Array:
    """Click rate [m] that goes with each of ``shares`` [m], among the ``learned`` shares [n] and their
    clicks [n]; a share that none of them has gets the rate of the nearest."""
    known = np.unique(learned)
    rates = np.array([clicked[learned == share].mean() for share in known])
    result: Array = rates[np.abs(shares[:, None] - known[None, :]).argmin(axis=1)]
    return result


def _figures(
    predicted: Array,
    ranked: Clicks,
    decisions: Clicks,
    questions: Sequence[str],
    resamples: int,
    seed: int,
) -> dict[str, Figure | float]:
    each = np.repeat(predicted[:, None], decisions.shape[1], axis=1)
    measures: dict[str, Measure] = {
        "auc": lambda at: auc(predicted[at], ranked[at]),
        "log_loss": lambda at: log_loss(each[at].ravel(), decisions[at].ravel()),
        "calibration_error": lambda at: calibration_error(each[at].ravel(), decisions[at].ravel()),
    }
    figures: dict[str, Figure | float] = dict(_intervals(measures, questions, resamples, seed))
    floor = calibration_floor(each.ravel(), seed=seed)
    figures["calibration_floor"] = floor["mean"]
    figures["calibration_floor_high"] = floor["high"]
    figures["predicted"] = float(predicted.mean())
    figures["clicked"] = float(decisions.mean())
    return figures


def _intervals(
    measures: dict[str, Measure], questions: Sequence[str], resamples: int, seed: int
) -> dict[str, Figure]:
    """Each measure of all impressions, with the interval of its resampled values where they are defined."""
    rng = np.random.default_rng(seed)
    _, groups = np.unique(np.asarray(questions), return_inverse=True)
    members = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    drawn: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(resamples):
        picked = rng.integers(0, len(members), len(members))
        at = np.concatenate([members[group] for group in picked])
        for name, measure in measures.items():
            drawn[name].append(measure(at))
    everything = np.arange(len(groups))
    figures: dict[str, Figure] = {}
    for name, measure in measures.items():
        values = np.array([value for value in drawn[name] if not math.isnan(value)])
        estimate = measure(everything)
        low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (estimate, estimate)
        figures[name] = {"mean": float(estimate), "low": float(low), "high": float(high)}
    return figures
