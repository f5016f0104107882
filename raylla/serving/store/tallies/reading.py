"""Reports: tallies added up by time, campaign, ad, weight version, category or advertiser."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Integer, Select, cast, func, select
from sqlalchemy.orm import Session

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
    of_all = _of(select(*sums), wanted)
    total = session.execute(of_all).one()
    lines: Sequence[Any] = ()
    if groups:
        query = _of(select(*groups, *sums), wanted).group_by(*groups).order_by(*groups)
        lines = session.execute(query.offset(offset).limit(limit + 1)).all()
    return Report([_line(wanted.by, row) for row in lines[:limit]], _line((), total), len(lines) > limit)


_Whole = BigInteger().with_variant(Integer, "sqlite")


def _of(query: Select[Any], wanted: Wanted) -> Select[Any]:
    """``query`` over the tallies that are wanted: days where all of it is whole days, else hours."""
    query = query.select_from(Tally).join(models.Ad, models.Ad.id == Tally.ad_id)
    query = query.join(models.Campaign, models.Campaign.id == models.Ad.campaign_id)
    whole = all(moment.astimezone(dt.UTC).hour == 0 for moment in (wanted.since, wanted.until))
    span = "day" if whole and Group.HOUR not in wanted.by else "hour"
    query = query.where(Tally.span == span, Tally.start >= wanted.since, Tally.start < wanted.until)
    for column, value in (
        (models.Campaign.advertiser_id, wanted.advertiser_id),
        (models.Ad.campaign_id, wanted.campaign_id),
        (Tally.ad_id, wanted.ad_id),
    ):
        if value is not None:
            query = query.where(column == value)
    return query


def _line(by: Sequence[Group], row: Any) -> Line:
    found = row._mapping
    return Line({one: found[one.value] for one in by}, {name: int(found[name]) for name in COUNTS})
