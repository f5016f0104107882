"""Tallies counted anew from what they tell of: impressions, clicks, conversions, the ledger, auctions."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, func, select
from sqlalchemy.orm import aliased

from raylla.serving.money.records import PriceRule
from raylla.serving.store import models
from raylla.serving.store.tallies.keeping import Tallies, expected, losses

_BATCH = 5_000
_SHOWN, _HELD, _CLICK, _LINE = (
    models.StoredImpression,
    models.StoredAuction,
    models.StoredClick,
    models.StoredEntry,
)


def recount(connection: Connection) -> Tallies:
    """What the table of tallies should hold; columns are named, so that later ones may be added."""
    made = Tallies()

    def rows(query: Select[*tuple[Any, ...]]) -> Any:
        return connection.execute(query, execution_options={"yield_per": _BATCH})

    for row in rows(_impressions()):
        worth = expected(PriceRule(row.price_rule), row.price_micros, row.pctr)
        made.add(row.created, row.ad_id, row.weight_version, impressions=1, expected_micros=worth)
    for row in rows(_clicks()):
        seat = row.at, row.created, row.ad_id, row.weight_version
        made.click(row.outcome, *seat, taken_back=row.voids is not None)
    for row in rows(_conversions()):
        counts = {"conversions": 1, "conversion_micros": row.value_micros}
        made.add(row.at, row.ad_id, row.weight_version, **counts)
    for row in rows(_lines()):
        amount = -row.amount_micros if row.kind == "invalid" else row.amount_micros
        made.add(row.at, row.ad_id, row.weight_version, charged_micros=amount)
    for row in rows(_auctions()):
        record = row.record
        placed = {impression["ad_id"] for impression in record["impressions"]}
        candidates = [candidate["listing"]["ad"]["id"] for candidate in record["candidates"]]
        filtered = {left_out["ad_id"]: left_out["reason"] for left_out in record.get("filtered", ())}
        for ad_id, reason in losses(placed, candidates, filtered).items():
            made.lost(row.created, ad_id, row.weight_version, reason)
    return made


def _impressions() -> Select[*tuple[Any, ...]]:
    columns = (_SHOWN.created, _SHOWN.ad_id, _SHOWN.price_micros, _SHOWN.pctr)
    query = select(*columns, _HELD.price_rule, _HELD.weight_version)
    return query.join(_HELD, _HELD.id == _SHOWN.auction_id).where(_SHOWN.billed != "test")


def _clicks() -> Select[*tuple[Any, ...]]:
    """Clicks with the line that took their charge back, if one did."""
    back = aliased(_LINE)
    query = select(
        _CLICK.at, _CLICK.outcome, _SHOWN.created, _SHOWN.ad_id, _HELD.weight_version, back.voids
    )
    query = query.join(_SHOWN, _SHOWN.id == _CLICK.impression_id)
    query = query.join(_HELD, _HELD.id == _SHOWN.auction_id)
    query = query.outerjoin(_LINE, _LINE.impression_id == _SHOWN.id)
    query = query.outerjoin(back, (back.voids == _LINE.id) & (_LINE.click_id == _CLICK.id))
    return query.where(_SHOWN.billed != "test")


def _conversions() -> Select[*tuple[Any, ...]]:
    booked = models.StoredConversion
    query = select(booked.at, booked.value_micros, _SHOWN.ad_id, _HELD.weight_version)
    query = query.join(_CLICK, _CLICK.id == booked.click_id)
    query = query.join(_SHOWN, _SHOWN.id == _CLICK.impression_id)
    return query.join(_HELD, _HELD.id == _SHOWN.auction_id).where(_SHOWN.billed != "test")


def _lines() -> Select[*tuple[Any, ...]]:
    """Charges and accruals, and what was taken back of them, each with its ad."""
    first = aliased(_LINE)
    query = select(_LINE.at, _LINE.kind, _LINE.amount_micros, _LINE.weight_version, _SHOWN.ad_id)
    query = query.outerjoin(first, first.id == _LINE.voids)
    named = func.coalesce(_LINE.impression_id, first.impression_id)
    return query.join(_SHOWN, _SHOWN.id == named).where(_LINE.kind.in_(("charge", "accrual", "invalid")))


def _auctions() -> Select[*tuple[Any, ...]]:
    return select(_HELD.created, _HELD.weight_version, _HELD.record).where(_HELD.test.is_(False))
