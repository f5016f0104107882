"""Bodies and times at the edges of what JSON, the calendar and 64 bits hold: answered, or refused typed."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from raylla.errors import MoneyError
from raylla.records import Profile
from raylla.serving.auction.exchange import Asked
from raylla.serving.billing.audit import audit
from raylla.serving.http.openai.delivery import watched
from raylla.serving.http.reports import Reports
from raylla.serving.money.money import LARGEST, MOST
from raylla.serving.money.records import Filters, PriceRule
from raylla.serving.security.tokens import TokenKeys, new_claims
from raylla.serving.store import Store
from raylla.serving.store.tallies import Group, Tallies, Wanted
from tests.unit.serving.auctions import client
from tests.unit.serving.market import KEYS, Market
from tests.unit.serving.scripted import HEADERS, Endpoint, endpoint

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
HALF = "which cup \ud83d"
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "which cup?"}]}


def send(one: Endpoint, path: str, content: str | bytes) -> Any:
    return client(one).post(path, content=content, headers=HEADERS | {"Content-Type": "application/json"})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-16", "utf-32-le", "utf-32"])
@pytest.mark.parametrize("escaped", [False, True])
def test_half_a_character_is_mended_in_every_encoding_of_json(
    store: Store, encoding: str, escaped: bool
) -> None:
    one = endpoint(store)
    text = json.dumps({"messages": [{"role": "user", "content": HALF}]}, ensure_ascii=escaped)
    answer = send(one, CHAT, text.encode(encoding, "surrogatepass"))
    assert answer.status_code == 200, answer.text
    (served,) = store.auctions(dt.datetime(2000, 1, 1, tzinfo=dt.UTC), dt.datetime.now(dt.UTC))
    assert served.auction.query == "which cup \ufffd"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1e999"])
@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_what_json_cannot_say_again_is_refused(store: Store, number: str, kind: str) -> None:
    one = endpoint(store)
    said = json.dumps({"type": kind, "name": "n", "schema": {}, "json_schema": {"schema": {}}})
    form = f'{said[:-1]}, "x": {number}}}'
    ads = '"raylla": {"ads": false}'
    for path, body, param in (
        (RESPONSES, f'{{"input": "which cup?", {ads}, "text": {{"format": {form}}}}}', "text"),
        (CHAT, f'{json.dumps(ASKED)[:-1]}, {ads}, "response_format": {form}}}', "response_format"),
    ):
        answer = send(one, path, body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_schema_is_as_deep_as_its_answer_can_say(store: Store) -> None:
    one = endpoint(store)
    statuses = []
    for depth in (10, *range(700, 1030, 30), 20_000):  # Python 3.11 reads a thousand, 3.12 ten thousand
        form = f'{{"type": "json_schema", "name": "n", "schema": {{"a": {"[" * depth}{"]" * depth}}}}}'
        body = f'{{"input": "x", "raylla": {{"ads": false}}, "text": {{"format": {form}}}}}'
        statuses.append(send(one, RESPONSES, body).status_code)
    assert statuses[0] == 200
    assert set(statuses) == {200, 400}
    assert statuses == sorted(statuses)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", True),
        ("seed", False),
        ("n", True),
        ("temperature", True),
        ("top_logprobs", False),
        ("raylla", {"floor_micros": True}),
        ("raylla", {"test": True, "bids": {"1": True}}),
    ],
)
def test_a_flag_is_no_number(store: Store, name: str, value: Any) -> None:
    answer = send(endpoint(store), CHAT, json.dumps(ASKED | {name: value}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
    assert answer.json()["error"]["param"].startswith(name)


def test_a_whole_number_may_have_a_point(store: Store) -> None:
    assert send(endpoint(store), CHAT, json.dumps(ASKED | {"max_tokens": 5.0})).status_code == 200


@pytest.mark.parametrize("stored", [True, False, None])
def test_to_keep_a_response_may_be_said(store: Store, stored: bool | None) -> None:
    one = endpoint(store)
    answer = send(one, RESPONSES, json.dumps({"input": "which cup?", "store": stored}))
    assert answer.status_code == 200, answer.text
    assert answer.json()["store"] is (stored is not False)
    kept = client(one).get(f"{RESPONSES}/{answer.json()['id']}", headers=HEADERS)
    assert kept.status_code == (404 if stored is False else 200)


def test_a_body_that_does_not_say_its_length_is_too_large_by_the_same_code(store: Store) -> None:
    one = endpoint(store, largest_body=1000)

    def parts() -> Any:
        yield from [b"{" * 600] * 2

    answer = client(one).post(CHAT, content=parts(), headers=HEADERS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert send(one, CHAT, b'"\xff"').json()["error"]["code"] == "invalid_json"


def test_the_calendar_has_a_last_day(store: Store, market: Market) -> None:
    seat = market.seat()
    for day in ("9999-12-31", "0001-01-01"):
        answer = client(endpoint(store)).get(f"/v1/advertisers/{seat}/clicks?day={day}", headers=HEADERS)
        assert (answer.status_code, answer.json()) == (200, [])


def hour(day: int, hour: int) -> dt.datetime:
    return dt.datetime(2026, 11, day, hour, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("since", "until", "counts"),
    [
        (hour(25, 4), hour(27, 0), {25: 3, 26: 4}),
        (hour(25, 0), hour(26, 11), {25: 4, 26: 2}),
        (hour(24, 0), hour(28, 0), {25: 4, 26: 4, 27: 4}),
        (hour(25, 11), hour(27, 11), {25: 2, 26: 4, 27: 2}),
        (hour(25, 11), hour(26, 11), {25: 2, 26: 2}),
        (hour(25, 10), hour(25, 12), {25: 2}),
        (hour(25, 0), hour(25, 11), {25: 2}),
        (hour(25, 11), hour(26, 0), {25: 2}),
    ],
)
def test_a_day_has_one_line_also_where_a_part_of_it_is_wanted(
    store: Store, market: Market, since: dt.datetime, until: dt.datetime, counts: dict[int, int]
) -> None:
    cup = market.listing(market.seat())
    for day in (25, 26, 27):
        for at in (3, 10, 11, 23):
            market.served(cup, now=hour(day, at))
    for by in ((Group.DAY,), (Group.DAY, Group.AD), (Group.DAY, Group.ADVERTISER)):
        found = store.report(Wanted(since, until, by), 0, 100)
        assert {one.of[Group.DAY].day: one.counts["impressions"] for one in found.lines} == counts
        assert all(one.of[Group.DAY].hour == 0 for one in found.lines)
        assert found.total.counts["impressions"] == sum(counts.values())
        pages = [store.report(Wanted(since, until, by), place, 1) for place in range(len(counts))]
        assert [one.lines for one in pages] == [[one] for one in found.lines]
        assert {one.total.counts["impressions"] for one in pages} == {sum(counts.values())}


def test_conversions_beyond_64_bits_are_refused_and_their_sums_are_exact(
    store: Store, market: Market
) -> None:
    first, second = market.listing(market.seat()), market.listing(market.seat("Vara"))
    much = MOST - LARGEST
    for one in (first, second):
        made = Tallies()
        made.add(market.now, one.ad.id, "v1", conversion_micros=much)
        with store.database.writing() as session:
            made.write(session.connection())
    click = store.click(market.claims(market.served(first)), market.now)
    store.convert(click.click_id, "A-1", LARGEST, None, market.now)
    with pytest.raises(MoneyError, match="conversion_micros of ad"):
        store.convert(click.click_id, "A-2", 1, None, market.now)
    store.convert(click.click_id, "A-3", 0, None, market.now)
    for by in ((), (Group.CATEGORY,), (Group.AD,)):
        found = store.report(Wanted(hour(25, 0), hour(26, 0), by), 0, 1)
        assert found.total.counts["conversion_micros"] == MOST + much


def test_rebates_add_up_below_zero(store: Store, market: Market) -> None:
    cup = market.listing(market.seat())
    for resampled in (True, False, True):
        auction = market.served(cup, rule=PriceRule.RESAMPLED, resampled=resampled)
        store.click(market.claims(auction), market.now)
    earned = store.revenue(market.now.date())
    assert earned < 0
    total = store.report(Wanted(hour(25, 0), hour(26, 0)), 0, 1).total
    assert total.counts["charged_micros"] == earned
    assert audit(store).discrepancies == []


def test_a_balance_keeps_within_64_bits(store: Store, market: Market) -> None:
    seat = market.seat()
    for place in range(2):
        store.parties.pay(seat, LARGEST, "USD", f"r{place}", market.now)
    with pytest.raises(MoneyError, match="balance"):
        store.parties.pay(seat, MOST, "USD", "more", market.now)
    assert store.parties.advertiser(seat).balance_micros == 2 * LARGEST
    assert audit(store).discrepancies == []


def test_a_token_charges_for_all_of_its_time() -> None:
    issued = dt.datetime(2026, 11, 25, 12, 0, 0, 900_000, tzinfo=dt.UTC)
    claims = new_claims("auc1", "imp1", "1042", "adv_1", 1, "USD", issued, 0.5)
    assert not claims.expired(issued + dt.timedelta(seconds=0.4))
    assert claims.expired(issued + dt.timedelta(seconds=2))


def test_who_leaves_before_the_end_has_used_tokens(store: Store) -> None:
    one = endpoint(store, "one two three four")
    asked = Asked("r1", "which cup?", Profile("u1", "", ()), Filters(), ads=False)
    spent: list[int] = []

    async def leave() -> None:
        answer: AsyncGenerator[Any, None] = watched(
            one.auctioneer, asked, True, Reports(lambda: 0, lambda: 0), spent.append
        )
        async with aclosing(answer) as parts:
            await anext(parts)

    asyncio.run(leave())
    assert len(spent) == 1
    assert spent[0] > 5


def test_pages_of_other_origins_may_read_where_a_table_goes_on(store: Store) -> None:
    one = endpoint(store, cors_origins=("https://app.example",))
    answer = client(one).get("/v1/reports", headers=HEADERS | {"Origin": "https://app.example"})
    assert "Raylla-Next" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("stream", ["true", "1"])
def test_a_kept_response_is_not_streamed_again(store: Store, stream: str) -> None:
    one = endpoint(store)
    kept = send(one, RESPONSES, json.dumps({"input": "which cup?"})).json()["id"]
    answer = client(one).get(f"{RESPONSES}/{kept}?stream={stream}", headers=HEADERS)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream")
    assert client(one).get(f"{RESPONSES}/{kept}?stream=false", headers=HEADERS).status_code == 200


@pytest.mark.parametrize(
    "query", ["category=cups", "by=day&campaigns=cmp_1", "From=2026-11-25", "weight_version=v1"]
)
def test_a_filter_that_there_is_not_is_refused_and_not_passed_over(store: Store, query: str) -> None:
    answer = client(endpoint(store)).get(f"/v1/reports?{query}", headers=HEADERS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_field")
    assert query.rpartition("&")[2].partition("=")[0] in answer.json()["error"]["message"]


def test_lists_take_their_own_parameters_and_clicks_take_any(store: Store, market: Market) -> None:
    one = endpoint(store)
    assert client(one).get("/v1/advertisers?limit=1&after=", headers=HEADERS).status_code == 200
    assert client(one).get("/v1/advertisers?page=2", headers=HEADERS).status_code == 422
    token = TokenKeys(KEYS).sign(market.claims(market.served(market.listing(market.seat()))))
    assert client(one).get(f"/v1/clicks/{token}?utm_source=x", follow_redirects=False).status_code == 302
