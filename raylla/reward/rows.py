"""What the reward model reads: one row for each ad placed in an answer. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raylla.records import Ad, Click, Placement, Profile, Query
from raylla.world.clicks import sentence_around
from raylla.world.texts import ad_text
from raylla.world.turns import in_context


@dataclass(frozen=True, slots=True)
class ClickRow:
    """One impression: who asked what, and how the answer shows the ad.

    ``ad_text`` is what the ad says of itself (`raylla.world.texts`).
    ``rank`` counts ads placed before this one, ``placed`` all ads of the answer,
    ``earlier_same_category`` those before it of its category; ``sentence`` is the part of
    ``answer_text`` that holds the ad; ``clicked`` is None where no judge has spoken.
    """

    sample_id: str
    query_text: str
    profile_id: str
    ad_id: str
    ad_text: str
    ad_category: str
    answer_text: str
    sentence: str
    rank: int
    placed: int
    earlier_same_category: int
    clicked: bool | None


def auction_of(row: ClickRow | Click) -> str:
    """Id of the auction whose answer a row or click is of."""
    return row.sample_id.rpartition("/")[0]


def click_rows(
    sample_id: str,
    query: Query,
    profile: Profile,
    text: str,
    placements: Sequence[Placement],
    ads: Mapping[str, Ad],
    clicks: Mapping[str, bool] | None,
) -> list[ClickRow]:
    """One row per placement of an answer, in order of appearance.

    ``ads`` and ``clicks`` are looked up by ad id; without ``clicks``, or where they say nothing
    of an ad, ``clicked`` is None.
    """
    rows: list[ClickRow] = []
    seen: list[str] = []
    for rank, placement in enumerate(placements):
        ad = ads[placement.ad_id]
        rows.append(
            ClickRow(
                sample_id=sample_id,
                query_text=in_context(query),
                profile_id=profile.id,
                ad_id=ad.id,
                ad_text=ad_text(ad),
                ad_category=ad.category,
                answer_text=text,
                sentence=sentence_around(text, placement),
                rank=rank,
                placed=len(placements),
                earlier_same_category=seen.count(ad.category),
                clicked=None if clicks is None else clicks.get(ad.id),
            )
        )
        seen.append(ad.category)
    return rows
