"""Where money moves: impressions and clicks become lines of the ledger, budgets and balances follow.

Each function works inside the caller's transaction. It first takes the lock of the advertiser's row,
so that one advertiser's money moves one line at a time; several advertisers are taken in order of id.
The ledger itself comes last (`raylla.serving.store.ledger.post`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, defer

from raylla.errors import UnknownError
from raylla.serving.money import pricing
from raylla.serving.money.money import Micros
from raylla.serving.money.records import Charge, Outcome, PriceRule, Reason, ServedAuction
from raylla.serving.security.tokens import Claims
from raylla.serving.store import ledger, models, outbox
from raylla.serving.store.parties import locked, new_id

REPEATED = (Outcome.REPLAY.value, Outcome.EXPIRED.value)
"""Outcomes of clicks that do not count."""
REPEATS_LOGGED = 100
"""Such clicks that are logged per impression: a token that is called without end fills no disk."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What an advertiser was billed for its clicks under `resampled` since the settlement before."""

    advertiser_id: str
    billed_micros: Micros
    accruals: int
    through: int


@dataclass(frozen=True, slots=True)
class _Line:
    """What a ledger line is for."""

    kind: str
    auction: models.Auction
    impression: models.Impression
    click_id: str | None
    at: dt.datetime


def add_impressions(session: Session, auctions: Sequence[tuple[ServedAuction, models.Auction]]) -> None:
    """Write the impressions of ``auctions``; under `expected`, bill each to its campaign's budget."""
    every = [(shown, auction, row) for auction, row in auctions for shown in auction.impressions]
    every.sort(key=lambda one: (one[0].advertiser_id, one[0].campaign_id, one[0].id))
    lines: list[models.Entry] = []
    for shown, auction, row in every:
        impression = models.Impression(
            id=shown.id,
            auction_id=auction.id,
            ad_id=shown.ad_id,
            campaign_id=shown.campaign_id,
            advertiser_id=shown.advertiser_id,
            user_id=auction.user_id,
            created=auction.created,
            bid_micros=shown.bid_micros,
            price_micros=shown.price_micros,
            pctr=shown.pctr,
            resampled=shown.resampled,
            billed="test" if auction.test else "per_click",
        )
        entry = None
        if auction.price_rule is PriceRule.EXPECTED and not auction.test:
            locked(session, shown.advertiser_id)
            entry = _entry(session, _Line("charge", row, impression, None, auction.created))
            impression.billed = "budget" if entry is None else "charged"
        session.add(impression)
        if entry is not None:
            lines.append(entry)
            outbox.billed(session, entry, impression)
    session.flush()  # the ledger's lines name them
    ledger.post(session, lines)


def click(session: Session, claims: Claims, now: dt.datetime) -> Charge:
    """Log an authentic click and charge it, if it is the impression's first, in time and in budget.

    Raises:
        UnknownError: no such impression, or not the one that the claims describe.
    """
    impression = session.get(models.Impression, claims.impression_id)
    if impression is None or not _describes(claims, impression):
        raise UnknownError(f"impression {claims.impression_id!r} of this token is not in the store")
    locked(session, impression.advertiser_id)
    terms = [defer(models.Auction.record)]  # the record is long and not needed here
    auction = session.get_one(models.Auction, impression.auction_id, options=terms)
    url = session.get_one(models.Ad, impression.ad_id).url
    counted = (models.Click.impression_id == impression.id) & models.Click.outcome.notin_(REPEATED)
    first = session.scalar(select(models.Click).where(counted))
    entry, click_id = None, new_id("clk")
    if first is not None:
        outcome = Outcome.REPLAY
    elif claims.expired(now):
        outcome = Outcome.EXPIRED
    elif impression.billed == "test":
        outcome = Outcome.TEST
    elif auction.price_rule == PriceRule.EXPECTED:
        outcome = Outcome.BILLED_AT_IMPRESSION
    else:
        outcome = Outcome.ACCRUED if auction.price_rule == PriceRule.RESAMPLED else Outcome.CHARGED
        kind = "accrual" if outcome is Outcome.ACCRUED else "charge"
        entry = _entry(session, _Line(kind, auction, impression, click_id, now))
        outcome = outcome if entry is not None else Outcome.BUDGET
    if outcome not in REPEATED or _repeats(session, impression.id) < REPEATS_LOGGED:
        row = models.Click(id=click_id, token_id=claims.token_id, impression_id=impression.id, at=now)
        row.outcome = outcome.value
        session.add(row)
        session.flush()  # the ledger's line names it
    if entry is not None:
        outbox.billed(session, entry, impression)
        ledger.post(session, [entry])
    amount = entry.amount_micros if entry is not None else 0
    return Charge(first.id if first is not None else click_id, outcome, amount, url)


def settle(session: Session, advertiser_id: str, now: dt.datetime) -> Settlement | None:
    """Bill the sum of an advertiser's unsettled accruals; a sum of at most 0 waits for the next time."""
    advertiser = locked(session, advertiser_id)
    due = pricing.settle(advertiser.accrued_micros)
    if due.billed_micros == 0:
        return None
    line = models.Entry
    of_it = line.advertiser_id == advertiser_id
    before = session.scalar(select(func.max(line.through)).where(of_it)) or 0
    accrual = line.kind == "accrual"
    taken_back = (line.kind == "invalid") & (line.credit == ledger.Account.ACCRUED.value)
    count, through, currency = session.execute(
        select(func.count().filter(accrual), func.max(line.id), func.max(line.currency)).where(
            of_it, line.id > before, accrual | taken_back
        )
    ).one()
    entry = models.Entry(
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


def void(session: Session, advertiser_id: str, line_id: int, now: dt.datetime) -> models.Entry:
    """Take back what a charge or accrual took, for its traffic was invalid; once, whoever asks how often.

    Raises:
        UnknownError: that line is no charge or accrual of this advertiser.
    """
    locked(session, advertiser_id)
    line = session.get(models.Entry, line_id)
    if line is None or line.advertiser_id != advertiser_id or line.kind not in ("charge", "accrual"):
        raise UnknownError(f"line {line_id} is no charge or accrual of advertiser {advertiser_id!r}")
    booked = session.scalar(select(models.Entry).filter_by(voids=line_id))
    if booked is None:
        same = ("amount_micros", "currency", "campaign_id", "auction_id", "price_rule", "weight_version")
        booked = models.Entry(
            at=now,
            kind="invalid",
            advertiser_id=advertiser_id,
            voids=line_id,
            **{name: getattr(line, name) for name in same},
        )
        ledger.post(session, [booked])
    return booked


def lose(session: Session, auctions: Sequence[ServedAuction]) -> None:
    """Tell campaigns that ask for it (lurl) which of their candidates the answers did not place."""
    lost = []
    for auction in auctions:
        placed = {shown.ad_id for shown in auction.impressions}
        lost += [(auction, one.listing) for one in auction.candidates if one.listing.ad.id not in placed]
    ids = {listing.campaign_id for _, listing in lost}
    query = select(models.Campaign).where(models.Campaign.id.in_(ids), models.Campaign.lurl.is_not(None))
    listening = {campaign.id: campaign for campaign in session.scalars(query)} if ids else {}
    for auction, listing in lost:
        if listing.campaign_id in listening:
            outbox.lost(session, auction, listing, listening[listing.campaign_id], Reason.NOT_PLACED)


def _repeats(session: Session, impression_id: str) -> int:
    repeated = (models.Click.impression_id == impression_id) & models.Click.outcome.in_(REPEATED)
    return session.scalars(select(func.count()).select_from(models.Click).where(repeated)).one()


def _describes(claims: Claims, impression: models.Impression) -> bool:
    said = (claims.auction_id, claims.ad_id, claims.seat, claims.price_micros)
    return said == (
        impression.auction_id,
        impression.ad_id,
        impression.advertiser_id,
        impression.price_micros,
    )


def _entry(session: Session, line: _Line) -> models.Entry | None:
    """The line, its amount taken from the campaign's day; None where the budget does not hold the price."""
    impression, auction = line.impression, line.auction
    amount, day = impression.price_micros, line.at.astimezone(dt.UTC).date()
    budget = session.scalars(
        select(models.Campaign.daily_budget_micros).where(models.Campaign.id == impression.campaign_id)
    ).one()
    spent = _debit(session, impression.campaign_id, day, max(amount, 0), budget)
    if spent is None:
        return None
    return models.Entry(
        at=line.at,
        kind=line.kind,
        amount_micros=amount,
        currency=auction.currency,
        advertiser_id=impression.advertiser_id,
        campaign_id=impression.campaign_id,
        auction_id=auction.id,
        impression_id=impression.id,
        click_id=line.click_id,
        price_rule=auction.price_rule,
        weight_version=auction.weight_version,
        day=day,
        spent_micros=spent,
        budget_micros=budget,
    )


def _debit(
    session: Session, campaign_id: str, day: dt.date, amount: Micros, budget: Micros
) -> Micros | None:
    """Add to a day's spend unless it would pass the budget, in one conditional UPDATE."""
    if session.get(models.Spend, (campaign_id, day)) is None:
        session.add(models.Spend(campaign_id=campaign_id, day=day, spent_micros=0))
        session.flush()
    change = (
        update(models.Spend)
        .where(models.Spend.campaign_id == campaign_id, models.Spend.day == day)
        .values(spent_micros=models.Spend.spent_micros + amount)
        .returning(models.Spend.spent_micros)
    )
    if amount:  # a rebate is booked whatever is left
        change = change.where(models.Spend.spent_micros + amount <= budget)
    return session.execute(change).scalar_one_or_none()
