"""User welfare and suitability: how well what was placed suits the question, against the best that could
have been."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from raylla.auction import parse
from raylla.terms.protocol import Answered, Texts

LEAST_SHARE = 0.5
"""Of the best candidate's cosine to the question, what an ad has that suits it."""


class UserWelfare:
    """Mean over the placed ads of their cosine to the question, less that of the candidate that suits
    best: from -2 to 0, and 0 where the best alone, or nothing, is placed."""

    name = "user-welfare"

    def values(self, texts: Texts, answers: Answered) -> list[float]:
        """`protocol.RewardTerm.values`."""
        return [
            float(placed.mean()) - best if len(placed) else 0.0 for placed, best in _fits(texts, answers)
        ]


class Suitability:
    """Minus the share of the placed ads that have less than `LEAST_SHARE` of the cosine to the question
    that the candidate has that suits best: from -1 to 0, and 0 where no candidate suits at all.

    What an ad loses by it does not grow with its distance, so that under a weight above what bids differ by
    the dearest ad that suits is best, where `UserWelfare` gives up revenue among ads that all suit.
    """

    name = "suitability"

    def values(self, texts: Texts, answers: Answered) -> list[float]:
        """`protocol.RewardTerm.values`."""
        return [
            -float(np.mean(placed < LEAST_SHARE * best)) if len(placed) and best > 0 else 0.0
            for placed, best in _fits(texts, answers)
        ]


def _fits(texts: Texts, answers: Answered) -> Iterator[tuple[NDArray[np.float64], float]]:
    """For each answer the cosines of the ads it places [placed], and the best candidate's."""
    auctions = list({planned.auction.id: planned for planned, _ in answers}.values())
    fits = {
        planned.auction.id: dict(zip(planned.auction.ad_ids, fit.tolist(), strict=True))
        for planned, fit in zip(auctions, texts.relevance(auctions), strict=True)
    }
    for planned, text in answers:
        fit = fits[planned.auction.id]
        yield np.array([fit[ad] for ad in parse(text, planned.ads).ad_ids]), max(fit.values())
