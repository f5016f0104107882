"""Who advertises what: advertisers, campaigns, ads, floors, payments and API keys, and their changes.

Every change of what may compete raises the catalogue's version and stamps the row with it, so that
readers fetch only what changed. Money of an advertiser moves under the lock of its row.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from raylla import records
from raylla.config import Links
from raylla.errors import ClashError, MoneyError, UnknownError
from raylla.serving.money.money import MOST, Micros
from raylla.serving.security import keys
from raylla.serving.store import ledger, models, names
from raylla.serving.store.database import Database
from raylla.serving.store.numbering import bumped, free_ids, new_id

_Row = TypeVar("_Row", bound=models.Base)
_LINKS: dict[str | None, Links | None] = {None: None} | {links: links for links in get_args(Links)}


@dataclass(frozen=True, slots=True)
class CampaignTerms:
    """What makes a campaign. At most ``cap_impressions`` per user in ``cap_hours``, if both are given."""

    name: str
    daily_budget_micros: Micros
    pacing: str = "even"
    cap_impressions: int | None = None
    cap_hours: int | None = None
    burl: str | None = None
    lurl: str | None = None
    paused: bool = False


@dataclass(frozen=True, slots=True)
class AdTerms:
    """What makes an ad. ``ad.id`` is ``""`` where the store gives the next free one."""

    ad: records.Ad
    url: str
    bid_micros: Micros
    labels: tuple[str, ...] = ()
    paused: bool = False


class Parties:
    """Reads and changes of everything that is not an auction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_advertiser(self, name: str, domain: str, now: dt.datetime) -> models.StoredAdvertiser:
        """A new advertiser with nothing owed.

        Raises:
            ValueError: that is no domain.
        """
        with self._database.writing() as session:
            return put_advertiser(session, name, domain, now)

    def advertiser(self, id: str) -> models.StoredAdvertiser:
        """One advertiser.

        Raises:
            UnknownError: there is none of that id.
        """
        with self._database.reading() as session:
            return find_row(session, models.StoredAdvertiser, id)

    def advertisers(self, after: str, limit: int) -> Sequence[models.StoredAdvertiser]:
        """Advertisers by id, from the one behind ``after``."""
        with self._database.reading() as session:
            query = select(models.StoredAdvertiser).where(models.StoredAdvertiser.id > after)
            return session.scalars(query.order_by(models.StoredAdvertiser.id).limit(limit)).all()

    def pay(
        self, advertiser_id: str, amount: Micros, currency: str, reference: str, now: dt.datetime
    ) -> models.StoredEntry:
        """Book a payment; the same reference again returns the first booking.

        Raises:
            UnknownError: no such advertiser.
            ClashError: the reference was booked with another amount.
            StoreError: the store is in another currency.
        """
        ledger.denominate(self._database, currency)
        with self._database.writing() as session:
            return put_payment(session, advertiser_id, amount, currency, reference, now)

    def add_campaign(
        self, advertiser_id: str, new: CampaignTerms, now: dt.datetime
    ) -> models.StoredCampaign:
        """A new campaign.

        Raises:
            UnknownError: no such advertiser.
        """
        with self._database.writing() as session:
            find_row(session, models.StoredAdvertiser, advertiser_id)
            return put_campaign(session, advertiser_id, new, now)

    def change_campaign(
        self, id: str, changes: Mapping[str, Any], now: dt.datetime
    ) -> models.StoredCampaign:
        """Set ``changes`` (names of `CampaignTerms`); a new daily budget holds from this moment.

        Raises:
            UnknownError: no such campaign.
        """
        with self._database.writing() as session:
            campaign = find_row(session, models.StoredCampaign, id)
            locked(session, campaign.advertiser_id)
            session.refresh(campaign)
            before = campaign.daily_budget_micros
            for name, value in changes.items():
                setattr(campaign, name, value)
            campaign.version = bumped(session, "catalogue")
            if campaign.daily_budget_micros != before:
                session.add(_budget(campaign, now))
        return campaign

    def campaign(self, id: str) -> models.StoredCampaign:
        """One campaign.

        Raises:
            UnknownError: there is none of that id.
        """
        with self._database.reading() as session:
            return find_row(session, models.StoredCampaign, id)

    def campaigns(
        self, advertiser_id: str | None, after: str, limit: int
    ) -> Sequence[models.StoredCampaign]:
        """Campaigns by id, of one advertiser or of all."""
        query = select(models.StoredCampaign).where(models.StoredCampaign.id > after)
        if advertiser_id is not None:
            query = query.where(models.StoredCampaign.advertiser_id == advertiser_id)
        with self._database.reading() as session:
            return session.scalars(query.order_by(models.StoredCampaign.id).limit(limit)).all()

    def spent(self, campaign_id: str, day: dt.date) -> Micros:
        """What a campaign has spent on a day."""
        with self._database.reading() as session:
            spend = session.get(models.StoredSpend, (campaign_id, day))
            return spend.spent_micros if spend else 0

    def add_ads(self, campaign_id: str, news: Sequence[AdTerms], now: dt.datetime) -> list[models.StoredAd]:
        """List ads, in one transaction.

        Raises:
            UnknownError: no such campaign.
            ClashError: an ad of a given id is already listed.
        """
        try:
            with self._database.writing() as session:
                find_row(session, models.StoredCampaign, campaign_id)
                last = put_ads(session, campaign_id, news, now)
                rows = models.StoredAd.row.between(last - len(news), last - 1)
                return list(
                    session.scalars(select(models.StoredAd).where(rows).order_by(models.StoredAd.row))
                )
        except IntegrityError:
            raise ClashError(
                "ads: one of these ids is already listed; leave ids out to be given free ones"
            ) from None

    def change_ad(self, id: str, changes: Mapping[str, Any]) -> models.StoredAd:
        """Set ``changes`` of url, labels, bid_micros and paused.

        Raises:
            UnknownError: no such ad.
        """
        with self._database.writing() as session:
            ad = find_row(session, models.StoredAd, id)
            for name, value in changes.items():
                setattr(ad, name, value)
            ad.version = bumped(session, "catalogue")
        return ad

    def ad(self, id: str) -> tuple[models.StoredAd, str]:
        """One ad and whose it is.

        Raises:
            UnknownError: there is none of that id.
        """
        with self._database.reading() as session:
            ad = find_row(session, models.StoredAd, id)
            return ad, find_row(session, models.StoredCampaign, ad.campaign_id).advertiser_id

    def ads(self, campaign_id: str, after: str, limit: int) -> Sequence[models.StoredAd]:
        """A campaign's ads by id."""
        query = select(models.StoredAd).where(
            models.StoredAd.campaign_id == campaign_id, models.StoredAd.id > after
        )
        with self._database.reading() as session:
            return session.scalars(query.order_by(models.StoredAd.id).limit(limit)).all()

    def set_floor(self, category: str, floor: Micros) -> None:
        """The least bid per click in a category or theme, however it is spelled; 0 takes it away."""
        with self._database.writing() as session:
            bumped(session, "catalogue")  # first: one floor is set after the other
            for row in session.scalars(select(models.StoredFloor)).all():
                if row.category != category and names.name(row.category) == names.name(category):
                    session.delete(row)
            session.merge(models.StoredFloor(category=category, floor_micros=floor))

    def floors(self) -> dict[str, Micros]:
        """Category -> least bid per click."""
        with self._database.reading() as session:
            query = select(models.StoredFloor).where(models.StoredFloor.floor_micros > 0)
            return {floor.category: floor.floor_micros for floor in session.scalars(query)}

    def add_key(
        self,
        role: keys.Role,
        advertiser_id: str | None,
        name: str,
        now: dt.datetime,
        links: Links | None = None,
    ) -> tuple[models.StoredApiKey, str]:
        """A new API key, and the key itself: it cannot be had again.

        Raises:
            UnknownError: no such advertiser.
        """
        id, key, digest = keys.make()
        whose = {"role": role.value, "advertiser_id": advertiser_id, "name": name, "links": links}
        row = models.StoredApiKey(id=id, digest=digest, created=now, **whose)
        with self._database.writing() as session:
            if advertiser_id is not None:
                find_row(session, models.StoredAdvertiser, advertiser_id)
            session.add(row)
        return row, key

    def revoke_key(self, id: str, now: dt.datetime) -> models.StoredApiKey:
        """Make a key worthless from now on.

        Raises:
            UnknownError: no such key.
        """
        with self._database.writing() as session:
            row = find_row(session, models.StoredApiKey, id)
            row.revoked = row.revoked or now
        return row

    def api_keys(self, after: str, limit: int) -> Sequence[models.StoredApiKey]:
        """Keys by id, revoked ones too."""
        query = select(models.StoredApiKey).where(models.StoredApiKey.id > after)
        with self._database.reading() as session:
            return session.scalars(query.order_by(models.StoredApiKey.id).limit(limit)).all()

    def api_key(self, id: str) -> keys.StoredKey | None:
        """A key as `keys.Access` wants it."""
        with self._database.reading() as session:
            row = session.get(models.StoredApiKey, id)
            if row is None:
                return None
            role, revoked = keys.Role(row.role), row.revoked is not None
            return keys.StoredKey(row.id, role, row.advertiser_id, row.digest, revoked, _LINKS[row.links])


def find_row(session: Session, kind: type[_Row], id: str) -> _Row:
    """The row of that id.

    Raises:
        UnknownError: there is none.
    """
    row = session.get(kind, id)
    if row is None:
        raise UnknownError(f"{kind.__name__.removeprefix('Stored').lower()} {id!r} does not exist")
    return row


def locked(session: Session, advertiser_id: str) -> models.StoredAdvertiser:
    """The advertiser, as it is now and as nobody else can change it until the transaction ends.

    The lock (FOR NO KEY UPDATE) lets others refer to the row, so that their foreign keys do not wait.

    Raises:
        UnknownError: there is none of that id.
    """
    query = (
        select(models.StoredAdvertiser)
        .where(models.StoredAdvertiser.id == advertiser_id)
        .with_for_update(key_share=True)
    )
    row = session.scalar(query.execution_options(populate_existing=True))
    if row is None:
        raise UnknownError(f"advertiser {advertiser_id!r} does not exist")
    return row


def put_advertiser(session: Session, name: str, domain: str, now: dt.datetime) -> models.StoredAdvertiser:
    """Write a new advertiser; its domain in the form that is compared."""
    advertiser = models.StoredAdvertiser(
        id=new_id("adv"),
        name=name,
        domain=names.domain(domain),
        created=now,
        balance_micros=0,
        accrued_micros=0,
    )
    session.add(advertiser)
    session.flush()
    return advertiser


def put_payment(
    session: Session, advertiser_id: str, amount: Micros, currency: str, reference: str, now: dt.datetime
) -> models.StoredEntry:
    """Write a payment, or find it booked.

    Raises:
        UnknownError: no such advertiser.
        ClashError: the reference was booked with another amount.
        MoneyError: the balance would be beyond 64 bits.
    """
    advertiser = locked(session, advertiser_id)
    query = select(models.StoredEntry).filter_by(advertiser_id=advertiser_id, reference=reference)
    booked = session.scalar(query)
    if booked is not None:
        if booked.amount_micros != amount:
            raise ClashError(
                f"reference={reference!r} is booked with {booked.amount_micros} micros, not these"
            )
        return booked
    if advertiser.balance_micros + amount > MOST:
        raise MoneyError(f"amount_micros={amount}: the balance would be more than {MOST}, and not kept")
    entry = models.StoredEntry(
        at=now,
        kind="payment",
        amount_micros=amount,
        currency=currency,
        advertiser_id=advertiser_id,
        reference=reference,
    )
    ledger.post(session, [entry])
    return entry


def put_campaign(
    session: Session, advertiser_id: str, new: CampaignTerms, now: dt.datetime
) -> models.StoredCampaign:
    """Write a new campaign and the first row of its budget's history."""
    campaign = models.StoredCampaign(
        id=new_id("cmp"),
        advertiser_id=advertiser_id,
        created=now,
        version=bumped(session, "catalogue"),
        **{name: getattr(new, name) for name in CampaignTerms.__slots__},
    )
    session.add(campaign)
    session.flush()
    session.add(_budget(campaign, now))
    return campaign


def put_ads(session: Session, campaign_id: str, news: Sequence[AdTerms], now: dt.datetime) -> int:
    """Write new ads on the rows behind the last, and return how many rows there are then."""
    version = bumped(session, "catalogue")
    last = bumped(session, "row", len(news))
    given = iter(free_ids(session, sum(not new.ad.id for new in news)))
    session.execute(
        insert(models.StoredAd),
        [
            {
                "id": new.ad.id or next(given),
                "row": row,
                "campaign_id": campaign_id,
                "title": new.ad.title,
                "category": new.ad.category,
                "theme": new.ad.theme,
                "description": new.ad.description,
                "url": new.url,
                "labels": list(new.labels),
                "bid_micros": new.bid_micros,
                "paused": new.paused,
                "created": now,
                "version": version,
            }
            for row, new in enumerate(news, start=last - len(news))
        ],
    )
    return last


def _budget(campaign: models.StoredCampaign, now: dt.datetime) -> models.StoredBudget:
    return models.StoredBudget(
        campaign_id=campaign.id, at=now, daily_budget_micros=campaign.daily_budget_micros
    )
