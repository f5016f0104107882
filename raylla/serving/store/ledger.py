"""Double entry: a line of the ledger moves one amount from an account to another, and is sealed.

    kind        from        to
    charge      advertiser  revenue
    accrual     accrued     revenue                  a click under `resampled`, until it is settled
    settlement  advertiser  accrued
    payment     cash        advertiser
    invalid     invalid     advertiser or accrued    what a charge or accrual of invalid traffic took

An account's balance is what came in minus what went out, so that all of them sum to zero after every line.
`advertiser` and `accrued` are kept for each advertiser, the others for all.

A seal is the SHA-256 of the seal before it and of everything that the line says: who changes or removes a
line breaks the chain there. `post` is the only place where lines are written and balances change.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from enum import StrEnum

from sqlalchemy import ColumnElement, bindparam, case, func, insert, select, update
from sqlalchemy.orm import Session

from raylla.errors import StoreError
from raylla.serving.money.money import Micros
from raylla.serving.money.records import PriceRule
from raylla.serving.store import models
from raylla.serving.store.database import Database

SEALED = (
    *("id", "previous", "at", "kind", "debit", "credit", "amount_micros", "currency", "advertiser_id"),
    *("campaign_id", "auction_id", "impression_id", "click_id", "price_rule", "weight_version", "day"),
    *("spent_micros", "budget_micros", "through", "reference", "voids"),
)
"""What a seal covers, in this order."""


class Account(StrEnum):
    """Where money is."""

    ADVERTISER = "advertiser"
    """Payments minus what was billed."""
    REVENUE = "revenue"
    """What was charged or has accrued."""
    ACCRUED = "accrued"
    """Below zero by what clicks under `resampled` have earned and no settlement has billed yet."""
    INVALID = "invalid"
    """Below zero by what was taken back: revenue that invalid traffic had made."""
    CASH = "cash"
    """Below zero by what advertisers have paid."""


def accounts(kind: str, price_rule: str | None) -> tuple[Account, Account]:
    """The accounts that a line of ``kind`` moves its amount from and to.

    Raises:
        KeyError: there is no such kind.
    """
    taken = Account.ACCRUED if price_rule == PriceRule.RESAMPLED else Account.ADVERTISER
    return {
        "charge": (Account.ADVERTISER, Account.REVENUE),
        "accrual": (Account.ACCRUED, Account.REVENUE),
        "settlement": (Account.ADVERTISER, Account.ACCRUED),
        "payment": (Account.CASH, Account.ADVERTISER),
        "invalid": (Account.INVALID, taken),
    }[kind]


def legs(line: models.StoredEntry) -> tuple[tuple[Account, Micros], tuple[Account, Micros]]:
    """What a line does to its two accounts; the amounts sum to zero."""
    return (Account(line.debit), -line.amount_micros), (Account(line.credit), line.amount_micros)


def earned() -> ColumnElement[Micros]:
    """Of the lines of a query: charges and accruals minus what was taken back of them (SQL)."""
    line = models.StoredEntry
    given_back = (line.debit == Account.INVALID.value, -line.amount_micros)
    taken = (line.credit == Account.REVENUE.value, line.amount_micros)
    return func.coalesce(func.sum(case(taken, given_back, else_=0)), 0)


def seal(before: str, line: Mapping[str, object]) -> str:
    """The seal of a line behind one whose seal is ``before`` ("": it is the first), in hex."""
    said = json.dumps([before, *(_plain(line[name]) for name in SEALED)], separators=(",", ":"))
    return hashlib.sha256(said.encode()).hexdigest()


def sealed(before: str, line: models.StoredEntry) -> str:
    """`seal` of a row."""
    return seal(before, {name: getattr(line, name) for name in SEALED})


def denominate(database: Database, currency: str) -> None:
    """Say what the money of a store is; the currency that was said first is the store's, for good.

    Raises:
        StoreError: the store is in another.
    """
    if database.currency is None:
        with database.writing() as session:
            free = models.StoredBooks.currency == ""
            session.execute(update(models.StoredBooks).where(free).values(currency=currency))
            database.currency = session.scalars(select(models.StoredBooks.currency)).one()
    if database.currency != currency:
        raise StoreError(
            f"serving.currency={currency}: {database} is in {database.currency}, and a store has one "
            f"currency; set serving.currency={database.currency}, or serving.database to a store of its own"
        )


_END = select(
    models.StoredBooks.currency, models.StoredBooks.last, models.StoredBooks.seal
).with_for_update()
_ENDS = update(models.StoredBooks).values(last=bindparam("last_line"), seal=bindparam("last_seal"))
_MOVE = (
    update(models.StoredAdvertiser)
    .where(models.StoredAdvertiser.id == bindparam("advertiser"))
    .values(
        balance_micros=models.StoredAdvertiser.balance_micros + bindparam("balance"),
        accrued_micros=models.StoredAdvertiser.accrued_micros + bindparam("accrued"),
    )
)


def post(session: Session, lines: Sequence[models.StoredEntry]) -> None:
    """Write ``lines`` at the end of the ledger and move their amounts; balances follow.

    The last thing in a transaction: it takes the lock of the books, behind which every other line waits.
    The caller holds the locks of the advertisers.

    Raises:
        StoreError: a line is in another currency than the store.
    """
    if not lines:
        return
    session.flush()
    connection = session.connection()
    currency, last, end = connection.execute(_END).one()
    moved: dict[str, Counter[Account]] = defaultdict(Counter)
    for line in lines:
        if line.currency != currency:
            raise StoreError(
                f"{line.kind} of advertiser {line.advertiser_id} is in {line.currency}, the store is in "
                f"{currency or 'no currency yet'}: a store has one"
            )
        line.debit, line.credit = accounts(line.kind, line.price_rule)
        line.id, line.previous = last + 1, last
        line.seal = end = sealed(end, line)
        last = line.id
        for account, amount in legs(line):
            moved[line.advertiser_id][account] += amount
    rows = [{name: getattr(line, name) for name in (*SEALED, "seal")} for line in lines]
    connection.execute(insert(models.StoredEntry), rows)
    for advertiser_id, by in moved.items():
        balance, accrued = by[Account.ADVERTISER], -by[Account.ACCRUED]
        change = {"advertiser": advertiser_id, "balance": balance, "accrued": accrued}
        connection.execute(_MOVE, change)
    connection.execute(_ENDS, {"last_line": last, "last_seal": end})


def _plain(value: object) -> object:
    """A value as it is sealed, whatever database has kept it."""
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat(timespec="microseconds")
    return value.isoformat() if isinstance(value, dt.date) else value
