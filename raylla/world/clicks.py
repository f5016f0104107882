"""The documented click model: what the pocket judge is trained on and is held against.

The probability that the user clicks ad i in answer y is

    p_i = relevance(query, ad) * interest(profile, ad) * style(sentence) * position(rank)
          * competition(similar ads before it), and 0 for every ad of a flooded answer,

clipped to [0.01, 0.95].  Each factor is a constant of this file; `raylla pocket evaluate`
compares the judge's click rates with these probabilities.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from raylla.records import Ad, Placement, Profile, Query

SAME_CATEGORY, SAME_THEME, UNRELATED = 0.55, 0.2, 0.04
INTERESTED, NOT_INTERESTED = 1.5, 1.0
NATIVE, BLUNT = 1.0, 0.4
POSITION_DECAY = 0.85
COMPETITION = 0.5
FLOOD = 4
"""An answer with this many ads or more is clicked by nobody."""
FLOOR, CEILING = 0.01, 0.95

BLUNT_WORDS = re.compile(r"\b(buy|deal|order|click|hurry)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def click_probabilities(
    query: Query, profile: Profile, text: str, placements: Sequence[Placement], ads: Mapping[str, Ad]
) -> dict[str, float]:
    """Click probability of each placed ad, in order of appearance: ad id -> p in [0, 0.95]."""
    if len(placements) >= FLOOD:
        return {placement.ad_id: 0.0 for placement in placements}
    probabilities: dict[str, float] = {}
    seen: list[str] = []
    for rank, placement in enumerate(placements):
        ad = ads[placement.ad_id]
        p = _relevance(query, ad) * _interest(profile, ad)
        p *= BLUNT if BLUNT_WORDS.search(sentence_around(text, placement)) else NATIVE
        p *= POSITION_DECAY**rank * COMPETITION ** seen.count(ad.category)
        seen.append(ad.category)
        probabilities[ad.id] = min(CEILING, max(FLOOR, p))
    return probabilities


def sentence_around(text: str, placement: Placement) -> str:
    """The sentence of ``text`` that holds ``placement``."""
    start = 0
    for match in _SENTENCE_END.finditer(text):
        if match.end() > placement.start:
            break
        start = match.end()
    stop = _SENTENCE_END.search(text, placement.end)
    return text[start : stop.start() if stop else len(text)]


def _relevance(query: Query, ad: Ad) -> float:
    if query.category == ad.category:
        return SAME_CATEGORY
    return SAME_THEME if query.theme == ad.theme and query.theme else UNRELATED


def _interest(profile: Profile, ad: Ad) -> float:
    return INTERESTED if ad.category in profile.interests else NOT_INTERESTED
