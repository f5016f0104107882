"""Text generation, whoever does it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raylla.config import Sampling

Weights = dict[str, Any]
"""Parameter name -> array (numpy float32), Hugging Face names, tied heads included."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to answer ``n`` times. Draw d is sampled with ``seed + d`` and nothing else, so
    that the same request gives the same texts on any worker in any company. ``logprobs`` asks for
    the draws' log-probabilities, too."""

    id: str
    messages: list[dict[str, str]]
    n: int
    seed: int
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled text. ``finished`` is False where it ran into the token limit; ``logprob`` is the sum
    of its tokens' log-probabilities under the model itself, before temperature, top-k and top-p."""

    text: str
    token_ids: Sequence[int]
    finished: bool
    logprob: float | None = None


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
    as ``text``, which is tokenized by itself."""

    id: str
    messages: list[dict[str, str]]
    token_ids: Sequence[int] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class Scored:
    """Summed log-probability (nats) of the ``tokens`` tokens of the answer of a `Given`, before temperature
    and cuts."""

    id: str
    logprob: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Probe:
    """A text and the trainer's log-probability of each of its answer tokens: what an engine
    that holds the same weights must reproduce."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


def prompt_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a prompt: the chat template's, up to where the answer begins."""
    # Templates of hybrid models open a chain of thought unless told not to; others ignore it.
    ids: list[int] = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, enable_thinking=False
    )
    return ids


class Engine(Protocol):
    """A language model that answers requests and can take over new weights in place."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Generated]:
        """Answer all requests together; yields each as it finishes."""

    def score(self, given: Sequence[Given]) -> Iterator[Scored]:
        """How probable the weights find each answer; yields each as it finishes.

        Raises:
            ValueError: an answer is empty, or does not fit behind its prompt.
        """

    def load(self, weights: Weights, probe: Probe | None) -> float:
        """Take over ``weights`` and drop every cache.

        Returns the mean absolute difference of the engine's and the probe's log-probabilities.

        Raises:
            WeightError: the difference exceeds ``engine.probe_tolerance``.
        """
