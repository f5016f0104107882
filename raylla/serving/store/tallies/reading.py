"""Reports: tallies added up by time, campaign, ad, weight version, category or advertiser."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    and_,
    case,
    cast,
    func,
    literal,
    or_,
    select,
)
from sqlalchemy.orm import Session, aliased

from raylla.serving.store import models
from raylla.serving.store.tallies.model import COUNTS, StoredTally


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
    Group.DAY: StoredTally.start,
    Group.HOUR: StoredTally.start,
    Group.ADVERTISER: models.StoredCampaign.advertiser_id,
    Group.CAMPAIGN: models.StoredAd.campaign_id,
    Group.AD: StoredTally.ad_id,
    Group.WEIGHT_VERSION: StoredTally.weight_version,
    Group.CATEGORY: models.StoredAd.category,
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


def report_lines(session: Session, wanted: Wanted, offset: int, limit: int) -> Report:
    """Lines from ``offset`` on, at most ``limit``. Groups without a count have none."""
    time = _Time.of(wanted)
    columns = _COLUMN | {Group.DAY: time.day}
    sums = [part for name in COUNTS for part in _sums(name)]
    groups = [columns[group].label(group.value) for group in wanted.by]
    lines: list[Line] = []
    if groups:
        query = _of(_joined(select(*groups, *sums).select_from(StoredTally), wanted.by), wanted, time)
        names = [group.value for group in wanted.by]
        query = query.group_by(*names).order_by(*names).offset(offset).limit(limit + 1)
        lines = [_line(wanted.by, row) for row in session.execute(query)]
    more = len(lines) > limit
    if groups and not offset and not more:
        total = Line({}, {name: sum(line.counts[name] for line in lines) for name in COUNTS})
    else:
        total = _line((), session.execute(_of(select(*sums), wanted, time)).one())
    return Report(lines[:limit], total, more)


_Whole = BigInteger().with_variant(Integer, "sqlite")
_HALF = 32
"""Bits of a sum's lower part."""


def _sums(name: str) -> list[Any]:
    """A column's sum; of money in two parts, for the sum of many rows may be beyond 64 bits."""
    column = getattr(StoredTally, name)
    if not name.endswith("_micros"):
        return [cast(func.coalesce(func.sum(column), 0), _Whole).label(name)]
    parts = {name: column.op("&")(2**_HALF - 1), f"{name}_high": column.op(">>")(literal(_HALF, Integer()))}
    return [
        cast(func.coalesce(func.sum(part), 0), _Whole).label(part_name) for part_name, part in parts.items()
    ]


def _joined(query: Select[*tuple[Any, ...]], by: Sequence[Group]) -> Select[*tuple[Any, ...]]:
    """``query`` with what its groups are read from."""
    if {Group.ADVERTISER, Group.CAMPAIGN, Group.CATEGORY} & set(by):
        query = query.join(models.StoredAd, models.StoredAd.id == StoredTally.ad_id)
    if Group.ADVERTISER in by:
        query = query.join(models.StoredCampaign, models.StoredCampaign.id == models.StoredAd.campaign_id)
    return query


@dataclass(frozen=True, slots=True)
class _Time:
    """Which tallies make up a time, and the day that each is of.

    By the hour, those of hours; else those of days, and of hours where only a part of a day is wanted.
    """

    where: ColumnElement[bool]
    day: Any

    @classmethod
    def of(cls, wanted: Wanted) -> _Time:
        """Those of ``wanted``."""
        since, until = (moment.astimezone(dt.UTC) for moment in (wanted.since, wanted.until))
        first, last = _midnight(since), _midnight(until)
        if Group.HOUR in wanted.by:
            return cls(_within("hour", since, until), StoredTally.start)
        if (first, last) == (since, until):
            return cls(_within("day", since, until), StoredTally.start)
        parts = [_within("hour", since, until)]
        if first < last:  # else it is a part of one day
            begun = since if first == since else first + dt.timedelta(days=1)
            edges = _within("hour", since, begun), _within("hour", last, until)
            parts = [*edges, _within("day", begun, last)]
        named = [literal(moment, models.Utc()) for moment in (first, last)]
        of_hour = case((StoredTally.start >= named[1], named[1]), else_=named[0])
        return cls(or_(*parts), case((StoredTally.span == "day", StoredTally.start), else_=of_hour))


def _midnight(moment: dt.datetime) -> dt.datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _within(span: str, since: dt.datetime, until: dt.datetime) -> ColumnElement[bool]:
    return and_(StoredTally.span == span, StoredTally.start >= since, StoredTally.start < until)


def _of(query: Select[*tuple[Any, ...]], wanted: Wanted, time: _Time) -> Select[*tuple[Any, ...]]:
    """``query`` over the tallies that are wanted."""
    query = query.where(time.where)
    if wanted.ad_id is not None:
        query = query.where(StoredTally.ad_id == wanted.ad_id)
    ad, campaign = aliased(models.StoredAd), aliased(models.StoredCampaign)
    listed = select(ad.id)
    if wanted.campaign_id is not None:
        listed = listed.where(ad.campaign_id == wanted.campaign_id)
    if wanted.advertiser_id is not None:
        listed = listed.join(campaign, campaign.id == ad.campaign_id)
        listed = listed.where(campaign.advertiser_id == wanted.advertiser_id)
    return query.where(StoredTally.ad_id.in_(listed))


def _line(by: Sequence[Group], row: Any) -> Line:
    columns = row._mapping
    high = {name: int(columns.get(f"{name}_high", 0)) << _HALF for name in COUNTS}
    counts = {name: int(columns[name]) + high[name] for name in COUNTS}
    return Line({group: columns[group.value] for group in by}, counts)
