"""What answers earn: figures per test query with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from raylla.auction.checks import Array
from raylla.auction.markup import Parsed
from raylla.auction.reward import penalty
from raylla.config import Penalty
from raylla.figures.intervals import bounded, means, quotients
from raylla.terms.protocol import weighted

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
    click probabilities, of the judge where it gives them, else of the click model, ``terms`` the values of
    reward terms by name.
    """

    query_id: str
    parsed: Parsed
    bids: Mapping[str, float]
    prices: Mapping[str, float]
    clicks: Mapping[str, bool]
    chances: Mapping[str, float]
    terms: Mapping[str, float] = field(default_factory=dict)


def per_query(
    answers: Sequence[JudgedAnswer],
    coefficients: Penalty,
    weights: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, Array]:
    """Query id -> mean over its answers of each of `COLUMNS`, and of the terms that ``weights`` name.

    ``revenue`` is price times click, ``welfare`` bid times click, ``reward`` welfare less the
    penalty and with the weighted terms, all in bid units; "expected" has `JudgedAnswer.chances` in place of
    the judge's clicks.
    """
    by_query: dict[str, list[list[float]]] = {}
    for answer in answers:
        account = _account(answer, coefficients, sum(weighted(answer.terms, weights)))
        row = [*(account[name] for name in COLUMNS), *(answer.terms[name] for name in weights)]
        by_query.setdefault(answer.query_id, []).append(row)
    return {query: np.mean(rows, axis=0) for query, rows in by_query.items()}


def row_figures(
    seeds: Sequence[Mapping[str, Array]],
    resamples: int,
    seed: int,
    terms: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, Any]:
    """The row of one weight version or mechanism, from `per_query` of each training seed, whose weights
    named ``terms``: the least value of each, where its interval ends as it does at 0.

    Raises:
        ValueError: a seed has no answers.
    """
    if not all(seeds):
        raise ValueError("no judged test answers to evaluate")
    groups = [np.array(list(table.values())) for table in seeds]
    rng = np.random.default_rng(seed)
    figures = means([group[:, : len(_MEANS)] for group in groups], resamples, rng)
    row: dict[str, Any] = {
        name: figure if name in SIGNED else bounded(figure, 0)
        for name, figure in zip(_MEANS, figures, strict=True)
    }
    above, below = ([COLUMNS.index(pair[end]) for pair in RATES.values()] for end in (0, 1))
    shares = quotients(
        [group[:, above] for group in groups], [group[:, below] for group in groups], resamples, rng
    )
    row |= {name: bounded(figure, 0, 1) for name, figure in zip(RATES, shares, strict=True)}
    valued = [group[:, len(COLUMNS) :] for group in groups]
    values = means(valued, resamples, rng) if terms else []
    row["terms"] = {
        name: bounded(figure, least, 0) for (name, least), figure in zip(terms.items(), values, strict=True)
    }
    row["queries"] = sum(map(len, groups))
    return row


def terms_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the reward terms that rows of `row_figures` have values of."""
    return list(dict.fromkeys(term for row in rows for term in row.get("terms", ())))


def _account(answer: JudgedAnswer, coefficients: Penalty, terms: float) -> dict[str, float]:
    punished = coefficients.weight * penalty(answer.parsed, coefficients) - terms
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
