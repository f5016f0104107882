"""What a warm-started model does with questions and brands that it never saw: format, relevance, bids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from raylla import models
from raylla.actors.pool import DONE, Pool, next_item
from raylla.actors.rollout import RolloutWorker
from raylla.auction import parse
from raylla.auction.checks import Array
from raylla.auction.markup import Parsed, Violation
from raylla.auction.prose import without_ads
from raylla.config import Config
from raylla.engines.protocol import Generated, Given, Request
from raylla.errors import RunError
from raylla.figures.intervals import Figure, bounded, means, quotients, spearman
from raylla.progress import Steps
from raylla.warmstart import rows
from raylla.warmstart.train import warmstart_settings
from raylla.world import prompts

VERSION = "v0"
_Read = Array
"""By row, negative log-likelihood (nats) and tokens of its answers without their ads, summed [rows, 2]."""


def measure_warmstart(config: Config, place: str, watch: Steps) -> dict[str, Any]:
    """Measure the weights at ``place`` on the rows that `warmstart` holds out; needs a connected cluster.

    Shares are of all attempts at a placement, or of all answers, with 95 % bootstrap intervals over rows.
    ``relevance`` is the share of placed ads of the question's own topic, ``chance`` the candidates'.
    ``perplexity`` is that of the answers without the sentences that hold ads, under the model below all
    adapters. ``trend`` is the rank correlation of a candidate's bid with its share of the row's answers.

    Raises:
        RunError: an engine refused a prompt, or no row is held out.
        DeadlineError: an engine did not start, or answer, in time.
    """
    chosen = warmstart_settings(config)
    split = rows.split_answers(rows.read_published(chosen.data), chosen.held_out, config.seed)
    held_out = rows.rows(split.test, chosen, config.seed)[: chosen.report_rows]
    requests = [
        Request(
            str(at),
            prompts.of(config.ad_llm, row.query, row.profile, row.ads, row.bids),
            chosen.report_answers,
            config.seed + at,
        )
        for at, row in enumerate(held_out)
    ]
    with watch.stage("answer held-out rows", rows=len(requests)):
        written = _asked(config, place, "generate", requests, watch)
    answered = [written[request.id] for request in requests]
    given = _left(config, held_out, answered)
    with watch.stage("read the answers with the model below all adapters", rows=len(given)):
        scored = _asked(config, models.base(config.ad_llm.path, "ad_llm.path"), "score", given, watch)
    read = np.zeros((len(held_out), 2))
    for id, score in scored.items():
        read[int(id.partition("/")[0])] += (-score.logprob, score.tokens)
    with watch.stage("figures"):
        report = figures(held_out, answered, read, config.evaluation.bootstrap, config.seed)
    return report | {
        "model": config.ad_llm.path,
        "data": chosen.data.name,
        "train_rows": len(split.train),
    }


def _left(
    config: Config, asked: Sequence[rows.AnsweredAuction], answered: Sequence[Generated]
) -> list[Given]:
    """What is left of the answers without their ads, as answers to the question alone; ids "row/draw"."""
    form = config.ad_llm.prompt
    return [
        Given(f"{at}/{draw}", prompts.organic(form, row.query, row.profile), text=left)
        for at, (row, generated) in enumerate(zip(asked, answered, strict=True))
        for draw, made in enumerate(generated.completions)
        if (left := without_ads(made.text, row.ads))
    ]


def _asked(
    config: Config, place: str, method: str, items: Sequence[Request | Given], watch: Steps
) -> dict[str, Any]:
    """What engines with the weights at ``place`` yield for ``items``, by the items' ids."""
    made = (place, config.ad_llm.sampling, config.engine, config.seed, VERSION)
    pool = Pool("rollout", RolloutWorker, made, config.rollout, config.ray.in_process)
    shares: dict[str, Any] = {}
    try:
        pool.create(pool.most)
        pool.wait_ready(config.deadlines.start)
        calls = [
            pool.call(worker, method, items[at :: pool.size], VERSION)
            for at, worker in enumerate(pool.members)
        ]
        while calls:
            call, item = next_item(calls, config.deadlines.sample, "the next answer to a held-out row")
            if item is DONE:
                calls.remove(call)
            elif isinstance(item, Generated):
                if item.error is not None:
                    raise RunError(f"a held-out row was refused: {item.error}")
                shares[item.request_id] = item
                watch.advance("rows", 1, sum(len(draw.token_ids) for draw in item.completions))
            else:
                shares[item.id] = item
                watch.advance("rows", 1)
    finally:
        pool.stop()
    return shares


def figures(
    asked: Sequence[rows.AnsweredAuction],
    answered: Sequence[Generated],
    read: _Read,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The figures of the answers [rows] to the rows ``asked``; the model below all adapters ``read`` them.

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
        violations.update(violation for each in parsed for violation in each.violations)
        table.append(_account(row, parsed, [draw.finished for draw in generated.completions]))
        placed = Counter(ad for each in parsed for ad in each.ad_ids)
        shares += [placed[ad.id] / len(parsed) for ad in row.ads]
        ranks += list(row.bids)
    counts = np.array(table, dtype=np.float64)
    rng = np.random.default_rng(seed)

    def rate(above: int, below: int, most: float = 1.0) -> Figure:
        (figure,) = quotients([counts[:, [above]]], [counts[:, [below]]], resamples, rng)
        return bounded(figure, 0, most)

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
        "perplexity": _perplexity(read, resamples, rng),
        "trend": _trend(by_row[0], by_row[1], resamples, rng),
    }


def _account(row: rows.AnsweredAuction, parsed: Sequence[Parsed], finished: Sequence[bool]) -> list[float]:
    """Answers, those with a valid ad, valid placements, attempts, relevant placements, the candidates'
    share that would be, answers that end; summed over the row's draws."""
    topic = {ad.id: ad.category for ad in row.ads}
    placed = [ad for answer in parsed for ad in answer.ad_ids]
    fitting = sum(category == row.query.category for category in topic.values()) / len(topic)
    return [
        len(parsed),
        sum(bool(answer.placements) for answer in parsed),
        len(placed),
        sum(answer.attempts for answer in parsed),
        sum(topic[ad] == row.query.category for ad in placed),
        fitting * len(parsed),
        sum(finished),
    ]


def _perplexity(read: _Read, resamples: int, rng: np.random.Generator) -> Figure | None:
    """Of the tokens of all answers without their ads; none where nothing is left of them."""
    if not read[:, 1].any():
        return None
    (figure,) = quotients([read[:, [0]]], [read[:, [1]]], resamples, rng)
    low, mean, high = (float(np.exp(figure[name])) for name in ("low", "mean", "high"))
    return Figure(mean=mean, low=low, high=high)


def _trend(bids: Array, shares: Array, resamples: int, rng: np.random.Generator) -> Figure:
    """Mean over rows [q, k] of the rank correlation of bid and share, with its interval."""
    by_row = spearman(bids, shares)
    return bounded(means([by_row[:, None]], resamples, rng)[0], -1, 1)
