"""Bootstrap intervals that cover, trends that show, and jumps told from noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from raylla.auction.checks import Array
from raylla.evaluation import intervals


def mean(
    values: ArrayLike, resamples: int, rng: np.random.Generator, level: float = 0.95
) -> intervals.Figure:
    """The interval of one column and one seed."""
    return intervals.means([np.asarray(values)[:, None]], resamples, rng, level)[0]


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _width(figure: intervals.Figure) -> float:
    return figure["high"] - figure["low"]


def _holds(figure: intervals.Figure, value: float) -> bool:
    return figure["low"] <= value <= figure["high"]


def test_mean_ratio_and_difference_cover_the_truth() -> None:
    covered: dict[str, list[bool]] = {"mean": [], "difference": [], "ratio": []}
    for seed in range(200):
        rng = _rng(seed)
        second = rng.gamma(4.0, 5.0, 80)
        first = 1.5 * second + rng.normal(0, 5, 80)
        drawn = intervals.hierarchical([np.stack([first, second], 1)], 300, rng)
        difference = intervals.figure((first - second).mean(), drawn[:, 0] - drawn[:, 1])
        ratio = intervals.figure(first.mean() / second.mean(), drawn[:, 0] / drawn[:, 1])
        covered["mean"].append(_holds(mean(first, 300, rng), 30))
        covered["difference"].append(_holds(difference, 10))
        covered["ratio"].append(_holds(ratio, 1.5))
    assert all(0.88 <= np.mean(held) <= 0.99 for held in covered.values())


def test_columns_of_a_query_stay_together() -> None:
    shared = _rng().normal(100, 50, 200)
    first = shared + 3 + _rng(1).normal(0, 1, 200)
    drawn = intervals.hierarchical([np.stack([first, shared, 1.2 * shared], 1)], 500, _rng())
    paired = intervals.figure((first - shared).mean(), drawn[:, 0] - drawn[:, 1])
    assert _width(paired) < 0.1 * _width(mean(first, 500, _rng()))
    assert drawn[:, 2] / drawn[:, 1] == pytest.approx(np.full(500, 1.2))


def test_same_generator_same_interval_and_level_widens() -> None:
    values = _rng().normal(size=50)
    assert mean(values, 200, _rng(3)) == mean(values, 200, _rng(3))
    assert _width(mean(values, 2000, _rng(), 0.99)) > _width(mean(values, 2000, _rng(), 0.9))


def _over(groups: list[Array]) -> intervals.Figure:
    drawn = intervals.hierarchical([group[:, None] for group in groups], 1000, _rng())
    return intervals.figure(np.mean([group.mean() for group in groups]), drawn[:, 0])


def test_hierarchical_interval_reflects_the_seeds() -> None:
    noise = list(_rng().normal(0, 1, (5, 100)))
    same = _over(noise)
    apart = _over([group + shift for group, shift in zip(noise, (-4, -2, 0, 2, 4), strict=True)])
    assert _width(same) == pytest.approx(_width(mean(np.ravel(noise), 1000, _rng())), rel=0.6)
    assert _width(apart) == pytest.approx(2 * 1.96 * np.sqrt(8 / 5), rel=0.15)
    pooled = mean(np.ravel([group + shift for shift, group in enumerate(noise)]), 1000, _rng())
    assert _width(apart) > 5 * _width(pooled)


def test_seeds_may_have_different_numbers_of_queries() -> None:
    figure = _over([np.full(3, 1.0), np.full(50, 2.0)])
    assert figure == {"mean": 1.5, "low": 1.0, "high": 2.0}


def test_spearman_by_hand() -> None:
    assert intervals.spearman([1, 2, 3, 4], [10, 20, 25, 1000]) == pytest.approx(1)
    assert intervals.spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert intervals.spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert intervals.spearman([1, 2, 3], [5, 5, 6]) == pytest.approx(np.sqrt(3) / 2)
    assert intervals.spearman([1, 2, 3], [[7, 7, 7], [1, 2, 3]]).tolist() == [0, pytest.approx(1)]


@given(st.lists(st.integers(0, 6), min_size=2, max_size=12), st.integers(0, 10**6))
def test_spearman_is_the_correlation_of_shared_ranks(x: list[int], seed: int) -> None:
    y = _rng(seed).integers(0, 5, len(x)).tolist()

    def ranks(values: list[int]) -> list[float]:
        order = sorted(values)
        return [order.index(v) + (order.count(v) - 1) / 2 for v in values]

    found = intervals.spearman(x, y)
    if len(set(x)) > 1 and len(set(y)) > 1:
        assert found == pytest.approx(np.corrcoef(ranks(x), ranks(y))[0, 1], abs=1e-12)
    else:
        assert found == 0


BID_POINTS = np.append(1, np.arange(10, 101, 10))


def _clicks(rng: np.random.Generator, slope: float) -> Array:
    """Click rates of 4 answers at each bid for 60 queries of their own appeal."""
    rates = rng.uniform(0.1, 0.5, (60, 1)) + slope * BID_POINTS / 100
    return rng.binomial(4, rates) / 4


def test_a_trend_shows_and_its_shuffled_control_does_not() -> None:
    rng = _rng()
    rates = _clicks(rng, 0.4)
    trend = intervals.rank_trend(BID_POINTS, [rates], 500, rng)
    assert trend["mean"] > 0.9
    assert trend["low"] > 0.7
    control = [intervals.rank_trend(BID_POINTS, [_clicks(rng, 0.0)], 200, rng) for _ in range(150)]
    assert np.mean([_holds(figure, 0) for figure in control]) > 0.9
    assert np.mean([figure["mean"] for figure in control]) == pytest.approx(0, abs=0.1)


def test_noise_on_a_smooth_curve_is_no_jump_and_a_step_is() -> None:
    rng, bids, samples = _rng(), np.arange(1, 101), 200
    smooth = 0.1 + 0.6 / (1 + np.exp(-(bids - 50) / 10))
    step = np.where(bids < 60, 0.3, 0.6)
    found = []
    for rate in (smooth, step):
        results = [
            intervals.largest_jump(rng.binomial(samples, rate), samples, 400, rng) for _ in range(150)
        ]
        found.append(np.mean([result["jump"] > result["high"] for result in results]))
    assert found[0] <= 0.03
    assert found[1] >= 0.95


def test_a_curve_that_is_steep_at_the_edge_is_no_jump() -> None:
    rng, samples = _rng(), 2000
    rate = 0.6 * (1 - np.exp(-np.arange(1, 101) / 10))
    results = [intervals.largest_jump(rng.binomial(samples, rate), samples, 400, rng) for _ in range(50)]
    assert np.mean([result["jump"] > result["high"] for result in results]) <= 0.06


def test_the_jump_is_where_it_is() -> None:
    clicks = np.where(np.arange(30) < 17, 50, 150)
    found = intervals.largest_jump(clicks, 200, 200, _rng())
    assert (found["jump"], found["at"]) == (0.5, 16)
    assert found["high"] < 0.35


@pytest.mark.parametrize("edge", [0, 200])
def test_rates_at_the_edge_have_no_noise(edge: int) -> None:
    assert intervals.largest_jump(np.full(20, edge), 200, 50, _rng()) == {
        "jump": 0,
        "at": 0,
        "low": 0,
        "high": 0,
    }


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: intervals.means([[[1.0], [np.nan]]], 10, _rng()), "groups"),
        (lambda: intervals.hierarchical([[1, 2]], 10, _rng()), "groups"),
        (lambda: intervals.hierarchical([], 10, _rng()), "groups"),
        (lambda: intervals.rank_trend([1, 2], [[[1, 2, 3]]], 10, _rng()), "groups"),
        (lambda: intervals.rank_trend([1, 2], [[1, 2]], 10, _rng()), "groups"),
        (lambda: intervals.largest_jump([1, 2, 3], 5, 10, _rng()), "clicks"),
        (lambda: intervals.largest_jump([9] * 20, 5, 10, _rng()), "clicks"),
    ],
)
def test_bad_arguments_are_named(call: Any, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        call()
