"""Price sheets in money: the reserve and the price of each candidate, in whole micros.

A pure function of the sheet, the question, the user and the candidates in the order of the prompt, so that
the endpoint and the audit find the same micro.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raylla.config import Config
from raylla.pricing.sheet import PriceSheet, read_sheet
from raylla.records import Ad, Profile, Query
from raylla.serving.money.money import Micros, from_units
from raylla.serving.money.records import PriceRule


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
    sheet.covers(config.world.max_bid, f"serving.prices={str(serving.prices)!r}")
    return sheet


def reserve_micros(
    sheet: PriceSheet, query: Query, profile: Profile, ad: Ad, unit: Micros, floor: Micros = 0
) -> Micros:
    """The least bid with which an ad may enter: the sheet's reserve or, where that is more, the ``floor``
    up to whole bid units, each worth ``unit``."""
    return max(sheet.reserve(query, profile, ad), -(-floor // unit)) * unit


def quoted_micros(
    sheet: PriceSheet,
    query: Query,
    profile: Profile,
    entered: Sequence[tuple[Ad, Micros, Micros]],
    unit: Micros,
) -> list[Micros]:
    """What a click on each ad costs; ``entered`` are the ads with their bids and `reserve_micros`, which no
    bid is below, as listed.

    From its reserve to its bid, rounded once, half to even.
    """
    if not entered:
        return []
    ads = [ad for ad, _, _ in entered]
    bids, reserves = [bid // unit for _, bid, _ in entered], [least // unit for _, _, least in entered]
    prices = sheet.prices(query, profile, ads, bids, reserves)
    return [
        min(bid, max(least, from_units(price, unit)))
        for (_, bid, least), price in zip(entered, prices, strict=True)
    ]
