"""Nativeness: whether the sentence with the ad is about what the rest of the answer is about."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raylla.auction import ReadAnswer
from raylla.auction.prose import enclosing_sentence, stripped, without_ads
from raylla.terms.protocol import Texts


class Nativeness:
    """Mean over the placed ads of the cosine between the sentence that holds the ad and the answer without
    such sentences, less 1: from -2 to 0; -1 where nothing else is said."""

    name = "nativeness"
    least = -2.0

    def values(self, texts: Texts, answers: Sequence[ReadAnswer]) -> list[float]:
        """`protocol.RewardTerm.values`."""
        read: list[tuple[str, list[str]]] = []
        for answer in answers:
            text, ads = answer.text, answer.planned.ads
            spans = [(placement.start, placement.end) for placement in answer.parsed.placements]
            holding = [enclosing_sentence(text, ads, span) for span in spans]
            read.append((without_ads(text, ads), [stripped(sentence, ads) for sentence in holding]))
        distinct = list(
            dict.fromkeys(sentence for rest, some in read if some for sentence in (rest, *some) if sentence)
        )
        vectors = texts.encode(distinct)
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        place = {text: at for at, text in enumerate(distinct)}
        shares = []
        for rest, sentences in read:
            near = [
                float(unit[place[rest]] @ unit[place[sentence]]) if rest else 0.0 for sentence in sentences
            ]
            shares.append(float(np.mean(near)) - 1 if near else 0.0)
        return shares
