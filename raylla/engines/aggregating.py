"""Texts that several bidders' models write together, token by token (Duetting et al., arXiv 2310.10826).

All bidders' models are the same weights behind prompts of their own, so that an engine is asked what may
come next after several contexts that share an answer; those of all texts are asked for together.  A model's
distribution is that of its `LISTED` likeliest tokens.  The ``linear`` rule draws a bidder in proportion to
its bid and then a token of its model, as that model is sampled (temperature, top-k, top-p): this is the
aggregate exactly, and needs one distribution a token.  The ``log-linear`` rule needs those of all bidders:
over the union of their lists, at the sampling's temperature and without its cuts; a token that a list lacks
has the list's lowest probability, which bounds its own from above.

A model knows nothing of another's ad and could not finish its markup.  So who draws the token that opens a
markup finishes it alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from raylla.auction.aggregation import keeping_bid, log_linear_token, race_winner
from raylla.auction.checks import Array
from raylla.config import Sampling
from raylla.engines.protocol import Aggregate, Aggregated, JointText, Opening
from raylla.engines.sampled import left_by_top_p

LISTED = 20
"""Likeliest tokens whose log-probabilities an engine is asked for at each place, of the
`raylla.engines.sampled.MOST_TOP_K` that it would tell."""
_OPEN = re.compile(r"(?<!\w)@(?:$|(?!\s)[^@\[\]\n]{1,120}(?:$|@(?:$|\[[^\]\n]{0,16}$)))")
"""A markup that the text ends in the midst of."""
Listed = tuple[NDArray[np.int64], Array]
"""A context's likeliest next tokens: ids, and their log-probabilities under the model itself, [listed]."""
Ahead = Callable[[Sequence[list[int]]], list[Listed]]
"""The next token's distribution after each context."""


@dataclass(frozen=True, slots=True)
class Joining:
    """What texts are written with: distributions, how ids become text, and the ids that end one."""

    ahead: Ahead
    decode: Callable[[list[int]], str]
    ends: Container[int]
    vocabulary: int
    sampling: Sampling


@dataclass(slots=True)
class Joined:
    """A text in the making: draw ``draw`` of ``request``; ``prompts`` are its bidders', in token ids."""

    request: Aggregate
    draw: int
    prompts: Sequence[list[int]]
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finished: bool = False
    owner: int | None = None
    """Who finishes the markup that is open."""
    openings: list[Opening] = field(default_factory=list)
    _race: Array = field(default_factory=lambda: np.zeros(0))
    _rng: np.random.Generator | None = None

    def begin(self) -> list[int]:
        """The bidders whose distributions the next token takes; its random numbers depend on the request's
        seed, the draw and the token's place alone."""
        request = self.request
        self._rng = np.random.default_rng((request.seed + self.draw, len(self.token_ids)))
        self._race = self._rng.exponential(size=len(request.bids))
        if self.owner is not None:
            return [self.owner]
        if request.rule == "linear":
            return [race_winner(request.bids, np.ones(len(request.bids)), self._race)[0]]
        return [place for place, bid in enumerate(request.bids) if bid > 0]

    def take(self, listed: Sequence[Listed], bidders: Sequence[int], joining: Joining) -> None:
        """Draw the next token from the distributions of ``bidders``."""
        assert self._rng is not None
        noise = self._rng.gumbel(size=joining.vocabulary) * (joining.sampling.temperature > 0)
        if self.owner is not None or self.request.rule == "linear":
            ids, log_p = as_sampled(*listed[0], joining.sampling)
            token = int(ids[(log_p + noise[ids]).argmax()])
            drawn = race_winner(self.request.bids, np.ones(len(self._race)), self._race)
        else:
            ids, table = union(listed, joining.sampling.temperature)
            token, drawn = self._together(ids, table, bidders, noise[ids])
        self._append(token, drawn, joining)

    def _together(
        self, ids: NDArray[np.int64], table: Array, bidders: Sequence[int], noise: Array
    ) -> tuple[int, tuple[int, float]]:
        """The log-linear aggregate's token; and whose it is, in proportion to b_i p_i of it, with the least
        bid at which both would be so."""
        bids = np.array([self.request.bids[place] for place in bidders])
        at = log_linear_token(table, bids, noise)
        place, least = race_winner(bids, np.exp(table[:, at]), self._race[list(bidders)])
        return int(ids[at]), (bidders[place], max(least, keeping_bid(table, bids, noise, place)))

    def _append(self, token: int, drawn: tuple[int, float], joining: Joining) -> None:
        self.token_ids.append(token)
        self.finished = token in joining.ends
        self.text = joining.decode(self.token_ids)
        opened = _OPEN.search(self.text)
        if opened is None:
            self.owner = None
        elif self.owner is None:
            self.owner, least = drawn
            self.openings.append(Opening(self.owner, opened.start(), least))

    def told(self) -> JointText:
        """What came of it."""
        return JointText(self.text, len(self.token_ids), self.finished, tuple(self.openings))


def write_jointly(texts: Sequence[Joined], joining: Joining) -> None:
    """Write all of ``texts`` to their ends, or to ``sampling.max_tokens``, a token of each at a time."""
    for _ in range(joining.sampling.max_tokens):
        asked = [(text, text.begin()) for text in texts if not text.finished]
        contexts = [joint.prompts[place] + joint.token_ids for joint, bidders in asked for place in bidders]
        if not contexts:
            return
        listed = iter(joining.ahead(contexts))
        for joint, bidders in asked:
            joint.take([next(listed) for _ in bidders], bidders, joining)


def joined(request: Aggregate, prompts: Sequence[list[int]], texts: Sequence[Joined]) -> Aggregated:
    """The answer to ``request`` from its finished ``texts``."""
    lengths = tuple(len(ids) for ids in prompts)
    return Aggregated(request.id, lengths, tuple(text.told() for text in texts))


def as_sampled(ids: NDArray[np.int64], logprobs: Array, sampling: Sampling) -> Listed:
    """A list's tokens that ``sampling`` leaves, with the logs of the probabilities that it gives them."""
    order = np.argsort(-logprobs, kind="stable")
    if sampling.temperature == 0:
        return ids[order[:1]], np.zeros(1)
    order = order[: sampling.top_k or None]
    order = order[left_by_top_p(logprobs[order] / sampling.temperature, sampling.top_p)]
    return ids[order], _scaled(logprobs[order], sampling.temperature)


def union(listed: Sequence[Listed], temperature: float) -> Listed:
    """All tokens of the lists [m], and log p [len(listed), m] of each model, with a list's lowest where it
    lacks a token; at temperature 0, of the models themselves."""
    ids = np.unique(np.concatenate([own for own, _ in listed]))
    table = np.empty((len(listed), len(ids)))
    for row, (own, logprobs) in zip(table, listed, strict=True):
        log_p = _scaled(logprobs, temperature or 1)
        row[:] = log_p.min()
        row[np.searchsorted(ids, own)] = log_p
    return ids, table


def _scaled(logprobs: Array, temperature: float) -> Array:
    """Log-probabilities at a temperature, that sum to 1 among themselves."""
    logits = logprobs / temperature
    result: Array = logits - np.logaddexp.reduce(logits)
    return result
