"""Judged impressions as rows of the reward model, the reward of every phase-2 answer, and the preference
groups that follow (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from raylla.auction import parse, reward
from raylla.irpo.crew import Crew
from raylla.irpo.organic import OrganicAnswers
from raylla.irpo.sampling import Sampled, readings
from raylla.records import Answer, Phase, Prediction, PreferenceGroup, Reward
from raylla.reward.rows import ClickRow, click_rows
from raylla.runs.state import Run
from raylla.terms.protocol import term_values, weighed_terms, weighted
from raylla.terms.sources import Sources, detector_for
from raylla.world import World
from raylla.world.fit import Fit
from raylla.world.retrieval import Vectors


def rows_of(world: World, sampled: Sampled, phase: Phase) -> list[ClickRow]:
    """One row per judged impression of a phase."""
    found = []
    for planned, answer, clicked in sampled.judged(phase):
        placements = parse(answer.text, planned.ads).placements
        found += click_rows(
            answer.sample_id,
            planned.query,
            planned.profile,
            answer.text,
            placements,
            world.ad_by_id,
            clicked,
        )
    return found


def careful_rate(predicted: Prediction, risk: float) -> float:
    """A predicted click rate, lowered towards the low end of its interval by ``risk`` (0 to 1)."""
    return predicted.mean - risk * (predicted.mean - predicted.low)


def judged_rates(run: Run, sampled: Sampled) -> dict[str, dict[str, float]]:
    """The judge's own click rate on each ad of every phase-2 answer that it could read: its probability,
    or the share of its readings."""
    found: dict[str, dict[str, float]] = {}
    for _, answer in sampled.of("preference"):
        names = readings(answer.sample_id, run.config.readings)
        told = sampled.probabilities
        read = [told.get(name, sampled.clicks[name]) for name in names if name in sampled.clicks]
        if read:
            found[answer.sample_id] = {ad: sum(one[ad] for one in read) / len(read) for ad in read[0]}
    return found


def score(
    run: Run,
    sampled: Sampled,
    rates: Mapping[str, dict[str, float]],
    terms: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> dict[str, Reward]:
    """R(y) of every phase-2 answer whose click rates are known (Eq. 5 and 8).

    ``terms``: values of ``reward_terms``, by sample id and name.
    """
    weights = run.config.term_weights
    return {
        answer.sample_id: reward(
            parse(answer.text, planned.ads),
            planned.bids,
            rates[answer.sample_id],
            run.config.penalty,
            weighted(terms[answer.sample_id], weights) if weights else (),
            sample_id=answer.sample_id,
        )
        for planned, answer in sampled.of("preference")
        if answer.sample_id in rates
    }


def values_of(
    run: Run, crew: Crew, world: World, sampled: Sampled, phase: Phase
) -> dict[str, dict[str, float]]:
    """Sample id -> name -> value of each of ``reward_terms``, for the answers of one phase; nothing where
    there are no terms."""
    config = run.config

    def encode(texts: list[str]) -> Vectors:
        vectors: Vectors = crew.persistently(lambda: crew.ask_reward("encode", texts))
        return vectors

    terms = weighed_terms(config)
    answers = list(sampled.of(phase)) if terms else []
    texts = [(planned, answer.text) for planned, answer in answers]
    fit, detector = Fit(world, encode), detector_for(terms, config)
    sources = Sources(fit, OrganicAnswers(run), detector, config.serving.disclosure)
    found = term_values(terms, sources, texts)
    return {answer.sample_id: one for (_, answer), one in zip(answers, found, strict=True)}


def whole_group(answers: Sequence[Answer], rewards: Sequence[float]) -> PreferenceGroup | None:
    """All of one auction's answers, the first of the highest reward before the others; none where their
    rewards are equal, and so say nothing."""
    if not answers or min(rewards) == max(rewards):
        return None
    best = rewards.index(max(rewards))
    return _grouped(answers, rewards, best, [index for index in range(len(answers)) if index != best])


def group(answers: Sequence[Answer], rewards: Sequence[float], delta: float) -> PreferenceGroup | None:
    """The winner of one auction's answers and the losers more than ``delta`` below it.

    The winner is the first answer of the highest reward; each loser is one DPO pair.  Returns
    None where no answer lies far enough below, so equal rewards make no pairs.
    """
    if not answers:
        return None
    best = rewards.index(max(rewards))
    below = [index for index, reward in enumerate(rewards) if rewards[best] - reward > delta]
    return _grouped(answers, rewards, best, below) if below else None


def _grouped(
    answers: Sequence[Answer], rewards: Sequence[float], best: int, others: Sequence[int]
) -> PreferenceGroup:
    return PreferenceGroup(
        auction_id=answers[best].auction_id,
        winner=answers[best],
        losers=tuple(answers[index] for index in others),
        winner_reward=rewards[best],
        loser_rewards=tuple(rewards[index] for index in others),
    )
