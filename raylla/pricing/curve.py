"""The allocation curve: how probable a place in the answer is, at each bid an ad could make.

a auctions, n places of candidates, t traits, g bids of a grid.  The model is a multinomial logit over an
auction's candidates and "no ad" (McFadden 1974): ad i has the utility

    u_i(z) = constant + traits_i . w + c log z + d z / largest + sum over k >= rank_i(z) of gain_k

at the bid z, no ad has 0, and the share of i is exp(u_i) / (1 + sum_j exp(u_j)).  rank_i(z) is the place
of z among the bids of the auction, equal ones as listed.  Fitted with c, d and every gain at least 0, the
share of an ad never falls in its own bid: u_i rises, and its rivals' ranks only get worse.  Traits say how
an ad suits question and user; none of them reads a bid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from raylla.auction.checks import Array
from raylla.records import Ad, Profile, Query
from raylla.world.prompts import relation

TRAITS = ("same_category", "same_theme", "interested")
"""What an ad is to question and user, 0 or 1 each; `traits_of`."""
RANK_GAINS = 3
"""Ranks whose gain is fitted; beyond them all are alike."""
RIDGE = 1.0
"""Weight of the squared coefficients in the fit, in answers."""
MOST_COEFFICIENT = 20.0
"""Largest coefficient, either way, that is fitted or read."""
MOST_UNITS = 10_000
"""Largest of the largest bids: a price is a sum over all of the grid."""
Flags = NDArray[np.bool_]


def traits_of(query: Query, profile: Profile, ad: Ad) -> tuple[int, ...]:
    """`TRAITS` of an ad: of the question's category, of its theme at least, of the user's interests."""
    near, interested = map(int, relation(query, profile, ad))
    return (int(near == 2), int(near >= 1), interested)


@dataclass(frozen=True)
class Contests:
    """Who bids what in each auction.

    ``bids`` [a, n] in bid units and ``traits`` [a, n, t]; ``there`` [a, n] is false where an auction has
    fewer candidates than the widest.
    """

    bids: Array
    traits: Array
    there: Flags

    @classmethod
    def of(cls, bids: Sequence[Sequence[float]], traits: Sequence[Sequence[Sequence[int]]]) -> Contests:
        """Of lists of different lengths."""
        width = max(map(len, bids), default=0)
        shape = (len(bids), width)
        contests = cls(np.ones(shape), np.zeros((*shape, len(TRAITS))), np.zeros(shape, np.bool_))
        for row, (offered, suits) in enumerate(zip(bids, traits, strict=True)):
            if len(offered):
                contests.bids[row, : len(offered)] = offered
                contests.traits[row, : len(offered)] = suits
                contests.there[row, : len(offered)] = True
        return contests

    def __len__(self) -> int:
        return len(self.bids)

    def at(self, bids: Array) -> Contests:
        """The same with other bids [a, n]."""
        return replace(self, bids=bids)

    def rows(self, chosen: NDArray[np.int64] | Flags) -> Contests:
        """Some of the auctions."""
        return Contests(self.bids[chosen], self.traits[chosen], self.there[chosen])


@dataclass(frozen=True, slots=True)
class AllocationCurve:
    """The fitted logit. ``gains`` [k] are what standing among the k + 1 highest bids adds."""

    constant: float
    traits: tuple[float, ...]
    log_bid: float
    bid: float
    gains: tuple[float, ...]
    largest: float

    def shares(self, contests: Contests, entered: Flags) -> Array:
        """The probability [a, n] that the answer is each ad's, among those ``entered``; 0 for others."""
        utility = self._fixed(contests) + self._of_bid(contests.bids)
        utility += self._ladder()[np.minimum(_ranks(contests.bids, entered), len(self.gains))]
        weight = np.where(entered, np.exp(utility), 0.0)
        result: Array = weight / (1 + weight.sum(axis=1, keepdims=True))
        return result

    def along(
        self, contests: Contests, entered: Flags, grid: Array, places: Sequence[int] | None = None
    ) -> Array:
        """The share [a, n, g] of each ad, or of those at ``places``, at every bid of ``grid`` [g], the
        bids of those ``entered`` beside it as they are; its own counts as entered."""
        ladder, fixed = self._ladder(), self._fixed(contests)
        base = fixed + self._of_bid(contests.bids)
        wanted = range(contests.bids.shape[1]) if places is None else places
        points = np.zeros((len(contests), len(wanted), len(grid)))
        for at, i in enumerate(wanted):
            others = entered.copy()
            others[:, i] = False
            rank = _ranks(contests.bids, others)
            ahead = np.where(others, np.exp(base + ladder[np.minimum(rank, len(self.gains))]), 0.0)
            behind = np.where(others, np.exp(base + ladder[np.minimum(rank + 1, len(self.gains))]), 0.0)
            later = np.arange(contests.bids.shape[1]) > i
            bids = contests.bids[:, None, :]
            beaten = (grid[None, :, None] > bids) | ((grid[None, :, None] == bids) & later)
            rivals = np.where(beaten, behind[:, None, :], ahead[:, None, :]).sum(axis=2)
            place = (others[:, None, :] & ~beaten).sum(axis=2)
            utility = fixed[:, i, None] + self._of_bid(grid) + ladder[np.minimum(place, len(self.gains))]
            weight = np.exp(utility)
            points[:, at] = weight / (1 + weight + rivals)
        return points

    def _fixed(self, contests: Contests) -> Array:
        result: Array = self.constant + contests.traits @ np.array(self.traits)
        return result

    def _of_bid(self, bids: Array) -> Array:
        result: Array = self.log_bid * np.log(bids) + self.bid * bids / self.largest
        return result

    def _ladder(self) -> Array:
        """What each rank [k + 1], from the best, adds; the last is every rank beyond."""
        return np.append(np.cumsum(self.gains[::-1])[::-1], 0.0)


def fit_curve(contests: Contests, placed: Array, answers: Array, largest: float) -> AllocationCurve:
    """The most likely curve for ``answers`` [a] answers of each auction, of which ``placed`` [a, n] are
    each ad's (an answer with k ads is 1 / k each one's).

    Raises:
        ValueError: there is no answer.
    """
    if not len(contests) or answers.sum() <= 0:
        raise ValueError("no answers to fit a curve to")
    ranks = _ranks(contests.bids, contests.there)
    columns = [np.ones_like(contests.bids), *np.moveaxis(contests.traits, 2, 0)]
    columns += [np.log(contests.bids), contests.bids / largest]
    columns += [(ranks <= k).astype(float) for k in range(RANK_GAINS)]
    features = np.where(contests.there[..., None], np.stack(columns, axis=2), 0.0)
    free = 1 + contests.traits.shape[2]

    def loss(weights: Array) -> tuple[float, Array]:
        utility = np.where(contests.there, features @ weights, -np.inf)
        peak = np.maximum(utility.max(axis=1), 0.0)
        scaled = np.exp(utility - peak[:, None])
        total = np.exp(-peak) + scaled.sum(axis=1)
        norm = np.log(total) + peak
        off = placed - answers[:, None] * scaled / total[:, None]
        finite = np.where(contests.there, utility, 0.0)
        value = float((answers * norm).sum() - (placed * finite).sum())
        penalty = RIDGE / 2 * float(weights[1:] @ weights[1:])
        gradient = -np.einsum("an,anf->f", off, features)
        gradient[1:] += RIDGE * weights[1:]
        return value + penalty, gradient

    most = MOST_COEFFICIENT
    bounds = [(-most, most)] * free + [(0.0, most)] * (2 + RANK_GAINS)
    solution = minimize(loss, np.zeros(len(bounds)), jac=True, method="L-BFGS-B", bounds=bounds).x.tolist()
    return AllocationCurve(
        solution[0],
        tuple(solution[1:free]),
        solution[free],
        solution[free + 1],
        tuple(solution[free + 2 :]),
        largest,
    )


def _ranks(bids: Array, entered: Flags) -> NDArray[np.int64]:
    """How many of those ``entered`` bid more than each ad, or as much and are listed before it, [a, n]."""
    places = np.arange(bids.shape[1])
    more = bids[:, None, :] > bids[:, :, None]
    before = (bids[:, None, :] == bids[:, :, None]) & (places[None, None, :] < places[None, :, None])
    result: NDArray[np.int64] = ((more | before) & entered[:, None, :]).sum(axis=2)
    return result
