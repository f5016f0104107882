"""What answers earn: figures per test query with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raylla.auction.checks import Array
from raylla.auction.markup import Parsed
from raylla.auction.reward import penalty
from raylla.config import Penalty
from raylla.figures.intervals import bounded, means, quotients

_MEANS = (
    "revenue",
    "welfare",
    "reward",
    "expected_revenue",
    "expected_welfare",
    "expected_reward",
    "ads_per_answer",
)
RATES = {"format_error_rate": ("broken", "attempts"), "click_rate": ("clicked", "ads_per_answer")}
"""Figures that are the quotient of two columns, shares of at most 1."""
SIGNED = ("reward", "expected_reward")
"""Means that can be below 0; the others cannot."""
COLUMNS = (*_MEANS, "broken", "attempts", "clicked")


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """One judged test answer: its query, what it placed, and what was and would be clicked.

    ``bids`` are what a click is worth to each advertiser, ``prices`` what it pays; ``chances`` are the
    click probabilities, of the judge where it gives them, else of the click model.
    """

    query_id: str
    parsed: Parsed
    bids: Mapping[str, float]
    prices: Mapping[str, float]
    clicks: Mapping[str, bool]
    chances: Mapping[str, float]


def per_query(answers: Sequence[JudgedAnswer], coefficients: Penalty) -> dict[str, Array]:
    """Query id -> mean over its answers of each of `COLUMNS`.

    ``revenue`` is price times click, ``welfare`` bid times click, ``reward`` welfare less the
    penalty, all in bid units; "expected" has `JudgedAnswer.chances` in place of the judge's clicks.
    """
    by_query: dict[str, list[list[float]]] = {}
    for answer in answers:
        account = _account(answer, coefficients)
        by_query.setdefault(answer.query_id, []).append([account[name] for name in COLUMNS])
    return {query: np.mean(rows, axis=0) for query, rows in by_query.items()}


def row_figures(seeds: Sequence[Mapping[str, Array]], resamples: int, seed: int) -> dict[str, Any]:
    """The row of one weight version or mechanism, from `per_query` of each training seed.

    Raises:
        ValueError: a seed has no answers.
    """
    if not all(seeds):
        raise ValueError("no judged test answers to evaluate")
    groups = [np.array(list(table.values())) for table in seeds]
    rng = np.random.default_rng(seed)
    found = means([group[:, : len(_MEANS)] for group in groups], resamples, rng)
    row: dict[str, Any] = {
        name: one if name in SIGNED else bounded(one, 0) for name, one in zip(_MEANS, found, strict=True)
    }
    above, below = ([COLUMNS.index(pair[end]) for pair in RATES.values()] for end in (0, 1))
    shares = quotients(
        [group[:, above] for group in groups], [group[:, below] for group in groups], resamples, rng
    )
    row |= {name: bounded(one, 0, 1) for name, one in zip(RATES, shares, strict=True)}
    row["queries"] = sum(map(len, groups))
    return row


def _account(answer: JudgedAnswer, coefficients: Penalty) -> dict[str, float]:
    punished = coefficients.weight * penalty(answer.parsed, coefficients)
    clicked = [ad for ad, click in answer.clicks.items() if click]
    chances = answer.chances
    welfare = sum(answer.bids[ad] for ad in clicked)
    expected = sum(answer.bids[ad] * p for ad, p in chances.items())
    return {
        "revenue": sum(answer.prices[ad] for ad in clicked),
        "welfare": welfare,
        "reward": welfare - punished,
        "expected_revenue": sum(answer.prices[ad] * p for ad, p in chances.items()),
        "expected_welfare": expected,
        "expected_reward": expected - punished,
        "ads_per_answer": len(answer.parsed.placements),
        "broken": len(answer.parsed.violations),
        "attempts": answer.parsed.attempts,
        "clicked": len(clicked),
    }
