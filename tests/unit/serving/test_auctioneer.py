"""Auctions from request to record, over a scripted engine: what is shown, priced, logged and refused."""

from __future__ import annotations

import datetime as dt

import pytest

from raylla.records import Ad
from raylla.serving.auction.eligibility import Eligibility
from raylla.serving.auction.exchange import Traffic
from raylla.serving.billing.audit import audit
from raylla.serving.money.records import Listing
from raylla.serving.store import AdTerms, Store
from tests.unit.serving.auctions import ask, client, events, logged, placing
from tests.unit.serving.market import UNIT, Market
from tests.unit.serving.scripted import HEADERS, Script, endpoint


def test_a_placed_ad_is_disclosed_annotated_priced_recorded_and_charged(store: Store, cup: Listing) -> None:
    one = endpoint(store, placing(cup))
    answer = ask(one, profile={"id": "u7", "basics": "34 nurse Oslo", "interests": ["cups"]}).json()
    message = answer["choices"][0]["message"]
    assert message["content"] == "Try Lumo Floral Cup (Sponsored) for tea."
    (annotation,) = message["annotations"]
    cited = annotation["url_citation"]
    assert message["content"][cited["start_index"] : cited["end_index"]] == cited["title"] == cup.ad.title
    detail = answer["raylla"]
    assert (detail["price_rule"], detail["at"], detail["cur"]) == ("first_price", 1, "USD")
    (ad,) = detail["ads"]
    assert (ad["bid_micros"], ad["price_micros"], ad["seat"]) == (64 * UNIT, 64 * UNIT, cup.advertiser_id)
    assert ad["ctr_low"] <= ad["ctr"] <= ad["ctr_high"]
    assert ad["disclosure"] == "Sponsored"
    assert answer["usage"]["completion_tokens"] > 5
    (served,) = logged(store)
    assert served.auction.id == detail["auction_id"]
    assert (served.auction.user_id, served.auction.weight_version) == ("u7", "v1")
    assert served.auction.reward_value == pytest.approx(64 * 0.25)
    path = cited["url"].removeprefix("http://testserver")
    for _ in range(2):
        click = client(one).get(path)
        assert click.status_code == 302
        assert click.headers["location"].startswith(cup.url)
    assert [entry.amount_micros for entry in store.charges(served.auction.id)] == [64 * UNIT]
    assert audit(store).discrepancies == []


def test_streaming_says_the_same_and_ends_with_the_auction(store: Store, cup: Listing) -> None:
    found = events(endpoint(store, placing(cup)), stream_options={"include_usage": True})
    deltas = [event["choices"][0]["delta"] for event in found if event["choices"]]
    assert deltas[0]["role"] == "assistant"
    text = "".join(delta.get("content", "") for delta in deltas)
    assert text == "Try Lumo Floral Cup (Sponsored) for tea."
    assert len([delta for delta in deltas if delta.get("content")]) > 2
    last, usage = found[-2:]
    assert last["choices"][0]["finish_reason"] == "stop"
    cited = last["choices"][0]["delta"]["annotations"][0]["url_citation"]
    assert text[cited["start_index"] : cited["end_index"]] == cup.ad.title
    assert last["raylla"]["auction_id"] == logged(store)[0].auction.id
    assert usage["usage"]["total_tokens"] > 10


def test_a_second_mention_is_text_and_counted(store: Store, cup: Listing) -> None:
    answer = ask(endpoint(store, placing(cup, cup))).json()
    assert answer["choices"][0]["message"]["content"].count(cup.ad.title) == 2
    assert len(answer["raylla"]["ads"]) == 1
    assert answer["raylla"]["violations"] == {"duplicate": 1}


def test_without_ads_nothing_competes_and_no_auction_is_held(store: Store, cup: Listing) -> None:
    one = endpoint(store, placing(cup))
    answer = ask(one, ads=False).json()
    assert answer["choices"][0]["message"]["content"] == "Try for tea."
    assert answer["raylla"]["auction_id"] is None
    assert cup.ad.title not in one.writer.prompts[0]
    assert logged(store) == []


def test_who_may_compete_follows_the_request(market: Market) -> None:
    seat, other = market.seat(), market.seat("Rival")
    cheap, dear = (
        market.listing(seat, bid=5, title="Cheap Cup"),
        market.listing(other, bid=50, title="Dear Cup"),
    )
    one = endpoint(market.store)
    for extras, left, reason in (
        ({"floor_micros": 6 * UNIT}, {dear.ad.title}, "floor"),
        ({"badv": [other]}, {cheap.ad.title}, "blocked_advertiser"),
        ({"badv": ["rival.example"]}, {cheap.ad.title}, "blocked_advertiser"),
        ({"bcat": ["cups"]}, set(), "blocked_category"),
    ):
        answer = ask(one, **extras).json()
        prompt = one.writer.prompts[-1]
        assert {ad.title for ad in (cheap.ad, dear.ad) if ad.title in prompt} == left
        assert answer["raylla"]["filtered"][reason] >= 1


def test_the_prompt_holds_no_more_candidates_than_configured(market: Market) -> None:
    seat = market.seat()
    titles = [market.listing(seat).ad.title for _ in range(9)]
    one = endpoint(market.store, candidates=4)
    answer = ask(one, test=True).json()
    assert answer["raylla"]["filtered"] == {"not_retrieved": 5}
    listed = [each["title"] for each in answer["raylla"]["candidates"]]
    assert len(listed) == 4
    assert [title for title in titles if f"@{title}@" in one.writer.prompts[0]] == sorted(listed)


def test_a_test_may_set_bids_and_nobody_else(market: Market) -> None:
    cup = market.listing(market.seat(), bid=64, title="Lumo Floral Cup")
    one = endpoint(market.store, placing(cup))
    answer = ask(one, test=True, bids={cup.ad.id: 7 * UNIT}).json()
    assert answer["raylla"]["ads"][0]["price_micros"] == 7 * UNIT
    assert answer["raylla"]["candidates"][0]["bid_micros"] == 7 * UNIT
    assert ask(one, bids={cup.ad.id: 7 * UNIT}).status_code == 400
    assert ask(one, test=True, bids={cup.ad.id: 7 * UNIT + 1}).status_code == 400


@pytest.mark.parametrize("rule", ["first_price", "expected", "resampled"])
def test_every_price_rule_audits(market: Market, rule: str) -> None:
    cup = market.listing(market.seat(), bid=64, title="Lumo Floral Cup")
    one = endpoint(market.store, placing(cup), price_rule=rule, resample_share=0.5)
    for _ in range(8):
        answer = ask(one).json()
        assert answer["raylla"]["price_rule"] == rule
        price = answer["raylla"]["ads"][0]["price_micros"]
        assert price in {"expected": {16 * UNIT}}.get(rule, {64 * UNIT, -64 * UNIT})
        client(one).get(answer["choices"][0]["message"]["annotations"][0]["url_citation"]["url"])
    market.store.settle(dt.datetime.now(dt.UTC))
    assert audit(market.store).discrepancies == []
    assert len(logged(market.store)) == 8


def test_the_canary_is_sticky_and_gets_its_share() -> None:
    stable, canary = Script(), Script(version="v2")
    traffic = Traffic(stable, canary, 0.25)
    first = [traffic.writer(f"r{place}")[1] for place in range(2000)]
    assert first == [traffic.writer(f"r{place}")[1] for place in range(2000)]
    assert 0.2 < sum(first) / 2000 < 0.3
    assert not any(Traffic(stable, canary, 0.0).writer(f"r{place}")[1] for place in range(50))
    assert not any(Traffic(stable, None, 1.0).writer(f"r{place}")[1] for place in range(50))


def test_an_auction_names_the_version_that_wrote_it(store: Store, cup: Listing) -> None:
    one = endpoint(store, placing(cup))
    one.traffic.canary, one.traffic.share = Script(placing(cup), version="v2"), 0.5
    for _ in range(30):
        ask(one)
    versions = {(served.auction.weight_version, served.auction.canary) for served in logged(store)}
    assert versions == {("v1", False), ("v2", True)}


def test_keys_and_request_ids(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    one = endpoint(store)
    body = {"messages": [{"role": "user", "content": "which cup?"}]}
    assert client(one).post("/v1/chat/completions", json=body).status_code == 401
    with caplog.at_level("INFO", "raylla.serving"):
        caplog.clear()  # an endpoint that ran in this process before has left its logging on
        answer = client(one).post(
            "/v1/chat/completions", json=body, headers=HEADERS | {"X-Request-ID": "mine-1"}
        )
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.json()["id"] == "chatcmpl-mine-1"
    assert {record.request_id for record in caplog.records} == {"mine-1"}
    forged = client(one).post("/v1/chat/completions", json=body, headers=HEADERS | {"X-Request-ID": "a b"})
    assert forged.headers["x-request-id"].startswith("req_")


def test_fewer_tokens_may_be_asked_for(store: Store) -> None:
    one = endpoint(store)
    for asked, given in ((7, 7), (10_000, one.config.ad_llm.sampling.max_tokens)):
        body = {"messages": [{"role": "user", "content": "which cup?"}], "max_tokens": asked}
        client(one).post("/v1/chat/completions", json=body, headers=HEADERS)
        assert one.writer.sampling[-1].max_tokens == given


def test_health_and_models(store: Store) -> None:
    one = endpoint(store)
    assert client(one).get("/healthz").status_code == 200
    one.health = one.health.model_copy(update={"status": "unavailable"})
    assert client(one).get("/healthz").status_code == 503
    assert client(one).get("/v1/models").json()["data"][0]["id"] == "raylla"


def test_category_floors_act_on_the_bid_that_enters(market: Market) -> None:
    """Under `resampled` a lowered bid below a floor does not compete, whosever floor it is."""
    cup = market.listing(market.seat(), bid=64)
    market.store.parties.set_floor("CUPS", 50 * UNIT)
    one = endpoint(market.store, price_rule="resampled", resample_share=0.5)
    entered = []
    for _ in range(40):
        detail = ask(one, test=True).json()["raylla"]
        entered += [each["bid_micros"] for each in detail["candidates"]]
        assert len(detail["candidates"]) + detail["filtered"].get("floor", 0) == 1
    assert 0 < len(entered) < 40
    assert min(entered) >= 50 * UNIT
    assert cup.bid_micros in entered


def test_a_tests_bids_are_held_against_floors_and_budgets(market: Market) -> None:
    low = market.listing(market.seat(), bid=5, budget=100 * UNIT)
    market.store.parties.set_floor("kitchen", 10 * UNIT)
    one = endpoint(market.store)
    for bid, reason in ((9, "floor"), (10, None), (100, None)):
        detail = ask(one, test=True, bids={low.ad.id: bid * UNIT, "7": UNIT}).json()["raylla"]
        assert detail["filtered"] == ({reason: 1} if reason else {})
        assert [each["bid_micros"] for each in detail["candidates"]] == ([] if reason else [bid * UNIT])
    market.store.parties.change_campaign(low.campaign_id, {"daily_budget_micros": 50 * UNIT}, market.now)
    one.refresh()
    assert ask(one, test=True, bids={low.ad.id: 60 * UNIT}).json()["raylla"]["filtered"] == {"budget": 1}
    assert ask(one, test=True, bids={"unlisted": UNIT + 1}).status_code == 400


@pytest.mark.parametrize(
    ("limit", "reason", "shown"),
    [
        ({"cap_impressions": 2, "cap_hours": 24}, "frequency_cap", 2),
        ({"daily_budget_micros": 25 * UNIT}, "budget", 2),
        ({"daily_budget_micros": 10**9}, None, 4),
    ],
)
def test_one_answer_keeps_within_what_its_campaign_may_still_use(
    market: Market, limit: dict[str, int], reason: str | None, shown: int
) -> None:
    mine = market.listing(market.seat(), bid=10)
    news = [
        AdTerms(Ad("", f"Bowl {number}", "cups", ""), "https://x.example", 10 * UNIT) for number in range(3)
    ]
    market.store.parties.add_ads(mine.campaign_id, news, market.now)
    others = [market.listing(market.seat("Vara"), bid=10) for _ in range(3)]
    market.store.parties.change_campaign(mine.campaign_id, limit, market.now)
    one = endpoint(market.store, candidates=5)
    detail = ask(one, test=True, profile={"id": "u1"}).json()["raylla"]
    ours = [each for each in detail["candidates"] if each["ad_id"] not in {one.ad.id for one in others}]
    assert len(detail["candidates"]) == min(5, shown + 3)
    assert len(ours) <= shown
    if reason:
        assert len(ours) == shown
        assert detail["filtered"] == {reason: 4 - shown}


def test_a_test_auction_leaves_a_users_cap_alone(market: Market) -> None:
    cup = market.listing(market.seat(), cap_impressions=1, cap_hours=24)
    one = endpoint(market.store, placing(cup))
    metric = "raylla_expected_revenue_micros_total "
    for test, placed, expected in (
        (True, 1, "0.0"),
        (False, 1, f"{cup.bid_micros * 0.25}"),
        (False, 0, None),
    ):
        answer = ask(one, test=test, profile={"id": "u1"}).json()
        assert len(answer["raylla"]["ads"]) == placed
        if expected is not None:
            assert metric + expected in client(one).get("/metrics").text
    assert answer["raylla"]["filtered"] == {"frequency_cap": 1}


def test_a_store_with_bids_of_another_grid_goes_on_serving(market: Market) -> None:
    seat = market.seat()
    fits, off, beyond = (market.listing(seat, bid=bid) for bid in (10, 15, 100))
    one = endpoint(market.store, placing(fits, off, beyond), micros_per_unit=2 * UNIT)
    one.auctioneer._eligibility = one.eligibility = Eligibility(market.store, one.config.serving, 20)
    one.refresh()
    detail = ask(one, test=True).json()["raylla"]
    assert [each["ad_id"] for each in detail["candidates"]] == [fits.ad.id]
    assert detail["filtered"] == {"off_grid": 2}
