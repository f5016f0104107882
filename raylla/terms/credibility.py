"""Credibility: whether an answer says what the model without ads says, and of its ads what these say.

No entailment model is at hand, so the frozen text encoder stands in for one, sentence by sentence: a claim
is borne out as far as the nearest sentence of a source is near to it.  The sources are the answers of the
untouched model to the question alone and, for what is said of a placed ad, the ad's own description.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raylla.auction import ReadAnswer, attempts
from raylla.auction.markup import MARKUP
from raylla.auction.prose import sentences
from raylla.records import Ad
from raylla.terms.descriptions import content
from raylla.terms.protocol import Texts

LEAST_WORDS = 2
"""Words with a meaning that a claim has at least, beside names of ads: "Try it." claims nothing."""
_Unit = Mapping[str, NDArray[np.float32]]
"""Vectors of length 1 by text."""


@dataclass(frozen=True, slots=True)
class _Claims:
    """The sentences of one answer that say something, without their ads' names; whether each holds an ad;
    and what can bear them out: sentences of the organic answers, and of the placed ads' descriptions."""

    said: tuple[str, ...]
    of_ad: tuple[bool, ...]
    organic: tuple[str, ...]
    described: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        return (*self.said, *self.organic, *self.described)

    def borne_out(self, unit: _Unit) -> list[float]:
        """The cosine of each claim to what bears it out.

        What holds an ad, or is nearer to what an ad says of itself than to the organic answers, is a claim
        about the ad, and its description alone can bear that out where there is one.
        """
        shares = []
        for text, of_ad in zip(self.said, self.of_ad, strict=True):
            near = _nearest(unit, text, self.organic)
            own = _nearest(unit, text, self.described)
            about = bool(self.described) and (of_ad or own > near)
            shares.append(own if about else near)
        return shares


class Credibility:
    """Mean over an answer's claims of the cosine to what bears them out, less 1: from -2 to 0."""

    name = "credibility"
    needs = ("organic",)
    least = -2.0

    def values(self, texts: Texts, answers: Sequence[ReadAnswer]) -> list[float]:
        """`protocol.RewardTerm.values`; 0 for an answer that says nothing beside its ads' names, and where
        the untouched model's answers were lost."""
        organic = texts.organic([answer.planned for answer in answers])
        read = [_claims(answer, known) for answer, known in zip(answers, organic, strict=True)]
        distinct = list(dict.fromkeys(text for claims in read if claims for text in claims.texts))
        unit = dict(zip(distinct, texts.directions(distinct), strict=True))
        return [float(np.mean(claims.borne_out(unit))) - 1 if claims else 0.0 for claims in read]


def _claims(answer: ReadAnswer, organic: Sequence[str]) -> _Claims | None:
    """What an answer claims; none where it places no ad or says nothing, or where nothing is known of what
    the untouched model says."""
    text, placed = answer.text, answer.parsed.placements
    ads = {ad.id: ad for ad in answer.planned.ads}
    said, of_ad = [], []
    for start, end in sentences(text, attempts(text, answer.planned.ads)) if placed else ():
        claim = " ".join(MARKUP.sub(" ", text[start:end]).split())
        if len(content(claim)) >= LEAST_WORDS:
            said.append(claim)
            of_ad.append(any(start <= placement.start < end for placement in placed))
    whole = [told[start:end] for told in organic for start, end in sentences(told)]
    if not said or not whole:
        return None
    described = [sentence for placement in placed for sentence in _described(ads[placement.ad_id])]
    return _Claims(tuple(said), tuple(of_ad), tuple(whole), tuple(described))


def _described(ad: Ad) -> list[str]:
    """The sentences of an ad's description."""
    return [ad.description[start:end] for start, end in sentences(ad.description)]


def _nearest(unit: _Unit, text: str, sources: Sequence[str]) -> float:
    """The highest cosine of ``text`` to one of ``sources``; 0 where there is none."""
    return min(max((float(unit[text] @ unit[source]) for source in sources), default=0.0), 1.0)
