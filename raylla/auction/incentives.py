"""What bidders gain by not bidding the truth, and where bids settle when they try.

A response is a table: at each bid of an increasing grid [k] the itctr and the expected payment of
one advertiser, [..., k] with advertisers or queries as leading axes.  Money is in bid units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from raylla.auction.checks import Array, ending, grid, numbers, positive

Goal = Literal["utility", "value"]
"""What a bidder wants: value less payment, or value under a return on what it spends."""

Respond = Callable[[Array], tuple[Array, Array]]
"""Bid profiles [p, n] to itctr [p, n] and expected payment [p, n]."""

_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Settled:
    """Where best responses ended: bids [n], expected revenue and welfare per auction."""

    bids: Array
    revenue: float
    welfare: float
    converged: bool
    rounds: int


def least_utility(bids: ArrayLike, itctr: ArrayLike, payment: ArrayLike) -> Array:
    """Smallest utility [...] v x(v) - p(v) of a truthful bidder; individually rational where >= 0.

    ``bids`` [k] are the values too.

    Raises:
        ValueError: ``bids`` does not increase, or the shapes do not fit.
    """
    bids, itctr, payment = _response(bids, itctr, payment)
    result: Array = (bids * itctr - payment).min(axis=-1)
    return result


def regret(
    bids: ArrayLike, itctr: ArrayLike, payment: ArrayLike, goal: Goal = "utility", target: float = 1.0
) -> Array:
    """What truthful bidding forgoes [..., k], in bid units per auction; its mean is the expected regret.

    Under "utility", entry v is max_b (v x(b) - p(b)) less the same at b = v, for values v = ``bids``.
    Under "value" the bidder maximizes v x(b) subject to v x(b) >= ``target`` p(b), the values are
    ``target`` times ``bids``, and bidding v / target is the truth; a bid that breaks the
    constraint is worth 0.  First price is truthful under "value" for any monotone x
    (Derivation: v x >= target b x exactly where b <= v / target).

    Raises:
        ValueError: ``bids`` does not increase, ``target`` is not above 0, or the shapes do not fit.
    """
    bids, itctr, payment = _response(bids, itctr, payment)
    values = bids if goal == "utility" else bids * positive("target", target)
    worth = _worth(values[:, None], itctr[..., None, :], payment[..., None, :], goal, target)
    worth = np.maximum(worth, 0) if goal == "value" else worth
    result: Array = worth.max(axis=-1) - np.diagonal(worth, axis1=-2, axis2=-1)
    return result


def best_responses(
    respond: Respond,
    values: ArrayLike,
    bids: ArrayLike,
    rng: np.random.Generator,
    goal: Goal = "utility",
    target: float = 1.0,
    max_rounds: int = 50,
) -> Settled:
    """Bids [n] after the advertisers, with ``values`` [n] per click, improve their bids in turn.

    All start at the bid of the grid ``bids`` [k] nearest to value / target (target 1 under
    "utility").  In each round each of them, in an order drawn from ``rng``, takes the lowest of its
    best bids on the grid, or keeps its bid where that is as good; a round without a change ends it
    at a Nash equilibrium on the grid.  ``respond`` is called with k profiles at a time.

    Raises:
        ValueError: a value is negative, ``bids`` does not increase, or ``target`` is not above 0.
    """
    values, bids = np.atleast_1d(numbers("values", values, 0)), grid("bids", bids)
    truth = values / (positive("target", target) if goal == "value" else 1)
    current = np.abs(truth[:, None] - bids).argmin(axis=1)
    moved, rounds = True, 0
    while moved and rounds < max_rounds:
        moved, rounds = False, rounds + 1
        for i in rng.permutation(len(values)):
            profiles = np.tile(bids[current], (len(bids), 1))
            profiles[:, i] = bids
            itctr, payment = respond(profiles)
            worth = _worth(values[i], itctr[:, i], payment[:, i], goal, target)
            if worth[current[i]] < worth.max() - _SLACK:
                current[i] = np.argmax(worth >= worth.max() - _SLACK)
                moved = True
    itctr, payment = respond(bids[current][None])
    return Settled(bids[current], float(payment.sum()), float(itctr[0] @ values), not moved, rounds)


def _worth(values: Array, itctr: Array, payment: Array, goal: Goal, target: float) -> Array:
    value: Array = values * itctr
    if goal == "utility":
        return value - payment
    return np.where(value + _SLACK >= target * payment, value, -np.inf)


def _response(bids: ArrayLike, itctr: ArrayLike, payment: ArrayLike) -> tuple[Array, Array, Array]:
    bids = grid("bids", bids)
    itctr = ending("itctr", numbers("itctr", itctr, 0, 1), len(bids))
    return bids, itctr, ending("payment", numbers("payment", payment), *itctr.shape)
