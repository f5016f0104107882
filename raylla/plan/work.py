"""What an epoch asks for: how many texts of each kind, and how long they are.

Both may be estimated from a config alone, or be those that a run had (`raylla.plan.against`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from raylla.config import Config
from raylla.terms.protocol import needs_of, weighed_terms

PROMPTS = {"paper": (400, 35, 400), "plain": (82, 24, 77), "compact": (21, 14, 25)}
"""Tokens of a prompt without ads, of each ad in it, and of an answer, by template; plain as SmolLM2 counts
them, compact as the pocket models do, paper estimated."""

JUDGE_PROMPTS = {"paper": (350, 40), "plain": (165, 11), "compact": (28, 10)}
"""Tokens of a judge's prompt beside the answer that it reads, and of its reply about all ads."""

ONE_AD = 117
"""Tokens of a judge's prompt about one ad of an answer, as SmolLM2 counts them."""

QUERY, AD_TEXT = 8, 5
"""Tokens of a query and of an ad's title and category, as the pCTR model reads them."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean tokens of the texts: the Ad-LLM's prompt and answer, the judge's prompt and reply."""

    prompt: float
    answer: float
    judge_prompt: float
    judgement: float

    @classmethod
    def of(cls, config: Config, prompt: float | None = None, answer: float | None = None) -> Lengths:
        """Estimates by prompt template and number of candidate ads, where they are not given."""
        rest, listing, usual = PROMPTS[config.ad_llm.prompt]
        answer = min(config.ad_llm.sampling.max_tokens, answer or usual)
        prompt = prompt or rest + listing * config.world.candidates
        if config.user_llm.reading == "token":
            return cls(prompt, answer, ONE_AD, 1)
        beside, reply = JUDGE_PROMPTS[config.user_llm.prompt]
        return cls(prompt, answer, answer + beside, reply)


@dataclass(frozen=True, slots=True)
class Counts:
    """Texts of one epoch.

    ``requests`` are the Ad-LLM's prompts, each computed once for its share of ``answers``; ``readings`` the
    judge's prompts. The pCTR model reads ``encoded`` answers, ``queries`` and ``ads`` once each, a sentence
    with its answer. ``groups`` preference groups of ``members`` answers are trained on in ``steps`` steps;
    the ``longest`` has so many tokens (none: as many as the others).
    """

    requests: float
    answers: float
    readings: float
    encoded: float
    queries: float
    ads: float
    groups: float
    members: float
    steps: float
    longest: float | None = None

    @classmethod
    def of(cls, config: Config) -> Counts:
        """The most that a config comes to: every query makes a group of all its answers, and every answer
        holds one ad to be judged."""
        irpo, dpo = config.irpo, config.dpo
        asked, tested = _queries(config)
        trained = asked * (irpo.reward_answers + irpo.preference_answers)
        judged = asked * irpo.reward_answers + tested * config.evaluation.answers
        scored = asked * irpo.preference_answers
        return cls(
            requests=2 * asked + tested,
            answers=trained + tested * config.evaluation.answers,
            readings=judged + (scored * config.readings if irpo.reward == "judge" else 0),
            encoded=judged + (scored if irpo.reward == "pctr" else 0),
            queries=asked + tested,
            ads=config.world.ads if "ad_text" in config.pctr.features else 0,
            groups=asked,
            members=irpo.preference_answers,
            steps=math.ceil(asked / dpo.batch_groups) * dpo.passes,
        )


@dataclass(frozen=True, slots=True)
class Work:
    """An epoch of ``config``: so many texts of such lengths, and on how many shared cores where no group
    has a GPU (none: each worker has its own)."""

    config: Config
    lengths: Lengths
    counts: Counts
    cores: int | None

    @property
    def row(self) -> float:
        """Tokens of a packed preference group: its prompt once, each answer once."""
        return self.lengths.prompt + self.counts.members * self.lengths.answer

    @property
    def seen(self) -> float:
        """Others that a token of such a row is multiplied with in attention, on average: of the prompt
        and of its own answer those before it (`raylla.policy.attention` computes no more)."""
        prompt, answer = self.lengths.prompt, self.lengths.answer
        answers = self.counts.members * answer * (prompt + answer / 2)
        return (prompt**2 / 2 + answers) / self.row

    def devices(self, workers: int) -> int:
        """What ``workers`` of a group have to themselves at most."""
        return workers if self.cores is None else min(workers, self.cores)


def organic_questions(config: Config) -> int:
    """Questions that the untouched model answers once, before the first epoch, where a weighed reward term
    reads that: at most, as if no two epochs asked the same.

    Raises:
        ConfigError: a term is not there, or what it needs is not configured.
    """
    if not any("organic" in needs_of(term) for term in weighed_terms(config)):
        return 0
    asked, tested = _queries(config)
    return min(_world_queries(config)[0], config.irpo.epochs * asked) + tested


def _world_queries(config: Config) -> tuple[int, int]:
    held_out = round(config.world.profiles * config.world.test_share)
    each = config.world.queries_per_profile
    return (config.world.profiles - held_out) * each, held_out * each


def _queries(config: Config) -> tuple[int, int]:
    trained, tested = _world_queries(config)
    return min(config.irpo.queries or trained, trained), min(config.evaluation.queries or tested, tested)
