"""R(y) of Eq. 5 and 8: by hand, and monotone where it must be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylla import config
from raylla.auction import Parsed, Violation, penalty, reward
from raylla.records import Placement

SETTINGS = config.Penalty(weight=0.5, per_ad=2, free_ads=1, per_excess_ad=30, per_violation=60)
TWO = Parsed((Placement("1", 0, 3), Placement("2", 5, 8)), (Violation.MALFORMED,))
RATES = st.floats(0, 1)
BIDS = st.floats(0, 100)


def test_penalty_by_hand() -> None:
    assert penalty(Parsed((), ()), SETTINGS) == 0
    assert penalty(TWO, SETTINGS) == 2 * 2 + 30 + 60


def test_reward_by_hand() -> None:
    found = reward(TWO, {"1": 10, "2": 50, "3": 99}, {"1": 0.5, "2": 0.1}, SETTINGS, sample_id="s")
    assert found.sample_id == "s"
    assert found.value == pytest.approx(10)
    assert found.penalty == pytest.approx(0.5 * 94)
    assert found.total == pytest.approx(10 - 47)


def test_a_placed_ad_without_a_bid_is_an_error() -> None:
    with pytest.raises(KeyError):
        reward(TWO, {"1": 10}, {"1": 0.5, "2": 0.1}, SETTINGS)


@given(BIDS, BIDS, RATES, RATES)
def test_monotone_in_bid_and_rate(low: float, high: float, rare: float, often: float) -> None:
    low, high = sorted((low, high))
    rare, often = sorted((rare, often))

    def total(bid: float, rate: float) -> float:
        return reward(TWO, {"1": bid, "2": 5}, {"1": rate, "2": 0.3}, SETTINGS).total

    assert total(low, rare) <= total(high, rare) <= total(high, often)


@given(st.integers(0, 8), st.lists(st.sampled_from(Violation), max_size=5))
def test_penalty_is_never_negative_and_grows_with_ads(count: int, broken: list[Violation]) -> None:
    def of(placed: int) -> float:
        places = tuple(Placement(str(index), index, index + 1) for index in range(placed))
        return penalty(Parsed(places, tuple(broken)), config.Penalty())

    assert 0 <= of(count) <= of(count + 1)
