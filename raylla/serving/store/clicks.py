"""Which clicks are beyond their limits, and how many there were of each outcome."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, func, select, text
from sqlalchemy.orm import Session

from raylla.serving.money.money import Micros
from raylla.serving.money.records import ClickLimits, Invalid, Outcome
from raylla.serving.security.tokens import Claims
from raylla.serving.store import models

REPEATED = (Outcome.REPLAY.value, Outcome.EXPIRED.value, Outcome.INVALID.value)
"""Outcomes of clicks that do not count."""
HOUR = dt.timedelta(hours=1)
_RECENT = (
    select(func.count(models.StoredClick.id))
    .join(models.StoredImpression, models.StoredImpression.id == models.StoredClick.impression_id)
    .where(
        models.StoredImpression.user_id == bindparam("user"),
        models.StoredImpression.created
        > bindparam("shown_since"),  # the index ends there: no token is older
        models.StoredClick.at > bindparam("since"),
        models.StoredClick.outcome.notin_((*REPEATED, Outcome.TEST.value)),
    )
)
_ONE_AT_A_TIME = text("SELECT pg_advisory_xact_lock(hashtextextended(:user, 0))")


@dataclass(frozen=True, slots=True)
class Tally:
    """Clicks of one campaign with one outcome; ``amount_micros`` is what the ledger's lines of them say."""

    campaign_id: str
    outcome: Outcome
    reason: Invalid | None
    clicks: int
    amount_micros: Micros


def beyond(
    connection: Connection, shown: Any, claims: Claims, now: dt.datetime, limits: ClickLimits
) -> Invalid | None:
    """Why a click that would count is beyond ``limits``; ``shown`` has the impression's ``user_id`` and
    ``seen``."""
    if limits.least_seconds and (now - shown.seen).total_seconds() < limits.least_seconds:
        return Invalid.TOO_SOON
    if limits.per_user_hour is None or shown.user_id is None:
        return None
    if connection.dialect.name == "postgresql":  # two clicks of a user must not both be the last that fits
        connection.execute(_ONE_AT_A_TIME, {"user": shown.user_id})
    charges = dt.timedelta(seconds=claims.expires - claims.issued)
    given = {"user": shown.user_id, "since": now - HOUR, "shown_since": now - HOUR - charges}
    clicks = connection.execute(_RECENT, given).scalar_one()
    return Invalid.TOO_MANY if clicks >= limits.per_user_hour else None


def tallies(session: Session, advertiser_id: str, since: dt.datetime, until: dt.datetime) -> list[Tally]:
    """An advertiser's clicks of [since, until) by campaign, outcome and reason."""
    click, shown = models.StoredClick, models.StoredImpression
    by = (shown.campaign_id, click.outcome, click.reason)
    query = (
        select(*by, func.count(click.id), func.coalesce(func.sum(models.StoredEntry.amount_micros), 0))
        .join(shown, shown.id == click.impression_id)
        .outerjoin(models.StoredEntry, models.StoredEntry.click_id == click.id)
        .where(shown.advertiser_id == advertiser_id, click.at >= since, click.at < until)
        .group_by(*by)
        .order_by(*by)
    )
    return [
        Tally(campaign, Outcome(outcome), Invalid(reason) if reason else None, clicks, int(micros))
        for campaign, outcome, reason, clicks, micros in session.execute(query)
    ]


def invalid(session: Session, auction_id: str) -> dict[str, dict[Invalid, int]]:
    """Impression id of an auction -> its invalid clicks by reason, where there are any."""
    click, shown = models.StoredClick, models.StoredImpression
    query = (
        select(click.impression_id, click.reason, func.count(click.id))
        .join(shown, shown.id == click.impression_id)
        .where(shown.auction_id == auction_id, click.reason.is_not(None))
        .group_by(click.impression_id, click.reason)
    )
    counts: dict[str, dict[Invalid, int]] = defaultdict(dict)
    for impression_id, reason, clicks in session.execute(query):
        counts[impression_id][Invalid(str(reason))] = clicks
    return dict(counts)
