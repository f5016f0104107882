"""`raylla judge evaluate`: a judge on questions that it never learned from, beside what else could be had.

For each judge of the data and for all of them together: the User-LLM's probabilities, those of a pCTR
network over a text encoder that learned the same rows, and the ceiling: what the opinion of the other
judges says of one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raylla.actors.judge import AdItem, JudgeItem, JudgeWorker
from raylla.actors.pool import DONE, Pool, next_item
from raylla.auction.checks import Array
from raylla.config import Config, Judging
from raylla.errors import BudgetError, ConfigError
from raylla.judging import about, measures, published
from raylla.judging.lessons import messages
from raylla.judging.measures import Clicks
from raylla.judging.network import learn_network, row
from raylla.judging.published import JudgedImpression
from raylla.judging.train import judge_settings
from raylla.models import resolve
from raylla.progress import Steps

if TYPE_CHECKING:
    from raylla.reward.trainer import RewardTrainer


def measure_judge(config: Config, place: str, watch: Steps) -> dict[str, Any]:
    """Measure the judge at ``place`` on the questions that `judging` holds out; needs a connected cluster.

    Everything of the result is on the same rows: those that the engine answered.

    Raises:
        ConfigError: the judge learned from another split of the questions.
        DataError: the data is unusable.
        BudgetError: the engine refused more than ``irpo.max_drop_share`` of the rows.
        DeadlineError: an engine did not start, or answer, in time.
    """
    chosen = judge_settings(config)
    data = published.read_impressions(chosen.data)
    learned, apart = published.split_impressions(data.impressions, chosen.held_out, chosen.seed)
    taught = about.read_taught(resolve(place, "--adapter"))
    _same_split(place, taught, chosen)
    judges = data.chosen(chosen.judges if taught is None else taught.judges)
    watch.say(f"{len(apart)} rows of questions that nobody learned from, {len(learned)} of others")
    told = _asked(config, place, apart, watch)
    read = [at for at, probability in enumerate(told) if probability is not None]
    if len(apart) - len(read) > config.irpo.max_drop_share * len(apart):
        raise BudgetError(
            f"the engine refused {len(apart) - len(read)} of {len(apart)} rows, more than "
            f"irpo.max_drop_share={config.irpo.max_drop_share} allows; raise engine.max_model_len"
        )
    shown = [apart[at] for at in read]
    with watch.stage("teach the network that it is held against"):
        network = learn_network(chosen.encoder, config.pctr, learned, judges, chosen.seed)
    with watch.stage("figures"):
        figures = compare_judges(
            np.array([told[at] for at in read], dtype=np.float64),
            _predicted(network, shown),
            _clicks(learned, data.judges),
            _clicks(shown, data.judges),
            [impression.question for impression in shown],
            data.judges,
            judges,
            chosen.bootstrap,
            chosen.seed,
        )
    return {
        "model": place,
        "taught_by": list(taught.judges) if taught else [],
        "encoder": chosen.encoder,
        "data": chosen.data.name,
        "rows": len(shown),
        "unread": len(apart) - len(read),
        "questions": len({impression.question for impression in shown}),
        "learned_rows": len(learned),
        "split_seed": chosen.seed,
        **figures,
    }


def compare_judges(
    judge: Array,
    network: Array,
    learned: Clicks,
    clicks: Clicks,
    questions: Sequence[str],
    judges: Sequence[str],
    taught: Sequence[str],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Figures by judge, and by groups of judges, of two predictions [n] of held-out ``clicks`` [n, j].

    ``judges`` names the columns; ``learned`` [m, j] are the clicks that were learned from: the ceiling has
    the click rate among them that goes with each share of the other judges. Groups are all judges, and
    those that ``taught`` where these are not all.
    """
    by_judge: dict[str, Any] = {}
    for column, name in enumerate(judges):
        said = clicks[:, column]
        figures: dict[str, Any] = {
            "judge": measures.against_judge(judge, said, questions, resamples, seed),
            "network": measures.against_judge(network, said, questions, resamples, seed),
            "auc_over_network": measures.difference(judge, network, said, questions, resamples, seed),
        }
        if len(judges) > 1:
            shares = measures.share_of_others(clicks, column)
            known = measures.share_of_others(learned, column)
            rates = measures.rate_of_share(known, learned[:, column], shares)
            figures["ceiling"] = measures.against_judge(rates, said, questions, resamples, seed)
            figures["ceiling"]["auc"] = measures.against_judge(shares, said, questions, resamples, seed)[
                "auc"
            ]
        by_judge[name] = figures
    groups = {"all judges": list(judges)}
    if 1 < len(taught) < len(judges):
        groups["judges that taught it"] = list(taught)
    by_group: dict[str, Any] = {}
    for group, names in groups.items():
        said = clicks[:, [list(judges).index(name) for name in names]]
        half = said.mean(axis=1) >= 0.5
        by_group[group] = {
            "judge": measures.against_all(judge, said, questions, resamples, seed),
            "network": measures.against_all(network, said, questions, resamples, seed),
            "auc_over_network": measures.difference(judge, network, half, questions, resamples, seed),
        }
    return {"judges": by_judge, "groups": by_group}


def _same_split(place: str, taught: about.Taught | None, chosen: Judging) -> None:
    """Refuse a judge that may have learned the questions that it is to be measured on."""
    if taught is not None and (taught.seed, taught.held_out) != (chosen.seed, chosen.held_out):
        raise ConfigError(
            f"judging.seed={chosen.seed}, judging.held_out={chosen.held_out:g}: the judge at {place} "
            f"learned from the split of seed {taught.seed} and share {taught.held_out:g}, and may know the "
            "questions that another holds out; set these"
        )


def _asked(
    config: Config, place: str, shown: Sequence[JudgedImpression], watch: Steps
) -> list[float | None]:
    """The judge's click probability of each impression; none where the engine refused the prompt."""
    items = [
        JudgeItem(str(at), [], (str(at),), 0, (AdItem(messages(impression), 1.0),))
        for at, impression in enumerate(shown)
    ]
    made = (place, config.user_llm.sampling, config.engine, config.seed)
    pool = Pool("judge", JudgeWorker, made, config.judge, config.ray.in_process)
    rates: dict[str, float] = {}
    try:
        with watch.stage("start engines"):
            pool.create(pool.most)
            pool.wait_ready(config.deadlines.start)
        with watch.stage("judge held-out rows", rows=len(items)):
            calls = [
                pool.call(worker, "judge", items[at :: pool.size]) for at, worker in enumerate(pool.members)
            ]
            while calls:
                waited = "the next judgement of a held-out row"
                call, item = next_item(calls, config.deadlines.sample, waited)
                if item is DONE:
                    calls.remove(call)
                    continue
                watch.advance("rows", 1)
                if item.probabilities is not None:
                    rates |= item.probabilities
    finally:
        pool.stop()
    return [rates.get(item.sample_id) for item in items]


def _predicted(network: RewardTrainer, shown: Sequence[JudgedImpression]) -> Array:
    predictions = network.predict_intervals([row(impression) for impression in shown])
    return np.array([prediction.mean for prediction in predictions], dtype=np.float64)


def _clicks(impressions: Sequence[JudgedImpression], judges: Sequence[str]) -> Clicks:
    return np.array(
        [[impression.clicks[judge] for judge in judges] for impression in impressions], dtype=np.bool_
    )
