"""The books of an evaluation's days stand for the endpoint's store: same clicks, same charges, same word on
who may compete."""

from __future__ import annotations

import datetime as dt
import random
from types import SimpleNamespace
from typing import Any

import pytest

from raylla.config import Serving
from raylla.evaluation.day.market import Books
from raylla.serving.auction.eligibility import Eligibility, Selection
from raylla.serving.money.records import Filters
from raylla.serving.store import Store
from tests.unit.serving.market import UNIT, Market

MORNING = dt.datetime(2026, 11, 25, 6, tzinfo=dt.UTC)


@pytest.mark.parametrize("seed", range(4))
def test_a_random_day_is_booked_alike(market: Market, store: Store, seed: int) -> None:
    rng = random.Random(seed)
    seat, budgets = market.seat(), [rng.randint(100, 900) for _ in range(5)]
    pacings, cap = [rng.choice(["even", "asap"]) for _ in budgets], rng.choice([None, 2])
    capped: dict[str, Any] = {"cap_impressions": cap, "cap_hours": 24 if cap else None}
    listed = [
        market.listing(seat, bid=rng.randint(20, 60), budget=budget * UNIT, pacing=pacing, **capped)
        for budget, pacing in zip(budgets, pacings, strict=True)
    ]
    day: Any = SimpleNamespace(
        ads=[one.ad.id for one in listed], auctions=[SimpleNamespace(ads=[one.ad for one in listed])]
    )
    books = Books(day, list(zip(map(float, budgets), pacings, strict=True)), UNIT, cap)
    both = [Eligibility(source, Serving()) for source in (store, books)]
    bids = {one.ad.id: one.bid_micros for one in listed}
    refused, reasons = 0, set()
    for step in range(30):
        now, user = MORNING + step * dt.timedelta(minutes=20), rng.choice(["u", "v"])
        for one in both:
            one.refresh(now)
        theirs, ours = (one.select(Filters(user_id=user), now, bids) for one in both)
        assert _out(ours) == _out(theirs)
        reasons |= set(_out(ours).values())
        for one in rng.sample(listed, 2):
            charged = 0
            auction = market.served(one, now=now, user_id=user)
            books.show(user, [one.ad.id], now)
            if rng.random() < 0.8:
                claims = market.claims(auction, ttl=86_400)
                charged = store.click(claims, now).amount_micros or 0
                assert books.charge(one.ad.id, one.bid_micros, 1, now.date()) == charged
                refused += not charged
        mine = {ad: spent for ad, spent in books.spending(now.date()).items() if spent}
        campaigns = {one.campaign_id: one.ad.id for one in listed}
        found = {campaigns[id]: spent for id, spent in store.spending(now.date()).items() if spent}
        assert mine == found
    assert refused
    assert "budget" in reasons


def _out(selection: Selection) -> dict[str, str]:
    return {one.ad_id: one.reason.value for one in selection.filtered(100)}
