"""Bootstrap intervals, rank trends and the check for jumps. Pure numpy, every draw from a given generator.

q queries (the units that are resampled), k bids.  Intervals are percentile intervals of ``level``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

from raylla.auction.checks import Array, ending, numbers

Figure = dict[str, float]
"""mean, low and high: an estimate and its bootstrap interval."""


def means(
    groups: Sequence[ArrayLike], resamples: int, rng: np.random.Generator, level: float = 0.95
) -> list[Figure]:
    """Mean of each column of ``groups`` (see `hierarchical`) and its interval over seeds and queries."""
    mean, drawn = averages(groups), hierarchical(groups, resamples, rng)
    return [figure(one, column, level) for one, column in zip(mean, drawn.T, strict=True)]


def averages(groups: Sequence[ArrayLike]) -> Array:
    """The estimate [c] that `hierarchical` resamples: the mean of the groups' means."""
    result: Array = np.mean([numbers("groups", group).mean(axis=0) for group in groups], axis=0)
    return result


def hierarchical(groups: Sequence[ArrayLike], resamples: int, rng: np.random.Generator) -> Array:
    """Resampled means [resamples, c] of ``groups``: for each training seed c figures per query [q, c].

    Seeds are resampled, and within each of them its queries; all figures of a query stay together,
    so that differences and ratios of columns are paired.  The estimate is the mean of the groups'
    means; with one group this is the ordinary bootstrap over queries.

    Raises:
        ValueError: no groups, or one that is not a non-empty table of finite numbers.
    """
    tables = [numbers("groups", group) for group in groups]
    if not tables or any(table.ndim != 2 or not len(table) for table in tables):
        raise ValueError("groups: give one non-empty table [queries, figures] per seed")
    total = np.zeros((resamples, tables[0].shape[1]))
    for _ in tables:
        picked = rng.integers(0, len(tables), resamples)
        for place, table in enumerate(tables):
            drawn = rng.integers(0, len(table), (resamples, len(table)))
            means = table[drawn].mean(axis=1)
            total += np.where((picked == place)[:, None], means, 0)
    result: Array = total / len(tables)
    return result


def figure(estimate: float | Array, drawn: Array, level: float = 0.95) -> Figure:
    """An estimate with the ends of the percentile interval of its resampled values ``drawn``."""
    low, high = _ends(drawn, level)
    return {"mean": float(estimate), "low": low, "high": high}


def spearman(x: ArrayLike, y: ArrayLike) -> Array:
    """Spearman's rank correlation [...] over the last axis of ``x`` and ``y``, equal values sharing a rank.

    0 where one of them is constant.  Memory grows with the square of the axis.
    """
    a, b = _ranks(numbers("x", x)), _ranks(numbers("y", y))
    scale = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    result: Array = np.divide((a * b).sum(axis=-1), scale, out=np.zeros_like(scale), where=scale > 0)
    return result


def rank_trend(
    bids: ArrayLike,
    groups: Sequence[ArrayLike],
    resamples: int,
    rng: np.random.Generator,
    level: float = 0.95,
) -> Figure:
    """Rank correlation of ``bids`` [k] with the mean over seeds and queries of the rates ``groups``,
    a table [q, k] for each seed.

    Raises:
        ValueError: the shapes do not fit.
    """
    bids = numbers("bids", bids)
    for group in groups:
        ending("groups", numbers("groups", group), len(bids))
    drawn = hierarchical(groups, resamples, rng)
    return figure(spearman(bids, averages(groups)), spearman(bids, drawn), level)


def largest_jump(
    clicks: ArrayLike,
    samples: int,
    simulations: int,
    rng: np.random.Generator,
    half_width: int = 5,
    level: float = 0.99,
) -> Figure:
    """Largest change of the click rate between adjacent bids, and what noise alone would make it.

    ``clicks`` [k] are counts out of ``samples`` answers at each bid of an ordered grid.  ``jump`` is the
    largest, ``at`` the index before it, and ``low`` to ``high`` hold ``level`` of the largest jumps of
    curves with a smooth rate and binomial noise: a jump above ``high`` is more than noise.  The smooth
    rate is the mean over each bid's nearest 2 ``half_width`` + 1, so that a step does not fit itself; a
    curve that bends sharply within that window can pass for a jump, and wants a smaller one.

    Raises:
        ValueError: a count is not in 0..samples, or there are fewer bids than the window has.
    """
    rates = numbers("clicks", clicks, 0, samples) / samples
    window = 2 * half_width + 1
    if rates.ndim != 1 or len(rates) < window:
        raise ValueError(f"clicks has shape {rates.shape}; give {window} or more, or a smaller half_width")
    jumps = np.abs(np.diff(rates))
    means = sliding_window_view(rates, window).mean(axis=-1)
    smooth = means[np.clip(np.arange(len(rates)) - half_width, 0, len(means) - 1)]
    drawn = rng.binomial(samples, smooth, (simulations, len(rates))) / samples
    low, high = _ends(np.abs(np.diff(drawn, axis=1)).max(axis=1), level)
    return {"jump": float(jumps.max()), "at": int(jumps.argmax()), "low": low, "high": high}


def _ranks(values: Array) -> Array:
    below = (values[..., None, :] < values[..., :, None]).sum(axis=-1)
    above = (values[..., None, :] > values[..., :, None]).sum(axis=-1)
    result: Array = (below - above) / 2
    return result


def _ends(drawn: Array, level: float) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
