"""Where money moves: impressions and clicks become lines of the ledger, budgets and balances follow.

Each function works inside the caller's transaction. It first takes the lock of the advertiser's row,
so that one advertiser's money moves one line at a time; several advertisers are taken in order of id.
The ledger itself comes last (`raylla.serving.store.ledger.post`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.orm import Session

from raylla.errors import UnknownError
from raylla.serving.money import pricing
from raylla.serving.money.money import Micros
from raylla.serving.money.records import (
    Charge,
    ClickLimits,
    Invalid,
    Outcome,
    PriceRule,
    Reason,
    ServedAuction,
)
from raylla.serving.security.tokens import Claims
from raylla.serving.store import clicks, ledger, models
from raylla.serving.store.clicks import REPEATED
from raylla.serving.store.clients import outbox
from raylla.serving.store.numbering import new_id
from raylla.serving.store.parties import locked
from raylla.serving.store.tallies import Tallies, of_auctions

REPEATS_LOGGED = 100
"""Clicks that do not count which are logged per impression: a token that is called without end fills no
disk."""
NO_LIMITS = ClickLimits()


@dataclass(frozen=True, slots=True)
class Settlement:
    """What an advertiser was billed for its clicks under `resampled` since the settlement before."""

    advertiser_id: str
    billed_micros: Micros
    accruals: int
    through: int


@dataclass(frozen=True, slots=True)
class _Shown:
    """What of an impression and its auction a line of the ledger says."""

    id: str
    auction_id: str
    ad_id: str
    campaign_id: str
    advertiser_id: str
    price_micros: Micros
    price_rule: str
    currency: str
    weight_version: str


_CLICKED = (
    select(
        *(models.StoredImpression.id, models.StoredImpression.auction_id, models.StoredImpression.ad_id),
        *(
            models.StoredImpression.campaign_id,
            models.StoredImpression.advertiser_id,
            models.StoredImpression.price_micros,
        ),
        *(
            models.StoredAuction.price_rule,
            models.StoredAuction.currency,
            models.StoredAuction.weight_version,
        ),
        *(
            models.StoredImpression.billed,
            models.StoredAd.url,
            models.StoredImpression.created,
            models.StoredImpression.user_id,
        ),
        func.coalesce(models.StoredImpression.seen, models.StoredImpression.created).label("seen"),
    )
    .join(models.StoredAuction, models.StoredAuction.id == models.StoredImpression.auction_id)
    .join(models.StoredAd, models.StoredAd.id == models.StoredImpression.ad_id)
    .join(models.StoredAdvertiser, models.StoredAdvertiser.id == models.StoredImpression.advertiser_id)
    .where(models.StoredImpression.id == bindparam("impression"))
    .with_for_update(key_share=True, of=models.StoredAdvertiser)
)
"""An impression with what a click on it needs, and the lock of its advertiser (`parties.locked`)."""
_OF_IMPRESSION = models.StoredClick.impression_id == bindparam("impression")
_FIRST = select(models.StoredClick.id).where(_OF_IMPRESSION, models.StoredClick.outcome.notin_(REPEATED))
_REPEATS = select(func.count(models.StoredClick.id)).where(
    _OF_IMPRESSION, models.StoredClick.outcome.in_(REPEATED)
)
_BEFORE = select(_FIRST.scalar_subquery().label("first"), _REPEATS.scalar_subquery().label("repeats"))
_CAMPAIGN = select(models.StoredCampaign.daily_budget_micros, models.StoredCampaign.burl).where(
    models.StoredCampaign.id == bindparam("campaign")
)
_OF_DAY = (models.StoredSpend.campaign_id == bindparam("campaign")) & (
    models.StoredSpend.day == bindparam("of_day")
)
_DAY = select(models.StoredSpend.spent_micros).where(_OF_DAY)
_AFTER = models.StoredSpend.spent_micros + bindparam("amount")
_BOOK = (
    update(models.StoredSpend)
    .where(_OF_DAY)
    .values(spent_micros=_AFTER)
    .returning(models.StoredSpend.spent_micros)
)
_WITHIN = _BOOK.where(bindparam("budget") >= _AFTER)
_COPIED = (
    *("id", "ad_id", "campaign_id", "advertiser_id", "bid_micros", "price_micros", "pctr", "resampled"),
)
"""Of an impression's row, those that are the record's own."""


def book_impressions(session: Session, auctions: Sequence[ServedAuction]) -> None:
    """Write the impressions of ``auctions``; under `expected`, bill each to its campaign's budget."""
    every = [(shown, auction) for auction in auctions for shown in auction.impressions]
    every.sort(key=lambda row: (row[0].advertiser_id, row[0].campaign_id, row[0].id))
    rows: list[dict[str, object]] = []
    lines: list[models.StoredEntry] = []
    tallies = of_auctions(auctions)
    for shown, auction in every:
        billed = "test" if auction.test else "per_click"
        if auction.price_rule is PriceRule.EXPECTED and not auction.test:
            locked(session, shown.advertiser_id)
            terms = auction.price_rule.value, auction.currency, auction.weight_version
            seat = shown.campaign_id, shown.advertiser_id
            of = _Shown(shown.id, auction.id, shown.ad_id, *seat, shown.price_micros, *terms)
            entry = _entry(session, "charge", of, None, auction.created)
            billed = "budget" if entry is None else "charged"
            if entry is not None:
                lines.append(entry)
                _tally(tallies, entry, shown.ad_id)
        copied = {name: getattr(shown, name) for name in _COPIED}
        of_auction = {"auction_id": auction.id, "user_id": auction.user_id, "created": auction.created}
        rows.append({**copied, **of_auction, "billed": billed, "seen": shown.seen})
    if rows:
        session.connection().execute(insert(models.StoredImpression), rows)  # the ledger's lines name them
    tallies.write(session.connection())
    ledger.post(session, lines)


def log_click(
    session: Session,
    claims: Claims,
    now: dt.datetime,
    automatic: Invalid | None = None,
    limits: ClickLimits = NO_LIMITS,
) -> Charge:
    """Log an authentic click and charge it, if it is the impression's first, in time and in budget.

    One that is ``automatic``, or would count and is beyond ``limits``, is invalid: it is charged nothing,
    and the impression waits for its true click as before.

    Raises:
        UnknownError: no such impression, or not the one that the claims describe.
    """
    session.flush()
    connection = session.connection()  # rows, not objects: clicks are many
    named = {"impression": claims.impression_id}
    click = connection.execute(_CLICKED, named).one_or_none()
    if click is None or not _describes(claims, click):
        raise UnknownError(f"impression {claims.impression_id!r} of this token is not in the store")
    *terms, billed, url, created, _, _ = click
    shown, rule = _Shown(*terms), PriceRule(click.price_rule)
    first, repeats = connection.execute(_BEFORE, named).one()
    entry, click_id, reason = None, new_id("clk"), automatic
    if reason is not None:
        outcome = Outcome.INVALID
    elif first is not None:
        outcome = Outcome.REPLAY
    elif claims.expired(now):
        outcome = Outcome.EXPIRED
    elif billed == "test":
        outcome = Outcome.TEST
    elif (reason := clicks.beyond(connection, click, claims, now, limits)) is not None:
        outcome = Outcome.INVALID
    elif rule is PriceRule.EXPECTED:
        outcome = Outcome.BILLED_AT_IMPRESSION
    else:
        outcome = Outcome.ACCRUED if rule is PriceRule.RESAMPLED else Outcome.CHARGED
        kind = "accrual" if outcome is Outcome.ACCRUED else "charge"
        entry = _entry(session, kind, shown, click_id, now)
        outcome = outcome if entry is not None else Outcome.BUDGET
    logged = outcome not in REPEATED or repeats < REPEATS_LOGGED
    if logged:
        row = {"id": click_id, "token_id": claims.token_id, "at": now, "outcome": outcome.value}
        row["reason"] = None if reason is None else reason.value
        connection.execute(insert(models.StoredClick), row | {"impression_id": shown.id})
    tallies, amount = Tallies(), 0
    if logged and billed != "test":
        tallies.click(outcome.value, now, created, shown.ad_id, shown.weight_version)
    if entry is not None:
        amount = entry.amount_micros
        _tally(tallies, entry, shown.ad_id)
    tallies.write(connection)
    if entry is not None:
        ledger.post(session, [entry])
    return Charge(first if first is not None else click_id, outcome, amount, url, reason)


def settle_advertiser(session: Session, advertiser_id: str, now: dt.datetime) -> Settlement | None:
    """Bill the sum of an advertiser's unsettled accruals; a sum of at most 0 waits for the next time."""
    advertiser = locked(session, advertiser_id)
    due = pricing.settle_period(advertiser.accrued_micros)
    if due.billed_micros == 0:
        return None
    line = models.StoredEntry
    of_it = line.advertiser_id == advertiser_id
    before = session.scalar(select(func.max(line.through)).where(of_it)) or 0
    accrual = line.kind == "accrual"
    taken_back = (line.kind == "invalid") & (line.credit == ledger.Account.ACCRUED.value)
    count, through, currency = session.execute(
        select(func.count().filter(accrual), func.max(line.id), func.max(line.currency)).where(
            of_it, line.id > before, accrual | taken_back
        )
    ).one()
    entry = models.StoredEntry(
        at=now,
        kind="settlement",
        amount_micros=due.billed_micros,
        currency=currency,
        advertiser_id=advertiser_id,
        price_rule=PriceRule.RESAMPLED.value,
        through=through,
    )
    ledger.post(session, [entry])
    return Settlement(advertiser_id, due.billed_micros, count, through)


def void(session: Session, advertiser_id: str, line_id: int, now: dt.datetime) -> models.StoredEntry:
    """Take back what a charge or accrual took, for its traffic was invalid; once, whoever asks how often.

    Raises:
        UnknownError: that line is no charge or accrual of this advertiser.
    """
    locked(session, advertiser_id)
    line = session.get(models.StoredEntry, line_id)
    if line is None or line.advertiser_id != advertiser_id or line.kind not in ("charge", "accrual"):
        raise UnknownError(f"line {line_id} is no charge or accrual of advertiser {advertiser_id!r}")
    booked = session.scalar(select(models.StoredEntry).filter_by(voids=line_id))
    if booked is None:
        same = ("amount_micros", "currency", "campaign_id", "auction_id", "price_rule", "weight_version")
        booked = models.StoredEntry(
            at=now,
            kind="invalid",
            advertiser_id=advertiser_id,
            voids=line_id,
            **{name: getattr(line, name) for name in same},
        )
        _tally_void(session, booked, line)
        ledger.post(session, [booked])
    return booked


def lose(session: Session, auctions: Sequence[ServedAuction]) -> None:
    """Tell campaigns that ask for it (lurl) which of their candidates the answers did not place."""
    lost = []
    for auction in auctions:
        placed = {shown.ad_id for shown in auction.impressions}
        lost += [
            (auction, candidate.listing)
            for candidate in auction.candidates
            if candidate.listing.ad.id not in placed
        ]
    ids = {listing.campaign_id for _, listing in lost}
    query = select(models.StoredCampaign).where(
        models.StoredCampaign.id.in_(ids), models.StoredCampaign.lurl.is_not(None)
    )
    listening = {campaign.id: campaign for campaign in session.scalars(query)} if ids else {}
    for auction, listing in lost:
        if listing.campaign_id in listening:
            outbox.lost(session, auction, listing, listening[listing.campaign_id], Reason.NOT_PLACED)


def tally_conversion(
    session: Session, booked: models.StoredConversion, impression: models.StoredImpression
) -> None:
    """Count a conversion that is booked, where it is of no test.

    Raises:
        MoneyError: the conversions of its ad would be worth more than 64 bits hold.
    """
    if impression.billed == "test":
        return
    of_auction = select(models.StoredAuction.weight_version).where(
        models.StoredAuction.id == impression.auction_id
    )
    version, tallies = session.scalars(of_auction).one(), Tallies()
    counts = {"conversions": 1, "conversion_micros": booked.value_micros}
    tallies.add(booked.at, impression.ad_id, version, **counts)
    tallies.check(session.connection(), "conversion_micros")
    tallies.write(session.connection())


def _tally(tallies: Tallies, entry: models.StoredEntry, ad_id: str) -> None:
    """What a line of an ad earned, in the tallies of its moment."""
    sign = -1 if entry.kind == "invalid" else 1
    tallies.add(entry.at, ad_id, str(entry.weight_version), charged_micros=sign * entry.amount_micros)


def _tally_void(session: Session, back: models.StoredEntry, line: models.StoredEntry) -> None:
    """Less was earned now, and the click that the ``line`` was for is an invalid one of when it came."""
    impression, click = models.StoredImpression, models.StoredClick
    query = select(impression.ad_id, impression.created, click.at, click.outcome)
    query = query.outerjoin(click, click.id == line.click_id).where(impression.id == line.impression_id)
    ad_id, shown, at, outcome = session.execute(query).one()
    tallies = Tallies()
    _tally(tallies, back, ad_id)
    if at is not None:
        of_click = outcome, at, shown, ad_id, str(line.weight_version)
        tallies.click(*of_click, by=-1)
        tallies.click(*of_click, taken_back=True)
    tallies.write(session.connection())


def _describes(claims: Claims, impression: Any) -> bool:
    said = (claims.auction_id, claims.ad_id, claims.seat)
    if said != (impression.auction_id, impression.ad_id, impression.advertiser_id):
        return False
    at_once = pricing.charged_at(PriceRule(impression.price_rule)) == "impression"
    return claims.price_micros == impression.price_micros or (at_once and claims.price_micros == 0)


def _entry(
    session: Session, kind: str, shown: _Shown, click_id: str | None, at: dt.datetime
) -> models.StoredEntry | None:
    """The line, its amount taken from the campaign's day and its notice queued; None where the budget does
    not hold the price."""
    amount, day = shown.price_micros, at.astimezone(dt.UTC).date()
    budget, burl = session.connection().execute(_CAMPAIGN, {"campaign": shown.campaign_id}).one()
    spent = _debit(session, shown.campaign_id, day, max(amount, 0), budget)
    if spent is None:
        return None
    entry = models.StoredEntry(
        at=at,
        kind=kind,
        amount_micros=amount,
        currency=shown.currency,
        advertiser_id=shown.advertiser_id,
        campaign_id=shown.campaign_id,
        auction_id=shown.auction_id,
        impression_id=shown.id,
        click_id=click_id,
        price_rule=shown.price_rule,
        weight_version=shown.weight_version,
        day=day,
        spent_micros=spent,
        budget_micros=budget,
    )
    if burl is not None:
        outbox.billed(session, entry, shown.ad_id, burl)
    return entry


def _debit(
    session: Session, campaign_id: str, day: dt.date, amount: Micros, budget: Micros
) -> Micros | None:
    """Add to a day's spend unless it would pass the budget, in one conditional UPDATE."""
    connection, of_day = session.connection(), {"campaign": campaign_id, "of_day": day}
    change, given = _BOOK, of_day | {"amount": amount}
    if amount:  # a rebate is booked whatever is left
        change, given = _WITHIN, given | {"budget": budget}
    spent: Micros | None = connection.execute(change, given).scalar_one_or_none()
    if spent is None and connection.execute(_DAY, of_day).one_or_none() is None:
        fresh = {"campaign_id": campaign_id, "day": day, "spent_micros": 0}
        connection.execute(insert(models.StoredSpend), fresh)
        spent = connection.execute(change, given).scalar_one_or_none()
    return spent
