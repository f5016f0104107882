"""What a reward term is: one number for each answer, of what its reader gains or loses.

A term is found by name among the entry points of the group ``raylla.reward_terms``; each names a class
that is made without arguments, so that a package of the user's own can add one.  A config weighs it, in
bid units: R(y) = sum_i b_i pctr_i 1(a_i in y) - lambda s_resp(y) + sum_k w_k term_k(y), which is Eq. 5 with
a last sum of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from raylla.auction import ReadAnswer
from raylla.config import Config
from raylla.config.plugins import known_plugins, named_plugins
from raylla.errors import ConfigError, RayllaError, RunError
from raylla.records import Planned

_GROUP = "raylla.reward_terms"

ORGANIC_ANSWERS = 2
"""Answers of the untouched model to a question that a term may read."""

TermNeed = Literal["organic", "detector"]
"""What a term asks of `Texts` that not every run or evaluation has: it names it in its ``needs``."""


class Texts(Protocol):
    """What a term may ask of texts: the frozen encoder and, where it `needs` them, the untouched model's
    answers and the detector of native ads."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [len(texts), dim]."""

    def directions(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors less the mean of the catalogue and the training queries, of length 1
        [len(texts), dim]: their products are cosines, and those of unrelated texts are near 0."""

    def relevance(self, auctions: Sequence[Planned]) -> list[NDArray[np.float64]]:
        """Cosine between each auction's query and each of its ads [n]."""

    def organic(self, auctions: Sequence[Planned]) -> list[tuple[str, ...]]:
        """What the untouched model, told of no ads, answers to each auction's question: up to
        `ORGANIC_ANSWERS` texts, none where the engine lost them. A term that asks has "organic" in
        ``needs``."""

    def detected(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The probability that each text has an ad hidden in it [len(texts)], by the detector that
        published native ads taught. A term that asks has "detector" in ``needs``."""


@runtime_checkable
class RewardTerm(Protocol):
    """A term of the reward.

    It may have two attributes more: ``needs``, a tuple of `TermNeed`, and ``least``, the least value that
    an answer can have, where the intervals of its means end.
    """

    name: str

    def values(self, texts: Texts, answers: Sequence[ReadAnswer]) -> Sequence[float]:
        """The value of each answer, in its order: finite, 0 for an answer without ads (which is checked),
        and at most 0 for others, as much as the reader loses by the ads: more would pay for placing."""


def known_terms() -> list[str]:
    """Names of all terms that are installed."""
    return known_plugins(_GROUP)


def named_terms(names: Sequence[str]) -> list[RewardTerm]:
    """The terms of these names, in this order.

    Raises:
        ConfigError: as `named_plugins`, or one needs what nothing has.
    """
    terms: list[RewardTerm] = named_plugins(_GROUP, names, RewardTerm, "reward term", "name or values")
    for term in terms:
        if strange := sorted(needs_of(term) - set(get_args(TermNeed))):
            raise ConfigError(
                f"the reward term {term.name!r} needs {', '.join(strange)}; a term may need "
                f"{' and '.join(get_args(TermNeed))}"
            )
    return terms


def weighed_terms(config: Config) -> list[RewardTerm]:
    """The terms of ``reward_terms``, whether or not their weight is 0.

    Raises:
        ConfigError: as `named_terms`, or what one needs is not configured.
    """
    terms = named_terms(list(config.term_weights))
    path = config.evaluation.native_answers
    for term in terms:
        if "detector" in needs_of(term) and not (path and path.is_file()):
            named = f"{str(path)!r} is no file" if path else "names no published answers"
            raise ConfigError(
                f"reward_terms: {term.name} reads answers with the detector of native ads, and "
                f"evaluation.native_answers, which teaches it, {named}; give the file, or leave the term "
                "out"
            )
    return terms


def needs_of(term: RewardTerm) -> frozenset[str]:
    """What a term asks of `Texts` beside the encoder."""
    return frozenset(getattr(term, "needs", ()))


def least_values(terms: Sequence[RewardTerm]) -> dict[str, float]:
    """The least value of each term by name, minus infinity where it tells none."""
    return {term.name: float(getattr(term, "least", -math.inf)) for term in terms}


def term_values(
    terms: Sequence[RewardTerm], texts: Texts, answers: Sequence[ReadAnswer]
) -> list[dict[str, float]]:
    """The values of all ``terms`` for each answer, by the term's name; all answers to one auction that are
    weighed against each other are in one call.

    Raises:
        RunError: a term failed, gave another number of values than there are answers or one that is no
            number, or pays for an answer without ads.
    """
    by_answer: list[dict[str, float]] = [{} for _ in answers]
    for term in terms if answers else ():
        try:
            values = [float(value) for value in term.values(texts, answers)]
        except RayllaError:
            raise
        except Exception as error:
            raise RunError(f"reward_terms: {term.name} failed: {type(error).__name__}: {error}") from error
        if len(values) != len(answers) or not all(map(math.isfinite, values)):
            raise RunError(
                f"reward_terms: {term.name} gave {len(values)} values for {len(answers)} answers, "
                f"{sum(not math.isfinite(value) for value in values)} of them not finite"
            )
        if any(
            value for value, answer in zip(values, answers, strict=True) if not answer.parsed.placements
        ):
            raise RunError(
                f"reward_terms: {term.name} gave an answer without ads another value than 0, which would "
                "pay for placing, or for not"
            )
        for row, value in zip(by_answer, values, strict=True):
            row[term.name] = value
    return by_answer


def weighted(values: Mapping[str, float], weights: Mapping[str, float]) -> tuple[float, ...]:
    """Each weight times its term's value, in bid units, in the order of ``weights``."""
    return tuple(weight * values[name] for name, weight in weights.items())
