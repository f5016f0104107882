"""What each placed ad of an answer gets at the moment it is placed: an impression's id and a click token.

The text may hold the click's URL before the auction is in the store, so the token is signed here, of what
is known before click predictions are: under `expected` a click itself costs nothing, and its token says so.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from raylla.config import Serving
from raylla.records import Ad
from raylla.serving.auction.draft import Field
from raylla.serving.auction.exchange import Asked
from raylla.serving.auction.links import click_url, link, signs
from raylla.serving.money import pricing
from raylla.serving.money.records import PriceRule
from raylla.serving.security.tokens import TokenKeys, new_claims


@dataclass(frozen=True, slots=True)
class Ticket:
    """Of one placed ad: the impression's id, where a click on it goes, and when its ad was released."""

    impression_id: str
    url: str
    seen: datetime


class Tickets:
    """Those of one answer, by ad id."""

    def __init__(self, asked: Asked, field: Field, serving: Serving, keys: TokenKeys) -> None:
        self._asked, self._serving, self._keys = asked, serving, keys
        self._field = field
        self._by_ad = {candidate.listing.ad.id: candidate for candidate in field.candidates}
        self._given: dict[str, Ticket] = {}

    def of(self, ad_id: str) -> Ticket:
        """The ticket of a candidate; the same again."""
        if ad_id not in self._given:
            self._given[ad_id] = self._make(ad_id)
        return self._given[ad_id]

    def placed(self, ad: Ad) -> str:
        """What stands in the text for an ad that is placed now."""
        ticket = self.of(ad.id)
        return ad.title if self._asked.links == "annotations" else link(ad.title, ticket.url)

    def again(self, title: str) -> Sequence[str]:
        """What stands there for each character of a title that is named once more."""
        return title if self._asked.links == "annotations" else signs(title)

    def _make(self, ad_id: str) -> Ticket:
        serving, candidate = self._serving, self._by_ad[ad_id]
        listing, id = candidate.listing, f"imp_{secrets.token_hex(12)}"
        claims = new_claims(
            self._field.auction_id,
            id,
            ad_id,
            listing.advertiser_id,
            pricing.per_click(
                PriceRule(serving.price_rule),
                listing.bid_micros,
                resampled=candidate.resampled,
                mu=serving.resample_share,
                quoted=candidate.price_micros,
            ),
            serving.currency,
            self._field.created,
            serving.token_ttl,
        )
        return Ticket(id, click_url(self._asked.base, self._keys.sign(claims)), datetime.now(UTC))
