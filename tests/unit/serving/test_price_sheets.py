"""The rule `reserve` at the endpoint: who enters, what is charged, what the audit finds, and refusals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raylla.config import Config, Serving
from raylla.errors import ConfigError, StoreError
from raylla.evaluation.prices.sources import of_store
from raylla.pricing.curve import Contests, traits_of
from raylla.pricing.reserves import Reserves
from raylla.pricing.rule import bid_grid
from raylla.pricing.sheet import written
from raylla.records import Ad, Profile, Query
from raylla.serving.billing.audit import audit
from raylla.serving.money import sheets
from raylla.serving.money.money import Micros
from raylla.serving.money.records import Listing, PriceRule, Reason, question_of
from raylla.serving.store import open_store
from tests.unit.serving import market as markets
from tests.unit.serving.auctions import ask, client, logged, placing
from tests.unit.serving.market import UNIT, Market
from tests.unit.serving.scripted import Endpoint, endpoint
from tests.unit.serving.test_audit import tamper

SHEET = written(markets.SHEET.curve, Reserves(5.0), {"": 0.3}, {})
ADS = [Ad(str(number), f"Cup {number}", "cups", "kitchen") for number in range(6)]
ASKED = Query("q", "p", "which cup?", "cups", "kitchen", "test"), Profile("p", "", ())
RECORD = "UPDATE auctions SET record = json_set(record, '$.{}', 123456)"


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    path = tmp_path / "prices.json"
    path.write_text(SHEET.text)
    return path


def opened(market: Market, prices: Path, *listings: Listing) -> Endpoint:
    return endpoint(market.store, placing(*listings), price_rule="reserve", prices=str(prices))


def quoted(bids: Sequence[int], floor: Micros = 0, unit: Micros = UNIT) -> list[Micros]:
    """Prices of the first of `ADS` at these bids, in units; those below their reserve cost -1."""
    entered = [
        (ad, bid * unit, sheets.reserve_micros(SHEET, *ASKED, ad, unit, floor))
        for ad, bid in zip(ADS, bids, strict=False)
    ]
    entered = [one for one in entered if one[1] >= one[2]]
    prices = sheets.quoted_micros(SHEET, *ASKED, entered, unit)
    found = {ad: price for (ad, _, _), price in zip(entered, prices, strict=True)}
    return [found.get(ad, -1) for ad, _ in zip(ADS, bids, strict=False)]


@given(st.lists(st.integers(5, 100), min_size=1, max_size=6), st.integers(1, 10**6))
def test_a_click_costs_at_least_the_reserve_and_at_most_the_bid(bids: list[int], unit: int) -> None:
    found = quoted(bids, unit=unit)
    for price, bid in zip(found, bids, strict=True):
        assert 5 * unit <= price <= bid * unit
    assert found == quoted(bids, unit=unit)


@given(st.integers(5, 99), st.lists(st.integers(5, 100), max_size=5))
def test_a_click_costs_no_less_where_the_bid_is_higher(bid: int, others: list[int]) -> None:
    assert quoted([bid, *others])[0] <= quoted([bid + 1, *others])[0]


@pytest.mark.parametrize("floor", [60 * UNIT, 59 * UNIT + 1])
def test_a_floor_above_the_sheets_reserve_is_the_reserve(floor: Micros) -> None:
    """An ad of any value gains most by bidding it: not so if the price began below the floor."""
    others = [80, 61, 30]
    prices = [quoted([bid, *others], floor)[0] for bid in range(1, 101)]
    assert prices[:59] == [-1] * 59
    assert prices[59] == 60 * UNIT
    held = Contests.of([[50.0, 80.0, 61.0]], [[traits_of(*ASKED, ad) for ad in ADS[:3]]])
    shares = SHEET.curve.along(held, held.there, bid_grid(100), [0])[0, 0]
    for value in range(1, 101):
        gains = [
            0.0 if price < 0 else share * (value * UNIT - price)
            for share, price in zip(shares, prices, strict=True)
        ]
        assert gains[value - 1] >= max(gains) - 1  # of the rounding to micros


def test_the_price_is_the_sheets_and_who_bids_too_little_stays_out(market: Market, prices: Path) -> None:
    seat = market.seat()
    cup = market.listing(seat, bid=64, title="Lumo Floral Cup")
    rival = market.listing(seat, bid=40)
    poor = market.listing(seat, bid=4)
    one = opened(market, prices, cup)
    answer = ask(one).json()
    detail = answer["raylla"]
    assert (detail["price_rule"], detail["at"], detail["filtered"]) == ("reserve", 502, {"floor": 1})
    (served,) = logged(market.store)
    record = served.auction
    assert [(each.ad_id, each.reason) for each in record.filtered] == [(poor.ad.id, Reason.FLOOR)]
    assert {each.listing.ad.id for each in record.candidates} == {cup.ad.id, rival.ad.id}
    assert record.prices == SHEET.digest
    asked = question_of(record)
    entered = [(each.listing.ad, each.bid_micros, 5 * UNIT) for each in record.candidates]
    wanted = sheets.quoted_micros(SHEET, *asked, entered, UNIT)
    price = detail["ads"][0]["price_micros"]
    assert price == wanted[[ad.id for ad, _, _ in entered].index(cup.ad.id)]
    assert 5 * UNIT <= price < 64 * UNIT
    client(one).get(answer["choices"][0]["message"]["annotations"][0]["url_citation"]["url"])
    (charged,) = logged(market.store)
    assert charged.charged_micros == price
    assert audit(market.store).discrepancies == []


@pytest.mark.parametrize(
    ("statement", "field"),
    [
        (RECORD.format("candidates[0].price_micros"), "price_micros"),
        (RECORD.format("candidates[0].reserve_micros"), "reserve_micros"),
        (RECORD.format("candidates[0].bid_micros"), "bid_micros"),
        (RECORD.format("candidates[0].listing.bid_micros"), "listing's bid_micros"),
        (RECORD.format("impressions[0].bid_micros"), "bid_micros"),
        (RECORD.format("impressions[0].price_micros"), "price_micros"),
        (RECORD.format("impressions[0].ad_id").replace("123456", "'none'"), "ad_id"),
        (RECORD.format("micros_per_unit"), "bid_micros"),
        (RECORD.format("micros_per_unit").replace("123456", "0"), "micros_per_unit"),
        (RECORD.format("micros_per_unit").replace("123456", "-1"), "micros_per_unit"),
        (RECORD.format("micros_per_unit").replace("123456", "'many'"), "record"),
        (RECORD.format("candidates[0].reserve_micros").replace("123456", "40000"), "reserve_micros"),
        (RECORD.format("candidates[0].reserve_micros").replace("123456", "NULL"), "reserve_micros"),
        (RECORD.format("candidates[0].reserve_micros").replace("123456", "900000"), "bid_micros"),
        (RECORD.format("prices").replace("123456", "'none'"), "prices"),
        ("UPDATE impressions SET price_micros = price_micros + 1", "impressions"),
        ("DELETE FROM price_sheets", "prices"),
        ("UPDATE price_sheets SET text = text || ' '", "digest"),
        ("UPDATE price_sheets SET text = replace(text, '\"all\": 5', '\"all\": 6')", "reserve_micros"),
        ("UPDATE price_sheets SET text = '{}'", "text"),
    ],
)
def test_a_change_to_quotes_or_sheet_is_found(
    market: Market, prices: Path, statement: str, field: str
) -> None:
    cup = market.listing(market.seat(), bid=64, title="Lumo Floral Cup")
    ask(opened(market, prices, cup))
    tamper(market.store, statement)
    assert field in {one.field for one in audit(market.store).discrepancies}


def test_a_floor_is_where_prices_begin(market: Market, prices: Path) -> None:
    """The endpoint's floor and the request's alike; the audit reads from the record where they did."""
    seat = market.seat()
    cup = market.listing(seat, bid=64, title="Lumo Floral Cup")
    market.listing(seat, bid=40)
    one = endpoint(
        market.store, placing(cup), price_rule="reserve", prices=str(prices), floor_micros=50 * UNIT
    )
    for floor, least in ((0, 50), (60 * UNIT - 1, 60)):
        (shown,) = ask(one, floor_micros=floor).json()["raylla"]["ads"]
        assert least * UNIT <= shown["price_micros"] < 64 * UNIT
        (kept,) = logged(market.store)[-1].auction.candidates
        assert (kept.reserve_micros, kept.price_micros) == (least * UNIT, shown["price_micros"])
    assert audit(market.store).discrepancies == []


@pytest.mark.parametrize("candidates", [True, False])
def test_a_price_changed_everywhere_is_found(market: Market, prices: Path, candidates: bool) -> None:
    """Ledger, impression and record agree with each other, with or without the candidate, and not with the
    sheet."""
    cup = market.listing(market.seat(), bid=64, title="Lumo Floral Cup")
    one = opened(market, prices, cup)
    answer = ask(one).json()
    client(one).get(answer["choices"][0]["message"]["annotations"][0]["url_citation"]["url"])
    both = "'$.impressions[0].price_micros', 640000"
    both += ", '$.candidates[0].price_micros', 640000" if candidates else ""
    tamper(
        market.store,
        f"UPDATE auctions SET record = json_set(record, {both})",
        "UPDATE impressions SET price_micros = 640000",
        "UPDATE ledger SET amount_micros = 640000",
    )
    subjects = {(one.subject, one.field) for one in audit(market.store).discrepancies}
    auction = logged(market.store)[0].auction
    where = f"candidate {cup.ad.id}" if candidates else f"impression {auction.impressions[0].id}"
    assert (f"auction {auction.id} {where}", "price_micros") in subjects


def test_the_store_refuses_a_price_above_the_bid_and_a_sheet_of_another_rule(market: Market) -> None:
    cup = market.listing(market.seat(), bid=64)
    auction = market.auction(cup, rule=PriceRule.RESERVE)
    (candidate,), (shown,) = auction.candidates, auction.impressions
    dear = 65 * UNIT
    with pytest.raises(StoreError, match="at most the bid"):
        market.store.record(
            replace(
                auction,
                candidates=(replace(candidate, price_micros=dear),),
                impressions=(replace(shown, price_micros=dear),),
            )
        )
    with pytest.raises(StoreError, match="but reserve gives"):
        market.store.record(replace(auction, impressions=(replace(shown, price_micros=6 * UNIT),)))
    with pytest.raises(StoreError, match="prices=None under reserve"):
        market.store.record(replace(auction, prices=None))


def test_unusable_sheets_are_refused(tmp_path: Path, prices: Path) -> None:
    with pytest.raises(ValidationError, match="set prices to one of `raylla prices learn`"):
        Serving(price_rule="reserve")

    def refused(**serving: Any) -> str:
        with pytest.raises(ConfigError) as error:
            sheets.served_sheet(
                Config.model_validate(
                    {"serving": {"price_rule": "reserve", **serving.pop("serving", {})}} | serving
                )
            )
        return str(error.value)

    assert "serving.prices='/nowhere/prices.json' cannot be read" in refused(
        serving={"prices": "/nowhere/prices.json"}
    )
    assert "prices_digest is 000000000000" in refused(
        serving={"prices": str(prices), "prices_digest": "0" * 64}
    )
    assert "learned from bids up to 100, and world.max_bid is 200" in refused(
        serving={"prices": str(prices)}, world={"max_bid": 200}
    )
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"form": "something"}))
    assert "is no price sheet" in refused(serving={"prices": str(other)})
    pinned = Config.model_validate(
        {"serving": {"price_rule": "reserve", "prices": str(prices), "prices_digest": SHEET.digest}}
    )
    assert sheets.served_sheet(pinned) == SHEET
    assert sheets.served_sheet(Config.model_validate({"serving": {"prices": str(prices)}})) is None


def test_an_endpoints_auctions_are_a_log(tmp_path: Path, market: Market, prices: Path) -> None:
    """What `raylla prices learn URL` reads: candidates, bids, what was placed and clicked."""
    url = f"sqlite:///{tmp_path}/books.db"
    books = open_store(url)
    own = Market(books, market.now)
    seat = own.seat()
    cup, rival = own.listing(seat, bid=64), own.listing(seat, bid=40)
    clicked = own.served(cup, lost=(rival,))
    books.click(own.claims(clicked), own.now)
    own.served(lost=(rival, cup))
    own.served(cup, test=True)
    own.served(cup, rule=PriceRule.RESERVE)
    books.close()
    first, second = of_store(url, None, UNIT)
    assert (first.bids, first.placed, first.clicks) == ((64.0, 40.0), (1.0, 0.0), (1.0, 0.0))
    assert (second.bids, second.placed, second.answers) == ((40.0, 64.0), (0.0, 0.0), 1)
    assert first.kinds == (("cups", "kitchen"),) * 2
