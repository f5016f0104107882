"""Intervals of predicted click rates: what they cover, on clicks drawn from known rates."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raylla.records import Prediction
from raylla.reward import intervals
from raylla.reward.intervals import GROUP


def drawn(seed: int, rows: int, error: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions that are off by a common slope and by chance, their spread, and clicks."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(0.05, 0.9, rows)
    predicted = np.clip(true + error * (true - 0.5), 0.01, 0.99)
    return predicted, np.full(rows, 0.03), rng.random(rows) < true


@pytest.mark.parametrize("error", [0.0, 0.3])
def test_groups_are_covered_as_often_as_stated(error: float) -> None:
    held = []
    for seed in range(40):
        q = intervals.quantile(*drawn(seed, 40 * GROUP, error), 0.9)
        predicted, spread, clicked = drawn(1000 + seed, 20 * GROUP, error)
        found = intervals.coverage(intervals.around(predicted, spread, q), clicked)
        assert found["interval_groups"] == 20
        held.append(found["coverage"])
    # 800 groups; their binomial deviation is 0.011, and the conformal quantile errs upwards.
    assert 0.87 < np.mean(held) < 0.96


def test_without_calibration_a_wrong_model_is_not_covered() -> None:
    predicted, spread, clicked = drawn(0, 40 * GROUP, 0.3)
    assert intervals.coverage(intervals.around(predicted, spread, 0.5), clicked)["coverage"] < 0.7


def test_quantile_by_hand() -> None:
    predicted = np.repeat(np.linspace(0.1, 0.9, 9), GROUP)
    clicked = np.zeros(9 * GROUP, bool)
    unit = intervals.scale(predicted, np.zeros(9 * GROUP))
    assert unit[0] == pytest.approx(math.sqrt(0.09 / GROUP))
    # Nobody clicks: every group is off by its own prediction. Of nine, ceil(10 x 0.9) is the largest.
    assert intervals.quantile(predicted, 0 * unit, clicked, 0.9) == pytest.approx(0.9 / unit[-1])
    assert intervals.quantile(predicted, 0 * unit, clicked, 0.5) == pytest.approx(0.5 / unit[4 * GROUP])
    assert math.isinf(intervals.quantile(predicted, 0 * unit, clicked, 0.95))


def test_an_interval_lies_around_its_prediction_and_within_0_and_1() -> None:
    low, high = intervals.around(np.array([0.02, 0.6]), np.array([0.1, 0.0]), 2.0)
    assert low == Prediction(0.02, 0.0, pytest.approx(0.02 + 2 * math.sqrt(0.01 + 0.0196 / GROUP)))
    assert (high.low, high.high) == (
        pytest.approx(0.6 - 2 * math.sqrt(0.24 / GROUP)),
        pytest.approx(0.6 + 2 * math.sqrt(0.24 / GROUP)),
    )
    assert intervals.around(np.array([0.3]), np.array([0.1]), math.inf) == [Prediction(0.3, 0.0, 1.0)]


def test_too_few_rows_say_nothing() -> None:
    found = intervals.coverage([Prediction(0.5, 0.4, 0.6)] * (GROUP - 1), np.ones(GROUP - 1, bool))
    assert math.isnan(found["coverage"])
    assert found["interval_groups"] == 0
    assert found["interval_width"] == pytest.approx(0.2)
    assert math.isnan(intervals.coverage([], np.zeros(0, bool))["interval_width"])
