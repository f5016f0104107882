"""Judged impressions as rows of the reward model, the reward of every phase-2 answer, and the preference
groups that follow (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from raylla.auction import reward
from raylla.config import Config
from raylla.irpo.sampling import Sampled, readings
from raylla.irpo.shards.parts import OrganicAnswers
from raylla.records import Answer, Phase, Prediction, PreferenceGroup, Reward
from raylla.reward.rows import ClickRow, click_rows
from raylla.terms.protocol import term_values, weighed_terms, weighted
from raylla.terms.sources import Sources, detector_for
from raylla.world import World
from raylla.world.fit import Fit
from raylla.world.retrieval import Encode, Vectors


def rows_of(world: World, sampled: Sampled, phase: Phase) -> list[ClickRow]:
    """One row per judged impression of a phase."""
    rows = []
    for planned, answer, clicked in sampled.judged(phase):
        placements = sampled.read(answer).parsed.placements
        args = (answer.sample_id, planned.query, planned.profile, answer.text, placements)
        rows += click_rows(*args, world.ad_by_id, clicked)
    return rows


def careful_rate(predicted: Prediction, risk: float) -> float:
    """A predicted click rate, lowered towards the low end of its interval by ``risk`` (0 to 1)."""
    return predicted.mean - risk * (predicted.mean - predicted.low)


def asked_rows(world: World, sampled: Sampled) -> list[ClickRow]:
    """One row per ad of every phase-2 answer, of which no judge has spoken."""
    rows = []
    for planned, answer in sampled.of("preference"):
        placements = sampled.read(answer).parsed.placements
        args = (answer.sample_id, planned.query, planned.profile, answer.text, placements)
        rows += click_rows(*args, world.ad_by_id, None)
    return rows


def predicted_rates(
    sampled: Sampled, predictions: Sequence[Prediction], risk: float
) -> dict[str, dict[str, float]]:
    """Click rate of each ad of every phase-2 answer, by sample id and ad id, from the predictions of
    `asked_rows`, lowered by ``risk``."""
    rates: dict[str, dict[str, float]] = {}
    left = iter(predictions)
    for _, answer in sampled.of("preference"):
        placed = sampled.read(answer).parsed.ad_ids
        rates[answer.sample_id] = {ad: careful_rate(next(left), risk) for ad in placed}
    return rates


def judged_rates(config: Config, sampled: Sampled) -> dict[str, dict[str, float]]:
    """The judge's own click rate on each ad of every phase-2 answer that it could read: its probability,
    or the share of its readings."""
    rates: dict[str, dict[str, float]] = {}
    for _, answer in sampled.of("preference"):
        names = readings(answer.sample_id, config.readings)
        told = sampled.probabilities
        read = [told.get(name, sampled.clicks[name]) for name in names if name in sampled.clicks]
        if read:
            rates[answer.sample_id] = {ad: sum(clicks[ad] for clicks in read) / len(read) for ad in read[0]}
    return rates


def score(
    config: Config,
    sampled: Sampled,
    rates: Mapping[str, dict[str, float]],
    terms: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> dict[str, Reward]:
    """R(y) of every phase-2 answer whose click rates are known (Eq. 5 and 8).

    ``terms``: values of ``reward_terms``, by sample id and name.
    """
    weights = config.term_weights
    return {
        answer.sample_id: reward(
            sampled.read(answer).parsed,
            planned.bids,
            rates[answer.sample_id],
            config.penalty,
            weighted(terms[answer.sample_id], weights) if weights else (),
            sample_id=answer.sample_id,
        )
        for planned, answer in sampled.of("preference")
        if answer.sample_id in rates
    }


class Valuer:
    """Values the reward terms of answers, with what was read once for all of them.

    Args:
        place: the run's, of which the untouched model's answers are read.
    """

    def __init__(self, config: Config, world: World, place: str) -> None:
        self._terms = weighed_terms(config)
        self._detector = detector_for(self._terms, config)
        self._organic = OrganicAnswers(place)
        self._label = config.serving.disclosure
        self._world = world
        self._ask: Encode = _nobody
        self._fit = Fit(world, lambda texts: self._ask(texts))

    def values(self, sampled: Sampled, phase: Phase, encode: Encode) -> dict[str, dict[str, float]]:
        """Sample id -> name -> value of each of ``reward_terms``, for the answers of one phase; nothing
        where there are no terms."""
        answers = [answer for _, answer in sampled.of(phase)] if self._terms else []
        self._ask = encode
        sources = Sources(self._fit, self._organic, self._detector, self._label)
        values = term_values(self._terms, sources, [sampled.read(answer) for answer in answers])
        return {answer.sample_id: worth for answer, worth in zip(answers, values, strict=True)}


def _nobody(texts: list[str]) -> Vectors:
    raise RuntimeError("nobody encodes yet")


def groups_of(config: Config, sampled: Sampled, rewards: Mapping[str, Reward]) -> list[PreferenceGroup]:
    """The preference groups of scored phase-2 answers, auction after auction."""
    by_auction: dict[str, list[Answer]] = {}
    for _, answer in sampled.of("preference"):
        if answer.sample_id in rewards:
            by_auction.setdefault(answer.auction_id, []).append(answer)
    groups = []
    for answers in by_auction.values():
        totals = [rewards[answer.sample_id].total for answer in answers]
        if config.irpo.align == "grpo":
            groups.append(whole_group(answers, totals))
        else:
            groups.append(group(answers, totals, config.irpo.delta))
    return [group for group in groups if group is not None]


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
