"""What a mechanism is: a rule of allocation, a rule of payment, and the account of what they cost.

A mechanism is found by name among the entry points of the group ``raylla.mechanisms``; each names a
class that is made without arguments, so that a package of the user's own can add one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from raylla.auction import ReadAnswer
from raylla.auction.aggregation import Aggregation
from raylla.config.plugins import named_plugins
from raylla.engines.protocol import Aggregated, Generated
from raylla.records import Ad, Planned

_GROUP = "raylla.mechanisms"
BASE, TRAINED = "base", "trained"
"""Weights that a mechanism may write with: before the first epoch, and after the last."""

Choice = Mapping[str, float | int | str | bool]
"""One setting of a mechanism's hyperparameters, by name."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """An answer prompt: which ads it lists, at which bids (None: hidden), and how many answers.

    ``ads`` stand in the prompt in this order.  ``name`` tells prompts of one auction apart; sampling seeds
    follow from it.
    """

    planned: Planned
    ads: tuple[Ad, ...]
    bids: tuple[float | None, ...]
    n: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Joint:
    """``n`` answers that one model for each of an auction's ads writes together (`engines.aggregating`).

    Each model is prompted with its own ad alone, at no bid; ``bids`` [ads] are their weights, one above 0.

    ``name`` tells the joint answers of one auction apart; sampling seeds follow from it.
    """

    planned: Planned
    bids: tuple[float, ...]
    rule: Aggregation
    n: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """One answer that the user gets, and what each ad in it pays for a click, in bid units."""

    text: str
    prices: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Ran:
    """What a mechanism did with one auction.

    ``offers`` are draws of what it returns, equally likely, and none where a generation failed.
    ``generations``, ``prompt_tokens`` and ``sampled_tokens`` are all that was spent, which would
    have served ``served`` users; ``notes`` are the mechanism's own figures.
    """

    offers: tuple[Offer, ...]
    served: int
    generations: int
    prompt_tokens: int
    sampled_tokens: int
    notes: Mapping[str, float]


class Backend(Protocol):
    """What a mechanism works with."""

    @property
    def highest_bid(self) -> float:
        """The most that a bid may be and a prompt can say, in bid units."""

    def write(self, version: str, prompts: Sequence[Prompt]) -> list[Generated]:
        """Answers of the Ad-LLM under `BASE` or `TRAINED`, in the order of ``prompts``."""

    def write_jointly(self, version: str, wanted: Sequence[Joint]) -> list[Aggregated]:
        """Joint answers of the Ad-LLM's models under `BASE` or `TRAINED`, in the order of ``wanted``."""

    def organic(self, auctions: Sequence[Planned], what: str) -> list[Generated]:
        """``planned.n`` answers to each auction's question of the model that no training for ads has
        changed, told of no ads and no bids; drawn anew for another ``what``."""

    def score(self, version: str, wanted: Sequence[tuple[Prompt, Sequence[int]]]) -> list[float]:
        """Log-probability (nats) of each answer's token ids after its prompt, under `BASE` or `TRAINED`."""

    def predict(self, answers: Sequence[ReadAnswer], epoch: int) -> list[dict[str, float]]:
        """Click probability of each ad placed in each answer, by the pCTR model after ``epoch``."""

    def costs(self, answers: Sequence[ReadAnswer]) -> list[float]:
        """What each answer costs its reader, in bid units: lambda s_resp (Eq. 5 and 8), less the weighted
        values of the config's reward terms."""

    def relevance(self, auctions: Sequence[Planned]) -> list[NDArray[np.float64]]:
        """Cosine of the text encoder between each auction's query and each of its ads [n]."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of the pCTR's text encoder [texts, dim]."""

    def generator(self, planned: Planned, what: str) -> np.random.Generator:
        """Random numbers that depend on the run's seed, the auction and ``what`` alone."""


@runtime_checkable
class Mechanism(Protocol):
    """Allocation and payment."""

    name: str

    def choices(self, epochs: int) -> Sequence[Choice]:
        """What may be tuned on validation queries, for a run of ``epochs``; one entry: nothing."""

    def run(self, backend: Backend, auctions: Sequence[Planned], choice: Choice) -> list[Ran]:
        """Hold the auctions, ``planned.n`` offers each."""


def named_mechanisms(names: Sequence[str]) -> list[Mechanism]:
    """The mechanisms of these names, in this order.

    Raises:
        ConfigError: as `named_plugins`.
    """
    return named_plugins(_GROUP, names, Mechanism, "mechanism", "name, choices or run")


def ran(
    offers: Sequence[Offer],
    spent: Sequence[Generated],
    served: int,
    notes: Mapping[str, float] = MappingProxyType({}),
) -> Ran:
    """A `Ran` with the cost of the requests that were ``spent`` on it."""
    draws = [(generated, draw) for generated in spent for draw in generated.completions]
    return Ran(
        tuple(offers),
        served,
        len(draws),
        sum(len(generated.prompt_token_ids) for generated, _ in draws),
        sum(len(draw.token_ids) for _, draw in draws),
        notes,
    )
