"""Sweeps over bids, incentives and responses, with a model and a judge that follow a rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raylla.evaluation import efficiency, incentives, properties
from raylla.mechanisms.llm import Pretrained
from tests.unit.backends import make


def swept(made: Any, bids: Sequence[float]) -> Any:
    planned = efficiency.test_auctions(made.backend.config, made.backend.world)
    sweep = properties.sweep(made.backend, planned, bids, 8, ["v0"])
    return properties.monotonicity([sweep, sweep], bids, 500, 0)


def jumps(made: Any, queries: int) -> Any:
    planned = efficiency.test_auctions(made.backend.config, made.backend.world)[:queries]
    fine = properties.fine(made.backend, planned, range(1, 101), 200, 20)
    return properties.continuity([fine], range(1, 101), 500, 0)


def test_clicks_that_follow_bids_are_seen_to(tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: bid / 100)
    bids = [1, 20, 40, 60, 80, 100]
    found = swept(made, bids)
    curve = found["versions"]["v0"]
    assert curve["trend"]["mean"] == 1
    assert abs(curve["control"]["mean"]) < 0.95
    rates = [one["mean"] for one in curve["click_rate"]]
    assert rates == pytest.approx([bid / 100 for bid in bids], abs=0.1)
    assert (found["seeds"], found["queries"]) == (2, 60)
    assert found["auctions_per_second"] > 0
    smooth = jumps(made, 10)
    assert smooth["one"][0]["jump"]["jump"] <= smooth["one"][0]["jump"]["high"]
    assert smooth["many"]["trend"]["mean"] > 0.95
    assert smooth["many"]["answers"] == 200


def test_a_step_is_a_jump(tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: 0.8 * (bid > 50))
    jump = jumps(made, 5)["one"][0]["jump"]
    assert jump["jump"] > jump["high"]
    assert jump["at"] == 49


def test_clicks_that_ignore_bids_have_no_trend(tmp_path: Path) -> None:
    made, bids = make(tmp_path, lambda _: 0.5), range(1, 101, 5)
    planned = efficiency.test_auctions(made.backend.config, made.backend.world)
    # One seed: two that are the same would leave no spread between seeds.
    sweep = properties.sweep(made.backend, planned, bids, 8, ["v0"])
    trend = properties.monotonicity([sweep], bids, 500, 0)["versions"]["v0"]["trend"]
    assert trend["low"] < 0 < trend["high"]


def test_first_price_leaves_nothing_and_is_regretted(tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: bid / 100)
    planned = efficiency.test_auctions(made.backend.config, made.backend.world)
    bids = range(0, 101, 10)
    responses = incentives.responses(made.backend, Pretrained(), {}, planned, bids)
    found = incentives.regret_table([responses], bids, 500, 0)
    assert found["queries"] == 30
    own, myerson = found["rules"]["own"], found["rules"]["myerson"]
    # x(b) = b / 100: first price takes b^2 / 100 and the truth gains nothing; half the value is best,
    # worth v^2 / 400, on average over the grid 8.75. Myerson's price is half of first price.
    assert own["least_utility"]["mean"] == pytest.approx(0, abs=1e-9)
    assert own["regret"]["utility"]["mean"] == pytest.approx(8.75, rel=0.2)
    assert myerson["payment"]["mean"] == pytest.approx(own["payment"]["mean"] / 2, rel=0.15)
    assert myerson["regret"]["utility"]["mean"] < 0.2 * own["regret"]["utility"]["mean"]
    assert own["regret"]["value"]["mean"] < 1


def test_best_responses_shade_the_bids(tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: bid / 100)
    planned = efficiency.test_auctions(made.backend.config, made.backend.world)[:2]
    bids = [1, 20, 40, 60, 80, 100]
    settled = incentives.settle_bids(made.backend, Pretrained(), {}, planned, bids)
    found = incentives.equilibrium([settled, settled], bids)
    assert found["queries"] == 4
    assert found["utility"]["revenue"] < found["truthful"]["revenue"]
    assert found["utility"]["converged"] == 1


def test_a_sweep_counts_expected_clicks_where_the_judge_gives_them_and_a_fine_curve_drawn_ones(
    tmp_path: Path,
) -> None:
    made = make(tmp_path, lambda bid: float(bid > 50))
    auctions = efficiency.test_auctions(made.backend.config, made.backend.world)[:3]
    name = list(made.backend.versions)[-1]
    drawn = properties.sweep(made.backend, auctions, (1, 100), 4, [name]).rates[name]
    other = make(tmp_path / "told", lambda bid: float(bid > 50))
    other.reader.told = 0.25
    expected = properties.sweep(other.backend, auctions, (1, 100), 4, [name]).rates[name]
    assert drawn[:, 1].min() > 0
    assert expected == pytest.approx(drawn / 4)
    fine = properties.fine(other.backend, auctions, (1, 20, 40, 60, 80, 100), 4, 4)
    assert fine.one.max() == drawn.max() > expected.max()
