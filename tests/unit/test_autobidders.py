"""Autobidders on stationary markets do what theory promises of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from raylla.auction.checks import Array
from raylla.bidding.autobidders import (
    BIDDER_KINDS,
    MOST_MULTIPLE,
    AdaptivePacing,
    Autobidders,
    ExponentialWeights,
    Population,
    SpendPid,
    Truthful,
    ValueMaximizer,
    Won,
)

PERIODS = 48
EACH = 40
"""Opportunities of a period."""
Price = Callable[[Array, Array], Array]


def second(bids: Array, rivals: Array) -> Array:
    return rivals


def first(bids: Array, rivals: Array) -> Array:
    return bids


class Market:
    """Opportunities with values U[0, 1] against rivals' bids U[0, 1], each click sure, the same for all."""

    def __init__(self, price: Price, days: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.values, self.rivals = rng.random((2, days, PERIODS, EACH))
        self.price = price
        wave = 1 + 0.6 * np.sin(np.linspace(0, 2 * np.pi, PERIODS, endpoint=False))
        self.shares = wave / wave.sum()

    def outcome(self, multiples: Array, day: int, period: int) -> tuple[Array, Array]:
        """Value and payment [n] in a period in proportion to its traffic."""
        values, rivals = self.values[day, period], self.rivals[day, period]
        bids = multiples[:, None] * values
        won = bids > rivals
        weight = self.shares[period] * PERIODS / EACH
        return (won * values).sum(1) * weight, (won * self.price(bids, rivals)).sum(1) * weight

    def best(self, budget: float, day: int, target: float = 0.0) -> float:
        """The most value of any multiple that stays within budget and gives the return, with hindsight."""
        tried = np.linspace(0.02, MOST_MULTIPLE, 400)
        value, paid = np.sum([self.outcome(tried, day, period) for period in range(PERIODS)], axis=0)
        return float(value[(paid <= budget) & (value >= target * paid)].max())

    def play(self, bidders: Autobidders, budgets: Array) -> tuple[Array, Array, Array]:
        """Value, payment and mean multiples, [days, periods, n]; without budget nothing is won."""
        days = len(self.values)
        value, paid, means = (np.zeros((days, PERIODS, len(budgets))) for _ in range(3))
        for day in range(days):
            bidders.begin()
            for period in range(PERIODS):
                left = budgets - paid[day].sum(axis=0)
                means[day, period] = bidders.means
                v, p = self.outcome(bidders.multiples, day, period)
                scale = np.clip(np.divide(left, p, out=np.ones_like(p), where=p > 0), 0, 1)
                value[day, period], paid[day, period] = v * scale, p * scale
                got = value[day, period], paid[day, period], left > 1e-9
                bidders.learn(Won(float(self.shares[period]), *got))
        return value, paid, means


BUDGETS = np.array([1.0, 2.0, 4.0])
"""Of markets in which bidding one's value would cost 8 under second price, 16 under first."""


@pytest.mark.parametrize("kind", ["pacing", "pid"])
@pytest.mark.parametrize("price", [first, second])
def test_a_budget_that_binds_is_spent_and_not_before_the_evening(kind: str, price: Price) -> None:
    market = Market(price, 5)
    bidders = BIDDER_KINDS[kind](BUDGETS, 1.0, np.random.default_rng(0))
    _, paid, _ = market.play(bidders, BUDGETS)
    assert (paid[-1].sum(axis=0) > 0.93 * BUDGETS).all()
    gone = paid[-1].cumsum(axis=0) / BUDGETS
    plan = market.shares.cumsum()[:, None]
    assert np.abs(gone - plan).max() < 0.12


@pytest.mark.parametrize("kind", ["pacing", "pid"])
def test_pacing_comes_to_the_best_multiple_of_hindsight(kind: str) -> None:
    market = Market(second, 6)
    bidders = BIDDER_KINDS[kind](BUDGETS, 1.0, np.random.default_rng(0))
    value, _, means = market.play(bidders, BUDGETS)
    for place, budget in enumerate(BUDGETS):
        assert value[-1, :, place].sum() > 0.95 * market.best(budget, 5)
    early, late = (means[day].std(axis=0).max() for day in (0, 5))
    assert late < early


@pytest.mark.parametrize("kind", ["pacing", "pid"])
def test_who_has_enough_bids_its_value(kind: str) -> None:
    bidders = BIDDER_KINDS[kind](np.array([100.0]), 1.0, np.random.default_rng(0))
    _, _, means = Market(second, 2).play(bidders, np.array([100.0]))
    assert means.min() == 1


def test_a_day_of_the_controller_begins_at_the_mean_of_the_day_before() -> None:
    bidders = SpendPid(BUDGETS)
    logs = []
    for spent in (0.5, 0.0, 0.1, 0.9):
        bidders.learn(Won(0.1, np.zeros(3), spent * BUDGETS, np.ones(3, np.bool_)))
        logs.append(np.log(bidders.multiples))
    assert len(np.unique(np.array(logs)[:, 0])) > 1
    bidders.begin()
    assert np.log(bidders.multiples) == pytest.approx(np.mean(logs, axis=0))
    bidders.begin()  # and a day without a period is none
    assert np.log(bidders.multiples) == pytest.approx(np.mean(logs, axis=0))


@pytest.mark.parametrize("price", [first, second])
@pytest.mark.parametrize("target", [1.0, 1.25, 2.0])
def test_a_value_maximizer_gets_its_return_and_little_less_than_the_best_value(
    price: Price, target: float
) -> None:
    market, budgets = Market(price, 8), np.array([100.0])
    value, paid, _ = market.play(ValueMaximizer(budgets, target), budgets)
    value, paid = value[2:].sum(axis=(1, 2)), paid[2:].sum(axis=(1, 2))
    assert value.sum() / paid.sum() > 0.98 * target
    best = np.mean([market.best(100.0, day, target) for day in range(2, 8)])
    assert value.mean() > 0.95 * best


def test_a_value_maximizer_under_first_price_bids_value_over_target() -> None:
    budgets = np.array([100.0])
    _, _, means = Market(first, 8).play(ValueMaximizer(budgets, 1.6), budgets)
    assert means[-1].mean() == pytest.approx(1 / 1.6, rel=0.03)


def test_a_value_maximizer_spends_no_more_than_its_budget_and_most_of_it() -> None:
    budgets = np.array([2.0])
    value, paid, _ = Market(second, 6).play(ValueMaximizer(budgets, 1.2), budgets)
    assert 0.93 * 2 < paid[-1].sum() <= 2 + 1e-9
    assert value[-1].sum() / paid[-1].sum() > 1.2  # the budget binds and the return does not


def bandit(learner: ExponentialWeights, rounds: int, rng: np.random.Generator) -> Array:
    """Regret per round [n] against the best multiple, of gains whose means are best at 0.6."""
    means = 0.6 - 1.5 * (ExponentialWeights.GRID - 0.6) ** 2
    lost = np.zeros(len(learner.multiples))
    for _ in range(rounds):
        mean = means[np.searchsorted(ExponentialWeights.GRID, learner.multiples)]
        lost += means.max() - mean
        value = (rng.random(len(mean)) < mean).astype(float)
        learner.learn(Won(1.0, value, np.zeros(len(mean)), mean > 0))
    return lost / rounds


def test_the_learner_has_no_regret() -> None:
    regrets = []
    for rounds in (50, 500, 3000):
        learner = ExponentialWeights(np.full(60, 1e9), np.random.default_rng(1))
        regrets.append(bandit(learner, rounds, np.random.default_rng(2)).mean())
        arms = len(ExponentialWeights.GRID)
        # Gains of -1 to 1 become losses of 0 to 1: regret in gains is twice that of losses.
        bound = 2 * 2 * np.sqrt(2 * rounds * arms * np.log(arms)) / rounds
        assert regrets[-1] < bound
    assert regrets[0] > 1.25 * regrets[1] > 1.25**2 * regrets[2]


def test_the_learner_shades_under_first_price_and_not_under_second() -> None:
    budgets = np.full(20, 1e9)
    shaded, true = (
        Market(price, 40).play(ExponentialWeights(budgets, np.random.default_rng(0)), budgets)[2][-1].mean()
        for price in (first, second)
    )
    assert shaded < 0.56 < 0.75 < true  # v / 2 is best against U[0, 1] under first price, v under second


def test_the_learner_keeps_to_its_budget() -> None:
    budgets = np.full(20, 2.0)
    market = Market(second, 20)
    value, paid, _ = market.play(ExponentialWeights(budgets, np.random.default_rng(0)), budgets)
    rich = market.play(ExponentialWeights(budgets * 1e6, np.random.default_rng(0)), budgets * 1e6)[1]
    assert paid[-1].sum(axis=0).mean() > 0.85 * 2
    assert rich[-1].sum(axis=0).mean() > 2 * 2  # it would have spent more
    assert value[-1].sum(axis=0).mean() > 0.7 * market.best(2.0, 19)


def test_nothing_won_teaches_nothing_that_is_no_number() -> None:
    for kind in BIDDER_KINDS:
        bidders = BIDDER_KINDS[kind](np.array([3.0, 5.0]), 1.2, np.random.default_rng(0))
        bidders.begin()
        for share in (0.0, 0.1, 1.0):
            bidders.learn(Won(share, np.zeros(2), np.zeros(2), np.array([True, False])))
        assert np.isfinite(bidders.multiples).all()
        assert (bidders.multiples > 0).all()


def test_a_population_is_its_parts() -> None:
    kinds = ["pacing", "value", "truthful", "pid", "pacing"]
    budgets = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    one = Population(kinds, budgets, 1.5, np.random.default_rng(0))
    pacing, value, pid = (
        AdaptivePacing(budgets[[0, 4]]),
        ValueMaximizer(budgets[[1]], 1.5),
        SpendPid(budgets[[3]]),
    )
    assert one.pacings == ["asap", "asap", "even", "asap", "asap"]
    assert one.targets.tolist() == [1, 1.5, 1, 1, 1]
    for part in (one, pid):
        part.begin()
    rng = np.random.default_rng(3)
    for _ in range(5):
        got, paid = rng.random((2, 5))
        one.learn(Won(0.02, got, paid, got > 0.1))
        for part, places in ((pacing, [0, 4]), (value, [1]), (pid, [3])):
            part.learn(Won(0.02, got[places], paid[places], got[places] > 0.1))
    expected = [pacing.multiples[0], value.multiples[0], 1.0, pid.multiples[0], pacing.multiples[1]]
    assert one.multiples.tolist() == expected
    assert one.means.tolist() == expected


@pytest.mark.parametrize("budgets", [[0.0], [-1.0], [[1.0]], [float("nan")]])
def test_a_budget_is_above_nothing(budgets: list[float]) -> None:
    with pytest.raises(ValueError, match="budgets"):
        Truthful(budgets)
