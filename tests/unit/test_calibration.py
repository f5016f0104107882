"""The calibration error beside what chance alone makes of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raylla.reward.calibration import calibration, calibration_error, calibration_floor


def test_the_floor_is_the_error_of_a_perfect_model() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.beta(2, 5, 442)
    errors = [calibration_error(predicted, rng.random(442) < predicted) for _ in range(400)]
    floor = calibration_floor(predicted)
    assert floor["mean"] == pytest.approx(np.mean(errors), abs=0.002)
    assert 0.03 < floor["low"] / 0.8 < floor["mean"] < floor["high"] < 0.08
    inside = [floor["low"] <= error <= floor["high"] for error in errors]
    assert 0.92 <= np.mean(inside) <= 0.98
    assert calibration_floor(rng.beta(2, 5, 40_000), draws=200)["mean"] < 0.006


def test_the_floor_by_hand() -> None:
    assert calibration_floor([0.0, 1.0, 1.0]) == {"mean": 0, "low": 0, "high": 0}
    one = calibration_floor([0.5], bins=1, draws=50)
    assert one == {"mean": 0.5, "low": 0.5, "high": 0.5}
    two = calibration_floor([0.5, 0.5], bins=1, draws=4000)  # 0.5 where both or none is clicked, else 0
    assert two["mean"] == pytest.approx(0.25, abs=0.02)
    assert math.isnan(calibration_floor([])["mean"])
    with pytest.raises(ValueError, match="probabilities"):
        calibration_floor([1.2])


def test_a_wrong_model_is_above_the_floor_and_a_right_one_is_not() -> None:
    rng = np.random.default_rng(1)
    rates = rng.beta(2, 5, 1000)
    clicked = rng.random(1000) < rates
    right, wrong = calibration(rates, clicked), calibration(rates * 1.5 / 1.5**rates, clicked)
    assert right["calibration_error"] < right["calibration_floor_high"]
    assert wrong["calibration_error"] > wrong["calibration_floor_high"] > wrong["calibration_floor"]
