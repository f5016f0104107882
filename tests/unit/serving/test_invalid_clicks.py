"""Clicks that are none: kept with a reason, charged nothing; the true click after them is charged once."""

from __future__ import annotations

import dataclasses
import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from raylla.config import Serving
from raylla.errors import UnknownError
from raylla.serving.billing.audit import audit
from raylla.serving.http import web
from raylla.serving.money.records import ClickLimits, Invalid, Outcome, PriceRule, ServedAuction
from raylla.serving.security.keys import Role
from raylla.serving.store import Store
from raylla.serving.store.billing import REPEATS_LOGGED
from tests.unit.serving.market import ADMIN_KEY, UNIT, Market
from tests.unit.serving.test_audit import tamper

HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}
SECOND = dt.timedelta(seconds=1)
PREFETCH = {"Sec-Purpose": "prefetch;prerender"}


def clean(store: Store) -> bool:
    return audit(store).discrepancies == []


def balance(store: Store, seat: str) -> int:
    return store.parties.advertiser(seat).balance_micros


@pytest.mark.parametrize("rule", PriceRule)
@pytest.mark.parametrize("reason", [Invalid.PREFETCH, Invalid.HEAD, Invalid.ROBOT])
def test_the_true_click_after_an_invalid_one_is_charged_once(
    market: Market, store: Store, rule: PriceRule, reason: Invalid
) -> None:
    auction = market.served(market.listing(market.seat(), bid=64), rule=rule)
    claims = market.claims(auction)
    before = store.charges(auction.id)
    for _ in range(2):
        charge = store.click(claims, market.now, reason)
        assert (charge.outcome, charge.reason, charge.amount_micros) == (Outcome.INVALID, reason, 0)
        assert charge.url == "https://lumo.example/cups?x=1"
    assert [one.id for one in store.charges(auction.id)] == [one.id for one in before]
    assert store.auction(auction.id).clicked == frozenset()
    true = store.click(claims, market.now)
    assert true.outcome in (Outcome.CHARGED, Outcome.ACCRUED, Outcome.BILLED_AT_IMPRESSION)
    assert true.reason is None
    assert len(store.charges(auction.id)) == 1
    assert store.auction(auction.id).clicked == {auction.impressions[0].id}
    again = store.click(claims, market.now, reason)
    assert (again.outcome, again.click_id) == (Outcome.INVALID, true.click_id)
    assert store.click(claims, market.now).outcome is Outcome.REPLAY
    assert store.invalid_clicks(auction.id) == {auction.impressions[0].id: {reason: 3}}
    assert clean(store)


def test_an_invalid_click_leads_to_no_conversion(market: Market, store: Store) -> None:
    claims = market.claims(market.served(market.listing(market.seat())))
    charge = store.click(claims, market.now, Invalid.ROBOT)
    with pytest.raises(UnknownError):
        store.convert(charge.click_id, "A-1", 5, None, market.now)


def seen_at(market: Market, store: Store, seen: dt.datetime | None, **how: Any) -> ServedAuction:
    """A recorded auction whose one ad was seen then."""
    auction = market.auction(market.listing(market.seat()), **how)
    auction = dataclasses.replace(
        auction, impressions=(dataclasses.replace(auction.impressions[0], seen=seen),)
    )
    store.record(auction)
    assert store.auction(auction.id).auction == auction
    return auction


@pytest.mark.parametrize("seen", [None, 4 * SECOND])
def test_a_click_sooner_than_the_least_time_after_its_ad_was_seen(
    market: Market, store: Store, seen: dt.timedelta | None
) -> None:
    auction = seen_at(market, store, None if seen is None else market.now + seen)
    claims, start = market.claims(auction), market.now + (seen or 0 * SECOND)
    limits = ClickLimits(least_seconds=0.8)
    soon = store.click(claims, start + 0.79 * SECOND, None, limits)
    assert (soon.outcome, soon.reason) == (Outcome.INVALID, Invalid.TOO_SOON)
    assert store.click(claims, start + 0.8 * SECOND, None, limits).outcome is Outcome.CHARGED
    assert store.click(claims, start + 0.81 * SECOND, None, limits).outcome is Outcome.REPLAY
    assert clean(store)


def test_a_users_clicks_beyond_the_most_within_an_hour(market: Market, store: Store) -> None:
    listing, limits = market.listing(market.seat(), bid=7), ClickLimits(per_user_hour=2)
    claims = [market.claims(market.served(listing), ttl=86_400) for _ in range(4)]
    minutes = dt.timedelta(minutes=1)
    found = [
        store.click(one, market.now + place * 10 * minutes, None, limits)
        for place, one in enumerate(claims[:3])
    ]
    assert [one.reason for one in found] == [None, None, Invalid.TOO_MANY]
    other = market.claims(market.served(listing, user_id="u2"))
    nobody = [market.claims(market.served(listing, user_id=None)) for _ in range(3)]
    for one in (other, *nobody):
        assert store.click(one, market.now + 20 * minutes, None, limits).outcome is Outcome.CHARGED
    # The first has left the hour: the one that was too many comes again, and the next is too many.
    later = market.now + 60 * minutes
    assert store.click(claims[2], later, None, limits).outcome is Outcome.CHARGED
    assert store.click(claims[3], later, None, limits).reason is Invalid.TOO_MANY
    assert store.click(claims[3], later).outcome is Outcome.CHARGED
    assert clean(store)


def test_test_auctions_replays_and_late_clicks_are_within_every_limit(market: Market, store: Store) -> None:
    limits = ClickLimits(least_seconds=1e6, per_user_hour=1)
    listing = market.listing(market.seat())
    for _ in range(2):
        tested = market.claims(market.served(listing, test=True))
        assert store.click(tested, market.now, None, limits).outcome is Outcome.TEST
    late = market.claims(market.served(listing), ttl=1)
    assert store.click(late, market.now + 2 * SECOND, None, limits).outcome is Outcome.EXPIRED
    counted = market.claims(market.served(listing))
    assert store.click(counted, market.now).outcome is Outcome.CHARGED
    assert store.click(counted, market.now, None, limits).outcome is Outcome.REPLAY


def test_many_clicks_of_a_user_at_once_do_not_pass_the_most(market: Market, store: Store) -> None:
    limits = ClickLimits(per_user_hour=3)
    seats = [market.seat(f"Seat{number}") for number in range(4)]
    claims = [market.claims(market.served(market.listing(seat, bid=5))) for seat in seats * 3]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda one: store.click(one, market.now, None, limits), claims))
    assert [one.outcome for one in found].count(Outcome.CHARGED) == 3
    assert [one.reason for one in found].count(Invalid.TOO_MANY) == 9
    assert sum(balance(store, seat) for seat in seats) == -15 * UNIT
    assert clean(store)


def test_invalid_clicks_without_end_fill_no_disk(market: Market, store: Store) -> None:
    auction = market.served(market.listing(market.seat()))
    for _ in range(REPEATS_LOGGED + 5):
        store.click(market.claims(auction), market.now, Invalid.ROBOT)
    (counts,) = store.invalid_clicks(auction.id).values()
    assert counts == {Invalid.ROBOT: REPEATS_LOGGED}
    assert store.click(market.claims(auction), market.now).outcome is Outcome.CHARGED


@pytest.mark.parametrize(
    ("statement", "field"),
    [
        ("UPDATE clicks SET outcome = 'charged', reason = NULL WHERE outcome = 'invalid'", "ledger line"),
        (
            "UPDATE clicks SET outcome = 'invalid', reason = 'robot' WHERE outcome = 'charged'",
            "ledger line",
        ),
        ("UPDATE clicks SET reason = NULL WHERE outcome = 'invalid'", "reason"),
        ("UPDATE clicks SET reason = 'robot' WHERE outcome = 'charged'", "reason"),
    ],
)
def test_the_audit_finds_what_was_made_valid_or_invalid(
    market: Market, store: Store, statement: str, field: str
) -> None:
    listing = market.listing(market.seat())
    store.click(market.claims(market.served(listing)), market.now, Invalid.HEAD)
    store.click(market.claims(market.served(listing)), market.now)
    assert audit(store).counts["invalid clicks"] == 1
    tamper(store, statement)
    assert field in {one.field for one in audit(store).discrepancies}


def sign(services: web.Services, market: Market, auction: ServedAuction) -> str:
    return f"/v1/clicks/{services.tokens.sign(market.claims(auction))}"


def told_of(client: TestClient, services: web.Services, **changes: Any) -> list[str]:
    """What clicks come to, as each is told; ``changes`` are of the endpoint's services."""
    told: list[str] = []
    changed = dataclasses.replace(services, clicked=told.append, **changes)
    client.app.state.services = changed  # type: ignore[attr-defined]
    return told


def test_over_http_each_is_redirected_told_and_shown_beside_the_charge(
    client: TestClient, market: Market, services: web.Services, store: Store
) -> None:
    told = told_of(client, services)
    market.now, seat = web.now(), market.seat()
    listing = market.listing(seat, bid=64)
    auction = market.served(listing)
    path = sign(services, market, auction)
    answers = [
        client.head(path),
        client.get(path, headers=PREFETCH),
        client.get(path, headers={"User-Agent": "Twitterbot/1.0"}),
        client.get(path),
        client.get(path, headers=PREFETCH),
    ]
    for answer in answers:
        assert answer.status_code == 302
        assert answer.headers["Location"].startswith("https://lumo.example/cups?x=1&raylla_click=clk_")
    assert told == ["invalid_head", "invalid_prefetch", "invalid_robot", "charged", "invalid_prefetch"]
    assert balance(store, seat) == -64 * UNIT
    shown = client.get(f"/v1/advertisers/{seat}/clicks", headers=HEADERS).json()
    of = {"campaign_id": listing.campaign_id}
    assert shown == [
        of | {"outcome": "charged", "reason": None, "clicks": 1, "amount_micros": 64 * UNIT},
        of | {"outcome": "invalid", "reason": "head", "clicks": 1, "amount_micros": 0},
        of | {"outcome": "invalid", "reason": "prefetch", "clicks": 2, "amount_micros": 0},
        of | {"outcome": "invalid", "reason": "robot", "clicks": 1, "amount_micros": 0},
    ]
    before = f"/v1/advertisers/{seat}/clicks?day={market.now.date() - dt.timedelta(days=1)}"
    assert client.get(before, headers=HEADERS).json() == []
    _, key = store.parties.add_key(Role.ADVERTISER, market.seat("Vara"), "k", market.now)
    other = client.get(f"/v1/advertisers/{seat}/clicks", headers={"Authorization": f"Bearer {key}"})
    assert other.status_code == 404
    assert clean(store)


def test_the_settings_are_the_limits(client: TestClient, market: Market, services: web.Services) -> None:
    serving = Serving(click_least_seconds=3600, clicks_per_user_hour=1)
    told = told_of(client, services, serving=serving)
    listing = market.listing(market.seat())
    market.now = web.now()
    client.get(sign(services, market, market.served(listing)))
    market.now -= dt.timedelta(hours=2)
    for _ in range(2):
        auction = market.served(listing)
        client.get(f"/v1/clicks/{services.tokens.sign(market.claims(auction, ttl=86_400))}")
    assert told == ["invalid_too_soon", "charged", "invalid_too_many"]


def test_a_link_whose_auction_is_not_recorded_leads_on_and_charges_nothing(
    client: TestClient, market: Market, services: web.Services, store: Store
) -> None:
    told = told_of(client, services)
    market.now, seat = web.now(), market.seat()
    auction = market.auction(market.listing(seat, bid=9))
    path = sign(services, market, auction)
    answer = client.get(path)
    assert (answer.status_code, answer.headers["Location"]) == (302, "https://lumo.example/cups?x=1")
    assert audit(store).counts["clicks"] == 0
    store.record(auction)
    client.get(path)
    assert told == ["unrecorded", "charged"]
    foreign = dataclasses.replace(market.claims(auction), impression_id="imp_x", seat=market.seat("Vara"))
    assert client.get(f"/v1/clicks/{services.tokens.sign(foreign)}").status_code == 404
    unlisted = dataclasses.replace(market.claims(auction), impression_id="imp_x", ad_id="77")
    assert client.get(f"/v1/clicks/{services.tokens.sign(unlisted)}").status_code == 404
    assert balance(store, seat) == -9 * UNIT
