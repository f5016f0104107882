"""Tallies are kept in the transactions that they tell of.

Rows are written in order of their keys, after the advertisers' rows are locked and before the ledger is:
transactions that meet wait for each other, and never in a circle.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from raylla.errors import MoneyError
from raylla.serving.money import pricing
from raylla.serving.money.money import MOST, Micros, times
from raylla.serving.money.records import Outcome, PriceRule, ServedAuction
from raylla.serving.store.tallies.model import COUNTS, LOSSES, StoredTally

KEY = ("span", "start", "ad_id", "weight_version")
_UNCOUNTED = (Outcome.REPLAY.value, Outcome.EXPIRED.value)
_NOTHING = dict.fromkeys(COUNTS, 0)
_LOST = {reason.value: column for reason, column in LOSSES.items()}


class Key(NamedTuple):
    """What a row is about."""

    span: str
    start: dt.datetime
    ad_id: str
    weight_version: str


class Tallies:
    """Counts by row, gathered before they are written."""

    def __init__(self) -> None:
        self.rows: dict[Key, Counter[str]] = defaultdict(Counter)

    def add(self, at: dt.datetime, ad_id: str, weight_version: str, **counts: int) -> None:
        """Add ``counts``, by column, to the hour and the day of a moment."""
        hour = at.astimezone(dt.UTC).replace(minute=0, second=0, microsecond=0)
        for span, start in (("hour", hour), ("day", hour.replace(hour=0))):
            row = self.rows[Key(span, start, ad_id, weight_version)]
            for name, count in counts.items():
                row[name] += count

    def click(
        self,
        outcome: str,
        at: dt.datetime,
        shown: dt.datetime,
        ad_id: str,
        weight_version: str,
        by: int = 1,
        taken_back: bool = False,
    ) -> None:
        """Count a click that came ``at`` a moment on an impression of ``shown``, no test, ``by`` times.

        Here it is decided what a report counts as a click, and what as an invalid one: that which was kept
        as such, and that whose charge was ``taken_back``.
        """
        if outcome in _UNCOUNTED:
            return
        if taken_back or outcome == Outcome.INVALID.value:
            self.add(at, ad_id, weight_version, invalid_clicks=by)
        else:
            self.add(at, ad_id, weight_version, clicks=by)
            self.add(shown, ad_id, weight_version, clicked=by)

    def lost(self, at: dt.datetime, ad_id: str, weight_version: str, reason: str) -> None:
        """Count an auction in which an ad was not shown."""
        if reason in _LOST:
            self.add(at, ad_id, weight_version, **{_LOST[reason]: 1})

    def check(self, connection: Connection, column: str) -> None:
        """Refuse what a row has no room for.

        Raises:
            MoneyError: a count would be beyond 64 bits.
        """
        for key, counts in self.rows.items():
            of_row = [getattr(StoredTally, name) == part for name, part in key._asdict().items()]
            before = connection.execute(select(getattr(StoredTally, column)).where(*of_row)).scalar() or 0
            if before + counts[column] > MOST:
                raise MoneyError(
                    f"{column} of ad {key.ad_id} in the {key.span} of {key.start:%Y-%m-%d %H:%M} is "
                    f"{before} already: more than {MOST} cannot be counted"
                )

    def write(self, connection: Connection) -> None:
        """Add everything to the table."""
        rows = [
            {**key._asdict(), **_NOTHING, **counts}
            for key, counts in sorted(self.rows.items())
            if any(counts.values())
        ]
        if rows:
            connection.execute(_upsert(connection.dialect.name), rows)


def of_auctions(auctions: Sequence[ServedAuction]) -> Tallies:
    """The impressions of ``auctions`` and the ads that they did not show; nothing of tests."""
    made = Tallies()
    for auction in auctions:
        if auction.test:
            continue
        at, version = auction.created, auction.weight_version
        placed = set()
        for shown in auction.impressions:
            placed.add(shown.ad_id)
            worth = expected(auction.price_rule, shown.price_micros, shown.pctr)
            made.add(at, shown.ad_id, version, impressions=1, expected_micros=worth)
        lost = {left_out.ad_id: left_out.reason.value for left_out in auction.filtered}
        candidates = [candidate.listing.ad.id for candidate in auction.candidates]
        for ad_id, reason in losses(placed, candidates, lost).items():
            made.lost(at, ad_id, version, reason)
    return made


def losses(placed: set[str], candidates: Sequence[str], filtered: Mapping[str, str]) -> dict[str, str]:
    """Ad id -> why an auction did not show it, of all that its record names."""
    unplaced = dict.fromkeys(candidates, "not_placed")
    return {ad_id: why for ad_id, why in {**filtered, **unplaced}.items() if ad_id not in placed}


def expected(rule: PriceRule, price: Micros, pctr: float) -> Micros:
    """What an impression is expected to bring, rounded once, half to even."""
    return price if pricing.charged_at(rule) == "impression" else times(price, pctr)


@cache
def _upsert(dialect: str) -> Any:
    insert: Any = postgresql.insert if dialect == "postgresql" else sqlite.insert
    made = insert(StoredTally)
    table = StoredTally.__table__
    return made.on_conflict_do_update(
        index_elements=list(KEY), set_={name: table.c[name] + made.excluded[name] for name in COUNTS}
    )
