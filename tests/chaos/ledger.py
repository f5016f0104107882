"""`python -m tests.chaos.ledger`: seeded events to a store and to a second ledger, which must agree.

Auctions, clicks, replays, late clicks, settlements, payments, payments again, charges taken back, changed
budgets and the passing of days. Now and then the process that works on a transaction is killed at a drawn
statement or right behind its commit, and what it was about is sent again, as a client would.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import event as hooks
from sqlalchemy import select
from sqlalchemy.orm import Session

from raylla.serving.billing.audit import audit
from raylla.serving.money.records import Listing, PriceRule, ServedAuction
from raylla.serving.security.tokens import Claims
from raylla.serving.store import Store, billing, models, open_store
from raylla.serving.store.auctions import check_auction, put_auctions
from raylla.serving.store.parties import put_payment
from tests.chaos.second import Second, Shown
from tests.unit.serving.market import UNIT, Market

ADVERTISERS, CAMPAIGNS = 8, 24
TTL = 6 * 3600.0
AT_ONCE = 100
"""Events of one transaction."""
RECENT = 4000
"""Impressions that may still be clicked."""
RULES = list(PriceRule)


@dataclass(frozen=True)
class Event:
    """Something to do in a transaction: what it is called, to the store, and to the second ledger."""

    kind: str
    store: Callable[[Session], object]
    second: Callable[[], object]


@dataclass
class Report:
    """What happened, and where the two ledgers differ."""

    events: Counter[str] = field(default_factory=Counter)
    differences: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def expect(self, what: str, found: object, expected: object) -> None:
        """Note a difference unless both are equal."""
        if found != expected:
            self.differences[what] += 1
            if len(self.examples) < 20:
                self.examples.append(f"{what}: the store has {found}, the second ledger {expected}")


class Trading:
    """Draws events, and has both ledgers live through them."""

    def __init__(self, url: str, seed: int) -> None:
        self.url, self.rng = url, random.Random(seed)
        self.store = open_store(url)
        self.second, self.report = Second(), Report()
        self.market = Market(self.store, dt.datetime(2026, 11, 25, tzinfo=dt.UTC))
        self.seats = [self.market.seat(f"Seat{number}") for number in range(ADVERTISERS)]
        self.listings = [self._listing(number) for number in range(CAMPAIGNS)]
        self.recent: deque[tuple[Shown, Claims]] = deque(maxlen=RECENT)
        self.payments: deque[tuple[str, str, int]] = deque(maxlen=200)
        self.store.denominate("USD")
        self.stopped = False

    def stop(self, *_: object) -> None:
        """Compare what has happened so far, and end."""
        self.stopped = True

    def run(self, events: int, crash_every: int, say: Callable[[str], None]) -> Report:
        """Some ``events``, with a crash every so many, then a comparison of everything."""
        done, crash, told = 0, crash_every, time.monotonic()
        while done < events and not self.stopped:
            self.market.now += dt.timedelta(seconds=self.rng.randint(0, 1200))
            batch = [self._draw() for _ in range(AT_ONCE)]
            if done >= crash:
                crash += crash_every
                done += self._killed(batch)
            for part in self._parts(batch):
                with self.store.database.writing() as session:
                    self._act(session, part)
            done += len(batch)
            if time.monotonic() - told > 60:
                told = time.monotonic()
                say(f"{done} events, {sum(self.report.differences.values())} differences\n")
                sys.stdout.flush()
                self._compare_balances()
        self._compare_balances()
        self._compare_lines()
        return self.report

    def _parts(self, batch: list[Event]) -> list[list[Event]]:
        """Mostly all in one transaction, now and then each in one of its own."""
        return [[one] for one in batch] if self.rng.random() < 0.05 else [batch]

    def _act(self, session: Session, batch: list[Event]) -> None:
        for one in batch:
            self.report.expect(one.kind, one.store(session), one.second())
            self.report.events[one.kind] += 1

    def _killed(self, batch: list[Event]) -> int:
        """A process of its own works on ``batch`` and is killed; where it had committed, it has happened.

        The batch is sent again by the caller, in either case.
        """
        at = self.rng.randint(1, 1500)
        self.store.close()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            die_at(self.store, at)
            with self.store.database.writing() as session:
                for one in batch:
                    one.store(session)
            os.write(write, b"c")
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(write)
        committed = os.read(read, 1) == b"c"
        os.close(read)
        self.report.events["killed behind the commit" if committed else "killed before the commit"] += 1
        if committed:
            for one in batch:
                one.second()
        return 1

    def _draw(self) -> Event:
        dice = self.rng.random()
        if dice < 0.25 or len(self.recent) < 50:
            return self._auction()
        if dice < 0.80:
            return self._click(late=False)
        if dice < 0.86:
            return self._click(late=True)
        if dice < 0.93:
            return self._payment()
        if dice < 0.96:
            return self._settlement()
        if dice < 0.98:
            return self._taking_back()
        return self._budget()

    def _listing(self, number: int) -> Listing:
        bid = self.rng.randint(1, 100)
        budget = self.rng.randint(5, 200) * bid * UNIT
        listing = self.market.listing(self.seats[number % ADVERTISERS], bid=bid, budget=budget)
        self.second.budgets[listing.campaign_id] = budget
        return listing

    def _auction(self) -> Event:
        rule, now = self.rng.choice(RULES), self.market.now
        listings = self.rng.sample(self.listings, self.rng.randint(1, 2))
        auction = self.market.auction(
            *listings,
            rule=rule,
            pctr=self.rng.choice((0.0, 0.013, 1 / 3, 0.5, 1.0)),
            resampled=rule is PriceRule.RESAMPLED and self.rng.random() < 0.1,
            test=self.rng.random() < 0.03,
        )
        check_auction(auction)
        shown = [_shown(auction, index) for index in range(len(auction.impressions))]
        self.recent += [(one, self.market.claims(auction, place, TTL)) for place, one in enumerate(shown)]

        def record(session: Session) -> None:
            if session.get(models.StoredAuction, auction.id) is None:
                put_auctions(session, [auction])

        def second() -> None:
            if auction.id not in self.second.paid:
                self.second.paid[auction.id] = 0
                for one in sorted(shown, key=lambda one: (one.advertiser, one.campaign, one.id)):
                    self.second.show(one, now)

        return Event("auction", record, second)

    def _click(self, late: bool) -> Event:
        shown, claims = self.rng.choice(self.recent)
        now = self.market.now + dt.timedelta(days=2 * late)

        def click(session: Session) -> tuple[str, int]:
            charge = billing.log_click(session, claims, now)
            return charge.outcome.value, charge.amount_micros

        return Event("late click" if late else "click", click, lambda: self.second.click(shown, now))

    def _payment(self) -> Event:
        now = self.market.now
        again = self.payments and self.rng.random() < 0.3
        if not again:
            reference = f"INV-{next(self.market.numbers)}"
            amount = self.rng.randint(1, 10**7)
            self.payments.append((self.rng.choice(self.seats), reference, amount))
        seat, reference, amount = self.rng.choice(self.payments) if again else self.payments[-1]
        return Event(
            "payment again" if again else "payment",
            lambda session: put_payment(session, seat, amount, "USD", reference, now).id,
            lambda: self.second.pay(seat, reference, amount),
        )

    def _settlement(self) -> Event:
        seat, now = self.rng.choice(self.seats), self.market.now

        def settle(session: Session) -> int:
            done = billing.settle_advertiser(session, seat, now)
            return done.billed_micros if done else 0

        return Event("settlement", settle, lambda: self.second.settle(seat))

    def _taking_back(self) -> Event:
        now, last = self.market.now, len(self.second.lines)
        recent = range(max(1, last - 2000), last + 1)
        charges = [one for one in recent if self.second.lines[one - 1].kind in ("charge", "accrual")]
        if not charges:
            return self._settlement()
        line = self.rng.choice(charges)
        seat = self.second.lines[line - 1].advertiser

        def take_back(session: Session) -> None:
            billing.void(session, seat, line, now)

        return Event("taken back", take_back, lambda: self.second.take_back(line))

    def _budget(self) -> Event:
        listing, now = self.rng.choice(self.listings), self.market.now
        budget = self.rng.randint(5, 200) * listing.bid_micros

        def change(session: Session) -> None:
            campaign = session.get_one(models.StoredCampaign, listing.campaign_id)
            if campaign.daily_budget_micros != budget:
                campaign.daily_budget_micros = budget
                row = models.StoredBudget(campaign_id=campaign.id, at=now, daily_budget_micros=budget)
                session.add(row)
            session.flush()

        return Event("budget", change, lambda: self.second.budgets.update({listing.campaign_id: budget}))

    def _compare_balances(self) -> None:
        for seat in self.seats:
            row = self.store.parties.advertiser(seat)
            self.report.expect("balance", row.balance_micros, self.second.owed["advertiser", seat])
            self.report.expect("accrued", -row.accrued_micros, self.second.owed["accrued", seat])

    def _compare_lines(self) -> None:
        """Line by line, then days, then what the audit makes of it."""
        entry = models.StoredEntry
        columns = entry.id, entry.kind, entry.advertiser_id, entry.debit, entry.credit, entry.amount_micros
        count = 0
        with self.store.database.reading() as session:
            for row in session.execute(
                select(*columns).order_by(entry.id).execution_options(yield_per=5000)
            ):
                one = self.second.lines[count] if count < len(self.second.lines) else None
                count += 1
                wanted = one and (count, one.kind, one.advertiser, one.debit, one.credit, one.amount)
                self.report.expect("line", tuple(row), wanted)
            spent = {
                (row.campaign_id, row.day): row.spent_micros
                for row in session.scalars(select(models.StoredSpend))
            }
        self.report.expect("lines", count, len(self.second.lines))
        for key in spent.keys() | self.second.spent.keys():
            self.report.expect("spend", spent.get(key, 0), self.second.spent.get(key, 0))
        found = audit(self.store)
        self.report.expect("audit", [str(one) for one in found.discrepancies[:5]], [])
        held = {name: amount for name, amount in found.accounts.items() if amount}
        self.report.expect("accounts", held, {k: v for k, v in self.second.accounts().items() if v})
        self.report.expect("sum of accounts", sum(found.accounts.values()), 0)
        self.report.events["lines of the ledger"] = count


def die_at(store: Store, statement: int) -> None:
    """Kill this process at the ``statement``-th that it sends to the database."""
    left = [statement]

    def count(*_: Any) -> None:
        left[0] -= 1
        if left[0] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    hooks.listen(store.database.engine, "before_cursor_execute", count)


def _shown(auction: ServedAuction, index: int) -> Shown:
    one = auction.impressions[index]
    until = int(auction.created.timestamp()) + TTL
    terms = one.bid_micros, one.pctr, one.resampled, auction.test
    (quoted,) = (other.price_micros for other in auction.candidates if other.listing.ad.id == one.ad_id)
    return Shown(
        one.id, one.advertiser_id, one.campaign_id, auction.price_rule.value, *terms, until, quoted
    )


def main() -> int:
    """Run, print what happened and where the ledgers differ; status 1 if they do."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.ledger", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument(
        "--crash-every", type=int, default=2_000, help="events between two killed processes"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args()
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="raylla-ledger-", dir=memory) as place:
        started = time.monotonic()
        trading = Trading(f"sqlite:///{place}/store.db", given.seed)
        signal.signal(signal.SIGTERM, trading.stop)
        report = trading.run(given.events, given.crash_every, sys.stdout.write)
    found = {
        "seed": given.seed,
        "seconds": round(time.monotonic() - started),
        "events": dict(report.events),
        "differences": dict(report.differences),
        "examples": report.examples,
    }
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    return int(bool(report.differences))


if __name__ == "__main__":
    sys.exit(main())
