"""Mechanisms side by side on the same test auctions: each tuned on validation, then held once.

Validation auctions are training queries under bids of their own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raylla.auction import ReadAnswer
from raylla.auction.checks import Array
from raylla.config import Config
from raylla.errors import RunError
from raylla.evaluation.backend import EvaluationBackend
from raylla.figures.intervals import Figure, bounded, means, quotients
from raylla.figures.table import COLUMNS, JudgedAnswer, per_query, row_figures
from raylla.irpo.schedule import plan_auctions, some
from raylla.mechanisms.protocol import Choice, Mechanism, Ran
from raylla.records import Planned
from raylla.terms.protocol import least_values, term_values
from raylla.world import World, clicks

LEAST_QUERIES = 10
_PARTS = 10
"""Parts that test auctions are held in: what each costs makes the intervals of costs."""
COSTS = ("generations", "prompt_tokens", "sampled_tokens", "seconds")
DIFFERENCES = ("revenue", "reward", "expected_revenue", "expected_reward")
UNTIMED: Figure = {"mean": math.nan, "low": math.nan, "high": math.nan}


@dataclass(frozen=True, slots=True)
class Held:
    """What came of a mechanism's auctions: `per_query` figures, `COSTS` per auction of each batch
    [batches, 4], with NaN for the seconds where no batch has a wall time of its own, the mechanism's notes,
    every answer with its auction, and the reward terms whose values end the table's rows: the least value
    of each, by name."""

    table: Mapping[str, Array]
    costs: Array
    notes: Mapping[str, float]
    unread: int
    answers: Sequence[ReadAnswer]
    terms: Mapping[str, float]


def test_auctions(config: Config, world: World) -> list[Planned]:
    """The auctions of the run's own table.

    Raises:
        RunError: too few queries for an interval.
    """
    queries = some(world.of("test"), config.evaluation.queries, f"{config.seed}/test")
    if len(queries) < LEAST_QUERIES:
        raise RunError(
            f"{len(queries)} test queries are too few for an interval; raise evaluation.queries or "
            f"world.profiles until there are {LEAST_QUERIES}"
        )
    return plan_auctions(config, world, 0, "test", queries, config.evaluation.answers)


def validation_auctions(config: Config, world: World) -> list[Planned]:
    """Training queries on which mechanisms are tuned."""
    queries = some(world.of("train"), config.evaluation.validation_queries, f"{config.seed}/validation")
    return plan_auctions(config, world, 0, "validation", queries, config.evaluation.answers)


def hold(
    backend: EvaluationBackend,
    mechanism: Mechanism,
    auctions: Sequence[Planned],
    choice: Choice,
    parts: int = _PARTS,
    all_terms: bool = True,
) -> Held:
    """Hold the auctions, in ``parts`` one after the other, and have every offer judged; measure the reward
    terms that are installed (``all_terms``) or those alone that the reward weighs.

    Raises:
        BudgetError: more than ``irpo.max_drop_share`` of the auctions or judgements were lost.
    """
    ran: list[Ran] = []
    costs: list[list[float]] = []
    torn: list[list[float]] = []
    for batch in np.array_split(np.arange(len(auctions)), min(parts, len(auctions))):
        backend.begin()
        started = time.monotonic()
        asked = [auctions[place] for place in batch]
        some = mechanism.run(backend, asked, choice)
        what = [mechanism.name, dict(choice), [[planned.auction.id, planned.n] for planned in asked]]
        seconds = backend.took(what, time.monotonic() - started)
        (torn if seconds is None else costs).append(_costs(some, math.nan if seconds is None else seconds))
        ran += some
    offers = [offer for result in ran for offer in result.offers]
    answers = [
        ReadAnswer.of(planned, offer.text)
        for planned, result in zip(auctions, ran, strict=True)
        for offer in result.offers
    ]
    judged = backend.judgements(answers)
    unread = sum(judgement.clicks is None for judgement in judged)
    failed = sum(not result.offers for result in ran)
    backend.bound(f"auctions of {mechanism.name}", failed, len(ran))
    backend.bound(f"judgements of {mechanism.name}", unread, len(judged))
    outcomes = []
    measure = backend.measure
    terms = [term for term in backend.terms if all_terms or term.name in measure.term_weights]
    valued = term_values(terms, backend.sources, answers)
    for offer, answer, judgement, values in zip(offers, answers, judged, valued, strict=True):
        planned, clicked = answer.planned, judgement.clicks
        if clicked is not None:
            chances = clicks.expected_clicks(judgement.probabilities, answer, backend.world.ad_by_id)
            prices = {ad: offer.prices.get(ad, 0.0) for ad in answer.parsed.ad_ids}
            outcomes.append(
                JudgedAnswer(
                    planned.query.id, answer.parsed, planned.bids, prices, clicked, chances, values
                )
            )
    names = sorted({name for result in ran for name in result.notes})
    notes = {
        name: float(np.mean([result.notes[name] for result in ran if name in result.notes]))
        for name in names
    }
    weights = dict.fromkeys((term.name for term in terms), 0.0) | measure.term_weights
    table = per_query(outcomes, measure.penalty, weights)
    return Held(table, np.array(costs or torn), notes, unread, answers, least_values(terms))


def tune_mechanism(
    backend: EvaluationBackend, mechanism: Mechanism, choices: Sequence[Choice]
) -> tuple[Choice, list[dict[str, Any]]]:
    """The one of ``choices`` with the highest mean reward on validation auctions, and what each gave."""
    if len(choices) == 1:
        return choices[0], []
    auctions = validation_auctions(backend.config, backend.world)
    tried: list[dict[str, Any]] = []
    for choice in choices:
        held = hold(backend, mechanism, auctions, choice, 1, False)
        table = np.array(list(held.table.values())).mean(axis=0)
        means = dict(zip(COLUMNS, table[: len(COLUMNS)].tolist(), strict=True))
        tried.append({"choice": dict(choice), "reward": means["reward"], "revenue": means["revenue"]})
    best = max(range(len(tried)), key=lambda place: tried[place]["reward"])
    return choices[best], tried


def mechanism_row(seeds: Sequence[Held], resamples: int, seed: int) -> dict[str, Any]:
    """A mechanism's row over training seeds: `table.row_figures` and `COSTS` per auction."""
    row = row_figures([held.table for held in seeds], resamples, seed, seeds[0].terms)
    timed = not any(np.isnan(held.costs).any() for held in seeds)
    known = [held.costs if timed else held.costs[:, :-1] for held in seeds]
    costs = [bounded(mean, 0) for mean in means(known, resamples, np.random.default_rng(seed))]
    if not timed:
        costs.append(UNTIMED)
    row["cost_per_auction"] = dict(zip(COSTS, costs, strict=True))
    row["notes"] = _means([held.notes for held in seeds])
    row["unread_judgements"] = sum(held.unread for held in seeds)
    row["seeds"] = len(seeds)
    return row


def compare_mechanisms(
    first: Sequence[Held], second: Sequence[Held], resamples: int, seed: int
) -> dict[str, Any]:
    """Differences in reward and revenue of two mechanisms, and the quotients of their revenues, of counted
    and of expected clicks, on the same queries of the same seeds, in pairs."""
    wanted = [COLUMNS.index(name) for name in DIFFERENCES]
    groups = [
        np.array([[*a.table[name][wanted], *b.table[name][wanted]] for name in a.table if name in b.table])
        for a, b in zip(first, second, strict=True)
    ]
    rng, half = np.random.default_rng(seed), len(wanted)
    differences = means([group[:, :half] - group[:, half:] for group in groups], resamples, rng)
    row = {f"{name}_difference": figure for name, figure in zip(DIFFERENCES, differences, strict=True)}
    for place, name in enumerate(DIFFERENCES):
        if name in ("revenue", "expected_revenue"):
            ours, theirs = ([group[:, [at]] for group in groups] for at in (place, half + place))
            (ratio,) = quotients(ours, theirs, resamples, rng)
            row[f"{name}_ratio"] = bounded(ratio, 0)
    return row


def _costs(ran: Sequence[Ran], seconds: float) -> list[float]:
    """`COSTS` per user that the auctions would have served."""
    served = max(1, sum(result.served for result in ran))
    spent = [(result.generations, result.prompt_tokens, result.sampled_tokens) for result in ran]
    return [*(np.sum(spent, axis=0) / served).tolist(), seconds / served]


def _means(seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for seed in seeds for name in seed)
    return {name: float(np.mean([seed[name] for seed in seeds if name in seed])) for name in names}
