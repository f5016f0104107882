"""How good predicted click rates are: ranking, log loss, calibration. Pure numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = Sequence[float] | NDArray[np.float64]
Labels = Sequence[bool] | Sequence[int] | NDArray[np.bool_]


def auc(predicted: Floats, clicked: Labels) -> float:
    """P(a clicked row is predicted above one not clicked), ties counting one half.

    NaN where only one class is there.
    """
    p, y = _arrays(predicted, clicked)
    positives = int(y.sum())
    negatives = len(y) - positives
    if not positives or not negatives:
        return math.nan
    _, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    ranks = mean_rank[inverse]
    return float((ranks[y].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def log_loss(predicted: Floats, clicked: Labels, floor: float = 1e-7) -> float:
    """Mean binary cross-entropy in nats, predictions clipped to [floor, 1 - floor]; NaN of nothing."""
    p, y = _arrays(predicted, clicked)
    if not len(p):
        return math.nan
    clipped = np.clip(p, floor, 1 - floor)
    return float(-np.where(y, np.log(clipped), np.log1p(-clipped)).mean())


def calibration_error(predicted: Floats, clicked: Labels, bins: int = 10) -> float:
    """Expected calibration error over bins of equal mass: mean |predicted - observed rate|.

    Rows of equal prediction may fall into neighbouring bins; NaN of nothing.
    """
    p, y = _arrays(predicted, clicked)
    if not len(p):
        return math.nan
    gaps = [rows * abs(mean - rate) for mean, rate, rows in reliability(p, y, bins)]
    return math.fsum(gaps) / len(p)


def reliability(predicted: Floats, clicked: Labels, bins: int = 10) -> list[tuple[float, float, int]]:
    """Mean prediction, observed rate and rows of each bin of equal mass, from low to high."""
    p, y = _arrays(predicted, clicked)
    parts = [part for part in np.array_split(np.argsort(p, kind="stable"), bins) if len(part)]
    return [(float(p[part].mean()), float(y[part].mean()), len(part)) for part in parts]


def _arrays(predicted: Floats, clicked: Labels) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    p = np.asarray(predicted, dtype=np.float64)
    y = np.asarray(clicked, dtype=np.bool_)
    if p.shape != y.shape or p.ndim != 1:
        raise ValueError(f"{p.shape} predictions and {y.shape} clicks; give one of each per row")
    return p, y
