"""Truthful prices from samples: the closed form estimated, and self-resampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from raylla.auction import optimum, truthful
from raylla.auction.checks import Array

LOG_REFERENCE = np.log([0.1, 0.2, 0.3, 0.4])
EFFECTS = np.array([[0.8, 0.0, 0.3, 0.0], [0.0, 0.7, 0.3, 0.0]])
BIDS = np.array([40.0, 25.0])
BETA = 15.0


def _policy(bids: Array) -> Array:
    return optimum.policy(LOG_REFERENCE, optimum.rewards(EFFECTS, bids, np.zeros(4)), BETA)


def test_estimate_agrees_with_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    true = optimum.truthful_prices(_policy(BIDS), BIDS[:, None] * EFFECTS, BETA)
    estimates = []
    for _ in range(150):
        answers = rng.choice(4, 300, p=np.exp(_policy(BIDS)))
        estimates.append(truthful.sampled_prices(BIDS[:, None] * EFFECTS[:, answers], BETA))
    assert np.mean(estimates, axis=0) == pytest.approx(true, rel=0.02)


@given(arrays.arrays(np.float64, (2, 6), elements=st.floats(0, 100)), st.floats(0.1, 1000))
def test_estimate_lies_between_nothing_and_first_price(values: Array, beta: float) -> None:
    price = truthful.sampled_prices(values, beta)
    assert (price >= 0).all()
    assert (price <= values.mean(axis=1) + 1e-9).all()


def test_an_ad_without_effect_on_the_answer_pays_nothing() -> None:
    price = truthful.sampled_prices([[7.0] * 5, [0.0] * 5], 1)
    assert price == pytest.approx([0, 0], abs=1e-12)


def test_resampled_bids_have_the_stated_distribution() -> None:
    mu, count = 0.3, 200_000
    bids, resampled = truthful.resample(np.full(count, 10.0), mu, np.random.default_rng(1))
    assert resampled.mean() == pytest.approx(mu, abs=4 * np.sqrt(mu * (1 - mu) / count))
    assert (bids[~resampled] == 10).all()
    for share in (0.1, 0.5, 0.9):
        expected = share ** (1 - mu)
        found = (bids[resampled] <= 10 * share).mean()
        assert found == pytest.approx(expected, abs=4 * np.sqrt(0.25 / resampled.sum()))


def test_expected_charge_is_the_myerson_price_of_the_resampled_auction() -> None:
    """Against x(b) = b / (b + 10), whose resampled curve is integrated numerically."""
    mu, bid, count = 0.25, 30.0, 400_000
    rng = np.random.default_rng(2)
    drawn, resampled = truthful.resample(np.full(count, bid), mu, rng)
    clicks = rng.random(count) < drawn / (drawn + 10)
    total, error = truthful.summed_charges(truthful.charges(np.full(count, bid), clicks, resampled, mu))
    grid, middle = np.linspace(0, bid, 2001), ((np.arange(4000) + 0.5) / 4000) ** (1 / (1 - mu))
    shrunk = grid[:, None] * middle
    curve = (1 - mu) * grid / (grid + 10) + mu * (shrunk / (shrunk + 10)).mean(axis=1)
    expected = optimum.myerson(grid, curve)[-1]
    assert error / count < 0.05 * expected
    assert abs(total / count - expected) < 4 * error / count


def test_no_click_no_charge_and_resampled_clicks_are_rebates() -> None:
    found = truthful.charges([10, 10, 10], [0, 1, 1], np.array([True, False, True]), 0.1)
    assert found == pytest.approx([0, 10, -90])


def test_settle_by_hand() -> None:
    total, error = truthful.summed_charges([[1.0, 5.0], [3.0, 5.0]])
    assert total.tolist() == [4, 10]
    assert error == pytest.approx([np.sqrt(2 * 2), 0])


def test_bad_arguments_are_named() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="values"):
        truthful.sampled_prices([1.0, 2.0], 1)
    with pytest.raises(ValueError, match="beta"):
        truthful.sampled_prices([[1.0, 2.0]], 0)
    with pytest.raises(ValueError, match="mu"):
        truthful.resample([1.0], 1.0, rng)
    with pytest.raises(ValueError, match="outcomes"):
        truthful.charges([1.0], [2.0], np.array([False]), 0.1)
    with pytest.raises(ValueError, match="charges"):
        truthful.summed_charges([1.0])
