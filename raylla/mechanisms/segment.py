"""RAG-Auction, the segment auction (Hajiaghayi et al., arXiv 2406.09459): allocation and prices.

n ads with relevance q [n] > 0 to the text so far and bids b [n] per click; noise is standard
Gumbel, ``rng.gumbel(size=...)``, so that every outcome is a function of its arguments.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raylla.auction.checks import Array, ending, numbers


def probabilities(relevance: ArrayLike, bids: ArrayLike) -> Array:
    """P(i wins a segment) = q_i b_i / sum_j q_j b_j [n], which maximizes sum_i q_i b_i log x_i.

    All 0 where nobody bids.

    Raises:
        ValueError: a number is negative, or the shapes do not fit.
    """
    scores, _, _ = _auction(relevance, bids)
    result: Array = scores / max(scores.sum(), np.finfo(np.float64).tiny)
    return result


def segment_auction(
    relevance: ArrayLike, bids: ArrayLike, noise: ArrayLike, *, replace: bool
) -> tuple[NDArray[np.int64], Array]:
    """Winners and their prices per click, both [..., k], of k segments; -1 and 0 where nobody is left.

    ``noise`` [..., k, n] is drawn afresh for each segment.  The winner of a segment has the highest
    q b e^g and pays (second highest) / (q e^g) <= b, the lowest bid that wins.  With ``replace`` all
    ads compete in all segments; without, a winner leaves, and then the price is truthful for its
    own segment only: who would as soon win a later, cheaper one can gain by bidding less.

    Raises:
        ValueError: a number is negative, or the shapes do not fit.
    """
    scores, relevance, bids = _auction(relevance, bids)
    noise = ending("noise", numbers("noise", noise), len(bids))
    if noise.ndim < 2:
        raise ValueError(f"noise has shape {noise.shape}; give one row per segment")
    with np.errstate(divide="ignore"):
        quality = np.log(relevance) + noise
        log_scores = np.log(scores) + noise
    winners = np.empty(noise.shape[:-1], np.int64)
    prices = np.zeros(noise.shape[:-1])
    gone = np.zeros((*noise.shape[:-2], len(bids)), np.bool_)
    for k in range(noise.shape[-2]):
        left = np.where(gone, -np.inf, log_scores[..., k, :])
        winner = left.argmax(axis=-1)
        won = np.arange(len(bids)) == winner[..., None]
        second = np.where(won, -np.inf, left).max(axis=-1)
        sold = left.max(axis=-1) > -np.inf
        own = np.where(sold, np.take_along_axis(quality[..., k, :], winner[..., None], -1)[..., 0], 0)
        winners[..., k] = np.where(sold, winner, -1)
        prices[..., k] = np.where(sold, np.minimum(np.exp(second - own), bids[winner]), 0)
        gone |= won & (not replace)
    return winners, prices


def subsets(count: int, size: int) -> NDArray[np.bool_]:
    """Membership [s, count] of all s sets of ``size`` out of ``count`` ads.

    Raises:
        ValueError: ``size`` is not in 1..count.
    """
    if not 1 <= size <= count:
        raise ValueError(f"size={size!r}: choose between 1 and {count} ads")
    chosen = np.array(list(combinations(range(count), size)))
    members = np.zeros((len(chosen), count), np.bool_)
    np.put_along_axis(members, chosen, True, axis=1)
    return members


def set_auction(
    set_relevance: ArrayLike, bids: ArrayLike, noise: ArrayLike
) -> tuple[NDArray[np.int64], Array]:
    """The chosen set's index [...] and each ad's price per click [..., n], in [0, b_i].

    ``set_relevance`` [s, n] is q_{A,i}, 0 for ads outside A; ``noise`` [..., s] is drawn for each set.
    The set with the highest e^{g_A} sum_i b_i q_{A,i} is chosen, so that P(A) is in proportion to the
    sum.  Each pays the VCG price: the others' best over all sets, those with the ad included, less
    theirs in the chosen one, per e^{g_A} q_{A,i}.  Bidding the truth is best for who counts value in
    e^{g_A} q_{A,i}, as the auction does; counted in clicks q_{A,i} it is so for an ad that is in one
    set only, and in several a higher bid can even lower the expected clicks (Derivation: with
    r_A the others' part of A's score, the slope has the sign of sum q^2 sum r - sum q r sum q).

    Raises:
        ValueError: a number is negative, or the shapes do not fit.
    """
    quality, bids = numbers("set_relevance", set_relevance, 0), numbers("bids", bids, 0)
    ending("set_relevance", quality, len(bids))
    noise = ending("noise", numbers("noise", noise), len(quality))
    scale = np.exp(noise - noise.max(axis=-1, keepdims=True))[..., None]
    values = scale * (quality * bids)
    total = values.sum(axis=-1, keepdims=True)
    chosen = total[..., 0].argmax(axis=-1)
    others = total - values
    at = chosen[..., None, None]
    owed = others.max(axis=-2) - np.take_along_axis(others, at, axis=-2)[..., 0, :]
    worth = np.take_along_axis(scale * quality, at, axis=-2)[..., 0, :]
    prices = np.divide(owed, worth, out=np.zeros_like(owed), where=worth > 0)
    return chosen, np.clip(prices, 0, bids)


def _auction(relevance: ArrayLike, bids: ArrayLike) -> tuple[Array, Array, Array]:
    relevance, bids = numbers("relevance", relevance, 0), numbers("bids", bids, 0)
    if relevance.ndim != 1:
        raise ValueError(f"relevance has shape {relevance.shape}; give one number per ad")
    return relevance * ending("bids", bids, len(relevance)), relevance, bids
