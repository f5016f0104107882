"""Autobidders: each advertiser bids one multiple of what a click is worth to it, moved by what it has seen.

One object steers n advertisers of a kind, all arrays [n].  Bidding a multiple of one's value is optimal
with hindsight wherever prices are truthful (Aggarwal, Badanidiyuru and Mehta 2019).  Spend is planned
against the share of the day's traffic that a period brings, which advertisers know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raylla.auction.checks import Array, ending, numbers, positive

LEAST_MULTIPLE, MOST_MULTIPLE = 0.02, 4.0
"""Bounds of a multiple; only value maximizers go above 1."""


@dataclass(frozen=True, slots=True)
class Won:
    """What a period brought: its ``share`` of the day's traffic, and of each advertiser the value of its
    clicks and what it paid, both [n] in bid units, and whether it could compete at all [n]."""

    share: float
    value: Array
    paid: Array
    active: NDArray[np.bool_]


class Autobidders(Protocol):
    """n advertisers of a kind."""

    pacing: Literal["even", "asap"]
    """How their campaigns ask to be paced by the endpoint; whoever paces itself asks for no help."""

    @property
    def multiples(self) -> Array:
        """What each bids in the coming period per unit of value [n]; the same until something is learnt."""

    @property
    def means(self) -> Array:
        """The multiples [n] in expectation over the bidder's own draws."""

    def begin(self) -> None:
        """A day begins, with a fresh budget."""

    def learn(self, won: Won) -> None:
        """The period is over."""


class Truthful:
    """Bids its value, and leaves its budget to the endpoint."""

    pacing: Literal["even", "asap"] = "even"

    def __init__(self, budgets: ArrayLike) -> None:
        self._ones = np.ones(len(_budgets(budgets)))

    @property
    def multiples(self) -> Array:
        """1 for all."""
        return self._ones

    @property
    def means(self) -> Array:
        """1 for all."""
        return self._ones

    def begin(self) -> None:
        """Nothing changes."""

    def learn(self, won: Won) -> None:
        """Nothing is learnt."""


class AdaptivePacing:
    """Adaptive pacing (Balseiro and Gur 2019): bids v / (1 + mu), mu >= 0 the budget's dual.

    mu moves by stochastic subgradient: up by ``step`` times what was spent beyond plan, in plans.  Whose
    budget is gone learns nothing from spending no more.
    """

    pacing: Literal["even", "asap"] = "asap"

    def __init__(self, budgets: ArrayLike, step: float = 0.1) -> None:
        self._budgets, self._step = _budgets(budgets), positive("step", step)
        self.dual = np.zeros(len(self._budgets))

    @property
    def multiples(self) -> Array:
        """1 / (1 + mu)."""
        return 1 / (1 + self.dual)

    @property
    def means(self) -> Array:
        """The same."""
        return self.multiples

    def begin(self) -> None:
        """The dual stays."""

    def learn(self, won: Won) -> None:
        """One step of the dual."""
        self.dual = _dual(self.dual, self._step, won, self._budgets)


class SpendPid:
    """PID control of cumulative spend, in the logarithm of the multiple, which is at most 1.

    The error is the share of the day's traffic gone less the share of the budget gone (in position form,
    with the integral held within bounds); a day starts from the mean of the day before.
    """

    pacing: Literal["even", "asap"] = "asap"

    def __init__(
        self,
        budgets: ArrayLike,
        proportional: float = 4.0,
        integral: float = 0.5,
        derivative: float = 4.0,
    ) -> None:
        self._budgets = _budgets(budgets)
        self._gains = proportional, integral, derivative
        self._log = np.zeros(len(self._budgets))
        self._day: list[Array] = []
        self.begin()

    @property
    def multiples(self) -> Array:
        """The control, out of its logarithm."""
        result: Array = np.exp(self._log)
        return result

    @property
    def means(self) -> Array:
        """The same."""
        return self.multiples

    def begin(self) -> None:
        """Spend and errors start anew, around where the day before was."""
        self._log = self._base = np.mean(self._day, axis=0) if self._day else self._log
        self._day = []
        self._gone = 0.0
        self._spent, self._sum, self._last = (np.zeros(len(self._budgets)) for _ in range(3))

    def learn(self, won: Won) -> None:
        """One step of the controller."""
        self._gone += won.share
        self._spent = self._spent + won.paid
        error = self._gone - self._spent / self._budgets
        proportional, integral, derivative = self._gains
        bound = -np.log(LEAST_MULTIPLE) / integral if integral else 0.0
        self._sum = np.clip(self._sum + error, -bound, bound)
        moved = proportional * error + integral * self._sum + derivative * (error - self._last)
        self._log = np.clip(self._base + moved, np.log(LEAST_MULTIPLE), 0)
        self._last = error
        self._day.append(self._log)


class ValueMaximizer:
    """Maximizes value under a budget and a return of ``target`` on what it spends.

    Bids v (1 + lambda) / (target lambda + mu): the best response to the duals of the return and of the
    budget.  lambda moves by mirror descent in its logarithm, down with the slack V - target P, in units of
    the mean V + target P of periods with clicks (Feng, Padmanabhan and Wang 2023); mu as in
    `AdaptivePacing`.  It begins near the multiple 1 / target, which keeps to the return under any prices
    that bids bound.
    """

    pacing: Literal["even", "asap"] = "asap"
    _CARE = 1000.0
    """Largest lambda, and one over its least."""

    def __init__(
        self, budgets: ArrayLike, target: float = 1.0, step: float = 0.1, care: float = 1.0
    ) -> None:
        self._budgets, self._step = _budgets(budgets), positive("step", step)
        self._sharpness = positive("care", care)
        self._target = positive("target", target)
        self.dual = np.zeros(len(self._budgets))
        self._care = np.full(len(self._budgets), 100.0)
        self._volume, self._periods = np.zeros((2, len(self._budgets)))

    @property
    def multiples(self) -> Array:
        """(1 + lambda) / (target lambda + mu), within bounds."""
        result: Array = np.clip(
            (1 + self._care) / (self._target * self._care + self.dual), LEAST_MULTIPLE, MOST_MULTIPLE
        )
        return result

    @property
    def means(self) -> Array:
        """The same."""
        return self.multiples

    def begin(self) -> None:
        """The duals stay: a return is asked for over all days."""

    def learn(self, won: Won) -> None:
        """One step of both duals."""
        volume = won.value + self._target * won.paid
        self._volume = self._volume + volume
        self._periods = self._periods + (volume > 0)
        unit = np.where(self._volume > 0, self._volume / np.maximum(self._periods, 1), 1)
        slack = (won.value - self._target * won.paid) / unit
        moved = self._care * np.exp(-self._sharpness * slack)
        self._care = np.clip(moved, 1 / self._CARE, self._CARE)
        self.dual = _dual(self.dual, self._step, won, self._budgets)


class ExponentialWeights:
    """Learns which multiple of `GRID` earns most, from the outcomes of its own bids alone.

    EXP3-IX (Neu 2015) over the multiples, with rates for any horizon; a period's gain is the Lagrangian
    V - (1 + mu) P per share of traffic, in units of the largest seen, where mu is the budget's dual
    (bandits with knapsacks: Immorlica et al. 2019).  Without a binding budget it maximizes value less
    payment, so that under first price it learns to shade its bids.
    """

    pacing: Literal["even", "asap"] = "asap"
    GRID = np.array([0.2, 0.4, 0.6, 0.8, 1.0])

    def __init__(self, budgets: ArrayLike, rng: np.random.Generator, step: float = 0.1) -> None:
        self._budgets, self._step, self._rng = _budgets(budgets), positive("step", step), rng
        count = len(self._budgets)
        self.dual, self._scale, self._rounds = np.zeros(count), np.zeros(count), 0
        self._losses = np.zeros((count, len(self.GRID)))
        self._draw()

    @property
    def multiples(self) -> Array:
        """Those drawn for the coming period."""
        result: Array = self.GRID[self._arms]
        return result

    @property
    def means(self) -> Array:
        """Under the probabilities of the grid's multiples."""
        result: Array = self.chances @ self.GRID
        return result

    def begin(self) -> None:
        """What was learnt stays."""

    def learn(self, won: Won) -> None:
        """Book the loss of the multiples that were drawn, and draw again."""
        share = max(won.share, np.finfo(float).tiny)
        earned = (won.value - (1 + self.dual) * won.paid) / share
        self._scale = np.maximum(self._scale, np.abs(earned))
        gain = np.divide(earned, self._scale, out=np.zeros_like(earned), where=self._scale > 0)
        rows = np.arange(len(self._arms))
        chance = self.chances[rows, self._arms] + self._rate / 2
        self._losses[rows, self._arms] += np.where(won.active, (1 - gain) / 2 / chance, 0)
        self.dual = _dual(self.dual, self._step, won, self._budgets)
        self._draw()

    def _draw(self) -> None:
        self._rounds += 1
        arms = len(self.GRID)
        self._rate = float(np.sqrt(2 * np.log(arms) / (arms * self._rounds)))
        weights = np.exp(-self._rate * (self._losses - self._losses.min(axis=1, keepdims=True)))
        self.chances = weights / weights.sum(axis=1, keepdims=True)
        """Of each multiple of the grid [n, k]."""
        drawn = self._rng.random((len(weights), 1))
        self._arms: NDArray[np.intp] = np.minimum(
            (self.chances.cumsum(axis=1) < drawn).sum(axis=1), arms - 1
        )


class Population:
    """Advertisers of several kinds as one: ``kinds`` [n] names each one's.

    Args:
        budgets: of a day, [n] in bid units.
        target: value that a value maximizer wants per unit that it spends.
    """

    def __init__(
        self, kinds: Sequence[str], budgets: ArrayLike, target: float, rng: np.random.Generator
    ) -> None:
        budgets = ending("budgets", _budgets(budgets), len(kinds))
        self.kinds = np.array(kinds)
        self._parts = [
            (places, BIDDER_KINDS[kind](budgets[places], target, rng))
            for kind in dict.fromkeys(kinds)
            for places in [np.flatnonzero(self.kinds == kind)]
        ]
        self.targets = np.where(self.kinds == "value", target, 1.0)
        """Value that each wants per unit that it spends, at least [n]."""

    @property
    def pacings(self) -> list[str]:
        """How each one's campaign is paced by the endpoint [n]."""
        chosen = {int(place): part.pacing for places, part in self._parts for place in places}
        return [chosen[place] for place in range(len(self.kinds))]

    @property
    def multiples(self) -> Array:
        """As `Autobidders.multiples`."""
        return self._gathered(lambda part: part.multiples)

    @property
    def means(self) -> Array:
        """As `Autobidders.means`."""
        return self._gathered(lambda part: part.means)

    def begin(self) -> None:
        """A day begins for all."""
        for _, part in self._parts:
            part.begin()

    def learn(self, won: Won) -> None:
        """The period is over for all."""
        for places, part in self._parts:
            part.learn(Won(won.share, won.value[places], won.paid[places], won.active[places]))

    def _gathered(self, of: Callable[[Autobidders], Array]) -> Array:
        values = np.empty(len(self.kinds))
        for places, part in self._parts:
            values[places] = of(part)
        return values


BIDDER_KINDS: Mapping[str, Callable[[Array, float, np.random.Generator], Autobidders]] = {
    "truthful": lambda budgets, _, __: Truthful(budgets),
    "pacing": lambda budgets, _, __: AdaptivePacing(budgets),
    "pid": lambda budgets, _, __: SpendPid(budgets),
    "value": lambda budgets, target, _: ValueMaximizer(budgets, target),
    "learned": lambda budgets, _, rng: ExponentialWeights(budgets, rng),
}
AUTOBIDDERS = tuple(kind for kind in BIDDER_KINDS if kind != "truthful")


def _budgets(given: ArrayLike) -> Array:
    budgets = numbers("budgets", given, 0)
    if budgets.ndim != 1 or not (budgets > 0).all():
        raise ValueError(f"budgets: give one above 0 for each advertiser, got {given!r}")
    return budgets


def _dual(dual: Array, step: float, won: Won, budgets: Array) -> Array:
    """The budget's dual after a subgradient step, within 0 and 1 / `LEAST_MULTIPLE`."""
    planned = budgets * won.share
    beyond = np.divide(won.paid - planned, planned, out=np.zeros_like(planned), where=planned > 0)
    result: Array = np.clip(dual + step * np.where(won.active, beyond, 0), 0, 1 / LEAST_MULTIPLE)
    return result
