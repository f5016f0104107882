"""Which ads may compete, and why the others may not."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest

from raylla.config import Serving
from raylla.records import Ad
from raylla.serving.auction.eligibility import Eligibility
from raylla.serving.money.records import Filters, Listing, PriceRule, Reason
from raylla.serving.store import AdTerms, CampaignTerms, Store
from raylla.serving.store.snapshot import AdRow, CampaignRow, Changes
from tests.unit.serving.market import UNIT, Market

ALL, DEFAULT = Filters(), Serving()


def reasons(
    store: Store, now: dt.datetime, filters: Filters = ALL, serving: Serving = DEFAULT
) -> dict[str, Reason | None]:
    """Ad id -> why it may not compete, None if it may."""
    eligibility = Eligibility(store, serving)
    catalogue = eligibility.refresh(now)
    selection = eligibility.select(filters, now)
    out = {one.ad_id: one.reason for one in selection.filtered(10**6)}
    assert selection.mask.sum() == catalogue.rows - len(out)
    assert sum(selection.counts().values()) == len(out)
    return {ad.id: out.get(ad.id) for ad in catalogue.ads}


def test_everything_listed_competes(market: Market, store: Store) -> None:
    seat = market.seat()
    first, second = market.listing(seat, bid=3), market.listing(seat, bid=5)
    eligibility = Eligibility(store, Serving())
    catalogue = eligibility.refresh(market.now)
    assert eligibility.select(Filters(), market.now).mask.tolist() == [True, True]
    assert [catalogue.listing(row) for row in range(2)] == [first, second]
    assert catalogue.row_of(second.ad.id) == 1
    assert catalogue.row_of("nothing") is None


def test_pauses(market: Market, store: Store) -> None:
    seat = market.seat()
    by_ad, by_campaign, running = (market.listing(seat) for _ in range(3))
    store.parties.change_ad(by_ad.ad.id, {"paused": True})
    store.parties.change_campaign(by_campaign.campaign_id, {"paused": True}, market.now)
    assert reasons(store, market.now) == {
        by_ad.ad.id: Reason.PAUSED,
        by_campaign.ad.id: Reason.PAUSED,
        running.ad.id: None,
    }


def test_floors_of_config_category_and_request(market: Market, store: Store) -> None:
    low, high = (market.listing(market.seat(), bid=bid) for bid in (10, 20))
    only_high = {low.ad.id: Reason.FLOOR, high.ad.id: None}
    floor = 15 * UNIT
    assert reasons(store, market.now, Filters(floor_micros=floor)) == only_high
    assert reasons(store, market.now, serving=Serving(floor_micros=floor)) == only_high
    assert reasons(store, market.now, Filters(floor_micros=10 * UNIT)) == {
        low.ad.id: None,
        high.ad.id: None,
    }
    store.parties.set_floor("cups", floor)
    assert reasons(store, market.now) == only_high
    store.parties.set_floor("cups", 0)
    store.parties.set_floor("kitchen", floor)
    assert reasons(store, market.now) == only_high


@pytest.mark.parametrize("named", ["id", "domain"])
def test_blocked_advertisers(market: Market, store: Store, named: str) -> None:
    seat, other = market.seat(), market.seat("Vara")
    mine, theirs = market.listing(seat), market.listing(other)
    blocked = frozenset({other if named == "id" else "vara.example", "unknown.example"})
    found = reasons(store, market.now, Filters(blocked_advertisers=blocked))
    assert found == {mine.ad.id: None, theirs.ad.id: Reason.BLOCKED_ADVERTISER}


@pytest.mark.parametrize("blocked", ["cups", "kitchen"])
def test_blocked_categories_are_categories_or_themes(market: Market, store: Store, blocked: str) -> None:
    listing = market.listing(market.seat())
    found = reasons(store, market.now, Filters(blocked_categories=frozenset({blocked, "?"})))
    assert found == {listing.ad.id: Reason.BLOCKED_CATEGORY}


@pytest.mark.parametrize(
    ("unit", "max_bid", "out"),
    [
        (UNIT, 100, []),
        (2 * UNIT, 100, [7]),
        (UNIT // 2, 19, [10]),
        (UNIT, 9, [10]),
        (3 * UNIT, 100, [7, 10]),
    ],
)
def test_bids_of_another_grid_sit_out_and_are_named(
    market: Market,
    store: Store,
    unit: int,
    max_bid: int,
    out: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    listed = {bid: market.listing(market.seat(), bid=bid).ad.id for bid in (7, 10)}
    eligibility = Eligibility(store, Serving(micros_per_unit=unit), max_bid)
    with caplog.at_level("WARNING", "raylla.serving"):
        eligibility.refresh(market.now)
        eligibility.refresh(market.now)
    selection = eligibility.select(ALL, market.now)
    assert [(one.ad_id, one.reason) for one in selection.filtered(9)] == [
        (listed[bid], Reason.OFF_GRID) for bid in out
    ]
    messages = [one.getMessage() for one in caplog.records if "sit out" in one.getMessage()]
    assert len(messages) == bool(out)
    assert all(listed[bid] in messages[0] for bid in out)


def test_names_are_compared_in_one_form(market: Market, store: Store) -> None:
    ad = Ad("", "Cup", "Th\u00e9 & Caf\u00e9", "K\u00fcche")
    row = store.parties.add_campaign(
        market.seat("B\u00fccher"), CampaignTerms("c", 10**9, "asap"), market.now
    )
    (listed,) = store.parties.add_ads(row.id, [AdTerms(ad, "https://x.example", 10 * UNIT)], market.now)
    unseen = (
        "th\u00e9\u200b & caf\u00e9",
        "\ufeffk\u00fcche",
        "k\u00fc\u00adche\ufe0f",
        "\uff4b\u00fcche\x00",
    )
    for blocked in (*unseen, "the\u0301  & cafe\u0301", "TH\u00c9 & CAF\u00c9", "ku\u0308CHE "):
        found = reasons(store, market.now, Filters(blocked_categories=frozenset({blocked})))
        assert found == {listed.id: Reason.BLOCKED_CATEGORY}, blocked
    domains = (
        "b\u00fccher.example",
        "B\u00dcCHER.example.",
        "xn--bcher-kva.EXAMPLE",
        "bu\u0308cher.example",
    )
    for domain in (*domains, row.advertiser_id.upper(), f"{row.advertiser_id}\u200b"):
        found = reasons(store, market.now, Filters(blocked_advertisers=frozenset({domain})))
        assert found == {listed.id: Reason.BLOCKED_ADVERTISER}, domain
    nothing = Filters(
        blocked_categories=frozenset({" ", ""}), blocked_advertisers=frozenset({"", "\u2603"})
    )
    assert reasons(store, market.now, nothing) == {listed.id: None}
    store.parties.set_floor("TH\u00c9 & CAF\u00c9", 11 * UNIT)
    assert reasons(store, market.now) == {listed.id: Reason.FLOOR}
    store.parties.set_floor("th\u00e9 & caf\u00e9", 0)
    assert reasons(store, market.now) == {listed.id: None}
    assert store.parties.floors() == {}


def test_a_test_uses_up_nothing(market: Market, store: Store) -> None:
    listing = market.listing(
        market.seat(), bid=40, budget=40 * UNIT, pacing="even", cap_impressions=1, cap_hours=24
    )
    for rule in PriceRule:
        auction = market.served(listing, rule=rule, test=True, user_id="u1")
        store.click(market.claims(auction), market.now)
    assert reasons(store, market.now, Filters(user_id="u1")) == {listing.ad.id: None}
    market.served(listing, user_id="u1")
    assert reasons(store, market.now, Filters(user_id="u1")) == {listing.ad.id: Reason.FREQUENCY_CAP}


def test_a_spent_budget_keeps_an_ad_out_until_midnight(market: Market, store: Store) -> None:
    listing = market.listing(market.seat(), bid=40, budget=70 * UNIT)
    store.click(market.claims(market.served(listing)), market.now)
    assert reasons(store, market.now) == {listing.ad.id: Reason.BUDGET}
    assert reasons(store, market.now + dt.timedelta(hours=13)) == {listing.ad.id: None}


def test_even_pacing_holds_back_what_is_ahead_of_the_day(market: Market, store: Store) -> None:
    even = market.listing(market.seat(), bid=60, budget=100 * UNIT, pacing="even")
    asap = market.listing(market.seat(), bid=60, budget=1000 * UNIT, pacing="asap")
    assert reasons(store, market.now.replace(hour=0)) == {even.ad.id: None, asap.ad.id: None}
    for listing in (even, asap):
        store.parties.change_campaign(listing.campaign_id, {"daily_budget_micros": 200 * UNIT}, market.now)
        store.click(market.claims(market.served(listing)), market.now)
    held = {even.ad.id: Reason.PACING, asap.ad.id: None}
    assert reasons(store, market.now.replace(hour=7)) == held  # 60 of 200 is spent, 58 are due
    assert reasons(store, market.now.replace(hour=8)) == {even.ad.id: None, asap.ad.id: None}


def test_frequency_caps_count_a_users_impressions(market: Market, store: Store) -> None:
    capped = market.listing(market.seat(), cap_impressions=2, cap_hours=24)
    free = market.listing(market.seat())

    def of(user: str | None, later: float = 0) -> Reason | None:
        now = market.now + dt.timedelta(hours=later)
        return reasons(store, now, Filters(user_id=user))[capped.ad.id]

    market.served(capped, free, user_id="u1")
    assert of("u1") is None
    market.served(capped, user_id="u1", now=market.now + dt.timedelta(hours=2))
    assert of("u1", 3) is Reason.FREQUENCY_CAP
    assert of("u2", 3) is None
    assert of(None, 3) is None
    assert of("u1", 25) is None  # the first is over a day old
    assert reasons(store, market.now, Filters(user_id="u1"))[free.ad.id] is None


def test_the_state_comes_before_the_request(market: Market, store: Store) -> None:
    listing = market.listing(market.seat())
    store.parties.change_ad(listing.ad.id, {"paused": True})
    filters = Filters(floor_micros=10**9, blocked_categories=frozenset({"cups"}))
    assert reasons(store, market.now, filters) == {listing.ad.id: Reason.PAUSED}


def test_refresh_takes_over_changes_and_leaves_selections_alone(market: Market, store: Store) -> None:
    seat = market.seat()
    first = market.listing(seat, bid=3)
    eligibility = Eligibility(store, Serving())
    before = eligibility.refresh(market.now)
    selection = eligibility.select(Filters(), market.now)
    assert eligibility.refresh(market.now) is before
    second = market.listing(seat, bid=4)
    store.parties.change_ad(first.ad.id, {"bid_micros": 9 * UNIT, "url": "https://new.example/"})
    after = eligibility.refresh(market.now)
    assert (after.rows, after.listing(0).bid_micros, after.listing(0).url) == (
        2,
        9 * UNIT,
        "https://new.example/",
    )
    assert after.listing(1) == second
    assert selection.catalogue.listing(0) == first
    assert selection.mask.tolist() == [True]


def test_impression_billing_counts_against_the_budget(market: Market, store: Store) -> None:
    listing = market.listing(market.seat(), bid=40, budget=50 * UNIT)
    market.served(listing, rule=PriceRule.EXPECTED, pctr=0.5)
    assert reasons(store, market.now) == {listing.ad.id: Reason.BUDGET}


class Large:
    """A catalogue that no store holds: many ads of a few campaigns."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def changes(self, since: int) -> Changes:
        if since:
            return Changes(1, (), (), {})
        ads = [
            AdRow(
                row,
                str(row),
                "t",
                f"c{row % 50}",
                "",
                f"cmp{row % 7}",
                "u",
                (),
                (row % 100 + 1) * UNIT,
                False,
            )
            for row in range(self.rows)
        ]
        campaigns = [
            CampaignRow(f"cmp{one}", f"adv{one % 3}", f"d{one}.example", 10**9, "asap", None, None, False)
            for one in range(7)
        ]
        return Changes(1, ads, campaigns, {})

    def spending(self, day: dt.date) -> dict[str, int]:
        return {"cmp0": 10**9}

    def seen(self, user_id: str, since: dt.datetime) -> list[tuple[str, dt.datetime]]:
        return []


def by_hand(listing: Listing, filters: Filters) -> Reason | None:
    """What one ad of `Large` should get."""
    if listing.campaign_id == "cmp0":
        return Reason.BUDGET
    if not filters.blocked_advertisers.isdisjoint((listing.advertiser_id, listing.domain)):
        return Reason.BLOCKED_ADVERTISER
    if listing.ad.category in filters.blocked_categories:
        return Reason.BLOCKED_CATEGORY
    return Reason.FLOOR if listing.bid_micros < filters.floor_micros else None


def test_arrays_agree_with_ads_one_by_one() -> None:
    eligibility = Eligibility(Large(3000), Serving())
    now = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)
    catalogue = eligibility.refresh(now)
    filters = Filters("u", 30 * UNIT, frozenset({"c3", "c4"}), frozenset({"adv1", "d5.example"}))
    selection = eligibility.select(filters, now)
    wanted = [by_hand(catalogue.listing(row), filters) for row in range(catalogue.rows)]
    assert selection.mask.tolist() == [reason is None for reason in wanted]
    assert [one.reason for one in selection.filtered(3000)] == [reason for reason in wanted if reason]
    assert selection.counts() == {one: wanted.count(one) for one in set(wanted) if one}
    assert len(selection.filtered(5)) == 5
    assert selection.mask.dtype == np.bool_
