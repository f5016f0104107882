"""First price per click (Eq. 7) and the itctr estimator (Def. 3.1)."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylla.auction import estimate_itctr, expected_payment, payment_per_click

BIDS = st.floats(0, 1e6)


@given(BIDS)
def test_no_click_no_charge(bid: float) -> None:
    assert payment_per_click(bid, False) == 0
    assert payment_per_click(bid, True) == bid


@given(BIDS, st.floats(0, 1), st.booleans())
def test_individually_rational_for_bids_up_to_value(value: float, share: float, clicked: bool) -> None:
    assert value * clicked - payment_per_click(value * share, clicked) >= 0


def test_itctr_counts_answers_without_the_ad_as_zero() -> None:
    assert estimate_itctr([0.5, None, 0.25, None]) == pytest.approx(0.1875)


def test_mean_charge_is_bid_times_itctr_within_its_interval() -> None:
    rng = random.Random(0)
    bid, rates = 40.0, [rng.random() * 0.5 if rng.random() < 0.6 else None for _ in range(50)]
    draws = [rates[rng.randrange(len(rates))] for _ in range(40_000)]
    charges = [payment_per_click(bid, rate is not None and rng.random() < rate) for rate in draws]
    mean = sum(charges) / len(charges)
    error = math.sqrt(sum((charge - mean) ** 2 for charge in charges)) / len(charges)
    assert abs(mean - expected_payment(bid, estimate_itctr(rates))) < 4 * error


@pytest.mark.parametrize("bid", [-1.0, math.nan, math.inf])
def test_impossible_bids_are_refused(bid: float) -> None:
    with pytest.raises(ValueError, match="bid="):
        payment_per_click(bid, True)


def test_impossible_rates_are_refused() -> None:
    with pytest.raises(ValueError, match="itctr"):
        expected_payment(1.0, 1.5)
    with pytest.raises(ValueError, match="no samples"):
        estimate_itctr([])
