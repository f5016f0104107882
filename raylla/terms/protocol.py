"""What a reward term is: one number for each answer, of what its reader gains or loses.

A term is found by name among the entry points of the group ``raylla.reward_terms``; each names a class
that is made without arguments, so that a package of the user's own can add one.  A config weighs it, in
bid units: R(y) = sum_i b_i pctr_i 1(a_i in y) - lambda s_resp(y) + sum_k w_k term_k(y), which is Eq. 5 with
a last sum of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from raylla.auction import parse
from raylla.config.plugins import known_plugins, named_plugins
from raylla.errors import RayllaError, RunError
from raylla.records import Planned

_GROUP = "raylla.reward_terms"

Answered = Sequence[tuple[Planned, str]]
"""Answers to many auctions as they were written, each with its auction (query, profile, ads, bids); all
answers to one that are weighed against each other are in one call."""


class Texts(Protocol):
    """The frozen text encoder that a term may ask."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [len(texts), dim]."""

    def relevance(self, auctions: Sequence[Planned]) -> list[NDArray[np.float64]]:
        """Cosine between each auction's query and each of its ads [n]."""


@runtime_checkable
class RewardTerm(Protocol):
    """A term of the reward."""

    name: str

    def values(self, texts: Texts, answers: Answered) -> Sequence[float]:
        """The value of each answer, in its order: finite, 0 for an answer without ads (which is checked),
        and at most 0 for others, as much as the reader loses by the ads: more would pay for placing."""


def known_terms() -> list[str]:
    """Names of all terms that are installed."""
    return known_plugins(_GROUP)


def named_terms(names: Sequence[str]) -> list[RewardTerm]:
    """The terms of these names, in this order.

    Raises:
        ConfigError: as `named_plugins`.
    """
    return named_plugins(_GROUP, names, RewardTerm, "reward term", "name or values")


def term_values(terms: Sequence[RewardTerm], texts: Texts, answers: Answered) -> list[dict[str, float]]:
    """The values of all ``terms`` for each answer, by the term's name.

    Raises:
        RunError: a term failed, gave another number of values than there are answers or one that is no
            number, or pays for an answer without ads.
    """
    found: list[dict[str, float]] = [{} for _ in answers]
    bare = [not parse(text, planned.ads).ad_ids for planned, text in answers] if terms else []
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
        if any(value for value, without in zip(values, bare, strict=True) if without):
            raise RunError(
                f"reward_terms: {term.name} gave an answer without ads another value than 0, which would "
                "pay for placing, or for not"
            )
        for one, value in zip(found, values, strict=True):
            one[term.name] = value
    return found


def weighted(values: Mapping[str, float], weights: Mapping[str, float]) -> tuple[float, ...]:
    """Each weight times its term's value, in bid units, in the order of ``weights``."""
    return tuple(weight * values[name] for name, weight in weights.items())
