"""Intervals that hold what they say, rank trends, the check for jumps. Every draw from a given generator.

q queries, c figures of each, k figures made of their means.  There is a table [q, c] for each training
seed, and the estimate rests on the mean of the tables' column means.  Two cases:

- Several seeds: what a seed is differs from run to run, and that is most of what is not known.  The
  interval is Student's, from as many values as there are seeds (of a figure that is no mean, Tukey's
  pseudo-values); with three of them it is wide, as it has to be.
- One seed: the interval is over its queries, and says nothing of other seeds.  Means and quotients of
  means have the studentized bootstrap, any other figure the bias-corrected and accelerated one (BCa; Efron
  and Tibshirani 1993, chapters 12.5 and 14.3): percentiles of the resampled means alone miss on the
  upper side of revenue, which is mostly zero and sometimes large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri, stdtrit

from raylla.auction.checks import Array, ending, numbers

Figure = dict[str, float]
"""mean, low and high: an estimate and its interval."""
DRAWN_AT_ONCE = 30_000
"""Queries that are resampled together, which bounds the memory: each takes some 30 bytes."""


def with_ends(figure: Mapping[str, float]) -> str:
    """A figure and its interval for a console, to two digits."""
    return f"{figure['mean']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


def means(
    groups: Sequence[ArrayLike], resamples: int, rng: np.random.Generator, level: float = 0.95
) -> list[Figure]:
    """Mean of each column of ``groups``, a table [q, c] for each seed, and its interval.

    Raises:
        ValueError: no groups, or one that is not a non-empty table of finite numbers.
    """
    tables = _tables(groups)
    if len(tables) > 1:
        return _over_seeds(tables, lambda mean: mean, level)
    return _studentized(tables[0], np.ones_like(tables[0]), resamples, rng, level)


def quotients(
    above: Sequence[ArrayLike],
    below: Sequence[ArrayLike],
    resamples: int,
    rng: np.random.Generator,
    level: float = 0.95,
) -> list[Figure]:
    """Means of the columns of ``above``, each divided by that of the same column of ``below``, for each
    seed two tables [q, c]; 0 where there is nothing to divide by.

    Raises:
        ValueError: as `means`, or the two do not fit.
    """
    tops, bottoms = _tables(above), _tables(below)
    if [table.shape for table in tops] != [table.shape for table in bottoms]:
        raise ValueError("above and below: give tables of the same shapes")
    if len(tops) > 1:
        both = [np.hstack(pair) for pair in zip(tops, bottoms, strict=True)]
        return _over_seeds(both, lambda mean: _divided(*np.split(mean, 2, axis=-1)), level)
    return _studentized(tops[0], bottoms[0], resamples, rng, level)


def made(
    groups: Sequence[ArrayLike],
    of: Callable[[Array], Array],
    resamples: int,
    rng: np.random.Generator,
    level: float = 0.95,
) -> list[Figure]:
    """The figures [k] that ``of`` makes of the column means of ``groups``; it takes means [..., c] and
    returns figures [..., k].

    Raises:
        ValueError: as `means`.
    """
    tables = _tables(groups)
    if len(tables) > 1:
        return _over_seeds(tables, of, level)
    return _accelerated(tables[0], of, resamples, rng, level)


def apart(
    first: ArrayLike, second: ArrayLike, resamples: int, rng: np.random.Generator, level: float = 0.95
) -> list[Figure]:
    """How much the column means of ``first`` [q, c] lie above those of ``second`` [p, c]: other queries,
    drawn apart; studentized.

    Raises:
        ValueError: as `means`.
    """
    sides = _tables([first, second])
    moved, spread = np.zeros((resamples, sides[0].shape[1])), np.zeros((resamples, sides[0].shape[1]))
    error = np.zeros(sides[0].shape[1])
    for sign, side in zip((1, -1), sides, strict=True):
        off, squared = _resampled(side - side.mean(axis=0), np.ones_like(side), resamples, rng)
        moved += sign * off
        spread += squared / len(side)
        error += side.var(axis=0) / len(side)
    estimate = sides[0].mean(axis=0) - sides[1].mean(axis=0)
    return _pivoted(estimate, np.sqrt(error), moved, np.sqrt(spread), level)


def bounded(figure: Figure, least: float = -np.inf, most: float = np.inf) -> Figure:
    """A figure whose interval ends where its values do, such as a rate's at 0 and 1."""
    low, high = (float(np.clip(figure[end], least, most)) for end in ("low", "high"))
    return {"mean": figure["mean"], "low": min(low, figure["mean"]), "high": max(high, figure["mean"])}


def averages(groups: Sequence[ArrayLike]) -> Array:
    """The estimates [c] of `means`: the mean of the groups' column means."""
    result: Array = np.mean([table.mean(axis=0) for table in _tables(groups)], axis=0)
    return result


def _tables(groups: Sequence[ArrayLike]) -> list[Array]:
    tables = [numbers("groups", group) for group in groups]
    if not tables or any(table.ndim != 2 or not len(table) for table in tables):
        raise ValueError("groups: give one non-empty table [queries, figures] per seed")
    return tables


def _divided(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _over_seeds(tables: Sequence[Array], of: Callable[[Array], Array], level: float) -> list[Figure]:
    """Student's interval over seeds, from Tukey's pseudo-values; of a mean they are the seeds' means."""
    each, count = np.array([table.mean(axis=0) for table in tables]), len(tables)
    estimate = of(each.mean(axis=0))
    without = of(_without_each(each))
    pseudo = count * estimate - (count - 1) * without
    half = stdtrit(count - 1, (1 + level) / 2) * pseudo.std(axis=0, ddof=1) / np.sqrt(count)
    return _figures(estimate, estimate - half, estimate + half)


def _studentized(
    above: Array, below: Array, resamples: int, rng: np.random.Generator, level: float
) -> list[Figure]:
    """Intervals of the columns' quotients [c] from tables [q, c] of one seed.

    In each resample the quotient is off by so many of its own standard errors; the estimate is off the
    truth by as many of its own. A quotient's error is that of the mean of (above - quotient below).
    """
    estimate = _divided(above.mean(axis=0), below.mean(axis=0))
    unit = np.where(below.mean(axis=0) > 0, below.mean(axis=0), 1)
    off, weight = (above - estimate * below) / unit, below / unit
    moved, squared = _resampled(off, weight, resamples, rng)
    error = np.sqrt((off**2).mean(axis=0) / len(above))
    return _pivoted(estimate, error, moved, np.sqrt(squared / len(above)), level)


def _resampled(off: Array, weight: Array, resamples: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """How far the mean of ``off`` over that of ``weight``, both [q, c], is from 0 in each resample, and
    the variance of one query's share in it, [resamples, c]; NaN where no weight was drawn."""
    columns = np.hstack([off, weight, off**2, off * weight, weight**2])
    moved, squared = [], []
    for counts in _counts(len(off), resamples, rng):
        top, bottom, tops, both, bottoms = np.split(counts @ columns / len(off), 5, axis=1)
        drawn = np.where(bottom > 0, bottom, np.nan)
        moved.append(top / drawn)
        squared.append((tops - 2 * moved[-1] * both + moved[-1] ** 2 * bottoms) / drawn**2)
    return np.concatenate(moved), np.maximum(np.concatenate(squared), 0)


def _pivoted(estimate: Array, error: Array, moved: Array, errors: Array, level: float) -> list[Figure]:
    """The intervals [c] that the resamples' moves in units of their standard errors give."""
    figures = []
    for middle, unit, move, own in zip(estimate, error, moved.T, errors.T, strict=True):
        kept = np.isfinite(move)
        if unit <= 1e-12 * abs(middle) or not kept.any():
            figures.append((middle, middle))
            continue
        move, own = move[kept], own[kept]
        spread = own > 1e-6 * unit
        # A resample without spread, as of no event where there are few, knows least: the smallest error.
        low, high = _ends(move / np.where(spread, own, own[spread].min(initial=unit)), level)
        figures.append((middle - high * unit, middle - low * unit))
    return _figures(estimate, *np.array(figures).T)


def _accelerated(
    table: Array, of: Callable[[Array], Array], resamples: int, rng: np.random.Generator, level: float
) -> list[Figure]:
    """BCa intervals of the figures [k] that ``of`` makes of the column means of one seed's table [q, c]."""
    mean, count = table.mean(axis=0), len(table)
    estimate = of(mean)
    if count == 1:
        return _figures(estimate, estimate, estimate)
    drawn = of(_resampled_means(table, resamples, rng))
    influence = of(_without_each(table))
    influence = influence.mean(axis=0) - influence
    scale = (influence**2).sum(axis=0) ** 1.5
    cubes = (influence**3).sum(axis=0)
    acceleration = np.divide(cubes, 6 * scale, out=np.zeros_like(scale), where=scale > 0)
    below = (drawn < estimate).mean(axis=0) + (drawn == estimate).mean(axis=0) / 2
    bias = ndtri(np.clip(below, 1 / (resamples + 1), resamples / (resamples + 1)))
    figures = []
    for column, shift, bend in zip(drawn.T, bias, acceleration, strict=True):
        at = shift + ndtri([(1 - level) / 2, (1 + level) / 2])
        figures.append(np.quantile(column, ndtr(shift + at / np.maximum(1 - bend * at, 1e-3))))
    return _figures(estimate, *np.array(figures).T)


def _resampled_means(table: Array, resamples: int, rng: np.random.Generator) -> Array:
    """Column means [resamples, c] of ``table`` [q, c], never beyond its rows by rounding."""
    means = [counts @ table / len(table) for counts in _counts(len(table), resamples, rng)]
    result: Array = np.clip(np.concatenate(means), table.min(axis=0), table.max(axis=0))
    return result


def _without_each(table: Array) -> Array:
    """Column means [q, c] of ``table`` [q, c] without one row each, never beyond the rows by rounding."""
    means = (table.sum(axis=0) - table) / (len(table) - 1)
    result: Array = np.clip(means, table.min(axis=0), table.max(axis=0))
    return result


def _counts(size: int, resamples: int, rng: np.random.Generator) -> Iterator[Array]:
    """How often each of ``size`` queries is in each resample, [some, size] at a time."""
    left = resamples
    while left > 0:
        some = min(left, max(1, DRAWN_AT_ONCE // size))
        rows = size * np.arange(some)[:, None]
        drawn = (rng.integers(0, size, (some, size)) + rows).ravel()
        yield np.bincount(drawn, minlength=some * size).reshape(some, size).astype(float)
        left -= some


def _figures(estimate: Array, low: Array, high: Array) -> list[Figure]:
    return [
        dict(zip(("mean", "low", "high"), map(float, ends), strict=True))
        for ends in zip(estimate, low, high, strict=True)
    ]


def spearman(x: ArrayLike, y: ArrayLike) -> Array:
    """Spearman's rank correlation [...] over the last axis of ``x`` and ``y``, equal values sharing a rank.

    0 where one of them is constant, of which `scipy.stats.spearmanr` knows nothing.
    """
    from scipy.stats import rankdata  # slow to load

    ranks = [rankdata(numbers(name, given), axis=-1) for name, given in (("x", x), ("y", y))]
    a, b = (rank - (rank.shape[-1] + 1) / 2 for rank in ranks)
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
    tables = _tables(groups)
    if len(tables) > 1:
        return bounded(_over_seeds(tables, lambda mean: spearman(bids, mean)[..., None], level)[0], -1, 1)
    # Ranks jump, which no correction for a smooth figure's bias is made for.
    low, high = _ends(spearman(bids, _resampled_means(tables[0], resamples, rng)), level)
    return {"mean": float(spearman(bids, tables[0].mean(axis=0))), "low": low, "high": high}


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


def _ends(drawn: Array, level: float) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
