"""Detectability: how sure a reader who knows native ads is that an answer has one hidden in it."""

from __future__ import annotations

from collections.abc import Sequence

from raylla.auction import ReadAnswer
from raylla.auction.prose import stripped
from raylla.terms.protocol import Texts


class Detectability:
    """Minus the probability that the answer, bare titles in place of markup, has an ad hidden in it, by the
    detector of native ads: from -1 to 0."""

    name = "detectability"
    needs = ("detector",)
    least = -1.0

    def values(self, texts: Texts, answers: Sequence[ReadAnswer]) -> list[float]:
        """`protocol.RewardTerm.values`."""
        placing = [bool(answer.parsed.placements) for answer in answers]
        bare = [stripped(answer.text, answer.planned.ads) for answer in answers]
        distinct = list(dict.fromkeys(text for text, ads in zip(bare, placing, strict=True) if ads))
        chance = dict(zip(distinct, texts.detected(distinct).tolist(), strict=True)) if distinct else {}
        return [-chance[text] if ads else 0.0 for text, ads in zip(bare, placing, strict=True)]
