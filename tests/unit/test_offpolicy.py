"""Off-policy estimates: right where the theory says so, on policies whose truth is counted out."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylla.figures.offpolicy import (
    ESTIMATORS,
    LEAST_GAINS,
    Log,
    Predicted,
    estimates,
    held_against,
    log_ratios,
    overlap,
)

LOGGED = np.array([[4, 3, 2, 1], [1, 1, 4, 4]])
"""How often each of four answers to two questions is in a log of 20: the log's policy, exactly."""
NEW = np.array([[1, 1, 2, 6], [5, 3, 1, 1]]) / 10
WORTH = np.array([[10.0, 0.0, 30.0, 7.0], [2.0, 50.0, 0.0, 20.0]])
COSTS = np.array([[1.0, 0.0, 5.0, 0.0], [0.0, 2.0, 0.0, 3.0]])
TRUTH = float((NEW * (WORTH - COSTS)).sum() / 2)


def population(
    predictions: np.ndarray = WORTH, weights: np.ndarray | None = None, half_width: float = 0.0
) -> Log:
    """A log in which each answer is as often as its probability says, so that means are expectations."""
    cells = list(itertools.product(range(2), range(4)))
    rows = np.array([cell for cell in cells for _ in range(LOGGED[cell])])
    at = tuple(rows.T)
    ratios = 10 * NEW / LOGGED if weights is None else weights
    expected = (NEW * predictions).sum(axis=1)[rows[:, 0]]
    known = (NEW * -COSTS).sum(axis=1)[rows[:, 0]]

    def predicted(mean: np.ndarray) -> Predicted:
        return Predicted(*((mean + off)[:, None] for off in (0.0, -half_width, half_width)))

    return Log(
        np.log(ratios[at]),
        WORTH[at][:, None],
        -COSTS[at][:, None],
        predicted(predictions[at]),
        predicted(expected),
        known[:, None],
    )


def values(log: Log) -> dict[str, float]:
    found = estimates(log, 50, np.random.default_rng(0))
    return {name: one.value["mean"] for name, (one,) in found.items()}


def test_importance_weights_alone_are_unbiased() -> None:
    found = values(population())
    assert found["ips"] == pytest.approx(TRUTH)
    assert found["snips"] == pytest.approx(TRUTH)
    assert found["naive"] != pytest.approx(TRUTH, abs=0.5)


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_with_right_weights_any_predictions_will_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    unsure = population(predictions=rng.uniform(0, 60, (2, 4)), half_width=1e4)  # so that no weight is cut
    found = estimates(unsure, 20, rng)
    assert found["doubly_robust"][0].value["mean"] == pytest.approx(TRUTH)
    assert found["doubly_robust"][0].slack == pytest.approx((0, 0), abs=1e-6)
    assert found["doubly_robust"][0].clip is None


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_with_right_predictions_any_weights_will_do(seed: int) -> None:
    wrong = np.random.default_rng(seed).uniform(0.05, 20, (2, 4))
    found = values(population(weights=wrong))
    assert found["doubly_robust"] == pytest.approx(TRUTH)
    assert found["direct"] == pytest.approx(TRUTH)


def test_without_either_nobody_is_right() -> None:
    wrong = np.array([[30.0, 5.0, 0.0, 50.0], [40.0, 1.0, 9.0, 3.0]])
    assert values(population(predictions=wrong))["direct"] != pytest.approx(TRUTH, abs=0.5)
    assert values(population(weights=1 / (1 + wrong)))["ips"] != pytest.approx(TRUTH, abs=0.5)


@settings(max_examples=30)
@given(st.floats(0.05, 20))
def test_predictions_are_scaled_to_the_log(factor: float) -> None:
    """A pCTR model that says all rates alike too high or too low changes nothing."""
    assert np.count_nonzero(population().gains) >= LEAST_GAINS
    found, expected = (
        estimates(population(WORTH * by), 20, np.random.default_rng(0)) for by in (factor, 1)
    )
    for name in ("direct", "doubly_robust"):
        assert found[name][0].value["mean"] == pytest.approx(expected[name][0].value["mean"])
        assert found[name][0].scale == pytest.approx(1 / factor)


def test_with_few_gains_the_predictions_stand() -> None:
    log = population(WORTH * 3)
    few = replace(log, gains=np.where(np.arange(20)[:, None] < LEAST_GAINS - 1, log.gains, 0))
    assert estimates(few, 20, np.random.default_rng(0))["direct"][0].scale == 1.0


def test_without_a_change_of_version_there_is_no_change() -> None:
    log = population(weights=np.ones((2, 4)))
    log = replace(log, own=log.predicted, own_known=log.known)
    found = estimates(log, 200, np.random.default_rng(0))
    mean = float((log.gains + log.known).mean())
    for name in ESTIMATORS:
        assert found[name][0].value["mean"] == pytest.approx(mean)
        assert found[name][0].difference["mean"] == pytest.approx(0)
    assert overlap(log)["effective_sample_size"] == pytest.approx(20)
    assert found["doubly_robust"][0].slack == (0, 0)


def test_where_the_log_says_nothing_the_pctr_models_interval_stands_in() -> None:
    log = population(half_width=4.0)
    log = replace(log, log_weights=np.full(20, -np.inf))
    found = estimates(log, 200, np.random.default_rng(0))
    robust, direct = found["doubly_robust"][0], found["direct"][0]
    assert robust.value["mean"] == direct.value["mean"] == pytest.approx(TRUTH)
    assert robust.slack == direct.slack == pytest.approx((4.0, 4.0))
    assert robust.value["low"] <= TRUTH - 4
    assert robust.value["high"] >= TRUTH + 4
    assert overlap(log) == {
        "auctions": 20,
        "effective_sample_size": 0,
        "mean_weight": 0,
        "largest_share": 0,
        "impossible": 1,
    }


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40))
def test_the_effective_sample_size_is_kishs(ratios: list[float]) -> None:
    count = len(ratios)
    table = np.zeros((count, 1))
    nothing = Predicted(table, table, table)
    found = overlap(Log(np.array(ratios), table, table, nothing, nothing, table))
    weights = np.exp(ratios)
    assert found["effective_sample_size"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert 1 - 1e-9 <= found["effective_sample_size"] <= count + 1e-9
    assert found["mean_weight"] == pytest.approx(weights.mean())
    assert found["largest_share"] == pytest.approx(weights.max() / weights.sum())


def market(rng: np.random.Generator, auctions: int, tilt: float, error: float) -> tuple[Log, float]:
    """Random policies over 8 answers to each of 30 questions, clicks, and a pCTR model that errs by
    ``error`` (log scale), more so where the new version moves; and what the new version truly earns."""
    taste = rng.normal(size=(30, 8))
    old = np.exp(rng.normal(size=(30, 8)))
    new = old * np.exp(tilt * taste)
    old, new = (one / one.sum(axis=1, keepdims=True) for one in (old, new))
    bids, rates = rng.integers(1, 100, (30, 8)).astype(float), rng.beta(1, 6, (30, 8))
    said = np.clip(rates * np.exp(error * (rng.normal(size=(30, 8)) + taste / 2)), 0, 1)
    asked = rng.integers(0, 30, auctions)

    def draws(policy: np.ndarray) -> np.ndarray:
        return (policy[asked].cumsum(axis=1) > rng.random((auctions, 1))).argmax(axis=1)

    def predicted(answers: np.ndarray) -> Predicted:
        worth = (bids * said)[asked, answers][:, None]
        return Predicted(worth, worth * (1 - error), worth * (1 + error))

    logged, own = draws(old), draws(new)
    clicks = rng.random(auctions) < rates[asked, logged]
    nothing = np.zeros((auctions, 1))
    log = Log(
        np.log(new / old)[asked, logged],
        (bids[asked, logged] * clicks)[:, None],
        nothing,
        predicted(logged),
        predicted(own),
        nothing,
    )
    return log, float((new * bids * rates).sum(axis=1).mean())


@pytest.mark.parametrize(("tilt", "error"), [(0.3, 0.1), (1.0, 0.4), (3.0, 0.4)])
def test_intervals_cover_the_truth(tilt: float, error: float) -> None:
    rng, held, widths = np.random.default_rng(3), [], []
    for _ in range(80):
        log, truth = market(rng, 250, tilt, error)
        (one,) = estimates(log, 200, rng)["doubly_robust"]
        held.append(one.value["low"] <= truth <= one.value["high"])
        widths.append(one.value["high"] - one.value["low"])
    assert np.mean(held) >= 0.85
    assert np.mean(widths) < 15  # of a revenue of about 7 per auction


def test_auctions_of_a_group_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    one, _ = market(rng, 100, 1.0, 0.2)
    parts = {name: getattr(one, name) for name in ("log_weights", "gains", "known", "own_known")}
    twice = {name: np.concatenate([part, part]) for name, part in parts.items()}
    tables = {
        name: Predicted(
            *(np.concatenate([getattr(getattr(one, name), end)] * 2) for end in Predicted.__slots__)
        )
        for name in ("predicted", "own")
    }
    together = Log(**twice, **tables, groups=[*range(100)] * 2)
    alone, copied = (
        estimates(log, 2000, np.random.default_rng(1))["snips"][0].value for log in (one, together)
    )
    assert copied["mean"] == pytest.approx(alone["mean"])
    assert copied["high"] - copied["low"] == pytest.approx(alone["high"] - alone["low"], rel=0.1)


def test_an_estimate_is_held_against_what_is_shown_with_both_sides_noise() -> None:
    estimated = {"mean": 10.0, "low": 10.0 - 3 - 1, "high": 10.0 + 3 + 2}
    shown = {"mean": 14.0, "low": 10.0, "high": 18.0}
    found = held_against(estimated, (1.0, 2.0), shown)
    assert found == pytest.approx({"mean": -4.0, "low": -4 - 5 - 1, "high": -4 + 5 + 2})


def test_what_does_not_go_together_is_refused() -> None:
    log = population()
    with pytest.raises(ValueError, match="known has shape"):
        replace(log, known=log.known[:-1])
    with pytest.raises(ValueError, match="log_weights"):
        replace(log, log_weights=np.full(20, np.inf))
    with pytest.raises(ValueError, match="groups"):
        replace(log, groups=[1])
    with pytest.raises(ValueError, match=r"own\.mean"):
        replace(log, own=Predicted(log.own.mean * np.nan, log.own.low, log.own.high))
    with pytest.raises(ValueError, match="probability above 0"):
        log_ratios([-1.0], [-np.inf])
    assert log_ratios([-np.inf, -2.0], [-1.0, -1.0]).tolist() == [-np.inf, -1.0]
