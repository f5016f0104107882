"""`python -m tests.chaos.races`: requests and clicks at once on a budget of one click, many times.

    python -m tests.chaos.races --times 1000
    python -m tests.chaos.races --times 1000 --database postgresql+psycopg://postgres@/races?host=/DIR

Each time a fresh campaign may spend the price of one click today. Half of the actors click ads of it that
were shown before, the other half record an answer with an ad of it that is billed when it is shown; all are
released at once. One of them is charged, whoever comes first, and nobody else.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier

from raylla.serving.billing.audit import audit
from raylla.serving.money.records import Outcome, PriceRule, ServedAuction
from raylla.serving.security.tokens import Claims
from raylla.serving.store import Store, open_store
from tests.unit.serving.market import UNIT, Market

ACTORS = 64
BID = 7
AUDITED = 100
"""Races after which the books are audited."""


@dataclass
class Races:
    """What came of all of them; money in micros."""

    races: int = 0
    charged: Counter[int] = field(default_factory=Counter)
    """Charges in a race -> races."""
    most_over: int = 0
    """Most that a race has spent beyond its budget."""
    wrong_balances: int = 0
    discrepancies: int = 0


def run(store: Store, times: int, actors: int) -> Races:
    """Hold ``times`` races; the books are audited on the way and at the end."""
    found = Races()
    market = Market(store, dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC))
    with ThreadPoolExecutor(actors) as threads:
        for number in range(times):
            _race(market, threads, actors, found)
            if number % AUDITED == AUDITED - 1 or number == times - 1:
                found.discrepancies += len(audit(store).discrepancies)
    return found


def _race(market: Market, threads: ThreadPoolExecutor, actors: int, found: Races) -> None:
    store, budget = market.store, BID * UNIT
    seat = market.seat()
    listing = market.listing(seat, bid=BID, budget=budget)
    shown = [market.auction(listing) for _ in range(actors // 2)]
    assert store.record_together(shown) == [None] * len(shown)
    showing = [
        market.auction(listing, rule=PriceRule.EXPECTED, pctr=1.0) for _ in range(actors - len(shown))
    ]
    barrier = Barrier(actors)

    def click(claims: Claims) -> bool:
        barrier.wait()
        return store.click(claims, market.now).outcome is Outcome.CHARGED

    def show(auction: ServedAuction) -> bool:
        barrier.wait()
        store.record(auction)
        return bool(store.charges(auction.id))

    running = [threads.submit(click, market.claims(one)) for one in shown]
    running += [threads.submit(show, one) for one in showing]
    charged = sum(one.result() for one in running)
    found.races += 1
    found.charged[charged] += 1
    spent = store.parties.spent(listing.campaign_id, market.now.date())
    found.most_over = max(found.most_over, spent - budget)
    found.wrong_balances += store.parties.advertiser(seat).balance_micros != -budget * charged


def main() -> int:
    """Race, print what came of it; status 1 where anything but one charge a race was made."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.races", description=__doc__)
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--database", help="none: a SQLite file of its own")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args()
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="raylla-races-", dir=memory) as place:
        store = open_store(given.database or f"sqlite:///{place}/store.db")
        found = run(store, given.times, ACTORS)
        store.close()
    figures = vars(found) | {"seconds": round(time.monotonic() - started)}
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    fine = found.charged == {1: found.races} and found.most_over <= 0
    return int(not fine or bool(found.wrong_balances or found.discrepancies))


if __name__ == "__main__":
    sys.exit(main())
