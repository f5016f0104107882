"""How good predicted click rates are: ranking, log loss, calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_Floats = Sequence[float] | NDArray[np.float64]
_Labels = Sequence[bool] | Sequence[int] | NDArray[np.bool_]
_DRAWN_AT_ONCE = 2_000_000
"""Clicks that are simulated together, which bounds the memory."""


def auc(predicted: _Floats, clicked: _Labels) -> float:
    """P(a clicked row is predicted above one not clicked), ties counting one half.

    NaN where only one class is there.
    """
    p, y = _arrays(predicted, clicked)
    positives = int(y.sum())
    negatives = len(y) - positives
    if not positives or not negatives:
        return math.nan
    from scipy.stats import rankdata  # slow to load

    above = rankdata(p)[y].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def log_loss(predicted: _Floats, clicked: _Labels, floor: float = 1e-7) -> float:
    """Mean binary cross-entropy in nats, predictions clipped to [floor, 1 - floor]; NaN of nothing."""
    p, y = _arrays(predicted, clicked)
    if not len(p):
        return math.nan
    clipped = np.clip(p, floor, 1 - floor)
    return float(-np.where(y, np.log(clipped), np.log1p(-clipped)).mean())


def calibration_error(predicted: _Floats, clicked: _Labels, bins: int = 10) -> float:
    """Expected calibration error over bins of equal mass: mean |predicted - observed rate|.

    Rows of equal prediction may fall into neighbouring bins; NaN of nothing.  It is above 0 even where
    every prediction is right, and the more so the fewer rows there are: see `calibration_floor`.
    """
    p, y = _arrays(predicted, clicked)
    if not len(p):
        return math.nan
    gaps = [rows * abs(mean - rate) for mean, rate, rows in reliability(p, y, bins)]
    return math.fsum(gaps) / len(p)


def calibration_floor(
    predicted: _Floats, bins: int = 10, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, float]:
    """The `calibration_error` that these predictions have where every one of them is right.

    ``draws`` times the clicks are drawn from the predictions themselves, each on its own: ``mean`` is
    the error that chance alone makes, ``low`` to ``high`` hold ``level`` of the errors.  Only what lies
    above ``mean`` speaks against a model, and only an error above ``high`` does so surely.  Clicks that
    hang together (draws of one text) have a higher floor than this.  NaN of nothing.

    Raises:
        ValueError: a prediction is no probability.
    """
    p = np.sort(np.asarray(predicted, dtype=np.float64))
    if p.ndim != 1 or not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"predictions of shape {p.shape}; give a list of probabilities")
    if not len(p):
        return {"mean": math.nan, "low": math.nan, "high": math.nan}
    rng = np.random.default_rng(seed)
    sizes = [len(part) for part in np.array_split(p, bins) if len(part)]
    starts = np.cumsum([0, *sizes[:-1]])
    expected = np.add.reduceat(p, starts)
    each = max(1, _DRAWN_AT_ONCE // len(p))
    errors = np.concatenate(
        [
            np.abs(np.add.reduceat(rng.random((some, len(p))) < p, starts, axis=1, dtype=int) - expected)
            for some in [each] * (draws // each) + [draws % each] * (draws % each > 0)
        ]
    ).sum(axis=1) / len(p)
    low, high = np.quantile(errors, [(1 - level) / 2, (1 + level) / 2])
    return {"mean": float(errors.mean()), "low": float(low), "high": float(high)}


def calibration(predicted: _Floats, clicked: _Labels) -> dict[str, float]:
    """The calibration error beside its floor, and the error that chance alone exceeds once in forty."""
    floor = calibration_floor(predicted)
    return {
        "calibration_error": calibration_error(predicted, clicked),
        "calibration_floor": floor["mean"],
        "calibration_floor_high": floor["high"],
    }


def reliability(predicted: _Floats, clicked: _Labels, bins: int = 10) -> list[tuple[float, float, int]]:
    """Mean prediction, observed rate and rows of each bin of equal mass, from low to high."""
    p, y = _arrays(predicted, clicked)
    parts = [part for part in np.array_split(np.argsort(p, kind="stable"), bins) if len(part)]
    return [(float(p[part].mean()), float(y[part].mean()), len(part)) for part in parts]


def _arrays(predicted: _Floats, clicked: _Labels) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    p = np.asarray(predicted, dtype=np.float64)
    y = np.asarray(clicked, dtype=np.bool_)
    if p.shape != y.shape or p.ndim != 1:
        raise ValueError(f"{p.shape} predictions and {y.shape} clicks; give one of each per row")
    return p, y
