"""User welfare: how well what was placed suits the question, against the best that could have been."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raylla.auction import ReadAnswer
from raylla.terms.protocol import Texts


class UserWelfare:
    """Mean over the placed ads of their cosine to the question, less that of the candidate that suits
    best: from -2 to 0, and 0 where the best alone, or nothing, is placed."""

    name = "user-welfare"
    least = -2.0

    def values(self, texts: Texts, answers: Sequence[ReadAnswer]) -> list[float]:
        """`protocol.RewardTerm.values`."""
        auctions = list({answer.planned.auction.id: answer.planned for answer in answers}.values())
        fits = {
            planned.auction.id: dict(zip(planned.auction.ad_ids, fit.tolist(), strict=True))
            for planned, fit in zip(auctions, texts.relevance(auctions), strict=True)
        }
        welfare = []
        for answer in answers:
            fit = fits[answer.planned.auction.id]
            placed = [fit[ad] for ad in answer.parsed.ad_ids]
            welfare.append(float(np.mean(placed)) - max(fit.values()) if placed else 0.0)
        return welfare
