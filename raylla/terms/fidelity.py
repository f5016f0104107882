"""Fidelity: whether what an answer says of an ad is what its advertiser says of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raylla.auction import ReadAnswer
from raylla.terms.descriptions import Descriptions
from raylla.terms.protocol import Texts


class Fidelity:
    """Mean over the placed ads of the share of what the answer says beside the ad's name that the ad's
    description says too, less 1: from -1 to 0, and 0 where it says nothing or no ad is described."""

    name = "fidelity"
    least = -1.0

    def values(self, texts: Texts, answers: Sequence[ReadAnswer]) -> list[float]:
        """`protocol.RewardTerm.values`."""
        described = Descriptions({ad.id: ad for answer in answers for ad in answer.planned.ads}.values())
        values = []
        for answer in answers:
            shares = described.shares(answer)
            values.append(float(np.mean(shares)) - 1 if shares else 0.0)
        return values
