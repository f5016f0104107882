"""What a run's test answers say of its weights: rows of the final table, answers before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raylla.auction.checks import Array
from raylla.config import Config
from raylla.figures.table import JudgedAnswer, per_query, row_figures
from raylla.irpo.sampling import Sampled
from raylla.runs.state import Run
from raylla.terms.protocol import least_values, named_terms
from raylla.world import World, clicks, prompts


def epoch_row(run: Run, world: World, epoch: int, sampled: Sampled) -> dict[str, Any]:
    """The row of the weight version that an epoch began with, from the records of a finished run."""
    report = run.commits[f"epoch-{epoch}/test"]
    row = {"epoch": epoch - 1, "weight_version": report["weight_version"], "pctr": report["pctr"]}
    return row | table_row(run.config, tested(run.config, world, sampled))


def table_row(config: Config, table: Mapping[str, Array]) -> dict[str, Any]:
    """The table row of the weights that `tested` found ``table`` of."""
    return version_row([table], config.evaluation.bootstrap, config.seed, least_terms(config))


def least_terms(config: Config) -> dict[str, float]:
    """The least values of ``reward_terms``, by name."""
    return least_values(named_terms(list(config.term_weights)))


def version_row(
    seeds: Sequence[Mapping[str, Array]], resamples: int, seed: int, terms: Mapping[str, float]
) -> dict[str, Any]:
    """The row of one weight version from what `tested` found in each training seed."""
    row = row_figures(seeds, resamples, seed, terms)
    return row | {name: row[name]["mean"] for name in ("ads_per_answer", "format_error_rate", "click_rate")}


def tested(config: Config, world: World, sampled: Sampled) -> dict[str, Array]:
    """`per_query` figures of the judged test answers."""
    answers = []
    for planned, answer, clicked in sampled.judged("test"):
        read = sampled.read(answer)
        chances = clicks.expected_clicks(sampled.probabilities.get(answer.sample_id), read, world.ad_by_id)
        terms = sampled.terms.get(answer.sample_id, {})
        answers.append(
            JudgedAnswer(planned.query.id, read.parsed, planned.bids, planned.bids, clicked, chances, terms)
        )
    return per_query(answers, config.penalty, config.term_weights)


def before_and_after(world: World, before: Sampled, after: Sampled, count: int = 3) -> list[dict[str, Any]]:
    """The first answers to the same test auctions under the first and the last weights."""
    last = {answer.sample_id: answer.text for _, answer in after.of("test")}
    shown = []
    for planned, answer in before.of("test"):
        if answer.draw == 0 and answer.sample_id in last:
            bids = {f"{world.ad_by_id[ad].title} [Ad-{ad}]": bid for ad, bid in planned.bids.items()}
            shown.append(
                {
                    "query": planned.query.text,
                    "profile": prompts.persona(planned.profile),
                    "bids": bids,
                    "before": answer.text,
                    "after": last[answer.sample_id],
                }
            )
    return shown[:: max(1, len(shown) // count)][:count]
