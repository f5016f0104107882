"""User welfare: how well what was placed suits the question, against the best that could have been."""

from __future__ import annotations

import numpy as np

from raylla.auction import parse
from raylla.terms.protocol import Answered, Texts


class UserWelfare:
    """Mean over the placed ads of their cosine to the question, less that of the candidate that suits
    best: from -2 to 0, and 0 where the best alone, or nothing, is placed."""

    name = "user-welfare"
    least = -2.0

    def values(self, texts: Texts, answers: Answered) -> list[float]:
        """`protocol.RewardTerm.values`."""
        auctions = list({planned.auction.id: planned for planned, _ in answers}.values())
        fits = {
            planned.auction.id: dict(zip(planned.auction.ad_ids, fit.tolist(), strict=True))
            for planned, fit in zip(auctions, texts.relevance(auctions), strict=True)
        }
        welfare = []
        for planned, text in answers:
            fit = fits[planned.auction.id]
            placed = [fit[ad] for ad in parse(text, planned.ads).ad_ids]
            welfare.append(float(np.mean(placed)) - max(fit.values()) if placed else 0.0)
        return welfare
