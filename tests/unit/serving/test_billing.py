"""Clicks, impressions and settlements move money once, within budgets, and the audit agrees."""

from __future__ import annotations

import dataclasses
import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from raylla.errors import ClashError, StoreError, UnknownError
from raylla.serving.billing.audit import audit
from raylla.serving.money.records import Outcome, PriceRule
from raylla.serving.store import Store
from tests.unit.serving.market import MU, UNIT, Market


def balance(store: Store, seat: str) -> int:
    return store.parties.advertiser(seat).balance_micros


def clean(store: Store) -> bool:
    return audit(store).discrepancies == []


def test_first_click_charges_the_bid_and_a_replay_nothing(market: Market, store: Store) -> None:
    seat = market.seat()
    auction = market.served(market.listing(seat, bid=64))
    first = store.click(market.claims(auction), market.now)
    again = store.click(market.claims(auction), market.now)
    assert (first.outcome, first.amount_micros) == (Outcome.CHARGED, 64 * UNIT)
    assert (again.outcome, again.amount_micros) == (Outcome.REPLAY, 0)
    assert again.click_id == first.click_id
    assert balance(store, seat) == -64 * UNIT
    (line,) = store.charges(auction.id)
    assert (line.kind, line.price_rule, line.weight_version) == ("charge", "first_price", "v1")
    assert (line.click_id, line.impression_id) == (first.click_id, auction.impressions[0].id)
    assert clean(store)


def test_replays_without_end_are_not_logged_without_end(
    market: Market, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raylla.serving.store.billing.REPEATS_LOGGED", 3)
    auction = market.served(market.listing(market.seat()))
    first = store.click(market.claims(auction), market.now)
    for _ in range(6):
        assert store.click(market.claims(auction), market.now).click_id == first.click_id
    assert audit(store).counts["clicks"] == 1 + 3


def test_a_late_click_is_free_and_does_not_spend_the_impression(market: Market, store: Store) -> None:
    auction = market.served(market.listing(market.seat()))
    claims = market.claims(auction, ttl=60)
    late = store.click(claims, market.now + dt.timedelta(seconds=60))
    assert (late.outcome, late.amount_micros) == (Outcome.EXPIRED, 0)
    assert store.click(claims, market.now).outcome is Outcome.CHARGED
    assert clean(store)


def test_the_budget_is_never_passed_and_starts_again_with_the_day(market: Market, store: Store) -> None:
    seat = market.seat()
    listing = market.listing(seat, bid=40, budget=100 * UNIT)
    auctions = [market.served(listing) for _ in range(4)]
    outcomes = [store.click(market.claims(one), market.now).outcome for one in auctions[:3]]
    assert outcomes == [Outcome.CHARGED, Outcome.CHARGED, Outcome.BUDGET]
    tomorrow = market.now + dt.timedelta(days=1)
    assert store.click(market.claims(auctions[3], ttl=10**6), tomorrow).outcome is Outcome.CHARGED
    assert balance(store, seat) == -120 * UNIT
    assert clean(store)


def test_a_click_refused_for_its_budget_counts_as_the_impressions_first(
    market: Market, store: Store
) -> None:
    listing = market.listing(market.seat(), bid=40, budget=30 * UNIT)
    auction = market.served(listing)
    assert store.click(market.claims(auction), market.now).outcome is Outcome.BUDGET
    store.parties.change_campaign(listing.campaign_id, {"daily_budget_micros": 10**9}, market.now)
    assert store.click(market.claims(auction), market.now).outcome is Outcome.REPLAY
    assert clean(store)


def test_a_lowered_budget_holds_from_the_next_charge(market: Market, store: Store) -> None:
    listing = market.listing(market.seat(), bid=40, budget=100 * UNIT)
    first, second = market.served(listing), market.served(listing)
    store.click(market.claims(first), market.now)
    store.parties.change_campaign(listing.campaign_id, {"daily_budget_micros": 50 * UNIT}, market.now)
    assert store.click(market.claims(second), market.now).outcome is Outcome.BUDGET
    assert clean(store)


def test_expected_is_billed_at_the_impression(market: Market, store: Store) -> None:
    seat, other = market.seat(), market.seat("Vara")
    auction = market.served(
        market.listing(seat, bid=50), market.listing(other, bid=10), rule=PriceRule.EXPECTED, pctr=0.123
    )
    assert balance(store, seat) == -round(50 * UNIT * 0.123)
    assert store.click(market.claims(auction), market.now).outcome is Outcome.BILLED_AT_IMPRESSION
    assert balance(store, seat) == -round(50 * UNIT * 0.123)
    assert [line.click_id for line in store.charges(auction.id)] == [None, None]
    assert clean(store)


def test_expected_beyond_the_budget_is_shown_for_nothing(market: Market, store: Store) -> None:
    seat = market.seat()
    listing = market.listing(seat, bid=50, budget=20 * UNIT)
    for _ in range(3):
        market.served(listing, rule=PriceRule.EXPECTED, pctr=0.3)
    assert balance(store, seat) == -15 * UNIT
    assert clean(store)


def test_resampled_clicks_accrue_and_settle_as_one_sum(market: Market, store: Store) -> None:
    seat = market.seat()
    listing = market.listing(seat, bid=10)
    auctions = [market.served(listing, rule=PriceRule.RESAMPLED) for _ in range(12)]
    auctions.append(market.served(listing, rule=PriceRule.RESAMPLED, resampled=True))
    charges = [store.click(market.claims(one), market.now) for one in auctions]
    assert {one.outcome for one in charges} == {Outcome.ACCRUED}
    assert charges[-1].amount_micros == round(10 * UNIT * (1 - 1 / MU))
    assert balance(store, seat) == 0
    (settled,) = store.settle(market.now)
    assert (settled.billed_micros, settled.accruals) == ((12 - 9) * 10 * UNIT, 13)
    assert balance(store, seat) == -30 * UNIT
    assert store.settle(market.now) == []
    assert clean(store)


def test_rebates_beyond_the_charges_wait_for_the_next_settlement(market: Market, store: Store) -> None:
    seat = market.seat()
    listing = market.listing(seat, bid=10)
    rebate = market.served(listing, rule=PriceRule.RESAMPLED, resampled=True)
    store.click(market.claims(rebate), market.now)
    assert store.settle(market.now) == []
    assert store.parties.advertiser(seat).accrued_micros == -90 * UNIT
    for _ in range(10):
        store.click(market.claims(market.served(listing, rule=PriceRule.RESAMPLED)), market.now)
    assert [one.billed_micros for one in store.settle(market.now)] == [10 * UNIT]
    assert clean(store)


def test_a_test_auction_is_never_charged(market: Market, store: Store) -> None:
    seat = market.seat()
    for rule in PriceRule:
        auction = market.served(market.listing(seat), rule=rule, test=True)
        assert store.click(market.claims(auction), market.now).outcome is Outcome.TEST
    assert balance(store, seat) == 0
    assert clean(store)


def test_recording_twice_changes_nothing_and_another_under_its_id_is_refused(
    market: Market, store: Store
) -> None:
    seat = market.seat()
    auction = market.served(market.listing(seat, bid=50), rule=PriceRule.EXPECTED, pctr=0.5)
    store.record(auction)
    assert balance(store, seat) == -25 * UNIT
    with pytest.raises(ClashError, match="other content"):
        store.record(dataclasses.replace(auction, text="changed"))


@pytest.mark.parametrize("rule", list(PriceRule))
def test_what_is_recorded_together_is_recorded_as_if_alone(
    market: Market, store: Store, rule: PriceRule
) -> None:
    seats = [market.seat(), market.seat()]
    listings = [market.listing(seat, bid=10) for seat in (*seats, *reversed(seats))]
    auctions = [market.auction(listing, rule=rule, pctr=0.5) for listing in listings]
    assert store.record_together(auctions) == [None] * 4
    assert [balance(store, seat) for seat in seats] == [-10 * UNIT * (rule is PriceRule.EXPECTED)] * 2
    for auction in auctions:
        store.click(market.claims(auction), market.now)
    assert clean(store)


def test_one_that_is_refused_takes_no_other_with_it(market: Market, store: Store) -> None:
    seat = market.seat()
    known, fresh, wrong, other = (market.auction(market.listing(seat)) for _ in range(4))
    store.record(known)
    wrong = dataclasses.replace(
        wrong, impressions=(dataclasses.replace(wrong.impressions[0], price_micros=1),)
    )
    changed = dataclasses.replace(known, text="changed")
    found = store.record_together([known, fresh, wrong, changed, other])
    assert [type(one) for one in found] == [type(None), type(None), StoreError, ClashError, type(None)]
    written = [one.auction.id for one in store.auctions(market.now, market.now + dt.timedelta(days=1))]
    assert sorted(written) == sorted([known.id, fresh.id, other.id])
    assert clean(store)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("price_micros", 1, "first_price gives"),
        ("bid_micros", 7, "bid_micros"),
        ("campaign_id", "cmp_x", "campaign"),
        ("ad_id", "9", "no candidate"),
        ("pctr", float("nan"), "pctr"),
    ],
)
def test_what_the_audit_would_refuse_is_not_recorded(
    market: Market, store: Store, field: str, value: object, message: str
) -> None:
    auction = market.auction(market.listing(market.seat()))
    wrong = dataclasses.replace(auction.impressions[0], **{field: value})
    with pytest.raises(StoreError, match=message):
        store.record(dataclasses.replace(auction, impressions=(wrong,)))


def test_an_ad_that_is_not_listed_is_not_recorded(market: Market, store: Store) -> None:
    listing = market.listing(market.seat())
    unlisted = dataclasses.replace(listing, ad=dataclasses.replace(listing.ad, id="999999"))
    with pytest.raises(StoreError, match="not listed"):
        market.served(unlisted)
    assert list(store.auctions(market.now, market.now + dt.timedelta(days=1))) == []


@pytest.mark.parametrize("field", ["auction_id", "impression_id", "ad_id", "seat", "price_micros"])
def test_a_signed_token_of_another_impression_leads_nowhere(
    market: Market, store: Store, field: str
) -> None:
    auction = market.served(market.listing(market.seat()))
    wrong = 1 if field == "price_micros" else "other"
    with pytest.raises(UnknownError):
        store.click(dataclasses.replace(market.claims(auction), **{field: wrong}), market.now)


def test_one_of_many_clicks_at_once_is_charged(market: Market, store: Store) -> None:
    seat = market.seat()
    auctions = [market.served(market.listing(seat, bid=7)) for _ in range(3)]
    claims = [market.claims(one) for one in auctions] * 6
    with ThreadPoolExecutor(6) as threads:
        outcomes = [one.outcome for one in threads.map(lambda one: store.click(one, market.now), claims)]
    assert outcomes.count(Outcome.CHARGED) == 3
    assert outcomes.count(Outcome.REPLAY) == 15
    assert balance(store, seat) == -21 * UNIT
    assert clean(store)


def test_clicks_at_once_do_not_pass_the_budget(market: Market, store: Store) -> None:
    seat = market.seat()
    listing = market.listing(seat, bid=30, budget=100 * UNIT)
    claims = [market.claims(market.served(listing)) for _ in range(12)]
    with ThreadPoolExecutor(6) as threads:
        outcomes = [one.outcome for one in threads.map(lambda one: store.click(one, market.now), claims)]
    assert outcomes.count(Outcome.CHARGED) == 3
    assert outcomes.count(Outcome.BUDGET) == 9
    assert store.parties.spent(listing.campaign_id, market.now.date()) == 90 * UNIT
    assert clean(store)


def test_auctions_of_the_same_advertisers_at_once_do_not_wait_for_each_other_in_a_circle(
    market: Market, store: Store
) -> None:
    seats = [market.seat(f"Seat{number}") for number in range(3)]
    listings = [market.listing(seat, bid=10, lurl="https://x.example/") for seat in seats]
    orders = [(0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1)] * 4
    auctions = [
        market.auction(listings[a], listings[b], rule=PriceRule.EXPECTED, pctr=0.5, lost=(listings[c],))
        for a, b, c in orders
    ]
    clicks = [market.claims(market.served(one)) for one in listings for _ in range(4)]
    with ThreadPoolExecutor(6) as threads:
        recorded = threads.map(store.record, auctions)
        charged = threads.map(lambda one: store.click(one, market.now), clicks)
        assert [one.outcome for one in charged] == [Outcome.CHARGED] * 12
        list(recorded)
    places = [one for order in orders for one in order[:2]]
    for number, seat in enumerate(seats):
        assert balance(store, seat) == -(places.count(number) * 5 + 4 * 10) * UNIT
    assert clean(store)


def test_auctions_come_back_whole_with_clicks_and_conversions(market: Market, store: Store) -> None:
    listing = market.listing(market.seat())
    first = market.served(listing, now=market.now)
    second = market.served(listing, now=market.now + dt.timedelta(seconds=1))
    charge = store.click(market.claims(first), market.now)
    store.convert(charge.click_id, "A-1", 5, None, market.now)
    store.convert(charge.click_id, "A-2", 7, None, market.now)
    served = list(store.auctions(market.now, market.now + dt.timedelta(seconds=2)))
    assert [one.auction for one in served] == [first, second]
    assert served[0].clicked == {first.impressions[0].id}
    assert served[0].conversion_micros == {first.impressions[0].id: 12}
    assert served[1].clicked == frozenset()
    later = market.now + dt.timedelta(seconds=1)
    assert [one.auction.id for one in store.auctions(later, later + dt.timedelta(1))] == [second.id]


def test_many_auctions_come_back_in_order_whatever_the_page(
    market: Market, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raylla.serving.store.store._PAGE", 2)
    listing = market.listing(market.seat())
    ids = [market.served(listing).id for _ in range(5)]
    found = [one.auction.id for one in store.auctions(market.now, market.now + dt.timedelta(days=1))]
    assert found == sorted(ids)


def test_conversions_are_booked_once_and_belong_to_the_clicks_owner(market: Market, store: Store) -> None:
    seat, other = market.seat(), market.seat("Vara")
    charge = store.click(market.claims(market.served(market.listing(seat))), market.now)
    first = store.convert(charge.click_id, "A-1", 5, seat, market.now)
    assert store.convert(charge.click_id, "A-1", 5, seat, market.now).id == first.id
    with pytest.raises(ClashError):
        store.convert(charge.click_id, "A-1", 6, seat, market.now)
    with pytest.raises(UnknownError):
        store.convert(charge.click_id, "A-1", 5, other, market.now)


def test_payments_are_booked_once_by_reference(market: Market, store: Store) -> None:
    seat = market.seat()
    pay = partial(store.parties.pay, seat, currency="USD", reference="INV-1", now=market.now)
    pay(amount=500)
    pay(amount=500)
    with pytest.raises(ClashError):
        pay(amount=600)
    assert balance(store, seat) == 500
    assert clean(store)
