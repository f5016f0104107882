"""What a warm-started model does with questions and brands that it never saw: format, relevance, bids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from raylla.actors.pool import DONE, Pool, next_item
from raylla.actors.rollout import RolloutWorker
from raylla.auction import parse
from raylla.auction.checks import Array
from raylla.auction.markup import Parsed, Violation
from raylla.config import Config
from raylla.engines.protocol import Generated, Request
from raylla.errors import RunError
from raylla.evaluation.intervals import Figure, means, quotients, spearman, within
from raylla.progress import Steps
from raylla.warmstart import rows
from raylla.warmstart.train import settings
from raylla.world import prompts

VERSION = "v0"


def report(config: Config, place: str, watch: Steps) -> dict[str, Any]:
    """Measure the weights at ``place`` on the rows that `warmstart` holds out; needs a connected cluster.

    Shares are of all attempts at a placement, or of all answers, with 95 % bootstrap intervals over rows.
    ``relevance`` is the share of placed ads of the question's own topic, ``chance`` the candidates'.
    ``trend`` is the rank correlation of a candidate's bid with its share of the row's answers.

    Raises:
        RunError: an engine refused a prompt, or no row is held out.
        DeadlineError: an engine did not start, or answer, in time.
    """
    chosen = settings(config)
    split = rows.split(rows.read(chosen.data), chosen.held_out, config.seed)
    held_out = rows.rows(split.test, chosen, config.seed)[: chosen.report_rows]
    answered = _answers(config, place, held_out, chosen.report_answers, watch)
    with watch.stage("figures"):
        found = figures(held_out, answered, config.evaluation.bootstrap, config.seed)
    return found | {
        "model": config.ad_llm.path,
        "data": chosen.data.name,
        "train_rows": len(split.train),
    }


def _answers(
    config: Config, place: str, asked: Sequence[rows.Row], n: int, watch: Steps
) -> list[Generated]:
    """The answers to every row, in order."""
    form = config.ad_llm.prompt
    requests = [
        Request(
            str(at), prompts.answer(form, row.query, row.profile, row.ads, row.bids), n, config.seed + at
        )
        for at, row in enumerate(asked)
    ]
    made = (place, config.ad_llm.sampling, config.engine, config.seed, VERSION)
    pool = Pool("rollout", RolloutWorker, made, config.rollout, config.ray.in_process)
    found: dict[str, Generated] = {}
    try:
        with watch.stage("start engines"):
            pool.create(pool.most)
            pool.wait_ready(config.deadlines.start)
        with watch.stage("answer held-out rows", answers=n * len(requests)):
            calls = [
                pool.call(worker, "generate", requests[at :: pool.size], VERSION)
                for at, worker in enumerate(pool.members)
            ]
            while calls:
                call, item = next_item(calls, config.deadlines.sample, "the next answer to a held-out row")
                if item is DONE:
                    calls.remove(call)
                    continue
                found[item.request_id] = item
                drawn = item.completions
                watch.advance("answers", len(drawn), sum(len(one.token_ids) for one in drawn))
    finally:
        pool.stop()
    for one in found.values():
        if one.error is not None:
            raise RunError(f"a held-out row was refused: {one.error}")
    return [found[request.id] for request in requests]


def figures(
    asked: Sequence[rows.Row], answered: Sequence[Generated], resamples: int, seed: int
) -> dict[str, Any]:
    """The figures of the answers [rows] to the rows ``asked``.

    Raises:
        RunError: there is no row.
    """
    if not asked:
        raise RunError("no row is held out; raise warmstart.held_out or warmstart.report_rows")
    table, violations = [], Counter[Violation]()
    shares: list[float] = []
    ranks: list[float] = []
    for row, generated in zip(asked, answered, strict=True):
        parsed = [parse(draw.text, row.ads) for draw in generated.completions]
        violations.update(one for each in parsed for one in each.violations)
        table.append(_account(row, parsed, [draw.finished for draw in generated.completions]))
        placed = Counter(ad for each in parsed for ad in each.ad_ids)
        shares += [placed[ad.id] / len(parsed) for ad in row.ads]
        ranks += list(row.bids)
    counts = np.array(table, dtype=np.float64)
    rng = np.random.default_rng(seed)

    def rate(above: int, below: int, most: float = 1.0) -> Figure:
        (found,) = quotients([counts[:, [above]]], [counts[:, [below]]], resamples, rng)
        return within(found, 0, most)

    by_row = np.array([ranks, shares]).reshape(2, len(asked), -1)
    return {
        "rows": len(asked),
        "answers": int(counts[:, 0].sum()),
        "placing": rate(1, 0),
        "valid": rate(2, 3),
        "violations": {str(kind): count for kind, count in sorted(violations.items())},
        "ads_per_answer": rate(2, 0, np.inf),
        "relevance": rate(4, 2),
        "chance": rate(5, 0),
        "ends": rate(6, 0),
        "trend": _trend(by_row[0], by_row[1], resamples, rng),
    }


def _account(row: rows.Row, parsed: Sequence[Parsed], finished: Sequence[bool]) -> list[float]:
    """Answers, those with a valid ad, valid placements, attempts, relevant placements, the candidates'
    share that would be, answers that end; summed over the row's draws."""
    topic = {ad.id: ad.category for ad in row.ads}
    placed = [ad for one in parsed for ad in one.ad_ids]
    fitting = sum(category == row.query.category for category in topic.values()) / len(topic)
    return [
        len(parsed),
        sum(bool(one.placements) for one in parsed),
        len(placed),
        sum(one.attempts for one in parsed),
        sum(topic[ad] == row.query.category for ad in placed),
        fitting * len(parsed),
        sum(finished),
    ]


def _trend(bids: Array, shares: Array, resamples: int, rng: np.random.Generator) -> Figure:
    """Mean over rows [q, k] of the rank correlation of bid and share, with its interval."""
    by_row = spearman(bids, shares)
    return within(means([by_row[:, None]], resamples, rng)[0], -1, 1)
