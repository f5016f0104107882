"""The audit of the rule `reserve`: every price from its sheet, again, and every reserve against it."""

from __future__ import annotations

import hashlib

from sqlalchemy.orm import Session

from raylla.errors import ConfigError
from raylla.pricing.sheet import PriceSheet, parse_sheet
from raylla.records import Ad
from raylla.serving.billing.findings import Audit
from raylla.serving.money.money import Micros
from raylla.serving.money.records import ServedAuction, question_of
from raylla.serving.money.sheets import quoted_micros, reserve_micros
from raylla.serving.store import models


class QuotedPrices:
    """Checks auctions against the price sheets of the store."""

    def __init__(self, session: Session, found: Audit) -> None:
        self._session, self._found = session, found
        self._sheets: dict[str, PriceSheet | None] = {}

    def check(self, auction: ServedAuction) -> None:
        """Who entered bid its reserve, at least the sheet's (a floor may have raised it); every candidate's
        price is what its sheet says above it, and every impression's its candidate's, to the micro."""
        self._impressions(auction)
        subject, unit = f"auction {auction.id}", auction.micros_per_unit
        sheet = self._sheet(auction.prices or "")
        if sheet is None:
            self._found.expect(subject, "prices", auction.prices, "the digest of a sheet in the store")
            return
        if unit is None or unit < 1:
            self._found.expect(subject, "micros_per_unit", unit, "what a unit of bids was worth")
            return
        entered = self._entered(auction, sheet, unit)
        if entered is None:
            return
        wanted = quoted_micros(sheet, *question_of(auction), entered, unit)
        for candidate, price in zip(auction.candidates, wanted, strict=True):
            of = f"{subject} candidate {candidate.listing.ad.id}"
            self._found.expect(of, "price_micros", candidate.price_micros, price)

    def _impressions(self, auction: ServedAuction) -> None:
        """What was shown had competed, at that bid and price."""
        candidates = {candidate.listing.ad.id: candidate for candidate in auction.candidates}
        for impression in auction.impressions:
            of, candidate = (
                f"auction {auction.id} impression {impression.id}",
                candidates.get(impression.ad_id),
            )
            if candidate is None:
                self._found.expect(of, "ad_id", impression.ad_id, "a candidate's")
                continue
            self._found.expect(of, "bid_micros", impression.bid_micros, candidate.bid_micros)
            self._found.expect(of, "price_micros", impression.price_micros, candidate.price_micros)

    def _entered(
        self, auction: ServedAuction, sheet: PriceSheet, unit: Micros
    ) -> list[tuple[Ad, Micros, Micros]] | None:
        """Each candidate's ad, bid and reserve; None where no price can be computed of them."""
        query, profile = question_of(auction)
        found, usable = [], True
        for candidate in auction.candidates:
            of, least = (
                f"auction {auction.id} candidate {candidate.listing.ad.id}",
                candidate.reserve_micros,
            )
            own = reserve_micros(sheet, query, profile, candidate.listing.ad, unit)
            self._found.expect(
                of, "listing's bid_micros", candidate.listing.bid_micros, candidate.bid_micros
            )
            units, rest = divmod(candidate.bid_micros, unit)
            if rest or not 1 <= units <= sheet.curve.largest:
                self._found.expect(
                    of, "bid_micros", candidate.bid_micros, f"a bid of the sheet, times {unit}"
                )
                usable = False
            if least is None or least < own or least % unit:
                wanted = f"at least {own}, a multiple of {unit}"
                self._found.expect(of, "reserve_micros", least, wanted)
                usable = False
            elif candidate.bid_micros < least:
                self._found.expect(of, "bid_micros", candidate.bid_micros, f"at least {least}")
                usable = False
            found.append((candidate.listing.ad, candidate.bid_micros, least or own))
        return found if usable else None

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
