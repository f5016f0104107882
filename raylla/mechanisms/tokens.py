"""The token auction (Duetting et al., arXiv 2310.10826): bidders' models write together.

A bidder's model is the base Ad-LLM that is told of its ad alone; every token comes from the aggregate of
the models, with bids as weights (`raylla.auction.aggregation`, `raylla.engines.aggregating`).

The paper's bidders have preferences over distributions of texts, and pay for every token the least bid at
which they would have had it under stable sampling.  Here they pay for clicks.  So the second price of one
token counts, the one that opened the ad's markup: the least bid at which this bidder's model would have
opened it there, the text before it as it is.  It is at most the bid and does not depend on it.  That
makes the truth a best reply at this token, everything else being as it is, and not over a whole answer:
who does not get this token may have a cheaper one later, and bids change the text on the way to it.  The
evaluation's regret says what that is worth.

All bidders at once make a text of all ads, so that only those of the highest relevance x bid take part
(ours): the least bid that takes part is a lower bound of the price.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from raylla.auction import parse
from raylla.auction.aggregation import AGGREGATIONS, Aggregation
from raylla.auction.checks import Array, ending, numbers
from raylla.auction.prose import bare
from raylla.engines.protocol import Aggregated, JointText
from raylla.mechanisms.protocol import BASE, Backend, Choice, Joint, Offer, Ran, ran
from raylla.records import Planned

_BIDDERS = (1, 2, 3)
_TEMPERATURE = 0.1
"""Of relevance, exp(cosine / temperature), by which bidders are chosen."""


def entrants(bids: ArrayLike, relevance: ArrayLike, count: int) -> tuple[Array, Array]:
    """The bids [n] of the ``count`` bidders of the highest positive bid x relevance, 0 for the others, and
    the least bid [n] at which each would be one of them; of equals the first enter.

    Raises:
        ValueError: a number is negative, ``count`` is below 1, or the shapes do not fit.
    """
    bids = numbers("bids", bids, 0)
    relevance = ending("relevance", numbers("relevance", relevance, 0), *bids.shape)
    if count < 1:
        raise ValueError(f"count={count!r}: let 1 or more bidders in")
    scores = bids * relevance
    order = np.argsort(-scores, kind="stable")
    inside = np.zeros(len(bids), np.bool_)
    inside[order[:count]] = True
    inside &= scores > 0
    rival = scores[order[count]] if len(order) > count else 0.0
    least = np.divide(rival, relevance, out=np.zeros_like(scores), where=inside)
    return np.where(inside, bids, 0.0), np.minimum(least, bids)


class TokenAuction:
    """Token by token, from the aggregate of the bidders' models."""

    name = "token-auction"

    def choices(self, epochs: int) -> Sequence[Choice]:
        """How many bidders take part, and how their models are aggregated (one needs no rule)."""
        return tuple(
            {"bidders": bidders, "aggregation": rule}
            for bidders in _BIDDERS
            for rule in AGGREGATIONS[: 1 if bidders == 1 else None]
        )

    def run(self, backend: Backend, auctions: Sequence[Planned], choice: Choice) -> list[Ran]:
        """One text of all bidders' models for each offer; every model reads every token of it."""
        rule: Aggregation = "linear" if choice["aggregation"] == "linear" else "log-linear"
        count = int(choice["bidders"])
        entered = [
            entrants(planned.auction.bids, np.exp((cosines - cosines.max()) / _TEMPERATURE), count)
            for planned, cosines in zip(auctions, backend.relevance(auctions), strict=True)
        ]
        sold = [bids.any() for bids, _ in entered]
        asked = [
            Joint(planned, tuple(bids.tolist()), rule, planned.n, "token")
            for planned, (bids, _), some in zip(auctions, entered, sold, strict=True)
            if some
        ]
        written = iter(backend.write_jointly(BASE, asked))
        unsold = [planned for planned, some in zip(auctions, sold, strict=True) if not some]
        organic = iter(backend.organic(unsold, self.name) if unsold else ())
        done = []
        for planned, (_, least), some in zip(auctions, entered, sold, strict=True):
            if some:
                done.append(_ran(planned, next(written), least))
            else:
                generated = next(organic)
                offers = [Offer(bare(draw.text, planned.ads), {}) for draw in generated.completions]
                done.append(ran(offers, [generated], len(offers)))
        return done


def _ran(planned: Planned, written: Aggregated, least: Array) -> Ran:
    """The joint answers as offers. A bidder's model is a generation, and reads its prompt for each text."""
    priced = [_prices(planned, text, least) for text in written.texts]
    models = sum(length > 0 for length in written.prompt_tokens)
    opened = sum(len(text.openings) for text in written.texts)
    notes = {"markups_begun": opened / len(priced)} if priced else {}
    if opened:
        notes["markups_whole"] = sum(map(len, priced)) / opened
    return Ran(
        tuple(Offer(text.text, prices) for text, prices in zip(written.texts, priced, strict=True)),
        len(priced),
        models * len(priced),
        sum(written.prompt_tokens) * len(priced),
        models * sum(text.tokens for text in written.texts),
        notes,
    )


def _prices(planned: Planned, written: JointText, least: Array) -> dict[str, float]:
    """Per click, of the ads that their own bidder's model placed; an ad that another's did pays nothing."""
    opened = {(opening.bidder, opening.start): opening.least for opening in written.openings}
    places = {ad.id: place for place, ad in enumerate(planned.ads)}
    return {
        placement.ad_id: max(opened[key], float(least[key[0]]))
        for placement in parse(written.text, planned.ads).placements
        if (key := (places[placement.ad_id], placement.start)) in opened
    }
