"""What exact training would reach on a finite set of answers, and its truthful prices.

Shapes: m answers, n advertisers; leading axes ("...") are batches, of bid profiles for example.
An effect c_i(y) = ctr_i 1(a_i in y) is the click probability that answer y gives advertiser i.
Policies are log-probabilities over the answers.  T exact epochs, each with the last policy as its
reference, give pi_0 exp(T R / beta): everything here holds for them with beta / T as ``beta``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from raylla.auction.checks import Array, ending, grid, logs, numbers, positive


def rewards(effects: ArrayLike, bids: ArrayLike, costs: ArrayLike) -> Array:
    """R(y) = sum_i b_i c_i(y) - cost(y) [..., m] (Eq. 5), in bid units.

    ``effects`` [n, m], ``bids`` [..., n] per click, ``costs`` [m] = lambda s_resp(y).

    Raises:
        ValueError: an effect is outside [0, 1], a bid negative, or a shape does not fit.
    """
    effects = numbers("effects", effects, 0, 1)
    bids = ending("bids", numbers("bids", bids, 0), len(effects))
    result: Array = bids @ effects - ending("costs", numbers("costs", costs), effects.shape[1])
    return result


def policy(log_reference: ArrayLike, rewards: ArrayLike, beta: float) -> Array:
    """log pi* [..., m] of pi*(y) ∝ pi_0(y) exp(R(y) / beta), the optimum of Eq. 2 and of DPO.

    ``log_reference`` [..., m] need not be normalized and is -inf for impossible answers;
    ``rewards`` [..., m] and ``beta`` are in bid units.

    Raises:
        ValueError: ``beta`` is not above 0, or no answer is possible.
    """
    logits = logs("log_reference", log_reference)
    logits = logits + numbers("rewards", rewards) / positive("beta", beta)
    return logits - _log_sum_exp(logits)[..., None]


def itctr(log_policy: ArrayLike, effects: ArrayLike) -> Array:
    """itctr_i = E_pi[c_i] [..., n] (Def. 3.1) of a policy [..., m] under effects [n, m]."""
    rates = np.exp(logs("log_policy", log_policy)) @ numbers("effects", effects, 0, 1).T
    return np.minimum(rates, 1)


def truthful_prices(log_policy: ArrayLike, values: ArrayLike, beta: float) -> Array:
    """Expected truthful price [..., n] of each advertiser at the optimum ``log_policy`` [..., m].

    ``values`` [..., n, m] are r_i(y) = b_i c_i(y), in bid units like ``beta`` and the price.

    Derivation: the Myerson integral of itctr_i in b_i is beta log(Z(b) / Z(0, b_-i)), and
    Z(0, b_-i) / Z(b) = E_pi[exp(-r_i / beta)], so that the price is
    E_pi[r_i] + beta log E_pi[exp(-r_i / beta)] = beta KL(pi_b || pi_{b_i = 0}) >= 0.

    Raises:
        ValueError: ``beta`` is not above 0, or the shapes do not fit.
    """
    log_policy = logs("log_policy", log_policy)[..., None, :]
    values = ending("values", numbers("values", values), log_policy.shape[-1])
    mean = np.sum(np.exp(log_policy) * values, axis=-1, keepdims=True)
    price = beta * _log_sum_exp(log_policy - (values - mean) / positive("beta", beta))
    return np.maximum(price, 0)


def myerson(bids: ArrayLike, itctr: ArrayLike) -> Array:
    """Truthful price [..., k] along a measured curve: b x(b) - integral of x from 0 to b (Myerson 1981).

    ``itctr`` [..., k] at the increasing ``bids`` [k], of which the first is 0; by trapezoids.

    Raises:
        ValueError: ``bids`` does not start at 0 or does not increase, or the shapes do not fit.
    """
    bids = grid("bids", bids)
    if bids[0] != 0:
        raise ValueError(f"bids: the integral starts at 0, the bids at {bids[0]:g}; measure itctr at 0 too")
    curve = ending("itctr", numbers("itctr", itctr, 0, 1), len(bids))
    pieces = (curve[..., 1:] + curve[..., :-1]) / 2 * np.diff(bids)
    area = np.concatenate([np.zeros((*curve.shape[:-1], 1)), np.cumsum(pieces, axis=-1)], axis=-1)
    result: Array = bids * curve - area
    return result


def effective_sample_size(log_weights: ArrayLike) -> Array:
    """How many equally weighted answers the weights [..., m] are worth, in [1, m]: (sum w)^2 / sum w^2.

    Raises:
        ValueError: a row has no weight above 0.
    """
    logits = logs("log_weights", log_weights)
    result: Array = np.exp(2 * _log_sum_exp(logits) - _log_sum_exp(2 * logits))
    return result


def _log_sum_exp(logits: Array) -> Array:
    peak = logits.max(axis=-1, keepdims=True)
    result: Array = np.log(np.exp(logits - peak).sum(axis=-1)) + peak[..., 0]
    return result
