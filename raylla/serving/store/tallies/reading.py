"""Reports: tallies added up by time, campaign, ad, weight version, category or advertiser."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Integer, Select, cast, func, select
from sqlalchemy.orm import Session, aliased

from raylla.serving.store import models
from raylla.serving.store.tallies.model import COUNTS, Tally


class Group(StrEnum):
    """What the lines of a report are apart by."""

    DAY = "day"
    HOUR = "hour"
    ADVERTISER = "advertiser"
    CAMPAIGN = "campaign"
    AD = "ad"
    WEIGHT_VERSION = "weight_version"
    CATEGORY = "category"


_COLUMN: dict[Group, Any] = {
    Group.DAY: Tally.start,
    Group.HOUR: Tally.start,
    Group.ADVERTISER: models.Campaign.advertiser_id,
    Group.CAMPAIGN: models.Ad.campaign_id,
    Group.AD: Tally.ad_id,
    Group.WEIGHT_VERSION: Tally.weight_version,
    Group.CATEGORY: models.Ad.category,
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a report is of: whole hours of [since, until), of one advertiser, campaign or ad, or of all."""

    since: dt.datetime
    until: dt.datetime
    by: tuple[Group, ...] = ()
    advertiser_id: str | None = None
    campaign_id: str | None = None
    ad_id: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """Counts by column, and what they are of, by the groups that were asked for."""

    of: dict[Group, Any]
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Report:
    """Some lines, in order of what they are of, and the counts of all that there are together."""

    lines: list[Line]
    total: Line
    more: bool


def report(session: Session, wanted: Wanted, offset: int, limit: int) -> Report:
    """Lines from ``offset`` on, at most ``limit``. Groups without a count have none."""
    sums = [cast(func.coalesce(func.sum(getattr(Tally, name)), 0), _Whole).label(name) for name in COUNTS]
    groups = [_COLUMN[group].label(group.value) for group in wanted.by]
    lines: list[Line] = []
    if groups:
        query = _of(_joined(select(*groups, *sums).select_from(Tally), wanted.by), wanted)
        query = query.group_by(*groups).order_by(*groups).offset(offset).limit(limit + 1)
        lines = [_line(wanted.by, row) for row in session.execute(query)]
    more = len(lines) > limit
    if groups and not offset and not more:
        total = Line({}, {name: sum(line.counts[name] for line in lines) for name in COUNTS})
    else:
        total = _line((), session.execute(_of(select(*sums), wanted)).one())
    return Report(lines[:limit], total, more)


_Whole = BigInteger().with_variant(Integer, "sqlite")


def _joined(query: Select[*tuple[Any, ...]], by: Sequence[Group]) -> Select[*tuple[Any, ...]]:
    """``query`` with what its groups are read from."""
    if {Group.ADVERTISER, Group.CAMPAIGN, Group.CATEGORY} & set(by):
        query = query.join(models.Ad, models.Ad.id == Tally.ad_id)
    if Group.ADVERTISER in by:
        query = query.join(models.Campaign, models.Campaign.id == models.Ad.campaign_id)
    return query


def _of(query: Select[*tuple[Any, ...]], wanted: Wanted) -> Select[*tuple[Any, ...]]:
    """``query`` over the tallies that are wanted: days where all of it is whole days, else hours."""
    whole = all(moment.astimezone(dt.UTC).hour == 0 for moment in (wanted.since, wanted.until))
    span = "day" if whole and Group.HOUR not in wanted.by else "hour"
    query = query.where(Tally.span == span, Tally.start >= wanted.since, Tally.start < wanted.until)
    if wanted.ad_id is not None:
        query = query.where(Tally.ad_id == wanted.ad_id)
    ad, campaign = aliased(models.Ad), aliased(models.Campaign)
    listed = select(ad.id)
    if wanted.campaign_id is not None:
        listed = listed.where(ad.campaign_id == wanted.campaign_id)
    if wanted.advertiser_id is not None:
        listed = listed.join(campaign, campaign.id == ad.campaign_id)
        listed = listed.where(campaign.advertiser_id == wanted.advertiser_id)
    return query.where(Tally.ad_id.in_(listed))


def _line(by: Sequence[Group], row: Any) -> Line:
    found = row._mapping
    return Line({one: found[one.value] for one in by}, {name: int(found[name]) for name in COUNTS})
