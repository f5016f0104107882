"""Off-policy estimates: what a new version earns per auction, from a log that another version wrote.

n logged auctions, k measures.  An answer's outcome is a gain, which somebody's clicks decide, and what is
known of it as soon as it is written: its penalty.  The log's version wrote y_i, the new one would have
written it w_i times as often:

    w_i = pi_new(y_i | x_i) / pi_log(y_i | x_i)         m: gain that the pCTR model predicts of an answer

    naive           mean r_i                            the new version earns what this one does
    direct          mean rho m(new answers of x_i)      as if the pCTR model knew
    ips             mean w_i r_i                        importance weights alone: unbiased, and wide
    snips           sum w_i r_i / sum w_i               the same, self-normalised
    doubly_robust   mean rho m(new answers of x_i) + mean min(w_i, c) (r_i - rho m(y_i))

(Dudik, Langford, Li 2011.)  rho scales the predictions to the clicks of the log; its error is part of the
interval.  Where the weights are right the last is right whatever m is, and where m is right, whatever the
weights are, as far as no weight is cut at c.

What the cut takes from the weights, and answers that the log's version never writes, are a share of the new
version's answers of which the log says nothing.  For that share the pCTR model's own interval stands in:

    slack = mean (high - m)(new answers) - mean min(w_i, c) (high - m)(y_i)      and below alike

is added to the interval's ends.  c is the one that makes least of variance + slack^2 (as the threshold of
SWITCH is chosen, Wang, Agarwal, Dudik 2017).  With versions alike the slack is 0 and the clicks decide;
with versions that have nothing in common the estimate is `direct`, and its interval the pCTR model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from raylla.auction.checks import Array, numbers
from raylla.auction.optimum import effective_sample_size
from raylla.figures.intervals import Figure, means, quotients

ESTIMATORS = ("naive", "direct", "ips", "snips", "doubly_robust")
LEVEL = 0.9
"""Of the intervals, where nobody says another."""
CLIPS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, np.inf)
"""Weights are cut at one of these."""
LEAST_GAINS = 10
"""Auctions with a gain from which the predictions are scaled to the log; with fewer, rho is 1."""
_MOST_LOG = 100.0
"""Log-weights above are taken for this: larger ones decide everything as it is."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """Gains [n, k] that the pCTR model predicts, and the ends of its interval around each."""

    mean: Array
    low: Array
    high: Array

    @classmethod
    def of(cls, rows: ArrayLike) -> Predicted:
        """From [n, 3, k]: mean, low and high of each auction's gains."""
        return cls(*np.swapaxes(np.asarray(rows, float), 0, 1))


@dataclass(frozen=True, slots=True)
class Log:
    """Logged auctions: the log-ratio of each answer [n], its gains [n, k] and what of its outcome is known
    without them [n, k]; ``predicted`` gains of the logged answers and ``own`` ones of the new version's
    (means over its answers to the same prompts), with ``own_known``. Auctions of one ``group`` [n] (of one
    query, say) are drawn together; none: each for itself."""

    log_weights: Array
    gains: Array
    known: Array
    predicted: Predicted
    own: Predicted
    own_known: Array
    groups: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        """Refuse what does not go together.

        Raises:
            ValueError: names the array.
        """
        shape = np.shape(self.gains)
        tables = {"gains": self.gains, "known": self.known, "own_known": self.own_known}
        for name in ("predicted", "own"):
            tables |= {f"{name}.{end}": getattr(getattr(self, name), end) for end in Predicted.__slots__}
        for name, table in tables.items():
            if numbers(name, table).shape != shape or len(shape) != 2 or shape[0] < 2:
                raise ValueError(f"{name} has shape {np.shape(table)}; give [n, k] alike, n 2 or more")
        if np.shape(self.log_weights) != shape[:1] or not (np.asarray(self.log_weights) < np.inf).all():
            raise ValueError("log_weights: give one below +inf for each auction")
        if self.groups is not None and len(self.groups) != shape[0]:
            raise ValueError(f"groups: give one for each of {shape[0]} auctions, not {len(self.groups)}")


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of one measure: the new version's ``value`` per auction and its ``difference`` to the log's, whose
    intervals hold the ``slack`` (below, above) already. ``clip`` is where weights were cut (None: nowhere),
    ``scale`` is rho."""

    value: Figure
    difference: Figure
    slack: tuple[float, float] = (0.0, 0.0)
    clip: float | None = None
    scale: float | None = None


def log_ratios(new: ArrayLike, logged: ArrayLike) -> Array:
    """log w [n] from log pi_new and log pi_log [n] of the logged answers; -inf: the new version cannot
    write it.

    Raises:
        ValueError: the log's version could not have written one of them.
    """
    new, logged = np.asarray(new, float), np.asarray(logged, float)
    if not np.isfinite(logged).all() or np.isnan(new).any() or (new == np.inf).any():
        raise ValueError("logged answers have a probability above 0 under the version that wrote them")
    result: Array = new - logged
    return result


def overlap(log: Log) -> dict[str, float]:
    """How much the log says of the new version: ``effective_sample_size`` of the weights (0 where all are
    0), ``mean_weight`` (1 but for chance, unless the new version writes what the log's never does),
    ``largest_share`` of one weight in their sum, and the share of ``impossible`` answers."""
    weights = _weights(log)
    total = float(weights.sum())
    if not total:
        size, largest = 0.0, 0.0
    else:
        size = float(effective_sample_size(np.minimum(log.log_weights, _MOST_LOG)))
        largest = float(weights.max()) / total
    return {
        "auctions": float(len(weights)),
        "effective_sample_size": size,
        "mean_weight": float(weights.mean()),
        "largest_share": largest,
        "impossible": float((weights == 0).mean()),
    }


def estimates(
    log: Log, resamples: int, rng: np.random.Generator, level: float = LEVEL
) -> dict[str, list[Estimate]]:
    """For each of `ESTIMATORS`, an estimate of each of the k measures, with intervals of ``level`` over the
    groups of auctions."""
    outcomes, weights = log.gains + log.known, _weights(log)[:, None]
    simple = {"naive": outcomes, "ips": weights * outcomes, "snips": _normalised(weights, outcomes)}
    figures = {name: _plain(log, some, outcomes, resamples, rng, level) for name, some in simple.items()}
    for name, clips in (("direct", CLIPS[:1]), ("doubly_robust", CLIPS)):
        chosen = [_chosen(log, clips, measure) for measure in range(outcomes.shape[1])]
        shares = np.stack([cut.shares for cut in chosen], axis=1)
        figures[name] = [
            Estimate(
                _widened(plain.value, cut.slack),
                _widened(plain.difference, cut.slack),
                *(cut.slack, cut.clip if cut.clip < weights.max() else None, cut.scale),
            )
            for cut, plain in zip(chosen, _plain(log, shares, outcomes, resamples, rng, level), strict=True)
        ]
    return {name: figures[name] for name in ESTIMATORS}


def held_against(estimated: Figure, slack: tuple[float, float], shown: Figure) -> Figure:
    """How far an estimate lies above what was then shown, other auctions with noise of their own: the two
    intervals' half-widths are added as squares (Zou and Donner 2008), and the slack is added as it is.

    The estimate holds where 0 lies within.
    """
    error = estimated["mean"] - shown["mean"]
    below = estimated["mean"] - estimated["low"] - slack[0], shown["high"] - shown["mean"]
    above = estimated["high"] - slack[1] - estimated["mean"], shown["mean"] - shown["low"]
    low, high = (float(np.hypot(max(0.0, ends[0]), ends[1])) for ends in (below, above))
    return {"mean": error, "low": error - low - slack[0], "high": error + high + slack[1]}


@dataclass(frozen=True, slots=True)
class _Cut:
    """One measure's doubly robust estimate with the weights cut at ``clip``; its mean is that of ``shares``
    [n], whose spread is that of the estimate."""

    clip: float
    shares: Array
    slack: tuple[float, float]
    scale: float
    risk: float


def _chosen(log: Log, clips: Sequence[float], measure: int) -> _Cut:
    """The cut of least variance + slack^2."""
    return min((_cut(log, clip, measure) for clip in clips), key=lambda cut: cut.risk)


def _cut(log: Log, clip: float, measure: int) -> _Cut:
    gains, own, said = log.gains[:, measure], log.own, log.predicted
    told, ours = said.mean[:, measure], own.mean[:, measure]
    weights = np.minimum(_weights(log), clip)
    scaled = np.count_nonzero(gains) >= LEAST_GAINS and min(gains.min(), told.min()) >= 0 < told.sum()
    scale = float(gains.sum() / told.sum()) if scaled else 1.0
    # d estimate / d rho, in units of the logged prediction: what rho's own error adds to each share.
    lever = (ours.mean() - (weights * told).mean()) / told.mean() if scaled else 0.0
    shares = scale * ours + (weights + lever) * (gains - scale * told) + log.own_known[:, measure]
    slack = (
        scale * _uncovered(ours - own.low[:, measure], weights * (told - said.low[:, measure])),
        scale * _uncovered(own.high[:, measure] - ours, weights * (said.high[:, measure] - told)),
    )
    return _Cut(clip, shares, slack, scale, _variance(log, shares) + max(slack) ** 2)


def _uncovered(whole: Array, covered: Array) -> float:
    """What of the pCTR model's uncertainty about the new answers the logged ones do not stand for."""
    return max(0.0, float(whole.mean() - covered.mean()))


def _plain(
    log: Log, shares: Array, outcomes: Array, resamples: int, rng: np.random.Generator, level: float
) -> list[Estimate]:
    values = _figures(log, shares, resamples, rng, level)
    differences = _figures(log, shares - outcomes, resamples, rng, level)
    return [Estimate(*pair) for pair in zip(values, differences, strict=True)]


def _normalised(weights: Array, outcomes: Array) -> Array:
    """Shares [n, k] of the self-normalised estimate, whose mean it is: linear in the weights about it.
    Where there is no weight at all it is not defined, and as good as the naive one."""
    total = weights.mean()
    if not total:
        return outcomes
    middle = (weights * outcomes).mean(axis=0) / total
    result: Array = middle + weights * (outcomes - middle) / total
    return result


def _figures(
    log: Log, shares: Array, resamples: int, rng: np.random.Generator, level: float
) -> list[Figure]:
    """Mean of each column of shares [n, k] with its interval; auctions of a group are drawn together."""
    if log.groups is None:
        return means([shares], resamples, rng, level)
    sums, counts = _by_group(log.groups, shares)
    return quotients([sums], [np.repeat(counts[:, None], shares.shape[1], axis=1)], resamples, rng, level)


def _variance(log: Log, shares: Array) -> float:
    """Of the mean of shares [n], from how the groups differ."""
    off = (shares - shares.mean())[:, None]
    sums = off if log.groups is None else _by_group(log.groups, off)[0]
    return float((sums**2).sum()) / len(shares) ** 2


def _by_group(groups: Sequence[Any], rows: Array) -> tuple[Array, Array]:
    """Sums [groups, k] of rows [n, k], and how many rows each has."""
    names: dict[Any, int] = {}
    places = np.array([names.setdefault(group, len(names)) for group in groups])
    sums = np.zeros((len(names), rows.shape[1]))
    np.add.at(sums, places, rows)
    return sums, np.bincount(places).astype(float)


def _weights(log: Log) -> Array:
    result: Array = np.exp(np.minimum(log.log_weights, _MOST_LOG))
    return result


def _widened(figure: Figure, slack: tuple[float, float]) -> Figure:
    return {"mean": figure["mean"], "low": figure["low"] - slack[0], "high": figure["high"] + slack[1]}
