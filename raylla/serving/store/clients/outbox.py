"""Billing and loss notices on their way out: written in the transaction that they tell of, sent later.

Names and macros are OpenRTB's: burl is called when something is billed, lurl when a candidate was not
placed. A notice is sent at least once; its id tells repetitions apart.

OpenRTB's price is one per thousand impressions, and that is what ``${AUCTION_PRICE}`` says where an
impression is billed. Where a click is, ``${AUCTION_CLICK_PRICE}`` says what the click cost. The macro that
does not apply is empty.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from raylla.serving.money import money, pricing
from raylla.serving.money.records import Listing, PriceRule, Reason, ServedAuction
from raylla.serving.security import addresses
from raylla.serving.store import models
from raylla.serving.store.database import Database
from raylla.serving.store.numbering import new_id


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A notice to send now: ``attempts`` counts this one."""

    id: str
    advertiser_id: str
    kind: str
    url: str
    body: Mapping[str, Any]
    created: dt.datetime
    attempts: int


class Outbox:
    """The notices that are due, and what became of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def waiting(self, now: dt.datetime, limit: int) -> list[str]:
        """Destinations that have notices due, those with the oldest first."""
        destination = models.StoredNotice.destination
        query = select(destination).where(models.StoredNotice.due <= now).group_by(destination)
        with self._database.reading() as session:
            return list(session.scalars(query.order_by(func.min(models.StoredNotice.due)).limit(limit)))

    def take(
        self, now: dt.datetime, limit: int, lease: dt.timedelta, destination: str | None = None
    ) -> list[Outgoing]:
        """Claim notices that are due, to one destination or to all: nobody else gets them before ``lease``
        has passed."""
        wanted = models.StoredNotice.due <= now
        if destination is not None:
            wanted &= models.StoredNotice.destination == destination
        due = (
            select(models.StoredNotice.id)
            .where(wanted)
            .order_by(models.StoredNotice.due)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        with self._database.writing() as session:
            rows = session.scalars(
                update(models.StoredNotice)
                .where(models.StoredNotice.id.in_(due.scalar_subquery()))
                .values(due=now + lease, attempts=models.StoredNotice.attempts + 1)
                .returning(models.StoredNotice)
            ).all()
            return [
                Outgoing(row.id, row.advertiser_id, row.kind, row.url, row.body, row.created, row.attempts)
                for row in rows
            ]

    def sent(self, id: str, now: dt.datetime) -> None:
        """Done."""
        self._set(id, due=None, sent=now, error=None)

    def retry(self, id: str, due: dt.datetime, error: str) -> None:
        """Try again at ``due``."""
        self._set(id, due=due, error=error)

    def give_up(self, id: str, error: str) -> None:
        """Leave it unsent for good."""
        self._set(id, due=None, error=error)

    def postpone(self, destination: str, until: dt.datetime, oldest: dt.datetime, error: str) -> None:
        """Try nothing at a destination before ``until``; give up what was written before ``oldest``."""
        there = models.StoredNotice.destination == destination
        with self._database.writing() as session:
            late = there & models.StoredNotice.due.is_not(None) & (models.StoredNotice.created < oldest)
            session.execute(update(models.StoredNotice).where(late).values(due=None, error=error))
            session.execute(
                update(models.StoredNotice).where(there, models.StoredNotice.due < until).values(due=until)
            )

    def of(self, advertiser_id: str, after: str, limit: int) -> list[models.StoredNotice]:
        """An advertiser's notices by id."""
        query = select(models.StoredNotice).where(
            models.StoredNotice.advertiser_id == advertiser_id, models.StoredNotice.id > after
        )
        with self._database.reading() as session:
            return list(session.scalars(query.order_by(models.StoredNotice.id).limit(limit)))

    def _set(self, id: str, **values: Any) -> None:
        with self._database.writing() as session:
            session.execute(
                update(models.StoredNotice).where(models.StoredNotice.id == id).values(**values)
            )


def billed(session: Session, entry: models.StoredEntry, ad_id: str, burl: str) -> None:
    """Queue the billing notice of a ledger line."""
    body: dict[str, Any] = {
        "auction_id": entry.auction_id,
        "impid": entry.impression_id,
        "ad_id": ad_id,
        "seat": entry.advertiser_id,
        "campaign_id": entry.campaign_id,
        "click_id": entry.click_id,
        "charge": entry.kind,
        "price_rule": entry.price_rule,
        "charged_at": pricing.charged_at(PriceRule(str(entry.price_rule))),
        "price_micros": entry.amount_micros,
        "cur": entry.currency,
    }
    if body["charged_at"] == "impression":
        body["auction_price"] = money.decimal(1000 * entry.amount_micros)
        body["auction_price_unit"] = f"{entry.currency} per 1000 impressions"
    else:
        body["click_price"] = money.decimal(entry.amount_micros)
        body["click_price_unit"] = f"{entry.currency} per click"
    _queue(session, "burl", burl, body, entry.at)


def lost(
    session: Session,
    auction: ServedAuction,
    listing: Listing,
    campaign: models.StoredCampaign,
    reason: Reason,
) -> None:
    """Queue the loss notice of a candidate."""
    body = {
        "auction_id": auction.id,
        "impid": "",
        "ad_id": listing.ad.id,
        "seat": listing.advertiser_id,
        "campaign_id": campaign.id,
        "loss": reason.loss_code,
        "cur": auction.currency,
    }
    if campaign.lurl is not None:
        _queue(session, "lurl", campaign.lurl, body, auction.created)


def _queue(session: Session, kind: str, url: str, body: dict[str, Any], at: dt.datetime) -> None:
    id, filled = new_id("ntc"), _filled(url, body)
    session.add(
        models.StoredNotice(
            id=id,
            advertiser_id=body["seat"],
            kind=kind,
            url=filled,
            destination=addresses.destination(filled),
            body={"id": id, "kind": kind, "at": at.isoformat(), **body},
            created=at,
            attempts=0,
            due=at,
        )
    )


def _filled(url: str, body: Mapping[str, Any]) -> str:
    """``url`` with OpenRTB's macros replaced, each value quoted."""
    macros = {
        "AUCTION_ID": body["auction_id"],
        "AUCTION_IMP_ID": body["impid"],
        "AUCTION_AD_ID": body["ad_id"],
        "AUCTION_SEAT_ID": body["seat"],
        "AUCTION_CURRENCY": body["cur"],
        "AUCTION_PRICE": body.get("auction_price", ""),
        "AUCTION_CLICK_PRICE": body.get("click_price", ""),
        "AUCTION_LOSS": str(body.get("loss", "")),
    }
    for name, value in macros.items():
        url = url.replace(f"${{{name}}}", quote(value, safe=""))
    return url
