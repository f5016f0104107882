"""The audit of the rule `reserve`: every reserve and price from its sheet, again."""

from __future__ import annotations

import hashlib

from sqlalchemy.orm import Session

from raylla.errors import ConfigError
from raylla.pricing.sheet import PriceSheet, parse_sheet
from raylla.serving.billing.findings import Audit
from raylla.serving.money.records import ServedAuction
from raylla.serving.money.sheets import question_of, quoted_micros, reserve_micros
from raylla.serving.store import models


class QuotedPrices:
    """Checks auctions against the price sheets of the store."""

    def __init__(self, session: Session, found: Audit) -> None:
        self._session, self._found = session, found
        self._sheets: dict[str, PriceSheet | None] = {}

    def check(self, auction: ServedAuction) -> None:
        """Who entered bid its reserve, and every candidate's price is what its sheet says, to the micro."""
        subject, unit = f"auction {auction.id}", auction.micros_per_unit
        sheet = self._sheet(auction.prices or "")
        if sheet is None or unit is None:
            self._found.expect(subject, "prices", auction.prices, "the digest of a sheet in the store")
            return
        query, profile = question_of(auction)
        for one in auction.candidates:
            units, rest = divmod(one.bid_micros, unit)
            if rest or not 1 <= units <= sheet.curve.largest:
                of = f"{subject} candidate {one.listing.ad.id}"
                self._found.expect(of, "bid_micros", one.bid_micros, f"a bid of the sheet, times {unit}")
                return
        entered = [(one.listing.ad, one.bid_micros) for one in auction.candidates]
        wanted = quoted_micros(sheet, query, profile, entered, unit)
        for one, price in zip(auction.candidates, wanted, strict=True):
            of = f"{subject} candidate {one.listing.ad.id}"
            reserve = reserve_micros(sheet, query, profile, one.listing.ad, unit)
            self._found.expect(of, "reserve_micros", one.reserve_micros, reserve)
            self._found.expect(of, "price_micros", one.price_micros, price)
            if one.bid_micros < reserve:
                self._found.expect(of, "bid_micros", one.bid_micros, f"at least {reserve}")

    def _sheet(self, digest: str) -> PriceSheet | None:
        if digest not in self._sheets:
            self._sheets[digest] = self._read(digest)
        return self._sheets[digest]

    def _read(self, digest: str) -> PriceSheet | None:
        row = self._session.get(models.StoredSheet, digest)
        if row is None:
            return None
        subject = f"price sheet {digest[:12]}"
        self._found.expect(subject, "digest", hashlib.sha256(row.text.encode()).hexdigest(), digest)
        try:
            return parse_sheet(row.text, subject)
        except ConfigError as error:
            self._found.expect(subject, "text", str(error), "a price sheet")
            return None
