"""Price rules: exact to the micro, and in expectation the price that they are named after."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylla.auction import optimum, truthful
from raylla.auction.checks import Array
from raylla.config import Serving
from raylla.serving.money import pricing
from raylla.serving.money.records import PriceRule

UNIT = 10_000
# Four answers, two ads: the click probability of each ad in each answer, 0 where it is not placed.
EFFECTS = np.array([[0.8, 0.0, 0.3, 0.0], [0.0, 0.7, 0.3, 0.0]])
LOG_REFERENCE = np.log([0.1, 0.2, 0.3, 0.4])
BETA = 15.0
TOP = 24


def test_every_rule_has_a_setting_and_a_number_of_its_own() -> None:
    settings = get_args(Serving.model_fields["price_rule"].annotation)
    assert list(settings) == [rule.value for rule in PriceRule]
    assert len({rule.at for rule in PriceRule}) == len(PriceRule)


def _policy(own: float) -> Array:
    """The optimal policy over the four answers where ad 0 bids ``own`` units and ad 1 bids 25."""
    rewards = optimum.rewards(EFFECTS, np.array([own, 25.0]), np.zeros(4))
    return np.exp(optimum.policy(LOG_REFERENCE, rewards, BETA))


def _rate(own: float) -> float:
    return float(_policy(own) @ EFFECTS[0])


@pytest.mark.parametrize("mu", [0.1, 0.4])
def test_expected_resampled_charge_is_myersons(mu: float) -> None:
    """In closed form: a lowered bid is at most k of b units with probability (k / b)^(1 - mu)."""
    plain = np.array([_rate(units) for units in range(1, TOP + 1)])
    whole = pricing.price(PriceRule.RESAMPLED, TOP * UNIT, pctr=0, resampled=False, mu=mu)
    rebate = pricing.price(PriceRule.RESAMPLED, TOP * UNIT, pctr=0, resampled=True, mu=mu)
    shares = np.diff((np.arange(TOP + 1) / TOP) ** (1 - mu))
    charged = (1 - mu) * whole * plain[-1] + mu * rebate * (shares @ plain)
    rate = (1 - mu) * plain[-1] + mu * (shares @ plain)
    # Within one step (z - 1, z] the resampled curve is not flat: lowered bids of z' < z lie lower.
    fine = np.linspace(0, TOP, 24_001)[1:] - TOP / 48_000
    steps = np.ceil(fine).astype(int)
    curve = np.empty_like(fine)
    for place, (bid, top) in enumerate(zip(fine, steps, strict=True)):
        edges = np.minimum(np.arange(top + 1) / bid, 1) ** (1 - mu)
        curve[place] = (1 - mu) * plain[top - 1] + mu * (np.diff(edges) @ plain[:top])
    myerson = UNIT * (TOP * rate - curve.mean() * TOP)
    assert charged == pytest.approx(myerson, rel=1e-4)


def test_drawn_charges_have_that_expectation() -> None:
    """The same, of bids that `enter` draws auction by auction and clicks of the policy's answers."""
    mu, count = 0.25, 20_000
    rng = np.random.default_rng(3)
    answers = {units: rng.choice(4, count, p=_policy(units)) for units in range(1, TOP + 1)}
    clicks = rng.random(count)
    charges = np.zeros(count)
    for index in range(count):
        entry = pricing.enter(PriceRule.RESAMPLED, TOP * UNIT, UNIT, mu, 0, f"a{index}", "1")
        shown = EFFECTS[0][answers[entry.bid_micros // UNIT][index]]
        if clicks[index] < shown:
            charges[index] = pricing.price(
                PriceRule.RESAMPLED, TOP * UNIT, pctr=0, resampled=entry.resampled, mu=mu
            )
    plain = np.array([_rate(units) for units in range(1, TOP + 1)])
    shares = np.diff((np.arange(TOP + 1) / TOP) ** (1 - mu))
    expected = TOP * UNIT * ((1 - mu) * plain[-1] + mu * (1 - 1 / mu) * shares @ plain)
    assert charges.mean() == pytest.approx(expected, abs=4 * charges.std() / math.sqrt(count))


def test_expected_price_is_equation_7_in_expectation() -> None:
    policy = _policy(TOP)
    prices = [
        pricing.price(PriceRule.EXPECTED, TOP * UNIT, pctr=rate, resampled=False, mu=0.1)
        for rate in EFFECTS[0]
    ]
    assert policy @ prices == pytest.approx(TOP * UNIT * _rate(TOP), abs=0.5)


@given(
    st.integers(1, 100), st.text(max_size=8), st.text(max_size=4), st.floats(0.01, 0.99), st.integers(0, 9)
)
def test_entered_bids_stay_on_the_grid_and_never_rise(
    units: int, auction: str, ad: str, mu: float, seed: int
) -> None:
    for rule in PriceRule:
        entry = pricing.enter(rule, units * UNIT, UNIT, mu, seed, auction, ad)
        assert entry == pricing.enter(rule, units * UNIT, UNIT, mu, seed, auction, ad)
        assert entry.bid_micros % UNIT == 0
        assert UNIT <= entry.bid_micros <= units * UNIT
        assert entry.resampled or entry.bid_micros == units * UNIT
        assert not entry.resampled or rule == PriceRule.RESAMPLED


@given(st.integers(1, 99), st.text(max_size=8), st.floats(0.01, 0.99))
def test_an_entered_bid_is_monotone_in_the_bid(units: int, auction: str, mu: float) -> None:
    """The same draw lowers a higher bid to no less: what the Myerson price rests on."""
    lower = pricing.enter(PriceRule.RESAMPLED, units * UNIT, UNIT, mu, 0, auction, "1")
    higher = pricing.enter(PriceRule.RESAMPLED, (units + 1) * UNIT, UNIT, mu, 0, auction, "1")
    assert lower.bid_micros <= higher.bid_micros
    assert lower.resampled == higher.resampled


def test_resampling_frequency() -> None:
    entries = [
        pricing.enter(PriceRule.RESAMPLED, UNIT, UNIT, 0.3, 0, f"a{index}", "7") for index in range(4000)
    ]
    share = sum(entry.resampled for entry in entries) / len(entries)
    assert share == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 4000))


@given(st.integers(0, 10**12), st.floats(0, 1), st.sampled_from(["0.1", "0.25", "0.3", "0.05"]))
def test_prices_are_whole_and_within_a_micro_of_the_formula(bid: int, pctr: float, mu: str) -> None:
    share = float(mu)
    expected = pricing.price(PriceRule.EXPECTED, bid, pctr=pctr, resampled=False, mu=share)
    assert isinstance(expected, int)
    assert 0 <= expected <= bid
    assert abs(expected - bid * pctr) <= 0.5 + bid * 1e-15
    rebate = pricing.price(PriceRule.RESAMPLED, bid, pctr=pctr, resampled=True, mu=share)
    assert isinstance(rebate, int)
    assert rebate <= 0
    formula = truthful.charges([bid], [1], np.array([True]), share)[0]
    assert abs(rebate - formula) <= 0.5 + bid * 1e-13
    assert pricing.price(PriceRule.FIRST_PRICE, bid, pctr=pctr, resampled=False, mu=share) == bid
    assert pricing.price(PriceRule.RESAMPLED, bid, pctr=pctr, resampled=False, mu=share) == bid


def test_prices_by_hand() -> None:
    assert pricing.price(PriceRule.EXPECTED, 450_000, pctr=0.25, resampled=False, mu=0.1) == 112_500
    assert pricing.price(PriceRule.EXPECTED, 3, pctr=0.5, resampled=False, mu=0.1) == 2  # half to even
    assert pricing.price(PriceRule.RESAMPLED, 450_000, pctr=0.25, resampled=True, mu=0.1) == -4_050_000
    assert [pricing.charged_at(rule) for rule in PriceRule] == ["click", "impression", "click", "click"]


@given(st.lists(st.integers(-(10**9), 10**9), max_size=12))
def test_settlement_loses_nothing_and_never_pays_out(periods: list[int]) -> None:
    carried, billed = 0, 0
    for accrued in periods:
        settled = pricing.settle_period(accrued + carried)
        assert settled.billed_micros >= 0 >= settled.carried_micros
        carried = settled.carried_micros
        billed += settled.billed_micros
        assert settled.billed_micros == 0 or carried == 0
    assert billed + carried == sum(periods)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: pricing.enter(PriceRule.RESAMPLED, UNIT + 1, UNIT, 0.1, 0, "a", "1"), "multiple"),
        (lambda: pricing.enter(PriceRule.FIRST_PRICE, 0, UNIT, 0.1, 0, "a", "1"), "bid_micros=0"),
        (lambda: pricing.enter(PriceRule.RESAMPLED, UNIT, UNIT, 1.0, 0, "a", "1"), "mu=1.0"),
        (lambda: pricing.price(PriceRule.EXPECTED, 1, pctr=1.5, resampled=False, mu=0.1), "pctr=1.5"),
        (
            lambda: pricing.price(PriceRule.FIRST_PRICE, -1, pctr=0, resampled=False, mu=0.1),
            "bid_micros=-1",
        ),
    ],
)
def test_unusable_arguments_are_named(call: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        call()  # type: ignore[operator]
