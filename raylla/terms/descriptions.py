"""How much of what an answer says beside an ad's name its description says too. Pure.

The content words of the sentence that holds the ad, without those of its title and of the question, are
what the sentence adds; the share of them that title, category or description hold is how far it is borne
out.  ``chance`` is the same share for the descriptions of other ads of the category: what any sentence on
the subject would reach.  Words are compared without endings, so that a paraphrase in other words counts as
said without ground, and a denial of the description as borne out: it is no test of entailment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from raylla.auction import ReadAnswer
from raylla.auction.markup import MARKUP
from raylla.auction.prose import enclosing_sentence
from raylla.records import Ad

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_POSSESSIVE = re.compile(r"['’]s$")
_ENDINGS = ("ing", "ies", "es", "ed", "ly", "s", "e", "y")
LEAST_STEM = 4
FUNCTION = frozenset(
    """a about all also am an and any are as at be been but by can could do does for from get give gives has
    have he her his how i if in into is it its just like ll make makes me more most my new no not of on one
    only or other our out over own re she should so some such t than that the their them then there these
    they this those through to too up us use using ve very was way we well were what when where which while
    who will with would you your""".split()
)
"""Words that say nothing of a product."""


def content(text: str) -> frozenset[str]:
    """The words of ``text`` that carry meaning, without their endings."""
    words = (_POSSESSIVE.sub("", word) for word in _WORD.findall(text.lower()))
    return frozenset(_stem(word) for word in words if word not in FUNCTION and len(word) > 1)


class Descriptions:
    """The descriptions of a catalogue, as sets of words."""

    def __init__(self, ads: Iterable[Ad]) -> None:
        described = [ad for ad in ads if ad.description]
        self._said = {ad.id: _said(ad) for ad in described}
        self._by_category: dict[str, list[str]] = {}
        for ad in described:
            self._by_category.setdefault(ad.category, []).append(ad.id)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._said)

    def borne_out(self, answer: ReadAnswer) -> list[tuple[float, float]]:
        """(share borne out, chance), both in [0, 1], of each validly placed ad of an answer that has a
        description and of which the sentence says something; in order of appearance."""
        return [
            (_share(claim, self._said[ad.id]), self._chance(ad, claim))
            for ad, claim in self._claims(answer)
        ]

    def shares(self, answer: ReadAnswer) -> list[float]:
        """The shares alone."""
        return [_share(claim, self._said[ad.id]) for ad, claim in self._claims(answer)]

    def _claims(self, answer: ReadAnswer) -> Iterator[tuple[Ad, frozenset[str]]]:
        ads = answer.planned.ads
        by_id = {ad.id: ad for ad in ads}
        question = content(answer.planned.query.text)
        for placement in answer.parsed.placements:
            ad = by_id[placement.ad_id]
            sentence = enclosing_sentence(answer.text, ads, (placement.start, placement.end))
            claim = content(MARKUP.sub(" ", sentence)) - content(ad.title) - question
            if ad.id in self._said and claim:
                yield ad, claim

    def _chance(self, ad: Ad, claim: frozenset[str]) -> float:
        """Mean share of ``claim`` that descriptions of other ads hold: of the category's, if any."""
        peers = [other for other in self._by_category[ad.category] if other != ad.id]
        others: Sequence[str] = peers or [other for other in self._said if other != ad.id]
        return float(np.mean([_share(claim, self._said[other]) for other in others])) if others else 0.0


def _said(ad: Ad) -> frozenset[str]:
    return content(f"{ad.title} {ad.category} {ad.description}")


def _share(claim: frozenset[str], said: frozenset[str]) -> float:
    return len(claim & said) / len(claim)


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= LEAST_STEM:
            return word[: -len(ending)]
    return word
