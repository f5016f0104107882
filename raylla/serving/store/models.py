"""The tables of the endpoint's store.

Money is whole micros in 64 bits, times are UTC. `ledger`, `budgets`, `auctions`, `impressions`,
`clicks` and `conversions` are append-only: triggers of the migrations refuse UPDATE and DELETE.
Nothing but clients' responses is ever deleted, so every charge can be followed to what it was for.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Date,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.exc import DontWrapMixin
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from raylla.errors import TextError

APPEND_ONLY = ("ledger", "budgets", "auctions", "impressions", "clicks", "conversions")
_HALF = re.compile("[\ud800-\udfff]")
Serial = BigInteger().with_variant(Integer, "sqlite")


class Utc(TypeDecorator[dt.datetime]):
    """A moment, always in UTC, on databases with time zones and without."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        return None if value is None else value.astimezone(dt.UTC)

    def process_result_value(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


class UnstorableError(TextError, DontWrapMixin):
    """As it is, not inside an error of SQLAlchemy's."""


class Text(TypeDecorator[str]):
    """Text of whole characters without NUL: PostgreSQL takes no other, so that SQLite shall not either."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None or value.isprintable():
            return value
        if "\0" in value or _HALF.search(value):
            raise UnstorableError(
                f"text {value[:80]!r} holds a NUL character or half a surrogate pair; remove it"
            )
        return value


class Base(DeclarativeBase):
    """Maps Python types to columns, and names constraints alike on every database."""

    type_annotation_map = {  # noqa: RUF012
        str: Text,
        int: BigInteger,
        dt.datetime: Utc,
        dt.date: Date,
        list[str]: JSON,
        Any: JSON,
    }
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class StoredCounter(Base):
    """A number that only grows: `catalogue` (changes), `ad` (last ad id given), `row` (rows of ads)."""

    __tablename__ = "counters"
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int]


class StoredAdvertiser(Base):
    """Who pays. ``balance_micros`` is payments minus charges; ``accrued_micros`` awaits settlement."""

    __tablename__ = "advertisers"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    domain: Mapped[str]
    created: Mapped[dt.datetime]
    balance_micros: Mapped[int] = mapped_column(default=0)
    accrued_micros: Mapped[int] = mapped_column(default=0)


class StoredCampaign(Base):
    """A daily budget and what is to be spent on it. ``version`` is the catalogue's at its last change."""

    __tablename__ = "campaigns"
    id: Mapped[str] = mapped_column(primary_key=True)
    advertiser_id: Mapped[str] = mapped_column(ForeignKey("advertisers.id"), index=True)
    name: Mapped[str]
    daily_budget_micros: Mapped[int]
    pacing: Mapped[str]
    cap_impressions: Mapped[int | None]
    cap_hours: Mapped[int | None]
    burl: Mapped[str | None]
    lurl: Mapped[str | None]
    paused: Mapped[bool]
    created: Mapped[dt.datetime]
    version: Mapped[int] = mapped_column(index=True)


class StoredAd(Base):
    """A listed ad; ``row`` counts them in order of listing. Its texts never change."""

    __tablename__ = "ads"
    id: Mapped[str] = mapped_column(primary_key=True)
    row: Mapped[int] = mapped_column(unique=True)
    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.id"), index=True)
    title: Mapped[str]
    category: Mapped[str]
    theme: Mapped[str]
    description: Mapped[str] = mapped_column(default="", server_default="")
    url: Mapped[str]
    labels: Mapped[list[str]]
    bid_micros: Mapped[int]
    paused: Mapped[bool]
    created: Mapped[dt.datetime]
    version: Mapped[int] = mapped_column(index=True)


class StoredBudget(Base):
    """History of a campaign's daily budgets: in force from ``at`` until the next row."""

    __tablename__ = "budgets"
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012
    id: Mapped[int] = mapped_column(Serial, primary_key=True)
    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.id"), index=True)
    at: Mapped[dt.datetime]
    daily_budget_micros: Mapped[int]


class StoredSpend(Base):
    """What a campaign has spent on a day (UTC), rebates not counted back."""

    __tablename__ = "spend"
    __table_args__ = (Index("ix_spend_day", "day"),)
    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.id"), primary_key=True)
    day: Mapped[dt.date] = mapped_column(primary_key=True)
    spent_micros: Mapped[int]


class StoredFloor(Base):
    """The least bid per click in a category."""

    __tablename__ = "floors"
    category: Mapped[str] = mapped_column(primary_key=True)
    floor_micros: Mapped[int]


class StoredAuction(Base):
    """A served auction; ``record`` is the whole `ServedAuction`."""

    __tablename__ = "auctions"
    __table_args__ = (Index("ix_auctions_created_id", "created", "id"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(index=True)
    created: Mapped[dt.datetime]
    weight_version: Mapped[str]
    price_rule: Mapped[str]
    currency: Mapped[str]
    resample_share: Mapped[float | None]
    canary: Mapped[bool]
    test: Mapped[bool]
    record: Mapped[Any]


class StoredImpression(Base):
    """An ad that was shown. ``billed``: charged, budget or test at once, or per_click; ``seen`` is when its
    text was released (None: it was not noted, and is as ``created``)."""

    __tablename__ = "impressions"
    __table_args__ = (Index("ix_impressions_user_id_created", "user_id", "created"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    auction_id: Mapped[str] = mapped_column(ForeignKey("auctions.id"), index=True)
    ad_id: Mapped[str] = mapped_column(ForeignKey("ads.id"))
    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.id"))
    advertiser_id: Mapped[str] = mapped_column(ForeignKey("advertisers.id"))
    user_id: Mapped[str | None]
    created: Mapped[dt.datetime]
    bid_micros: Mapped[int]
    price_micros: Mapped[int]
    pctr: Mapped[float]
    resampled: Mapped[bool]
    billed: Mapped[str]
    seen: Mapped[dt.datetime | None]


class StoredClick(Base):
    """An authentic click. One per impression counts; the others are replays, came too late, or are invalid
    for a ``reason`` (`raylla.serving.money.records.Invalid`)."""

    __tablename__ = "clicks"
    __table_args__ = (
        Index("ix_clicks_impression_id", "impression_id"),
        Index("ix_clicks_at", "at"),
        Index(
            "uq_clicks_first",
            "impression_id",
            unique=True,
            sqlite_where=text("outcome NOT IN ('replay', 'expired', 'invalid')"),
            postgresql_where=text("outcome NOT IN ('replay', 'expired', 'invalid')"),
        ),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    token_id: Mapped[str]
    impression_id: Mapped[str] = mapped_column(ForeignKey("impressions.id"))
    at: Mapped[dt.datetime]
    outcome: Mapped[str]
    reason: Mapped[str | None]


class StoredConversion(Base):
    """What a click led to; ``order_id`` is the advertiser's, once per click."""

    __tablename__ = "conversions"
    __table_args__ = (UniqueConstraint("click_id", "order_id"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    click_id: Mapped[str] = mapped_column(ForeignKey("clicks.id"))
    order_id: Mapped[str]
    value_micros: Mapped[int]
    at: Mapped[dt.datetime]


class StoredBooks(Base):
    """The one row about the ledger: the store's currency ("": none is named), the last line, its seal."""

    __tablename__ = "books"
    id: Mapped[int] = mapped_column(Serial, primary_key=True)
    currency: Mapped[str]
    last: Mapped[int]
    seal: Mapped[str]


class StoredEntry(Base):
    """A line of the ledger (`raylla.serving.store.ledger`).

    kind        amount_micros                     names
    charge      what the advertiser owes          impression, click (none where billed at the impression)
    accrual     the same, until settled; < 0 is a rebate     impression, click
    settlement  sum of accruals up to ``through``
    payment     what the advertiser paid          ``reference``, once per advertiser
    invalid     that of the line ``voids``, taken back       auction

    Charges and accruals carry the campaign's ``spent_micros`` of the ``day`` after it and the
    ``budget_micros`` that it was held against. The amount goes from account ``debit`` to ``credit``;
    ``previous`` is the line before (0: it is the first), ``seal`` covers that one's seal and this line.
    """

    __tablename__ = "ledger"
    __table_args__ = (
        UniqueConstraint("impression_id"),
        UniqueConstraint("advertiser_id", "reference"),
        Index("uq_ledger_voids", "voids", unique=True),
        Index("ix_ledger_advertiser_id_id", "advertiser_id", "id"),
        {"sqlite_autoincrement": True},
    )
    id: Mapped[int] = mapped_column(Serial, primary_key=True)
    at: Mapped[dt.datetime] = mapped_column(index=True)
    kind: Mapped[str]
    amount_micros: Mapped[int]
    currency: Mapped[str]
    advertiser_id: Mapped[str] = mapped_column(ForeignKey("advertisers.id"))
    campaign_id: Mapped[str | None] = mapped_column(ForeignKey("campaigns.id"))
    auction_id: Mapped[str | None] = mapped_column(ForeignKey("auctions.id"), index=True)
    impression_id: Mapped[str | None] = mapped_column(ForeignKey("impressions.id"))
    click_id: Mapped[str | None] = mapped_column(ForeignKey("clicks.id"))
    price_rule: Mapped[str | None]
    weight_version: Mapped[str | None]
    day: Mapped[dt.date | None]
    spent_micros: Mapped[int | None]
    budget_micros: Mapped[int | None]
    through: Mapped[int | None]
    reference: Mapped[str | None]
    debit: Mapped[str]
    credit: Mapped[str]
    voids: Mapped[int | None]
    previous: Mapped[int]
    seal: Mapped[str]


class StoredApiKey(Base):
    """An API key: the SHA-256 of its secret, never the secret; ``links`` as `raylla.config.Links`."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]
    advertiser_id: Mapped[str | None] = mapped_column(ForeignKey("advertisers.id"))
    name: Mapped[str]
    digest: Mapped[str]
    created: Mapped[dt.datetime]
    revoked: Mapped[dt.datetime | None]
    links: Mapped[str | None]


class StoredNotice(Base):
    """A billing or loss notice on its way: ``due`` is its next attempt, none once sent or given up.

    ``destination`` is whom its URL reaches (`raylla.serving.security.addresses`), "" where it cannot be
    called.
    """

    __tablename__ = "notices"
    __table_args__ = (Index("ix_notices_destination_due", "destination", "due"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    advertiser_id: Mapped[str] = mapped_column(ForeignKey("advertisers.id"))
    kind: Mapped[str]
    url: Mapped[str]
    body: Mapped[Any]
    created: Mapped[dt.datetime]
    attempts: Mapped[int] = mapped_column(default=0)
    due: Mapped[dt.datetime | None] = mapped_column(index=True)
    sent: Mapped[dt.datetime | None]
    error: Mapped[str | None]
    destination: Mapped[str]


class StoredSheet(Base):
    """A price sheet that auctions were charged by, as the file was; ``digest`` is its SHA-256."""

    __tablename__ = "price_sheets"
    digest: Mapped[str] = mapped_column(primary_key=True)
    text: Mapped[str]
    since: Mapped[dt.datetime]


class StoredResponse(Base):
    """A response of the Responses API, deleted when its client says so.

    ``turns`` is what its request and its answer say, as [role, text]; it goes on from ``previous_id``.
    """

    __tablename__ = "responses"
    id: Mapped[str] = mapped_column(primary_key=True)
    key_id: Mapped[str]
    previous_id: Mapped[str | None]
    created: Mapped[dt.datetime]
    turns: Mapped[Any]
    body: Mapped[Any]
