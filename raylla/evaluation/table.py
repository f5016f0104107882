"""What a weight version earns: figures per test query with bootstrap intervals. Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raylla.auction.markup import Parsed
from raylla.auction.reward import penalty
from raylla.config import Penalty
from raylla.evaluation import intervals


@dataclass(frozen=True, slots=True)
class Outcome:
    """One judged test answer: its query, what it placed, and what was and would be clicked."""

    query_id: str
    parsed: Parsed
    bids: Mapping[str, float]
    clicks: Mapping[str, bool]
    model_probabilities: Mapping[str, float]


def figures(answers: Sequence[Outcome], coefficients: Penalty, resamples: int, seed: int) -> dict[str, Any]:
    """The table row of one weight version.

    ``revenue`` is bid times the judge's click, ``revenue_click_model`` bid times the click model's
    probability, both per query in bid units; ``reward`` is each of them less the penalty.

    Raises:
        ValueError: no answers.
    """
    if not answers:
        raise ValueError("no judged test answers to evaluate")
    by_query: dict[str, list[dict[str, float]]] = {}
    for answer in answers:
        by_query.setdefault(answer.query_id, []).append(_account(answer, coefficients))
    names = ("revenue", "reward", "revenue_click_model", "reward_click_model", "ads_per_answer")
    rng = np.random.default_rng(seed)
    row: dict[str, Any] = {
        name: intervals.mean(
            np.array([np.mean([a[name] for a in group]) for group in by_query.values()]), resamples, rng
        )
        for name in names
    }
    placed = sum(len(answer.parsed.placements) for answer in answers)
    broken = sum(len(answer.parsed.violations) for answer in answers)
    clicked = sum(sum(answer.clicks.values()) for answer in answers)
    row["ads_per_answer"] = row["ads_per_answer"]["mean"]
    row["format_error_rate"] = broken / max(1, placed + broken)
    row["click_rate"] = clicked / max(1, placed)
    row["answers"], row["queries"] = len(answers), len(by_query)
    return row


def _account(answer: Outcome, coefficients: Penalty) -> dict[str, float]:
    punished = coefficients.weight * penalty(answer.parsed, coefficients)
    revenue = sum(answer.bids[ad] for ad, clicked in answer.clicks.items() if clicked)
    expected = sum(answer.bids[ad] * p for ad, p in answer.model_probabilities.items())
    return {
        "revenue": revenue,
        "reward": revenue - punished,
        "revenue_click_model": expected,
        "reward_click_model": expected - punished,
        "ads_per_answer": len(answer.parsed.placements),
    }
