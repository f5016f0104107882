"""Truthful prices where only samples are at hand: estimated in closed form, or by one resampled auction.

n advertisers, s sampled answers; leading axes ("...") are batches.  Money is in bid units.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raylla.auction import optimum
from raylla.auction.checks import Array, ending, numbers


def sampled_prices(values: ArrayLike, beta: float) -> Array:
    """Estimated truthful prices [n] of one auction, at least 0.

    ``values`` [n, s] are b_i c_i(y) in answers y sampled from the policy that reads the true bids; the
    estimate is mean(r_i) + beta log mean exp(-r_i / beta).  It is too low where answers without the
    ad are too rare to be among the samples: then ``optimum.effective_sample_size(-values / beta)`` is
    near 1.

    Derivation: `optimum.truthful_prices` under the empirical distribution of the samples.

    Raises:
        ValueError: ``values`` is not [n, s] with s > 0, or ``beta`` is not above 0.
    """
    values = numbers("values", values)
    if values.ndim != 2 or not values.shape[1]:
        raise ValueError(f"values has shape {values.shape}; give one row of sampled answers per advertiser")
    count = values.shape[1]
    return optimum.truthful_prices(np.full(count, -np.log(count)), values, beta)


def resample(bids: ArrayLike, mu: float, rng: np.random.Generator) -> tuple[Array, NDArray[np.bool_]]:
    """Bids to run the auction with, and which of them were resampled, both in the shape of ``bids``.

    With probability ``mu``, and independently, a bid b becomes b u^(1 / (1 - mu)), u ~ U[0, 1]
    (Babaioff, Kleinberg, Slivkins 2010, canonical self-resampling).

    Raises:
        ValueError: a bid is negative, or ``mu`` is not inside (0, 1).
    """
    bids = numbers("bids", bids, 0)
    resampled = rng.random(bids.shape) < _share(mu)
    shrunk = bids * rng.random(bids.shape) ** (1 / (1 - mu))
    return np.where(resampled, shrunk, bids), resampled


def charges(bids: ArrayLike, outcomes: ArrayLike, resampled: NDArray[np.bool_], mu: float) -> Array:
    """What the bidders of a resampled auction are charged; negative is a rebate.

    ``bids`` are the true ones, ``outcomes`` the clicks (0, 1) or click probabilities under the
    resampled ones, all of one shape.  The charge b x (times 1 - 1/mu where resampled) has as its
    expectation the Myerson price of the resampled auction, if that is monotone in the bid
    (Babaioff, Kleinberg, Slivkins 2010).

    Raises:
        ValueError: a bid is negative, an outcome outside [0, 1], or ``mu`` not inside (0, 1).
    """
    bids = numbers("bids", bids, 0)
    outcomes = ending("outcomes", numbers("outcomes", outcomes, 0, 1), *bids.shape)
    result: Array = bids * outcomes * np.where(resampled, 1 - 1 / _share(mu), 1)
    return result


def summed_charges(charges: ArrayLike) -> tuple[Array, Array]:
    """Sum of ``charges`` [s, ...] over s auctions and its standard error, both [...].

    Single charges of `charges` vary by 1 / mu: bill the sum.

    Raises:
        ValueError: fewer than two auctions.
    """
    charges = numbers("charges", charges)
    if charges.ndim == 0 or len(charges) < 2:
        raise ValueError(f"charges has shape {charges.shape}; settle two or more auctions together")
    return charges.sum(axis=0), np.sqrt(len(charges) * charges.var(axis=0, ddof=1))


def _share(mu: float) -> float:
    if not 0 < mu < 1:
        raise ValueError(f"mu={mu!r}: give a probability between 0 and 1, for example 0.1")
    return mu
