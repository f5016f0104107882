"""The optimum on finite answer sets: closed forms, monotonicity and where it needs a masked reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylla.auction import optimum
from raylla.auction.checks import Array

SEEDS = st.integers(0, 2**32 - 1)
GRID = np.arange(1.0, 101.0)


class Case:
    """A random finite world: reference, effects, bids, costs and temperature."""

    def __init__(self, seed: int, answers: int = 7, advertisers: int = 3) -> None:
        self.rng = np.random.default_rng(seed)
        self.log_reference = np.log(self.rng.dirichlet(np.ones(answers)))
        shown = self.rng.random((advertisers, answers)) < 0.6
        self.effects = shown * self.rng.random((advertisers, answers))
        self.bids = self.rng.uniform(0, 100, advertisers)
        self.costs = self.rng.uniform(0, 50, answers)
        self.beta = float(np.exp(self.rng.uniform(np.log(5), np.log(100))))

    def rewards(self, bids: Array) -> Array:
        return optimum.rewards(self.effects, bids, self.costs)

    def policy(self, bids: Array) -> Array:
        return optimum.policy(self.log_reference, self.rewards(bids), self.beta)

    def itctr(self, bids: Array) -> Array:
        return optimum.itctr(self.policy(bids), self.effects)

    def along(self, i: int, own: Array) -> Array:
        profiles = np.tile(self.bids, (len(own), 1))
        profiles[:, i] = own
        return profiles


def objective(log_policy: Array, log_reference: Array, rewards: Array, beta: float) -> Array:
    """E_pi[R] - beta KL(pi || pi_0) [...] (Eq. 2) of normalized policies [..., m], in bid units."""
    possible = log_policy > -np.inf
    with np.errstate(invalid="ignore"):
        gain = np.where(possible, log_policy - log_reference + np.log(np.exp(log_reference).sum()), 0)
    value: Array = np.sum(np.exp(log_policy) * np.where(possible, rewards - beta * gain, 0), axis=-1)
    return value


def slopes(log_policy: Array, effects: Array, beta: float) -> Array:
    """d itctr_i / d b_j [n, n] at the optimum, per bid unit: Cov_pi(c_i, c_j) / beta."""
    centred = effects - optimum.itctr(log_policy, effects)[:, None]
    covariances: Array = centred * np.exp(log_policy) @ centred.T / beta
    return covariances


@given(SEEDS)
def test_no_policy_does_better_and_the_best_is_worth_beta_log_z(seed: int) -> None:
    case = Case(seed)
    rewards, best = case.rewards(case.bids), case.policy(case.bids)
    assert np.exp(best).sum() == pytest.approx(1, abs=1e-12)
    value = objective(best, case.log_reference, rewards, case.beta)
    log_z = np.log(np.sum(np.exp(case.log_reference + rewards / case.beta)))
    assert value == pytest.approx(case.beta * log_z, abs=1e-9)
    near = best + case.rng.normal(0, 0.05, (50, len(best)))
    near -= np.log(np.exp(near).sum(axis=1, keepdims=True))
    others = np.concatenate(
        [near, np.log(case.rng.dirichlet(np.ones(len(best)), 50)), np.where(np.eye(7) > 0, 0, -np.inf)]
    )
    lost = value - objective(others, case.log_reference, rewards, case.beta)
    divergence = np.sum(np.exp(others) * np.where(others > -np.inf, others - best, 0), axis=1)
    assert (lost >= -1e-9).all()
    assert lost == pytest.approx(case.beta * divergence, abs=1e-9)


def test_by_hand() -> None:
    """Two equally likely answers, one with a sure click at bid 40 and beta 40: odds e to 1."""
    assert optimum.rewards([[1, 0.5], [0, 0.2]], [[40, 10], [0, 0]], [0, 5]).tolist() == [[40, 17], [0, -5]]
    policy = optimum.policy(np.log([0.5, 0.5]), optimum.rewards([[1, 0]], [40], [0, 0]), 40)
    share = np.e / (np.e + 1)
    assert optimum.itctr(policy, [[1, 0]]) == pytest.approx(share)
    assert slopes(policy, np.array([[1, 0]]), 40)[0, 0] == pytest.approx(share * (1 - share) / 40)
    assert optimum.truthful_prices(policy, [[40, 0]], 40) == pytest.approx(
        40 * share - 40 * np.log((np.e + 1) / 2)
    )


@given(SEEDS)
def test_itctr_rises_with_the_own_bid(seed: int) -> None:
    case = Case(seed)
    for i in range(3):
        curve = case.itctr(case.along(i, GRID))[:, i]
        assert (np.diff(curve) >= -1e-12).all()
        spread = np.ptp(case.effects[i])
        assert (np.diff(curve) <= spread**2 / (4 * case.beta) + 1e-12).all()


@given(SEEDS)
def test_slopes_are_covariances(seed: int) -> None:
    case, step = Case(seed), 1e-3
    exact = slopes(case.policy(case.bids), case.effects, case.beta)
    shift = step * np.eye(3)
    numeric = (case.itctr(case.bids + shift) - case.itctr(np.maximum(case.bids - shift, 0))) / (2 * step)
    assert exact == pytest.approx(exact.T, abs=1e-12)
    if case.bids.min() > step:
        assert exact == pytest.approx(numeric.T, abs=1e-8)
    assert (np.diag(exact) >= 0).all()


def _shares(costs_read_the_bid: bool, bids: Array) -> Array:
    """ITCTR of one advertiser whose reference hides its ad the more, the more it bids, or is masked."""
    hidden = np.clip(bids / 50, 0, 10)[:, None] * [0, 1] if costs_read_the_bid else np.zeros((len(bids), 2))
    effects = np.array([[1.0, 0.0]])
    policy = optimum.policy(hidden, optimum.rewards(effects, bids[:, None], [0, 0]), 100.0)
    return optimum.itctr(policy, effects)[:, 0]


def test_a_reference_that_reads_bids_breaks_monotonicity_and_a_masked_one_restores_it() -> None:
    assert (np.diff(_shares(True, GRID)) < 0).all()
    assert (np.diff(_shares(False, GRID)) > 0).all()


@given(SEEDS)
def test_truthful_price_is_the_divergence_and_the_myerson_integral(seed: int) -> None:
    case = Case(seed)
    policy = case.policy(case.bids)
    prices = optimum.truthful_prices(policy, case.bids[:, None] * case.effects, case.beta)
    without = case.policy(case.bids * (1 - np.eye(3)))
    divergence = case.beta * np.sum(np.exp(policy) * (policy - without), axis=1)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    for i, bid in enumerate(case.bids):
        curve = case.itctr(case.along(i, bid * (nodes + 1) / 2))[:, i]
        integral = bid * case.itctr(case.bids)[i] - bid / 2 * weights @ curve
        assert prices[i] == pytest.approx(integral, abs=1e-9)
        grid = np.linspace(0, bid, 2001)
        measured = optimum.myerson(grid, case.itctr(case.along(i, grid))[:, i])
        assert prices[i] == pytest.approx(measured[-1], abs=1e-3)
    assert prices == pytest.approx(divergence, abs=1e-9)
    assert (prices >= 0).all()
    assert (prices <= case.bids * case.itctr(case.bids) + 1e-9).all()


@given(SEEDS)
def test_truth_is_the_best_bid_at_the_truthful_price(seed: int) -> None:
    case = Case(seed)
    for i, value in enumerate(case.bids):
        profiles = case.along(i, np.append(np.linspace(0, 100, 51), value))
        prices = optimum.truthful_prices(
            case.policy(profiles), profiles[:, :, None] * case.effects, case.beta
        )
        utility = value * case.itctr(profiles)[:, i] - prices[:, i]
        assert utility.max() <= utility[-1] + 1e-9
        assert utility[-1] >= -1e-9


@given(SEEDS, st.integers(1, 6))
def test_epochs_compound(seed: int, epochs: int) -> None:
    case = Case(seed)
    rewards, last = case.rewards(case.bids), case.log_reference
    for _ in range(epochs):
        last = optimum.policy(last, rewards, case.beta)
    assert last == pytest.approx(optimum.policy(case.log_reference, rewards, case.beta / epochs), abs=1e-9)


def test_extreme_rewards_and_impossible_answers_stay_finite() -> None:
    policy = optimum.policy([-np.inf, -1000, 0], [1e9, 1e6, -1e6], 0.1)
    assert np.exp(policy).tolist() == [0, 1, 0]
    assert optimum.truthful_prices(policy, [[0, 1e6, 0]], 0.1) == pytest.approx(0, abs=1e-3)
    assert objective(policy, np.array([-np.inf, -1, -1]), np.array([1e9, 5, 0]), 1.0) == pytest.approx(
        5 - np.log(2)
    )


def test_effective_sample_size() -> None:
    assert optimum.effective_sample_size([[5, 5, 5, 5], [0, -800, -800, -np.inf]]) == pytest.approx([4, 1])
    assert optimum.effective_sample_size(np.log([2, 1])) == pytest.approx(9 / 5)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: optimum.rewards([[1.5]], [1], [0]), "effects"),
        (lambda: optimum.rewards([[0.5]], [-1], [0]), "bids"),
        (lambda: optimum.rewards([[0.5]], [1, 2], [0]), "bids"),
        (lambda: optimum.rewards([[0.5]], [1], [0, 0]), "costs"),
        (lambda: optimum.policy([0, 0], [1, 2], 0), "beta"),
        (lambda: optimum.policy([-np.inf, -np.inf], [1, 2], 1), "log_reference"),
        (lambda: optimum.policy([0, np.nan], [1, 2], 1), "log_reference"),
        (lambda: optimum.policy([0, 0], [1, np.nan], 1), "rewards"),
        (lambda: optimum.truthful_prices([0, 0], [[1, 2, 3]], 1), "values"),
        (lambda: optimum.myerson([1, 2], [0.1, 0.2]), "bids"),
        (lambda: optimum.myerson([0, 2, 1], [0.1, 0.2, 0.3]), "bids"),
    ],
)
def test_bad_arguments_are_named(call: Any, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        call()
