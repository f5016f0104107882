"""The offline optimum: against what can be worked out by hand, and against every other way to choose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylla.bidding.hindsight import liquid_welfare, offline_optimum


def test_liquid_welfare_is_what_could_be_paid() -> None:
    found = liquid_welfare([10, 10, 10], [20, 4, 20], [1, 1, 2])
    assert found.tolist() == [10, 4, 5]


def test_a_budget_sends_users_to_the_second_best() -> None:
    # The first ad is worth 10 a user and may be paid 30: three users; the other seven are worth 4 each.
    assert offline_optimum([[10, 0], [0, 4]], [0, 0], [10], [30, 100], [1, 1]) == pytest.approx(30 + 28)
    # A value maximizer that wants 2 for each unit pays 5 a user, so that six users fill its budget.
    assert offline_optimum([[10, 0], [0, 4]], [0, 0], [10], [30, 100], [2, 1]) == pytest.approx(30 + 16)


def test_each_question_has_its_users() -> None:
    worth = [[5, 0], [0, 3], [2, 2]]
    assert offline_optimum(worth, [0, 1, 1], [2, 10], [1e9, 1e9], [1, 1]) == pytest.approx(10 + 40)
    assert offline_optimum(worth, [0, 1, 1], [2, 0], [1e9, 1e9], [1, 1]) == pytest.approx(10)


@given(seed=st.integers(0, 10**6), data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_mix_of_the_answers_is_worth_more(seed: int, data: Any) -> None:
    rng = np.random.default_rng(seed)
    answers, ads, queries = (data.draw(st.integers(1, most)) for most in (8, 4, 3))
    worth = rng.exponential(5, (answers, ads)) * (rng.random((answers, ads)) < 0.6)
    question, users = rng.integers(0, queries, answers), rng.integers(0, 20, queries)
    budgets, targets = rng.exponential(60, ads), 1 + rng.random(ads)
    best = offline_optimum(worth, question, users, budgets, targets)
    for _ in range(20):
        mix = np.zeros(answers)
        for query in range(queries):
            own = np.flatnonzero(question == query)
            if len(own):
                mix[own] = users[query] * rng.dirichlet(np.full(len(own), 0.3))
        assert liquid_welfare(mix @ worth, budgets, targets).sum() <= best + 1e-6
    assert best <= budgets.sum() + 1e-6
    assert best >= offline_optimum(worth, question, users, budgets / 2, targets) - 1e-6


@pytest.mark.parametrize(
    ("question", "budgets", "field"),
    [([2], [1.0], "question"), ([0, 0], [1.0], "question"), ([0], [-1.0], "budgets"), ([0], [1, 1], "bud")],
)
def test_what_makes_no_market_is_refused(question: list[int], budgets: list[float], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        offline_optimum([[1.0]], question, [5], budgets, [1.0])
