"""Served auctions in the store: checked before they are written, and read back with what came of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from pydantic import TypeAdapter
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from raylla.errors import ClashError, StoreError
from raylla.serving.money import pricing
from raylla.serving.money.money import Micros
from raylla.serving.money.records import PriceRule, Served, ServedAuction
from raylla.serving.store import billing, ledger, models
from raylla.serving.store.clicks import REPEATED

RECORD: TypeAdapter[ServedAuction] = TypeAdapter(ServedAuction)
_COLUMNS = (
    *("id", "request_id", "created", "weight_version", "currency", "resample_share", "canary", "test"),
)
"""Of an auction's row, those that are the record's own."""


def put_auctions(session: Session, auctions: Sequence[ServedAuction]) -> None:
    """Write auctions that `check_auction` has passed, with their impressions, bills and notices."""
    rows = [
        {
            "price_rule": auction.price_rule.value,
            "record": RECORD.dump_python(auction, mode="json"),
            **{name: getattr(auction, name) for name in _COLUMNS},
        }
        for auction in auctions
    ]
    session.connection().execute(insert(models.StoredAuction), rows)
    _check_listed(session, auctions)
    billing.lose(session, [auction for auction in auctions if not auction.test])
    billing.book_impressions(session, auctions)


def check_auction(auction: ServedAuction) -> None:
    """Refuse an auction that the audit would not accept.

    Raises:
        StoreError: names the impression, the field and the value.
    """
    if (auction.price_rule is PriceRule.RESAMPLED) != (auction.resample_share is not None):
        raise StoreError(
            f"auction {auction.id}: resample_share={auction.resample_share} under {auction.price_rule}: "
            "it belongs to the rule `resampled`, and to no other"
        )
    if (auction.price_rule is PriceRule.RESERVE) != (auction.prices is not None):
        raise StoreError(
            f"auction {auction.id}: prices={auction.prices} under {auction.price_rule}: a price "
            "sheet's digest belongs to the rule `reserve`, and to no other"
        )
    if auction.created.tzinfo is None:
        raise StoreError(
            f"auction {auction.id}: created={auction.created} has no time zone; give it in UTC"
        )
    numbers = {"reward_value": auction.reward_value, "reward_penalty": auction.reward_penalty}
    for name, value in (numbers | dict(auction.latency_ms)).items():
        if not math.isfinite(value):
            raise StoreError(f"auction {auction.id}: {name}={value} is no number")
    listings = {candidate.listing.ad.id: candidate for candidate in auction.candidates}
    for shown in auction.impressions:
        where = f"auction {auction.id}: impression {shown.id}"
        candidate = listings.get(shown.ad_id)
        if candidate is None:
            raise StoreError(f"{where}: ad_id={shown.ad_id!r} is no candidate of the auction")
        listing = candidate.listing
        if (shown.campaign_id, shown.advertiser_id) != (listing.campaign_id, listing.advertiser_id):
            raise StoreError(f"{where}: campaign or advertiser differ from its candidate's")
        if (shown.bid_micros, shown.resampled) != (listing.bid_micros, candidate.resampled):
            raise StoreError(
                f"{where}: bid_micros={shown.bid_micros} or `resampled` differ from its candidate's"
            )
        for name in ("pctr", "pctr_low", "pctr_high"):
            if not 0 <= getattr(shown, name) <= 1:
                raise StoreError(f"{where}: {name}={getattr(shown, name)} is no probability")
        try:
            price = pricing.price(
                auction.price_rule,
                shown.bid_micros,
                pctr=shown.pctr,
                resampled=shown.resampled,
                mu=auction.resample_share or 0.0,
                quoted=candidate.price_micros,
            )
        except ValueError as error:
            raise StoreError(f"{where}: {error}") from None
        if price != shown.price_micros:
            raise StoreError(
                f"{where}: price_micros={shown.price_micros}, but {auction.price_rule} gives {price}"
            )


def recorded(session: Session, auction: ServedAuction) -> bool:
    """Whether this very auction is in the store.

    Raises:
        ClashError: another one has its id.
    """
    row = session.get(models.StoredAuction, auction.id)
    if row is not None and RECORD.validate_python(row.record) != auction:
        raise ClashError(f"auction {auction.id!r} is already recorded with other content")
    return row is not None


def _check_listed(session: Session, auctions: Sequence[ServedAuction]) -> None:
    impressions = [(auction, shown) for auction in auctions for shown in auction.impressions]
    ids = {shown.ad_id for _, shown in impressions}
    query = select(
        models.StoredAd.id, models.StoredAd.campaign_id, models.StoredCampaign.advertiser_id
    ).join(models.StoredCampaign)
    rows = session.execute(query.where(models.StoredAd.id.in_(ids))) if ids else ()
    listed = {row.id: (row.campaign_id, row.advertiser_id) for row in rows}
    for auction, shown in impressions:
        if listed.get(shown.ad_id) != (shown.campaign_id, shown.advertiser_id):
            raise StoreError(
                f"auction {auction.id}: impression {shown.id}: ad {shown.ad_id!r} is not listed by "
                f"campaign {shown.campaign_id!r} of advertiser {shown.advertiser_id!r}"
            )


def read_auctions(session: Session, page: Sequence[models.StoredAuction]) -> list[Served]:
    """Recorded auctions with their clicks, the values of what these led to, and what was charged."""
    shown = models.StoredImpression.auction_id.in_([row.id for row in page])
    counted = select(
        models.StoredImpression.auction_id, models.StoredClick.impression_id, models.StoredClick.id
    )
    counted = counted.join(models.StoredClick).where(shown, models.StoredClick.outcome.notin_(REPEATED))
    clicked: dict[str, dict[str, str]] = defaultdict(dict)
    for auction_id, impression_id, click_id in session.execute(counted):
        clicked[auction_id][impression_id] = click_id
    ids = [id for of_auction in clicked.values() for id in of_auction.values()]
    values: dict[str, Micros] = defaultdict(int)
    for conversion in session.scalars(
        select(models.StoredConversion).where(models.StoredConversion.click_id.in_(ids))
    ):
        values[conversion.click_id] += conversion.value_micros
    of_auction = select(models.StoredEntry.auction_id, ledger.earned()).group_by(
        models.StoredEntry.auction_id
    )
    booked = session.execute(of_auction.where(models.StoredEntry.auction_id.in_([row.id for row in page])))
    charged = {auction_id: int(micros) for auction_id, micros in booked}
    return [
        Served(
            RECORD.validate_python(row.record),
            frozenset(clicked[row.id]),
            {shown: values[id] for shown, id in clicked[row.id].items() if id in values},
            charged.get(row.id, 0),
        )
        for row in page
    ]
