"""The records that flow through one IRPO epoch, each frozen and each naming what made it.

Query -> Answer -> Click -> Reward -> PreferenceGroup -> WeightVersion; only the weight version
travels back.  Money is in bid units per click (the paper's U{1..100}), probabilities in [0, 1].
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

Phase = Literal["reward", "preference", "validation", "test"]
Split = Literal["train", "test"]
TurnRole = Literal["system", "user", "assistant"]


class Ids(Sequence[int]):
    """Token ids, [tokens], in four bytes each and one object: the paper's epoch has hundreds of millions.

    Equal to any tuple or list of the same ids.

    Raises:
        OverflowError: an id does not fit 32 bits.
    """

    __slots__ = ("_held",)

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self._held = array("i", ids)

    @property
    def raw(self) -> memoryview:
        """The ids as a buffer of 32-bit integers."""
        return memoryview(self._held)

    def __len__(self) -> int:
        return len(self._held)

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> Ids: ...

    def __getitem__(self, place: int | slice) -> int | Ids:
        return Ids(self._held[place]) if isinstance(place, slice) else self._held[place]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ids):
            return self._held == other._held
        return isinstance(other, tuple | list) and tuple(self._held) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self._held))

    def __reduce__(self) -> tuple[Any, ...]:
        return Ids, (self._held,)

    def __repr__(self) -> str:
        return f"Ids({self._held.tolist()})"


@dataclass(frozen=True, slots=True)
class Profile:
    """A user: basic information and interests (category names of the catalogue)."""

    id: str
    basics: str
    interests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ad:
    """A candidate ad. ``id`` is the digits of ``[Ad-1234]``; ``theme`` groups categories.

    ``description`` is what its advertiser says of it and ``url`` where it leads, ``""`` where unknown.
    """

    id: str
    title: str
    category: str
    theme: str
    description: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """What was said before a question, and by whom; ``system`` is the application."""

    role: TurnRole
    text: str


@dataclass(frozen=True, slots=True)
class Query:
    """What a user asks; ``category`` and ``theme`` are what it is about, ``""`` where unknown.

    ``turns`` is what was said before it, oldest first.
    """

    id: str
    profile_id: str
    text: str
    category: str
    theme: str
    split: Split
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True, slots=True)
class Auction:
    """One query with its candidate ads and their bids (same order), before any answer.

    ``id`` is (epoch, phase, query); the bids are a pure function of it and the run's seed.
    """

    id: str
    query_id: str
    ad_ids: tuple[str, ...]
    bids: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """An auction that is to be answered ``n`` times, with everything that it names; one that was
    served to a user has its answer already (n = 0)."""

    phase: Phase
    auction: Auction
    query: Query
    profile: Profile
    ads: tuple[Ad, ...]
    n: int

    @property
    def bids(self) -> dict[str, float]:
        """Ad id -> bid."""
        return dict(zip(self.auction.ad_ids, self.auction.bids, strict=True))


@dataclass(frozen=True, slots=True)
class Placement:
    """A valid ad in an answer: which ad, and the half-open character span of its markup."""

    ad_id: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled answer of the Ad-LLM.

    ``token_ids`` are the sampled tokens, end-of-text included where it was sampled;
    ``logprob`` is their summed log-probability under the sampling policy at temperature 1 and without
    top-k and top-p, if it was asked for.
    """

    sample_id: str
    auction_id: str
    draw: int
    weight_version: str
    text: str
    prompt_token_ids: Sequence[int]
    token_ids: Sequence[int]
    logprob: float | None = None


@dataclass(frozen=True, slots=True)
class Click:
    """The judge's word on one placed ad of one answer, and the probability that it was drawn from, where
    the judge gave one."""

    sample_id: str
    ad_id: str
    clicked: bool
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """A predicted click rate in [0, 1] and the interval around it.

    What the interval covers, and how often, is said in `raylla.reward.intervals`.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Reward:
    """R(y) of one answer (Eq. 5 and 8): expected value of the ads minus the penalty, and the weighted
    ``terms`` of ``reward_terms``, in their order."""

    sample_id: str
    value: float
    penalty: float
    terms: tuple[float, ...] = ()

    @property
    def total(self) -> float:
        """``value - penalty`` and the sum of the terms, in bid units."""
        return self.value - self.penalty + sum(self.terms)


@dataclass(frozen=True, slots=True)
class PreferenceGroup:
    """One auction's winner and losers: every loser makes one DPO pair with the winner; under GRPO
    all of its answers, the best first."""

    auction_id: str
    winner: Answer
    losers: tuple[Answer, ...]
    winner_reward: float
    loser_rewards: tuple[float, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class WeightVersion:
    """Weights of the Ad-LLM after ``epoch`` epochs; ``path`` holds safetensors and tokenizer."""

    name: str
    epoch: int
    path: str
    parent: str | None = None
