"""What an epoch asks for: how many texts of each kind, and how long they are.

Both may be estimated from a config alone, or be those that a run had (`raylla.plan.against`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from raylla.config import Config
from raylla.errors import ConfigError
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
class Yields:
    """What an epoch has of the most that its config comes to.

    ``placing``: of all answers, those that place an ad, which alone are judged and encoded; ``groups``: of
    all queries, those that make a preference group; ``members``: of a query's answers, those in its group;
    ``uneven``: tokens that ranks compute or wait for ÷ tokens of their rows, which differ in length.
    """

    placing: float = 0.9
    groups: float = 0.96
    members: float = 0.73
    uneven: float = 1.12

    @classmethod
    def of(cls, config: Config, given: Sequence[str] = ()) -> Yields:
        """Estimates, from a run of SmolLM2, one of the pocket models, and one with GRPO, whose groups hold
        all answers; those ``given`` as NAME=VALUE in their place.

        Raises:
            ConfigError: no such name, or no such value.
        """
        found = cls(groups=1.0, members=1.0, uneven=1.05) if config.irpo.align == "grpo" else cls()
        if config.dpo.workers * config.dpo.micro_groups == 1:
            found = replace(found, uneven=1.0)
        names = [field.name for field in fields(cls)]
        for estimate in given:
            name, _, value = estimate.partition("=")
            if name not in names:
                raise ConfigError(f"--estimate {estimate}: there is {', '.join(names)}, as NAME=VALUE")
            found = replace(found, **{name: _share(estimate, value, name == "uneven")})
        return found


def _share(what: str, value: str, beyond: bool) -> float:
    try:
        found = float(value)
    except ValueError:
        raise ConfigError(f"--estimate {what}: {value!r} is no number") from None
    if not (1 <= found < math.inf if beyond else 0 < found <= 1):
        raise ConfigError(f"--estimate {what}: give {'at least 1' if beyond else 'more than 0, at most 1'}")
    return found


AT_MOST = Yields(1.0, 1.0, 1.0, 1.0)
"""Every answer places an ad, every query makes a group of all its answers, and all are of one length."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Texts of one epoch.

    ``requests`` are the Ad-LLM's prompts, each computed once for its share of ``answers``; ``readings`` the
    judge's prompts. The pCTR model reads ``encoded`` answers, ``queries`` and ``ads`` once each, a sentence
    with its answer. ``groups`` preference groups of ``members`` answers are trained on in ``steps`` steps;
    the ``longest`` has so many tokens (none: as many as all of a query's answers come to). ``uneven`` is as
    in `Yields`.
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
    uneven: float = 1.0

    @classmethod
    def of(cls, config: Config, yields: Yields | None = None) -> Counts:
        """What a config comes to; an answer that places ads holds one."""
        irpo, dpo, found = config.irpo, config.dpo, yields or Yields.of(config)
        asked, tested = _queries(config)
        trained = asked * (irpo.reward_answers + irpo.preference_answers)
        judged = asked * irpo.reward_answers + tested * config.evaluation.answers
        scored = asked * irpo.preference_answers
        return cls(
            requests=2 * asked + tested,
            answers=trained + tested * config.evaluation.answers,
            readings=found.placing * (judged + (scored * config.readings if irpo.reward == "judge" else 0)),
            encoded=found.placing * (judged + (scored if irpo.reward == "pctr" else 0)),
            queries=asked + tested,
            ads=config.world.ads if "ad_text" in config.pctr.features else 0,
            groups=found.groups * asked,
            members=max(2.0, found.members * irpo.preference_answers),
            steps=math.ceil(found.groups * asked / dpo.batch_groups) * dpo.passes,
            uneven=found.uneven,
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
