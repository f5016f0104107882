"""The figures of one weight version, by hand."""

from __future__ import annotations

import pytest

from raylla.auction import parse
from raylla.config import Penalty
from raylla.figures.table import JudgedAnswer, per_query, row_figures
from raylla.records import Ad

AD = Ad("12", "Lumo Kettle", "tea", "food")
PENALTY = Penalty(per_ad=2, free_ads=2, per_excess_ad=30, per_violation=60)


def _tested(text: str, clicked: bool, query: str = "q") -> JudgedAnswer:
    parsed = parse(text, [AD])
    clicks = dict.fromkeys(parsed.ad_ids, clicked)
    chances = dict.fromkeys(parsed.ad_ids, 0.25)
    return JudgedAnswer(query, parsed, {"12": 40.0}, {"12": 30.0}, clicks, chances)


def test_by_hand() -> None:
    answers = [
        _tested("Try @Lumo Kettle@[Ad-12].", True),
        _tested("Try @Lumo Kettle@[Ad-13].", False),
        _tested("Nothing.", False, "r"),
    ]
    row = row_figures([per_query(answers, PENALTY)], resamples=200, seed=0)
    assert row["revenue"]["mean"] == pytest.approx((15 + 0) / 2)
    assert row["welfare"]["mean"] == pytest.approx((20 + 0) / 2)
    assert row["reward"]["mean"] == pytest.approx(((38 - 60) / 2 + 0) / 2)
    assert row["expected_revenue"]["mean"] == pytest.approx(3.75 / 2)
    assert row["format_error_rate"]["mean"] == pytest.approx(0.5)
    assert row["click_rate"]["mean"] == 1.0
    assert row["ads_per_answer"]["mean"] == pytest.approx(0.25)
    assert row["revenue"]["low"] <= row["revenue"]["mean"] <= row["revenue"]["high"]


def test_nothing_to_evaluate() -> None:
    with pytest.raises(ValueError, match="no judged test answers"):
        row_figures([{}], resamples=10, seed=0)
