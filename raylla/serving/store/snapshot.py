"""What `Eligibility` reads: changes of the catalogue, spending of a day, what a user has seen."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from raylla.serving.money.money import Micros
from raylla.serving.store import models
from raylla.world.texts import MAX_READ

_BATCH = 20_000


@dataclass(frozen=True, slots=True)
class AdRow:
    """An ad as it competes; ``row`` is its place in the catalogue, for good, and ``description`` the
    start of its description: more is not read."""

    row: int
    id: str
    title: str
    category: str
    theme: str
    campaign_id: str
    url: str
    labels: Sequence[str]
    bid_micros: Micros
    paused: bool
    description: str = ""


@dataclass(frozen=True, slots=True)
class CampaignRow:
    """A campaign as it limits its ads."""

    id: str
    advertiser_id: str
    domain: str
    daily_budget_micros: Micros
    pacing: str
    cap_impressions: int | None
    cap_hours: int | None
    paused: bool


@dataclass(frozen=True, slots=True)
class Changes:
    """Rows that changed, ads in order of row, and all floors; ``version`` is the one to ask from next."""

    version: int
    ads: Sequence[AdRow]
    campaigns: Sequence[CampaignRow]
    floors: dict[str, Micros]


def changes(session: Session, since: int) -> Changes:
    """Everything that may compete, as far as it changed after version ``since``.

    The version is read first: what is committed meanwhile is read again next time, never missed.
    """
    counter = select(models.StoredCounter.value).where(models.StoredCounter.name == "catalogue")
    version = session.scalars(counter).one()
    if version == since:
        return Changes(version, (), (), {})
    ad, campaign = models.StoredAd, models.StoredCampaign
    read = func.substr(ad.description, 1, MAX_READ + 1)  # so much decides where it is cut
    columns = (ad.row, ad.id, ad.title, ad.category, ad.theme, ad.campaign_id, ad.url, ad.labels)
    ads = select(*columns, ad.bid_micros, ad.paused, read).where(ad.version > since).order_by(ad.row)
    limits = (campaign.daily_budget_micros, campaign.pacing, campaign.cap_impressions, campaign.cap_hours)
    campaigns = (
        select(
            campaign.id, campaign.advertiser_id, models.StoredAdvertiser.domain, *limits, campaign.paused
        )
        .join(models.StoredAdvertiser, models.StoredAdvertiser.id == campaign.advertiser_id)
        .where(campaign.version > since)
    )
    return Changes(
        version,
        [AdRow(*list(row)) for row in session.execute(ads.execution_options(yield_per=_BATCH))],
        [CampaignRow(*row) for row in session.execute(campaigns.order_by(campaign.version, campaign.id))],
        {floor.category: floor.floor_micros for floor in session.scalars(select(models.StoredFloor))},
    )


def spending(session: Session, day: dt.date) -> dict[str, Micros]:
    """Campaign id -> what it has spent on a day, where that is anything."""
    query = select(models.StoredSpend.campaign_id, models.StoredSpend.spent_micros).where(
        models.StoredSpend.day == day
    )
    return {row.campaign_id: row.spent_micros for row in session.execute(query)}


def seen(session: Session, user_id: str, since: dt.datetime) -> list[tuple[str, dt.datetime]]:
    """Campaign and time of each impression that a user got since then, tests left out."""
    shown = models.StoredImpression
    of_user = (shown.user_id == user_id) & (shown.created > since) & (shown.billed != "test")
    query = select(shown.campaign_id, shown.created).where(of_user)
    return [(campaign_id, created) for campaign_id, created in session.execute(query)]
