"""MOSAIC on finite candidates: payments, truthfulness and the two limits of tau."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylla.auction import optimum
from raylla.auction.checks import Array
from raylla.mechanisms import mosaic

SEEDS = st.integers(0, 2**32 - 1)
TAUS = st.sampled_from([0.0, 0.5, 5.0, 50.0])


class Case:
    """Random candidates: rates, bids, log ratios (one impossible answer) and costs."""

    def __init__(self, seed: int, candidates: int = 8, advertisers: int = 3) -> None:
        self.rng = np.random.default_rng(seed)
        shown = self.rng.random((advertisers, candidates)) < 0.6
        self.rates = shown * self.rng.random((advertisers, candidates))
        self.bids = self.rng.uniform(0, 100, advertisers)
        self.rewards = self.bids[:, None] * self.rates
        self.log_ratio = self.rng.normal(0, 2, candidates)
        self.log_ratio[0] = -np.inf
        self.costs = self.rng.uniform(0, 30, candidates)

    def log_p(self, rewards: Array, tau: float) -> Array:
        return mosaic.log_probabilities(rewards, self.log_ratio, self.costs, tau)

    def payments(self, rewards: Array, tau: float) -> Array:
        return mosaic.payments(rewards, self.log_ratio, self.costs, tau)

    def without(self, i: int, tau: float) -> Array:
        """log p where advertiser i reports nothing."""
        rewards = self.rewards.copy()
        rewards[i] = 0
        return self.log_p(rewards, tau)


def utilities(values: Array, payments: Array, log_p: Array) -> Array:
    """Expected utility [n], E_p[v_i] - t_i, of bidders whose true rewards are ``values`` [n, M]."""
    return values @ np.exp(log_p) - payments


def test_by_hand() -> None:
    """Odds 3 to 1 from the ratio, e to 1 from the reward, e^2 to 1 back from the cost."""
    log_p = mosaic.log_probabilities([[5, 0]], np.log([3, 1]), [10, 0], 5)
    odds = 3 * np.e / np.e**2
    assert np.exp(log_p) == pytest.approx([odds / (odds + 1), 1 / (odds + 1)])


@given(SEEDS, TAUS)
def test_payment_is_tau_times_the_divergence_and_never_above_the_reward(seed: int, tau: float) -> None:
    case = Case(seed)
    p, paid = np.exp(case.log_p(case.rewards, tau)), case.payments(case.rewards, tau)
    utility = utilities(case.rewards, paid, case.log_p(case.rewards, tau))
    assert p[0] == 0
    assert (paid >= 0).all()
    assert (paid <= case.rewards @ p + 1e-9).all()
    for i in range(3):
        without = case.without(i, tau)
        assert utility[i] >= case.rewards[i] @ np.exp(without) - 1e-9
        if tau:
            divergence = np.sum(p[1:] * (case.log_p(case.rewards, tau)[1:] - without[1:]))
            assert paid[i] == pytest.approx(tau * divergence, abs=1e-9)
        else:
            others = case.rewards.sum(axis=0) - case.rewards[i] - case.costs
            assert paid[i] == pytest.approx(others[1:].max() - others @ p, abs=1e-9)


@given(SEEDS, TAUS)
def test_no_misreport_gains(seed: int, tau: float) -> None:
    case = Case(seed)
    truth = utilities(case.rewards, case.payments(case.rewards, tau), case.log_p(case.rewards, tau))
    reports = [
        case.rng.uniform(0, 100, 8),
        case.rng.normal(0, 60, 8),
        case.rewards[0] * case.rng.uniform(0, 2),
        case.rewards[0] + case.rng.normal(0, 1, 8),
        np.zeros(8),
        1e4 * (np.arange(8) == case.rng.integers(8)),
    ]
    for report in reports:
        reported = case.rewards.copy()
        reported[0] = report
        log_p, paid = case.log_p(reported, tau), case.payments(reported, tau)
        assert utilities(case.rewards, paid, log_p)[0] <= truth[0] + 1e-9


@given(SEEDS, TAUS)
def test_nothing_to_gain_nothing_to_pay_and_constants_change_nothing(seed: int, tau: float) -> None:
    case = Case(seed)
    case.rewards[1] = 0
    paid = case.payments(case.rewards, tau)
    assert paid[1] == pytest.approx(0, abs=1e-12)
    shifted = case.rewards.copy()
    shifted[2] += 17
    assert case.log_p(shifted, tau) == pytest.approx(case.log_p(case.rewards, tau), abs=1e-9)
    assert case.payments(shifted, tau) == pytest.approx(paid, abs=1e-9)


@given(SEEDS, TAUS)
def test_the_price_of_a_click_is_at_most_the_bid_and_collects_the_payment(seed: int, tau: float) -> None:
    case = Case(seed)
    log_p, paid = case.log_p(case.rewards, tau), case.payments(case.rewards, tau)
    price = mosaic.price_per_click(paid, case.rates, log_p)
    clicks = case.rates @ np.exp(log_p)
    assert (price[clicks > 1e-9] <= case.bids[clicks > 1e-9] * (1 + 1e-6) + 1e-6).all()
    assert (price >= 0).all()
    assert price * clicks == pytest.approx(paid, abs=1e-9)


@given(SEEDS)
def test_small_tau_is_the_best_answer_and_large_tau_the_weights(seed: int) -> None:
    case = Case(seed)
    welfare = case.rewards.sum(axis=0) - case.costs
    best = np.argmax(welfare[1:]) + 1
    assert np.exp(case.log_p(case.rewards, 0)) == pytest.approx(np.eye(8)[best])
    if np.diff(np.sort(welfare[1:]))[-1] > 1:
        near = 1e-3
        assert case.log_p(case.rewards, near)[best] == pytest.approx(0, abs=1e-9)
        assert case.payments(case.rewards, near) == pytest.approx(case.payments(case.rewards, 0), abs=0.02)
    ratio = np.exp(case.log_ratio) / np.exp(case.log_ratio).sum()
    assert np.exp(case.log_p(case.rewards, 1e9)) == pytest.approx(ratio, abs=1e-6)


def test_equals_share_by_the_ratio_at_tau_zero() -> None:
    rewards, log_ratio = [[5, 5, 5, 1]], [np.log(3), 0, -np.inf, 50]
    assert np.exp(mosaic.log_probabilities(rewards, log_ratio, np.zeros(4), 0)) == pytest.approx(
        [0.75, 0.25, 0, 0]
    )


def test_degenerate_ratios_show_in_the_effective_sample_size() -> None:
    log_p = mosaic.log_probabilities(np.zeros((1, 20)), np.linspace(0, 400, 20), np.zeros(20), 5)
    assert optimum.effective_sample_size(log_p) == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"tau": -1}, "tau"),
        ({"tau": np.inf}, "tau"),
        ({"log_ratio": [-np.inf, -np.inf]}, "log_ratio"),
        ({"rewards": [[1.0, np.nan]]}, "rewards"),
        ({"rewards": [[1.0, 2.0, 3.0]]}, "rewards"),
        ({"costs": [0.0]}, "costs"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], name: str) -> None:
    good = {"rewards": [[1.0, 2.0]], "log_ratio": [0.0, 0.0], "costs": [0.0, 0.0], "tau": 1.0}
    for call in (mosaic.log_probabilities, mosaic.payments):
        with pytest.raises(ValueError, match=name):
            call(**(good | change))
