"""The store's face to the endpoint: auctions in, clicks charged, everything read back."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence

from sqlalchemy import and_, insert, or_, select
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from raylla.errors import ClashError, StoreError, UnknownError
from raylla.serving.money.money import Micros
from raylla.serving.money.records import (
    Charge,
    ClickLimits,
    Invalid,
    Served,
    ServedAuction,
)
from raylla.serving.security.tokens import Claims
from raylla.serving.store import billing, clicks, ledger, models, snapshot
from raylla.serving.store.auctions import check_auction, put_auctions, read_auctions, recorded
from raylla.serving.store.billing import Settlement
from raylla.serving.store.clicks import REPEATED
from raylla.serving.store.clients.outbox import Outbox
from raylla.serving.store.clients.responses import Responses
from raylla.serving.store.database import SETTING, Database
from raylla.serving.store.numbering import new_id
from raylla.serving.store.parties import Parties, find_row
from raylla.serving.store.snapshot import Changes
from raylla.serving.store.tallies import Report, Wanted, report_lines

_PAGE = 500


class Store:
    """One database of the endpoint; safe to use from many threads and processes."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.parties = Parties(self.database)
        self.outbox = Outbox(self.database)
        self.responses = Responses(self.database)

    def close(self) -> None:
        """Close all connections."""
        self.database.close()

    def denominate(self, currency: str) -> None:
        """Say what the store's money is; the first currency that is named is the store's, for good.

        Raises:
            StoreError: the store is in another.
        """
        ledger.denominate(self.database, currency)

    def keep_sheet(self, digest: str, text: str, now: dt.datetime) -> None:
        """Keep a price sheet for the audit, under its digest; one that is there stays."""
        row = {"digest": digest, "text": text, "since": now}
        with self.database.writing() as session:
            if session.get(models.StoredSheet, digest) is not None:
                return
            try:
                with session.begin_nested():
                    session.execute(insert(models.StoredSheet), row)
            except IntegrityError:  # another replica's, of this moment
                return

    def record(self, auction: ServedAuction) -> None:
        """Write an auction and its impressions in one transaction; the same auction again changes nothing.

        Under `expected` the impressions are billed here; one that its campaign's daily budget does not
        hold is shown for nothing.

        Raises:
            ClashError: another auction has that id.
            StoreError: it names an ad or campaign that is not listed, another price than its rule's, or
                another currency than the store's.
        """
        self._check(auction)
        try:
            self._write([auction])
        except (IntegrityError, DataError) as error:
            with self.database.reading() as session:
                if recorded(session, auction):
                    return
            raise StoreError(f"auction {auction.id}: the database refuses it: {error.orig}") from None

    def record_together(self, auctions: Sequence[ServedAuction]) -> list[Exception | None]:
        """`record` of each, in one transaction, for the disk confirms ten as quickly as one.

        Returns what `record` would have raised, for each: where one is refused, each is written alone.
        """
        try:
            for auction in auctions:
                self._check(auction)
            self._write(auctions)
        except (IntegrityError, DataError, StoreError):
            return [self._refusal(auction) for auction in auctions]
        return [None] * len(auctions)

    def _check(self, auction: ServedAuction) -> None:
        check_auction(auction)
        ledger.denominate(self.database, auction.currency)

    def _refusal(self, auction: ServedAuction) -> Exception | None:
        try:
            self.record(auction)
        except (StoreError, SQLAlchemyError) as error:
            return error
        return None

    def _write(self, auctions: Sequence[ServedAuction]) -> None:
        with self.database.writing() as session:
            put_auctions(session, auctions)

    def click(
        self,
        claims: Claims,
        now: dt.datetime,
        automatic: Invalid | None = None,
        limits: ClickLimits = billing.NO_LIMITS,
    ) -> Charge:
        """Log a click whose token has verified, and charge it at most once per impression; see
        `billing.log_click`.

        Raises:
            UnknownError: the store has no such impression.
        """
        with self.database.writing() as session:
            return billing.log_click(session, claims, now, automatic, limits)

    def landing(self, claims: Claims) -> str:
        """The landing page of the ad of a token that has verified.

        Raises:
            UnknownError: its advertiser lists no such ad.
        """
        with self.database.reading() as session:
            ad = find_row(session, models.StoredAd, claims.ad_id)
            if find_row(session, models.StoredCampaign, ad.campaign_id).advertiser_id != claims.seat:
                raise UnknownError(f"ad {claims.ad_id!r} of advertiser {claims.seat!r} does not exist")
            return ad.url

    def clicks(self, advertiser_id: str, day: dt.date) -> list[clicks.Tally]:
        """An advertiser's clicks of a day (UTC) by campaign, outcome and reason."""
        with self.database.reading() as session:
            return clicks.tallies(session, advertiser_id, *_day(day))

    def invalid_clicks(self, auction_id: str) -> dict[str, dict[Invalid, int]]:
        """Impression id of an auction -> its invalid clicks by reason, where there are any."""
        with self.database.reading() as session:
            return clicks.invalid(session, auction_id)

    def settle(self, now: dt.datetime) -> list[Settlement]:
        """Bill what clicks under `resampled` have accrued, one sum per advertiser."""
        with self.database.reading() as session:
            accrued = models.StoredAdvertiser.accrued_micros > 0
            ids = session.scalars(select(models.StoredAdvertiser.id).where(accrued).order_by("id")).all()
        settled: list[Settlement] = []
        for id in ids:
            with self.database.writing() as session:
                settlement = billing.settle_advertiser(session, id, now)
            if settlement is not None:
                settled.append(settlement)
        return settled

    def void(self, advertiser_id: str, line: int, now: dt.datetime) -> models.StoredEntry:
        """Take back what a charge or accrual of invalid traffic took; the same line again changes nothing.

        Raises:
            UnknownError: that line is no charge or accrual of this advertiser.
        """
        with self.database.writing() as session:
            return billing.void(session, advertiser_id, line, now)

    def convert(
        self, click_id: str, order_id: str, value: Micros, advertiser_id: str | None, now: dt.datetime
    ) -> models.StoredConversion:
        """Book a conversion of a click, for ``advertiser_id`` (None: any); the same again changes nothing.

        Raises:
            UnknownError: no such click that counts, or another advertiser's.
            ClashError: the order was booked for this click with another value.
        """
        with self.database.writing() as session:
            click = session.get(models.StoredClick, click_id, with_for_update=True)
            if click is None or click.outcome in REPEATED:
                raise UnknownError(f"click {click_id!r} does not exist")
            impression = session.get_one(models.StoredImpression, click.impression_id)
            if advertiser_id not in (None, impression.advertiser_id):
                raise UnknownError(f"click {click_id!r} does not exist")
            booked = session.scalar(
                select(models.StoredConversion).filter_by(click_id=click_id, order_id=order_id)
            )
            if booked is None:
                booked = models.StoredConversion(
                    id=new_id("cnv"), click_id=click_id, order_id=order_id, value_micros=value, at=now
                )
                session.add(booked)
                billing.tally_conversion(session, booked, impression)
            elif booked.value_micros != value:
                raise ClashError(f"order_id={order_id!r} was booked with {booked.value_micros} micros")
        return booked

    def auctions(
        self, since: dt.datetime, until: dt.datetime, test: bool | None = False
    ) -> Iterator[Served]:
        """Auctions of [since, until) with their clicks, oldest first; ``test`` None: test auctions too."""
        last: tuple[dt.datetime, str] | None = None
        while True:
            query = select(models.StoredAuction).where(
                models.StoredAuction.created >= since, models.StoredAuction.created < until
            )
            if test is not None:
                query = query.where(models.StoredAuction.test == test)
            if last is not None:
                at, id = last
                later = models.StoredAuction.created > at
                query = query.where(
                    or_(later, and_(models.StoredAuction.created == at, models.StoredAuction.id > id))
                )
            with self.database.reading() as session:
                page = session.scalars(
                    query.order_by(models.StoredAuction.created, models.StoredAuction.id).limit(_PAGE)
                ).all()
                auctions = read_auctions(session, page)
            yield from auctions
            if len(page) < _PAGE:
                return
            last = (page[-1].created, page[-1].id)

    def newest(self, version: str) -> Iterator[Served]:
        """Auctions that weight version ``version`` wrote, neither as a canary nor as a test, with their
        clicks, newest first."""
        row, last = models.StoredAuction, None
        while True:
            query = select(row).where(row.weight_version == version, ~row.canary, ~row.test)
            if last is not None:
                query = query.where(
                    or_(row.created < last[0], and_(row.created == last[0], row.id < last[1]))
                )
            with self.database.reading() as session:
                page = session.scalars(query.order_by(row.created.desc(), row.id.desc()).limit(_PAGE)).all()
                auctions = read_auctions(session, page)
            yield from auctions
            if len(page) < _PAGE:
                return
            last = (page[-1].created, page[-1].id)

    def auction(self, id: str) -> Served:
        """One auction with its clicks.

        Raises:
            UnknownError: there is none of that id.
        """
        with self.database.reading() as session:
            return read_auctions(session, [find_row(session, models.StoredAuction, id)])[0]

    def changes(self, since: int) -> Changes:
        """What may compete, as far as it changed after the catalogue's version ``since``."""
        with self.database.reading() as session:
            return snapshot.changes(session, since)

    def spending(self, day: dt.date) -> dict[str, Micros]:
        """Campaign id -> what it has spent on a day, where that is anything."""
        with self.database.reading() as session:
            return snapshot.spending(session, day)

    def revenue(self, day: dt.date) -> Micros:
        """What the ledger has earned on a day (UTC): charges and accruals, less what was taken back."""
        start, end = _day(day)
        of_day = (models.StoredEntry.at >= start) & (models.StoredEntry.at < end)
        with self.database.reading() as session:
            return int(session.scalars(select(ledger.earned()).where(of_day)).one())

    def report(self, wanted: Wanted, offset: int, limit: int) -> Report:
        """What ads were shown, clicked and charged, from the tallies."""
        with self.database.reading() as session:
            return report_lines(session, wanted, offset, limit)

    def seen(self, user_id: str, since: dt.datetime) -> list[tuple[str, dt.datetime]]:
        """Campaigns whose ads a user was shown since then, and when; one pair per impression."""
        with self.database.reading() as session:
            return snapshot.seen(session, user_id, since)

    def charges(self, auction_id: str) -> list[models.StoredEntry]:
        """The lines of the ledger that one auction caused, in order."""
        query = select(models.StoredEntry).where(models.StoredEntry.auction_id == auction_id)
        with self.database.reading() as session:
            return list(session.scalars(query.order_by(models.StoredEntry.id)))

    def ledger(self, advertiser_id: str, after: int, limit: int) -> list[models.StoredEntry]:
        """An advertiser's lines of the ledger, from the one behind ``after``."""
        query = select(models.StoredEntry).where(
            models.StoredEntry.advertiser_id == advertiser_id, models.StoredEntry.id > after
        )
        with self.database.reading() as session:
            return list(session.scalars(query.order_by(models.StoredEntry.id).limit(limit)))


def open_store(url: str, must_exist: bool = False, field: str = SETTING) -> Store:
    """The store of a database URL, its tables made or brought up to date; errors name the ``field``.

    A SQLite file that is not there is made, unless it ``must_exist``.

    Raises:
        StoreError: no such database, not reachable, or of a newer raylla.
    """
    return Store(Database(url, must_exist, field))


def _day(day: dt.date) -> tuple[dt.datetime, dt.datetime]:
    """A day (UTC) as [since, until); the calendar's last one ends with the calendar."""
    start = dt.datetime.combine(day, dt.time(), dt.UTC)
    last = day == dt.date.max
    return start, dt.datetime.max.replace(tzinfo=dt.UTC) if last else start + dt.timedelta(days=1)
