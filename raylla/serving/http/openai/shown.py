"""The auction of an answer as a response tells of it, in every protocol alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raylla.config import Links
from raylla.serving.auction.exchange import Answered, Shown


def cited(end: Answered, links: Links) -> list[dict[str, Any]]:
    """Where each placed ad stands in the text as the client gets it, and where a click on it goes; nothing
    where the text alone has the links."""
    if links == "markdown":
        return []
    return [
        {"start_index": ad.start, "end_index": ad.end, "url": ad.url, "title": ad.title} for ad in end.shown
    ]


def detail(end: Answered, disclosure: str, notes: Sequence[str]) -> dict[str, Any]:
    """The `raylla` object; ``notes`` say what of the request was passed over."""
    read = {"turns_cut": end.turns_cut, "notes": list(notes)}
    auction = end.auction
    if auction is None:
        return {"auction_id": None, "weight_version": end.weight_version, "ads": [], **read}
    candidates = [
        {
            "ad_id": candidate.listing.ad.id,
            "title": candidate.listing.ad.title,
            "category": candidate.listing.ad.category,
            "bid_micros": candidate.bid_micros,
        }
        for candidate in auction.candidates
    ]
    return {
        "auction_id": auction.id,
        "weight_version": auction.weight_version,
        "pctr_version": auction.pctr_version,
        "price_rule": auction.price_rule.value,
        "at": auction.price_rule.at,
        "cur": auction.currency,
        "ads": [_ad(ad, disclosure) for ad in end.shown],
        "filtered": {reason.value: count for reason, count in auction.filtered_counts.items()},
        "violations": dict(auction.violations),
        **read,
        **({"candidates": candidates} if auction.test else {}),
    }


def _ad(ad: Shown, disclosure: str) -> dict[str, Any]:
    impression = ad.impression
    return {
        "ad_id": impression.ad_id,
        "impid": impression.id,
        "seat": impression.advertiser_id,
        "bid_micros": impression.bid_micros,
        "price_micros": impression.price_micros,
        "ctr": impression.pctr,
        "ctr_low": impression.pctr_low,
        "ctr_high": impression.pctr_high,
        "disclosure": disclosure,
        "adomain": [ad.domain],
        "cat": [ad.category],
    }
