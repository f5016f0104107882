"""Regret, individual rationality and best responses on auctions whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylla.auction import incentives, optimum
from raylla.auction.checks import Array

GRID = np.linspace(0, 100, 101)
VALUES = np.array([60.0, 80.0, 30.0])


def _curve(seed: int) -> Array:
    """A random increasing curve of itctr on the grid."""
    return np.sort(np.random.default_rng(seed).random(len(GRID)))


def _second_price(profiles: Array) -> tuple[Array, Array]:
    """One sure click to the highest bid (the first of equals) at the second highest."""
    won = np.arange(profiles.shape[1]) == profiles.argmax(axis=1)[:, None]
    return won * 1.0, won * np.sort(profiles, axis=1)[:, -2:-1]


def _first_price(profiles: Array) -> tuple[Array, Array]:
    won, _ = _second_price(profiles)
    return won, won * profiles


@given(st.integers(0, 10**6))
def test_first_price_is_truthful_for_value_maximizers_only(seed: int) -> None:
    curve = _curve(seed)
    payment = GRID * curve
    for target in (0.5, 1.0, 1.7):
        assert incentives.regret(GRID, curve, payment, "value", target) == pytest.approx(0, abs=1e-9)
    assert incentives.least_utility(GRID, curve, payment) == pytest.approx(0)
    assert incentives.regret(GRID, curve, payment)[-1] > 1


@given(st.integers(0, 10**6))
def test_a_curve_that_falls_leaves_value_maximizers_regret(seed: int) -> None:
    curve = _curve(seed)[::-1]
    found = incentives.regret(GRID, curve, GRID * curve, "value", target=2.0)
    assert found[1:] == pytest.approx(2 * GRID[1:] * (curve[0] - curve[1:]))


@given(st.integers(0, 10**6))
def test_the_step_curve_at_myerson_prices_leaves_utility_maximizers_no_regret(seed: int) -> None:
    """A step at 50 with critical price: winners pay 50 whatever they bid."""
    height = np.random.default_rng(seed).random()
    curve = height * (GRID >= 50)
    regret = incentives.regret(GRID, curve, 50 * curve)
    assert regret == pytest.approx(0, abs=1e-9)
    assert incentives.least_utility(GRID, curve, 50 * curve) == pytest.approx(0)


def test_regret_by_hand() -> None:
    """Values 0, 1, 2 with x = 0, .5, 1 at first price: value 2 had better bid 1."""
    assert incentives.regret([0, 1, 2], [0, 0.5, 1], [0, 0.5, 2]).tolist() == [0, 0, 0.5]
    rows = incentives.regret([0, 1, 2], [[0, 0.5, 1], [0, 1, 1]], [[0, 0.5, 2], [0, 1, 2]])
    assert rows.tolist() == [[0, 0, 0.5], [0, 0, 1]]


def test_overcharging_is_irrational_and_breaks_the_constraint() -> None:
    curve = np.linspace(0, 1, 101)
    assert incentives.least_utility(GRID, curve, 1.1 * GRID * curve) == pytest.approx(-10)
    found = incentives.regret(GRID, curve, 1.1 * GRID * curve, "value")
    best = GRID[100] * curve[90]
    assert found[100] == pytest.approx(best)


def test_second_price_stays_at_the_truth() -> None:
    end = incentives.best_responses(_second_price, VALUES, GRID, np.random.default_rng(0))
    assert end.converged
    assert end.rounds == 1
    assert end.bids.tolist() == VALUES.tolist()
    assert (end.revenue, end.welfare) == (60, 80)


@pytest.mark.parametrize("seed", range(5))
def test_first_price_sinks_to_the_second_value(seed: int) -> None:
    end = incentives.best_responses(_first_price, VALUES, GRID, np.random.default_rng(seed))
    assert end.converged
    assert end.welfare == 80
    assert 59 <= end.revenue <= 61
    rows = _deviations(_first_price, end.bids)
    assert (rows <= 1e-9).all()


def _deviations(respond: incentives.Respond, bids: Array) -> Array:
    gains = []
    for i, value in enumerate(VALUES):
        profiles = np.tile(bids, (len(GRID) + 1, 1))
        profiles[1:, i] = GRID
        itctr, payment = respond(profiles)
        utility = value * itctr[:, i] - payment[:, i]
        gains.append(utility[1:].max() - utility[0])
    return np.array(gains)


@given(st.integers(0, 10**6))
def test_the_optimum_at_first_price_settles_below_the_truth(seed: int) -> None:
    rng = np.random.default_rng(seed)
    effects = rng.random((3, 6)) * (rng.random((3, 6)) < 0.7)

    def respond(profiles: Array) -> tuple[Array, Array]:
        rewards = optimum.rewards(effects, profiles, np.zeros(6))
        itctr = optimum.itctr(optimum.policy(np.zeros(6), rewards, 10.0), effects)
        return itctr, itctr * profiles

    end = incentives.best_responses(respond, VALUES, GRID, rng)
    assert (end.bids <= VALUES).all()
    if end.converged:
        assert (_deviations(respond, end.bids) <= 1e-9).all()
    itctr, payment = respond(VALUES[None])
    assert end.revenue <= payment.sum() + 1e-9
    selling = incentives.best_responses(respond, VALUES, GRID, rng, "value", target=2.0)
    assert selling.converged
    shown = itctr[0] > 1e-6
    assert selling.bids[shown] == pytest.approx(VALUES[shown] / 2)


def test_all_start_at_the_truth() -> None:
    def respond(profiles: Array) -> tuple[Array, Array]:
        return np.ones(profiles.shape), profiles

    for goal, target, start in (("utility", 2.0, VALUES), ("value", 2.0, VALUES / 2)):
        end = incentives.best_responses(
            respond, VALUES, GRID, np.random.default_rng(0), goal, target, max_rounds=0
        )
        assert (end.bids.tolist(), end.converged) == (start.tolist(), False)


def test_cycles_stop_at_the_bound() -> None:
    """Matching pennies: the first wants equal bids, the second different ones."""

    def respond(profiles: Array) -> tuple[Array, Array]:
        equal = profiles[:, :1] == profiles[:, 1:]
        return np.hstack([equal, ~equal]) * 1.0, np.zeros(profiles.shape)

    end = incentives.best_responses(respond, [1, 1], [0, 1], np.random.default_rng(0), max_rounds=7)
    assert (end.converged, end.rounds) == (False, 7)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="bids"):
        incentives.regret([2, 1], [0.1, 0.2], [0, 0])
    with pytest.raises(ValueError, match="itctr"):
        incentives.regret([1, 2], [0.1], [0])
    with pytest.raises(ValueError, match="payment"):
        incentives.least_utility([1, 2], [0.1, 0.2], [0])
    with pytest.raises(ValueError, match="target"):
        incentives.regret([1, 2], [0.1, 0.2], [0, 0], "value", target=0)
