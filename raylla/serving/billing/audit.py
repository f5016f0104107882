"""Recomputes every balance, budget and charge from the ledger, and compares to the micro.

The ledger is read once, in order. Each line must follow the one before it, sealed as it was written
(`raylla.serving.billing.chain`), between the accounts of its kind, in the store's currency. Each charge
must be the price that its rule gives for the impression that it names, in the auction that showed it, for
a click that counted; each campaign's day must add up, never beyond the budget it was held against; each
settlement must be the sum of what it settles; each balance must be what all that leaves. Then the other
way: every click and impression that should have been charged was, once, and no other. Last, the tallies
that reports are served from, against what they count (`raylla.serving.billing.tallied`).
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError
from sqlalchemy import select, text
from sqlalchemy.orm import Session, defer

from raylla.serving.billing.chain import Chain
from raylla.serving.billing.findings import Audit
from raylla.serving.billing.quoted import QuotedPrices
from raylla.serving.billing.tallied import tallied
from raylla.serving.money import pricing
from raylla.serving.money.money import Micros
from raylla.serving.money.records import Impression, Outcome, PriceRule
from raylla.serving.store import Store, models
from raylla.serving.store.auctions import RECORD
from raylla.serving.store.clicks import REPEATED
from raylla.serving.store.ledger import Account

_BATCH = 5_000
_ENTERED = {"charged": "charge", "accrued": "accrual"}
"""Outcome of a click -> kind of its ledger line; other outcomes have none."""


@dataclass(slots=True)
class _Account:
    """An advertiser's account, as the ledger so far makes it."""

    balance: Micros = 0
    accruals: list[tuple[int, Micros]] = field(default_factory=list)
    """Unsettled ones, and what was taken back of any."""
    through: int = 0

    def bill(self, findings: Audit, amount: Micros) -> None:
        """The advertiser owes ``amount`` more."""
        self.balance -= amount
        findings.billed_micros += amount

    def accrue(self, findings: Audit, line: models.StoredEntry, amount: Micros) -> None:
        """``amount`` waits for the next settlement."""
        self.accruals.append((line.id, amount))
        if line.id <= self.through:
            findings.expect(f"ledger {line.id}", "accrual", "already settled", f"behind {self.through}")


@dataclass(slots=True)
class _Books:
    """What the ledger adds up to, and the daily budgets that campaigns have had."""

    accounts: dict[str, _Account] = field(default_factory=lambda: defaultdict(_Account))
    days: dict[tuple[str, dt.date], Micros] = field(default_factory=lambda: defaultdict(int))
    budgets: dict[str, set[Micros]] = field(default_factory=lambda: defaultdict(set))
    open: dict[int, tuple[str, str, Micros]] = field(default_factory=dict)
    """Charge or accrual that was not taken back: its kind, advertiser and amount."""


def audit(store: Store, known: Mapping[int, str] | None = None) -> Audit:
    """Audit the whole store, in one state of the database; ``known`` are seals noted before, by line."""
    findings = Audit()
    with store.database.reading() as session:
        if session.get_bind().dialect.name == "postgresql":
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        _triggers(session, findings)
        books = _Books()
        end = session.scalars(select(models.StoredBooks)).one()
        _ledger(session, findings, books, Chain(findings, end, known or {}))
        _advertisers(session, findings, books)
        _campaigns(session, findings, books)
        _clicks(session, findings, books)
        _impressions(session, findings, books)
        _auctions(session, findings, end.currency)
        tallied(session, findings)
    return findings


def _ledger(session: Session, findings: Audit, books: _Books, chain: Chain) -> None:
    """Check each line against what it is for, and add all of them up."""
    for budget in session.scalars(select(models.StoredBudget)):
        books.budgets[budget.campaign_id].add(budget.daily_budget_micros)
    entry = models.StoredEntry
    query = (
        select(
            entry,
            models.StoredImpression,
            models.StoredAuction,
            models.StoredClick,
            models.StoredCampaign.advertiser_id,
        )
        .outerjoin(models.StoredImpression, models.StoredImpression.id == entry.impression_id)
        .outerjoin(models.StoredAuction, models.StoredAuction.id == entry.auction_id)
        .outerjoin(models.StoredClick, models.StoredClick.id == entry.click_id)
        .outerjoin(models.StoredCampaign, models.StoredCampaign.id == entry.campaign_id)
        .options(defer(models.StoredAuction.record))
        .order_by(entry.id)
    )
    for row in session.execute(query.execution_options(yield_per=_BATCH)):
        line: models.StoredEntry = row[0]
        findings.counts["ledger"] += 1
        chain.take(line)
        account = books.accounts[line.advertiser_id]
        if line.kind in ("charge", "accrual"):
            _charge(findings, line, row[1], row[2], row[3], row[4])
            _day(findings, line, books)
            books.open[line.id] = line.kind, line.advertiser_id, line.amount_micros
        if line.kind == "charge":
            account.bill(findings, line.amount_micros)
        elif line.kind == "accrual":
            account.accrue(findings, line, line.amount_micros)
        elif line.kind == "settlement":
            _settlement(findings, line, account)
        elif line.kind == "invalid":
            _invalid(findings, line, account, books)
        else:
            findings.expect(f"ledger {line.id}", "kind", line.kind, "payment")
            account.balance += line.amount_micros
    chain.end()


def _charge(
    findings: Audit,
    line: models.StoredEntry,
    impression: models.StoredImpression | None,
    auction: models.StoredAuction | None,
    click: models.StoredClick | None,
    owner: str | None,
) -> None:
    """A charge against its impression, auction, click and campaign."""
    subject = f"ledger {line.id}"
    if impression is None or auction is None:
        findings.expect(
            subject, "impression and auction", (line.impression_id, line.auction_id), "in the store"
        )
        return
    try:
        rule = PriceRule(auction.price_rule)
        price = pricing.price(
            rule,
            impression.bid_micros,
            pctr=impression.pctr,
            resampled=impression.resampled,
            mu=auction.resample_share or 0.0,
            quoted=impression.price_micros,  # its auction's sheet said so: `QuotedPrices`
        )
    except ValueError as error:
        findings.expect(subject, "price of its impression", str(error), "one by the auction's rule")
        return
    findings.expect(subject, "amount_micros", line.amount_micros, price)
    findings.expect(subject, "price_rule", line.price_rule, auction.price_rule)
    findings.expect(subject, "weight_version", line.weight_version, auction.weight_version)
    findings.expect(subject, "currency", line.currency, auction.currency)
    findings.expect(subject, "auction_id", line.auction_id, impression.auction_id)
    findings.expect(subject, "campaign_id", line.campaign_id, impression.campaign_id)
    findings.expect(subject, "advertiser_id", line.advertiser_id, impression.advertiser_id)
    findings.expect(subject, "advertiser of the campaign", owner, line.advertiser_id)
    findings.expect(subject, "kind", line.kind, "accrual" if rule is PriceRule.RESAMPLED else "charge")
    findings.expect(subject, "test auction", auction.test, False)
    if pricing.charged_at(rule) == "impression":
        findings.expect(subject, "click_id", line.click_id, None)
    elif click is None:
        findings.expect(subject, "click_id", line.click_id, "a click in the store")
    else:
        findings.expect(subject, "impression of the click", click.impression_id, line.impression_id)
        findings.expect(subject, "kind for the click's outcome", line.kind, _ENTERED.get(click.outcome))


def _day(findings: Audit, line: models.StoredEntry, books: _Books) -> None:
    """A charge against its campaign's day: the running sum, and the budget."""
    subject, days = f"ledger {line.id}", books.days
    day = line.at.date()
    campaign = str(line.campaign_id)
    findings.expect(subject, "day", line.day, day)
    days[campaign, day] += max(line.amount_micros, 0)
    findings.expect(subject, "spent_micros", line.spent_micros, days[campaign, day])
    if line.budget_micros not in books.budgets[campaign]:
        findings.expect(subject, "budget_micros", line.budget_micros, f"a budget of {campaign}")
    elif line.amount_micros > 0 and days[campaign, day] > (line.budget_micros or 0):
        limit = f"at most {line.budget_micros}"
        findings.expect(subject, f"spend of {campaign} on {day}", days[campaign, day], limit)


def _settlement(findings: Audit, line: models.StoredEntry, account: _Account) -> None:
    """A settlement against the accruals that it bills."""
    through = line.through or 0
    due = sum(amount for id, amount in account.accruals if id <= through)
    findings.expect(f"ledger {line.id}", "amount_micros", line.amount_micros, due)
    account.accruals = [(id, amount) for id, amount in account.accruals if id > through]
    account.through = through
    account.bill(findings, line.amount_micros)


def _invalid(findings: Audit, line: models.StoredEntry, account: _Account, books: _Books) -> None:
    """What was taken back against the charge or accrual that had taken it."""
    kind, advertiser, amount = books.open.pop(line.voids or 0, (None, None, None))
    subject = f"ledger {line.id}"
    if kind is None:
        findings.expect(subject, "voids", line.voids, "a charge or accrual before it, once")
    else:
        findings.expect(subject, "amount_micros", line.amount_micros, amount)
        findings.expect(subject, "advertiser_id", line.advertiser_id, advertiser)
    if line.credit == Account.ACCRUED:
        account.accrue(findings, line, -line.amount_micros)
    else:
        account.bill(findings, -line.amount_micros)


def _advertisers(session: Session, findings: Audit, books: _Books) -> None:
    for row in session.scalars(select(models.StoredAdvertiser).order_by(models.StoredAdvertiser.id)):
        findings.counts["advertisers"] += 1
        account = books.accounts.get(row.id, _Account())
        accrued = sum(amount for _, amount in account.accruals)
        findings.expect(f"advertiser {row.id}", "balance_micros", row.balance_micros, account.balance)
        findings.expect(f"advertiser {row.id}", "accrued_micros", row.accrued_micros, accrued)


def _campaigns(session: Session, findings: Audit, books: _Books) -> None:
    days = books.days
    spent = {
        (row.campaign_id, row.day): row.spent_micros
        for row in session.scalars(select(models.StoredSpend))
        if row.spent_micros or (row.campaign_id, row.day) in days
    }
    for campaign_id, day in sorted(spent.keys() | days.keys()):
        subject = f"campaign {campaign_id} on {day}"
        findings.expect(
            subject, "spent_micros", spent.get((campaign_id, day)), days.get((campaign_id, day), 0)
        )
    last = {
        row.campaign_id: row.daily_budget_micros
        for row in session.scalars(select(models.StoredBudget).order_by(models.StoredBudget.id))
    }
    for campaign in session.scalars(select(models.StoredCampaign).order_by(models.StoredCampaign.id)):
        findings.counts["campaigns"] += 1
        budget = campaign.daily_budget_micros
        findings.expect(f"campaign {campaign.id}", "daily_budget_micros", budget, last.get(campaign.id))


def _clicks(session: Session, findings: Audit, books: _Books) -> None:
    """Every click has the ledger line that its outcome calls for, or none."""
    query = (
        select(models.StoredClick, models.StoredEntry.kind, models.StoredImpression)
        .join(models.StoredImpression, models.StoredImpression.id == models.StoredClick.impression_id)
        .outerjoin(models.StoredEntry, models.StoredEntry.click_id == models.StoredClick.id)
        .order_by(models.StoredClick.id)
    )
    for click, kind, impression in session.execute(query.execution_options(yield_per=_BATCH)):
        findings.counts["clicks"] += 1
        findings.expect(f"click {click.id}", "ledger line", kind, _ENTERED.get(click.outcome))
        invalid = click.outcome == Outcome.INVALID
        findings.counts["invalid clicks"] += invalid
        if invalid == (click.reason is None):
            wanted = "why the click is invalid" if invalid else None
            findings.expect(f"click {click.id}", "reason", click.reason, wanted)
        if click.outcome == Outcome.BUDGET:
            _refused(findings, f"click {click.id}", books, impression, click.at.date())
    first = select(models.StoredClick.impression_id).where(models.StoredClick.outcome.notin_(REPEATED))
    replays = select(models.StoredClick.id).where(
        models.StoredClick.outcome == Outcome.REPLAY, models.StoredClick.impression_id.notin_(first)
    )
    for id in session.scalars(replays.order_by(models.StoredClick.id)):
        findings.expect(f"click {id}", "outcome", "replay", "the impression's first")


def _refused(
    findings: Audit, subject: str, books: _Books, impression: models.StoredImpression, day: dt.date
) -> None:
    """What was refused for its budget would not have fitted: a day's spend only grows."""
    campaign = impression.campaign_id
    least = min(books.budgets[campaign], default=0)
    if books.days.get((campaign, day), 0) + impression.price_micros <= least:
        findings.expect(subject, "charge", "refused", f"made: {campaign} had budget left on {day}")


def _impressions(session: Session, findings: Audit, books: _Books) -> None:
    """Every impression is billed as its auction's rule says."""
    query = (
        select(
            models.StoredImpression,
            models.StoredAuction.price_rule,
            models.StoredAuction.test,
            models.StoredEntry.click_id,
            models.StoredEntry.id,
        )
        .join(models.StoredAuction, models.StoredAuction.id == models.StoredImpression.auction_id)
        .outerjoin(models.StoredEntry, models.StoredEntry.impression_id == models.StoredImpression.id)
        .order_by(models.StoredImpression.id)
    )
    for impression, rule, test, click_id, line in session.execute(
        query.execution_options(yield_per=_BATCH)
    ):
        findings.counts["impressions"] += 1
        subject = f"impression {impression.id}"
        if rule not in list(PriceRule):
            findings.expect(subject, "price_rule", rule, " or ".join(PriceRule))
            continue
        at_once = pricing.charged_at(PriceRule(rule)) == "impression"
        allowed = ("test",) if test else ("charged", "budget") if at_once else ("per_click",)
        if impression.billed not in allowed:
            findings.expect(subject, "billed", impression.billed, " or ".join(allowed))
        if impression.billed == "charged":
            findings.expect(subject, "ledger line", line is not None and click_id is None, True)
        elif impression.billed != "per_click":
            findings.expect(subject, "ledger line", line, None)
        if impression.billed == "budget":
            _refused(findings, subject, books, impression, impression.created.date())


def _auctions(session: Session, findings: Audit, currency: str) -> None:
    """Every auction's record agrees with the rows made from it."""
    shown: dict[str, dict[str, tuple[object, ...]]] = {}
    quoted = QuotedPrices(session, findings)
    broken = _broken(session)
    for id in broken:
        findings.expect(f"auction {id}", "record", "no JSON", "an auction as it was served")
    query = select(models.StoredAuction).order_by(models.StoredAuction.id)
    query = query.where(models.StoredAuction.id.notin_(broken)) if broken else query
    for page in session.scalars(query.execution_options(yield_per=_BATCH)).partitions():
        ids = [auction.id for auction in page]
        shown = defaultdict(dict)
        for row in session.scalars(
            select(models.StoredImpression).where(models.StoredImpression.auction_id.in_(ids))
        ):
            shown[row.auction_id][row.id] = _terms(row)
        for auction in page:
            findings.counts["auctions"] += 1
            subject = f"auction {auction.id}"
            findings.expect(subject, "currency", auction.currency, currency)
            try:
                served = RECORD.validate_python(auction.record)
            except ValidationError as error:
                findings.expect(subject, "record", _fault(error), "an auction as it was served")
                continue
            for name in ("price_rule", "weight_version", "currency", "resample_share", "test"):
                findings.expect(subject, name, getattr(auction, name), getattr(served, name))
            written = {impression.id: _terms(impression) for impression in served.impressions}
            findings.expect(subject, "impressions", shown[auction.id], written)
            if PriceRule.RESERVE in (auction.price_rule, served.price_rule):
                quoted.check(served)


def _broken(session: Session) -> list[str]:
    """Auctions whose record no longer is JSON; PostgreSQL keeps no other."""
    if session.get_bind().dialect.name == "postgresql":
        return []
    return list(session.scalars(text("SELECT id FROM auctions WHERE NOT json_valid(record)")))


def _fault(error: ValidationError) -> str:
    """The first thing that is wrong with a record, and where."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


_TERMS = ("ad_id", "campaign_id", "advertiser_id", "bid_micros", "price_micros", "pctr", "resampled")


def _terms(row: models.StoredImpression | Impression) -> tuple[object, ...]:
    return tuple(getattr(row, name) for name in _TERMS)


def _triggers(session: Session, findings: Audit) -> None:
    """The triggers that keep the books append-only are in place."""
    if session.get_bind().dialect.name == "postgresql":
        names = "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'D'"
    else:
        names = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    there = set(session.scalars(text(names)))
    for name in _wanted():
        findings.expect(f"trigger {name}", "state", "in place" if name in there else "missing", "in place")


def _wanted() -> Iterator[str]:
    for table in models.APPEND_ONLY:
        yield f"{table}_no_update"
        yield f"{table}_no_delete"
