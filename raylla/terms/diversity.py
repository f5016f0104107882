"""Diversity of advertisers: whether the answers to one auction speak for one ad alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from raylla.auction import ReadAnswer
from raylla.terms.protocol import Texts


class Diversity:
    """Mean over the placed ads of the share of the other answers to the same auction that place the ad,
    too, taken negative: from -1, where all place the same, to 0, where no other does or there is none."""

    name = "diversity"
    least = -1.0

    def values(self, texts: Texts, answers: Sequence[ReadAnswer]) -> list[float]:
        """`protocol.RewardTerm.values`; an auction's answers are those that are asked about together."""
        placed = [(answer.planned.auction.id, set(answer.parsed.ad_ids)) for answer in answers]
        drawn = Counter(id for id, _ in placed)
        placing = Counter((id, ad) for id, ads in placed for ad in ads)
        return [
            -float(np.mean([(placing[id, ad] - 1) / (drawn[id] - 1) for ad in ads]))
            if ads and drawn[id] > 1
            else 0.0
            for id, ads in placed
        ]
