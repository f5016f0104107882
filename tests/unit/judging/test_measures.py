"""Figures of predictions against judges, on arrays with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raylla.judging.measures import against_all, against_judge, difference, rate_of_share, share_of_others

QUESTIONS = ["a", "a", "b", "c"]


def test_one_judge_by_hand() -> None:
    clicked = np.array([True, True, False, False])
    found = against_judge(np.array([0.8, 0.6, 0.6, 0.2]), clicked, QUESTIONS, 50, 0)
    assert found["auc"]["mean"] == pytest.approx(3.5 / 4)  # one of four pairs is a tie
    assert found["log_loss"]["mean"] == pytest.approx(
        -(math.log(0.8) + math.log(0.6) + math.log(0.4) + math.log(0.8)) / 4
    )
    assert found["calibration_error"]["mean"] == pytest.approx((0.2 + 0.4 + 0.6 + 0.2) / 4)
    assert found["predicted"] == pytest.approx(0.55)
    assert found["clicked"] == 0.5
    # Each row is a bin of its own here: a perfect model errs by 2 p (1 - p) on each, on average.
    assert found["calibration_floor"] == pytest.approx((0.32 + 0.48 + 0.48 + 0.32) / 4, abs=0.02)
    assert found["calibration_floor_high"] > found["calibration_floor"]


def test_predictions_that_are_all_the_same_rank_nothing() -> None:
    found = against_judge(np.full(4, 0.5), np.array([True, False, True, False]), QUESTIONS, 50, 0)
    assert found["auc"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    one_sided = against_judge(np.full(4, 0.5), np.ones(4, dtype=bool), QUESTIONS, 50, 0)
    assert math.isnan(one_sided["auc"]["mean"])
    assert one_sided["log_loss"]["mean"] == pytest.approx(math.log(2))


def test_all_judges_by_hand() -> None:
    clicks = np.array([[1, 1], [1, 0], [0, 0], [0, 0]], dtype=bool)
    found = against_all(np.array([0.5, 0.9, 0.5, 0.0]), clicks, QUESTIONS, 50, 0)
    # At least half click the first two; the first ties with the third.
    assert found["auc"]["mean"] == pytest.approx(3.5 / 4)
    # Log loss is of each of the eight decisions.
    decisions = [0.5, 0.5, 0.9, 0.1, 0.5, 0.5, 1.0, 1.0]
    assert found["log_loss"]["mean"] == pytest.approx(-np.log(decisions).mean(), abs=1e-6)
    assert found["clicked"] == pytest.approx(3 / 8)


def test_the_mean_of_the_judges_is_calibrated_and_their_majority_is_not() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.1, 0.9, 4000)
    clicks = rng.random((4000, 4)) < p[:, None]
    names = [str(n // 10) for n in range(4000)]
    found = against_all(p, clicks, names, 20, 0)
    assert found["calibration_error"]["mean"] < 0.02
    assert found["calibration_error"]["mean"] < 3 * found["calibration_floor"]
    sharper = against_all((clicks.mean(axis=1) >= 0.5).astype(float), clicks, names, 20, 0)
    assert sharper["calibration_error"]["mean"] > 0.15


def test_intervals_are_over_questions() -> None:
    rng = np.random.default_rng(0)
    clicked, predicted = rng.random(200) < 0.5, rng.random(200)
    apart = against_judge(predicted, clicked, [str(n) for n in range(200)], 400, 0)["auc"]
    # The same rows twenty times over under each question say no more than once.
    copies = [np.repeat(one, 20) for one in (predicted, clicked)]
    questions = [str(n // 20) for n in range(4000)]
    together = against_judge(copies[0], copies[1], questions, 400, 0)["auc"]
    assert together["mean"] == pytest.approx(apart["mean"])
    assert together["high"] - together["low"] == pytest.approx(apart["high"] - apart["low"], rel=0.15)
    one = against_judge(predicted, clicked, ["only"] * 200, 20, 0)["auc"]
    assert one["low"] == one["mean"] == one["high"]


def test_the_difference_is_paired() -> None:
    rng = np.random.default_rng(0)
    clicked = rng.random(100) < 0.5
    predicted = np.where(clicked, 0.6, 0.4) + rng.normal(0, 0.3, 100)
    names = [str(n) for n in range(100)]
    same = difference(predicted, 2 * predicted, clicked, names, 100, 0)
    assert same == {"mean": 0, "low": 0, "high": 0}
    assert difference(predicted, -predicted, clicked, names, 100, 0)["low"] > 0


def test_the_share_of_the_others_and_the_rate_that_goes_with_it() -> None:
    clicks = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=bool)
    shares = share_of_others(clicks, 0)
    assert shares.tolist() == [0.5, 1.0, 0.0, 0.0]
    rates = rate_of_share(shares, clicks[:, 0], np.array([0.0, 0.5, 1.0, 0.2, 0.9]))
    assert rates.tolist() == [0.5, 1.0, 0.0, 0.5, 0.0]
    with pytest.raises(ValueError, match="give those of two or more"):
        share_of_others(clicks[:, :1], 0)
