"""Intervals of predicted click rates, and whether they hold. Pure numpy.

What one impression's click rate really is cannot be seen, only whether it was clicked.  So the
intervals speak of groups: take `GROUP` impressions of like predictions, none of whose queries the
predictor has learned from; in a share ``level`` of such groups the observed click rate lies between
the mean of their low ends and the mean of their high ends.  They hold the chance of the group's own
clicks as well as the error of the model.

An impression's half width is q sqrt(spread^2 + p (1 - p) / GROUP): ``spread`` is the standard
deviation of the ensemble's members, q the split-conformal quantile of what groups were off by in
these units (normalized residuals, Lei et al. 2018).  The groups come from cross-fitting (CV+, Barber
et al. 2021): each member leaves out a share of the queries, and predicts them.  The guarantee is for
clicks like those that q came from; when the policy moves on it has to be measured again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raylla.auction.checks import Array
from raylla.records import Prediction

GROUP = 50
"""Impressions of a group."""


def quantile(predicted: Array, spread: Array, clicked: NDArray[np.bool_], level: float) -> float:
    """q from out-of-fold predictions [N], the members' spread [N] and clicks [N].

    Infinite where there are too few groups for ``level``: the interval is then [0, 1].
    """
    scores = [
        abs(clicked[part].mean() - predicted[part].mean()) / scale(predicted[part], spread[part]).mean()
        for part in groups(predicted)
    ]
    place = math.ceil((len(scores) + 1) * level)
    return float(sorted(scores)[place - 1]) if place <= len(scores) else math.inf


def scale(predicted: Array, spread: Array) -> Array:
    """The unit [N] that half widths are multiples of."""
    unit: Array = np.sqrt(spread**2 + predicted * (1 - predicted) / GROUP)
    return np.maximum(unit, 1e-6)


def around(predicted: Array, spread: Array, q: float) -> list[Prediction]:
    """Each prediction with its interval, clipped to [0, 1]."""
    half = q * scale(predicted, spread)
    low, high = np.maximum(predicted - half, 0), np.minimum(predicted + half, 1)
    return [Prediction(*row) for row in np.stack([predicted, low, high], axis=1).tolist()]


def coverage(predictions: Sequence[Prediction], clicked: NDArray[np.bool_]) -> dict[str, float]:
    """Share of groups whose click rate is within their interval, how many groups, and the mean width.

    NaN where there are fewer rows than a group has.
    """
    mean, low, high = (
        np.array([getattr(prediction, name) for prediction in predictions])
        for name in ("mean", "low", "high")
    )
    held = [low[part].mean() <= clicked[part].mean() <= high[part].mean() for part in groups(mean)]
    return {
        "coverage": float(np.mean(held)) if held else math.nan,
        "interval_groups": float(len(held)),
        "interval_width": float((high - low).mean()) if len(mean) else math.nan,
    }


def groups(predicted: Array) -> list[NDArray[np.int64]]:
    """Rows of like predictions, `GROUP` or a few more in each; none where there are fewer rows."""
    count = len(predicted) // GROUP
    order = np.argsort(predicted, kind="stable")
    return np.array_split(order, count) if count else []
