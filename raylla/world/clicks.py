"""The documented click model: what the pocket judge is trained on and is held against.

The probability that the user clicks ad i in answer y is

    p_i = relevance(query, ad) * interest(profile, ad) * style(sentence) * crowding(ad i among the others)

clipped to [0.01, 0.95], where

    crowding_i = position(rank) * competition(similar ads before it), and 0 for every ad of a flooded
                 answer, which stays 0.

Each factor is a constant of this file; `raylla pocket evaluate` compares the judge's click rates with these
probabilities.  `crowding` alone is what a judge gets from here that is asked for one ad at a time
(``user_llm.reading: token``): the judgements that it learned are of answers with one ad.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from raylla.auction import ReadAnswer
from raylla.records import Ad, Placement, Profile, Query

SAME_CATEGORY, SAME_THEME, UNRELATED = 0.55, 0.2, 0.04
INTERESTED, NOT_INTERESTED = 1.5, 1.0
_NATIVE, _BLUNT = 1.0, 0.4
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
    factors = crowding(placements, ads)
    probabilities: dict[str, float] = {}
    for placement in placements:
        ad = ads[placement.ad_id]
        p = _relevance(query, ad) * _interest(profile, ad)
        p *= _BLUNT if BLUNT_WORDS.search(sentence_around(text, placement)) else _NATIVE
        p *= factors[ad.id]
        probabilities[ad.id] = min(CEILING, max(FLOOR, p)) if factors[ad.id] else 0.0
    return probabilities


def expected_clicks(
    told: Mapping[str, float] | None, answer: ReadAnswer, ads: Mapping[str, Ad]
) -> Mapping[str, float]:
    """Chance of a click on each ad placed in an answer: the judge's own where it has ``told`` how sure it
    is, else the click model's."""
    query, profile = answer.planned.query, answer.planned.profile
    return told or click_probabilities(query, profile, answer.text, answer.parsed.placements, ads)


def crowding(placements: Sequence[Placement], ads: Mapping[str, Ad]) -> dict[str, float]:
    """What is left of each ad's click probability beside the others of its answer: ad id -> [0, 1].

    1 for an ad by itself; less for each ad before it, and for each of its category; nothing where there
    are `FLOOD` or more.
    """
    if len(placements) >= FLOOD:
        return {placement.ad_id: 0.0 for placement in placements}
    factors: dict[str, float] = {}
    seen: list[str] = []
    for rank, placement in enumerate(placements):
        category = ads[placement.ad_id].category
        factors[placement.ad_id] = POSITION_DECAY**rank * COMPETITION ** seen.count(category)
        seen.append(category)
    return factors


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
