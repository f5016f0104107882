"""Text generation, whoever does it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raylla.auction.aggregation import Aggregation
from raylla.config import Lora, Sampling
from raylla.errors import ConfigError
from raylla.models.adapters import Adapter

Weights = dict[str, Any]
"""Parameter name -> array (numpy float32), Hugging Face names, tied heads included."""


@dataclass(frozen=True, slots=True)
class AdapterRoom:
    """Room in an engine for ``most`` adapters over one base at once, each of ``rank`` at most, on the
    linear layers ``targets``."""

    most: int
    rank: int
    targets: tuple[str, ...]

    @classmethod
    def of(cls, lora: Lora) -> AdapterRoom:
        """Room for two of the adapters that ``lora`` trains: one that answers, and one that comes."""
        return cls(2, lora.rank, lora.targets)


class Wish(Sampling):
    """How one request at the endpoint is sampled: the config's way, but for what it says itself."""

    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    json_schema: str | None = None
    """JSON text of a schema that the answer has to fit."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to answer ``n`` times. Draw d is sampled with ``seed + d`` and nothing else, so
    that the same request gives the same texts on any worker in any company. ``logprobs`` asks for
    the draws' log-probabilities, too. ``choices``, each one token long, ask how probable each is as the
    answer's first token, in place of an answer: one greedy token is generated, whatever the sampling.
    ``turns`` messages before the last are earlier turns: the oldest are cut where all are too many for the
    context. ``prompt_token_ids``, where there are any, are the prompt in the place of ``messages``."""

    id: str
    messages: list[dict[str, str]]
    n: int
    seed: int
    logprobs: bool = False
    choices: tuple[str, ...] = ()
    turns: int = 0
    prompt_token_ids: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled text. ``finished`` is False where it ran into the token limit; ``logprob`` is the sum
    of its tokens' log-probabilities under the model itself, before temperature, top-k and top-p;
    ``choices`` are those of the request's choices (nats, under the model itself, of all its tokens)."""

    text: str
    token_ids: Sequence[int]
    finished: bool
    logprob: float | None = None
    choices: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Generated:
    """All draws of a request, in order of draw, or ``error`` where the engine refused it."""

    request_id: str
    prompt_token_ids: Sequence[int]
    completions: tuple[Completion, ...]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """A prompt and an answer to it whose probability is asked for: by its tokens, or where there are none
    as ``text``, which is tokenized by itself. ``turns`` and ``prompt_token_ids`` as in a `Request`, the
    turns cut to a prompt of ``room`` tokens: those that the answer was written with. ``sampling``: it is
    asked how probable that makes the answer (`raylla.engines.sampled`); none: at temperature 1, without
    cuts."""

    id: str
    messages: list[dict[str, str]]
    token_ids: Sequence[int] = ()
    text: str = ""
    turns: int = 0
    room: int = 0
    prompt_token_ids: Sequence[int] = ()
    sampling: Sampling | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """Summed log-probability (nats) of the ``tokens`` tokens of the answer of a `Given`, before temperature
    and cuts, or under its sampling. ``outside`` counts tokens that the cuts of that sampling leave out,
    which these weights never draw; ``ended`` says whether the last token is one that ends answers."""

    id: str
    logprob: float
    tokens: int
    outside: int = 0
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Aggregate:
    """``n`` texts that bidders' models write together, token by token: the engine's weights behind each of
    ``prompts``, aggregated by ``rule`` with ``bids`` as weights [bidders], of which one is above 0. The
    random numbers of draw d follow from ``seed + d`` alone. ``turns`` as in a `Request`, of each prompt."""

    id: str
    prompts: tuple[list[dict[str, str]], ...]
    bids: tuple[float, ...]
    rule: Aggregation
    n: int
    seed: int
    turns: int = 0


@dataclass(frozen=True, slots=True)
class Opening:
    """A markup that begins at character ``start`` of a text, opened and finished by one bidder's model (its
    place), and the least bid at which that would have opened it here, the text before it as it is."""

    bidder: int
    start: int
    least: float


@dataclass(frozen=True, slots=True)
class JointText:
    """One text of an `Aggregate`, of ``tokens`` tokens; ``finished`` as in a `Completion`."""

    text: str
    tokens: int
    finished: bool
    openings: tuple[Opening, ...]


@dataclass(frozen=True, slots=True)
class Aggregated:
    """All texts of an `Aggregate`, in order of draw, or ``error`` where the engine refused it; and how many
    tokens each prompt has, 0 for who bids nothing."""

    id: str
    prompt_tokens: tuple[int, ...]
    texts: tuple[JointText, ...]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """A text and the trainer's log-probability of each of its answer tokens: what an engine
    that holds the same weights must reproduce. Of an adapter, ``brief`` is a part of the text by itself,
    for engines that compute it beside others while these answer, and ``digest`` is the SHA-256 of its
    weights' file: so short a text does not tell a version from the next."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    brief: Probe | None = None
    digest: str = ""


def choice_ids(tokenizer: Any, choices: Sequence[str]) -> tuple[int, ...]:
    """The one token that each of ``choices`` is.

    Raises:
        ConfigError: one of them is more than one.
    """
    found = [tokenizer.encode(choice, add_special_tokens=False) for choice in choices]
    for choice, ids in zip(choices, found, strict=True):
        if len(ids) != 1:
            raise ConfigError(
                f"user_llm.reading=token needs answers of one token, but {choice!r} is {len(ids)} tokens "
                "of this model; set user_llm.reading=json or give another user_llm.path"
            )
    return tuple(int(ids[0]) for ids in found)


class Engine(Protocol):
    """A language model that answers requests and can take over new weights in place."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Generated]:
        """Answer all requests together; yields each as it finishes."""

    def score(self, given: Sequence[Given]) -> Iterator[Scored]:
        """How probable the weights find each answer; yields each as it finishes.

        Raises:
            ValueError: an answer is empty, or does not fit behind its prompt.
            ConfigError: its sampling's probabilities cannot be told (`raylla.engines.sampled`).
        """

    def aggregate(self, requests: Sequence[Aggregate], sampling: Sampling) -> Iterator[Aggregated]:
        """Texts that several prompts' models write together; yields each request's as they are done."""

    def load(self, weights: Weights | Adapter, probe: Probe | None) -> float:
        """Take over ``weights`` and drop every cache; an adapter, where there is room for one, beside the
        base.

        Returns the mean absolute difference of the engine's and the probe's log-probabilities.

        Raises:
            WeightError: the difference exceeds ``engine.probe_tolerance``.
        """
