"""Price sheets in money: the reserve and the price of each candidate, in whole micros.

A pure function of the sheet, the question, the user and the candidates in the order of the prompt, so that
the endpoint and the audit find the same micro.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raylla.config import Config
from raylla.errors import ConfigError
from raylla.pricing.sheet import PriceSheet, read_sheet
from raylla.records import Ad, Profile, Query
from raylla.serving.money.money import Micros, from_units
from raylla.serving.money.records import PriceRule, ServedAuction


def served_sheet(config: Config) -> PriceSheet | None:
    """The sheet that the endpoint of ``config`` charges by; None under another rule.

    Raises:
        ConfigError: there is no such file, it is no sheet, another than `serving.prices_digest` says, or
            knows no bids as large as `world.max_bid`.
    """
    serving = config.serving
    if PriceRule(serving.price_rule) is not PriceRule.RESERVE or serving.prices is None:
        return None
    sheet = read_sheet(Path(serving.prices), serving.prices_digest)
    if sheet.curve.largest < config.world.max_bid:
        raise ConfigError(
            f"serving.prices={str(serving.prices)!r} was learned from bids up to {sheet.curve.largest:g}, "
            f"and world.max_bid is {config.world.max_bid}; learn one from auctions of this model"
        )
    return sheet


def reserve_micros(sheet: PriceSheet, query: Query, profile: Profile, ad: Ad, unit: Micros) -> Micros:
    """The least bid with which an ad may enter; ``unit`` is what a bid unit is worth."""
    return sheet.reserve(query, profile, ad) * unit


def quoted_micros(
    sheet: PriceSheet,
    query: Query,
    profile: Profile,
    entered: Sequence[tuple[Ad, Micros]],
    unit: Micros,
) -> list[Micros]:
    """What a click on each ad costs; ``entered`` are the ads with their bids, as listed.

    From its reserve to its bid, rounded once, half to even.
    """
    ads = [ad for ad, _ in entered]
    prices = sheet.prices(query, profile, ads, [bid // unit for _, bid in entered]) if ads else []
    return [
        min(bid, max(reserve_micros(sheet, query, profile, ad, unit), from_units(price, unit)))
        for (ad, bid), price in zip(entered, prices, strict=True)
    ]


def question_of(auction: ServedAuction) -> tuple[Query, Profile]:
    """Question and user of a recorded auction, as prices read them."""
    user = auction.user_id or ""
    query = Query(auction.id, user, auction.query, auction.category, auction.theme, "test", auction.turns)
    return query, Profile(user, auction.basics, auction.interests)
