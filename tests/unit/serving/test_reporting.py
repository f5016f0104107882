"""`GET /v1/reports` and uploads of ads, over HTTP."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from raylla.serving.billing.audit import audit
from raylla.serving.http import web
from raylla.serving.http.advertisers import rates, table
from raylla.serving.http.api import Envelope
from raylla.serving.security.keys import Role
from raylla.serving.store import Store
from tests.unit.serving.market import ADMIN_KEY, UNIT, Market

HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}
WHEN = {"from": "2026-11-25", "to": "2026-11-26"}


def own(store: Store, market: Market, seat: str) -> dict[str, str]:
    """The header of an advertiser's own key."""
    return {"Authorization": f"Bearer {store.parties.add_key(Role.ADVERTISER, seat, 'k', market.now)[1]}"}


@pytest.fixture
def seats(store: Store, market: Market) -> tuple[str, str]:
    """Two advertisers, each with an ad that was shown; one was clicked and led to an order."""
    first, second = market.seat("Lumo"), market.seat("Vara")
    cup, mug = market.listing(first, bid=40), market.listing(second, bid=20)
    auction = market.served(cup, mug, pctr=0.25)
    click = store.click(market.claims(auction), market.now)
    store.convert(click.click_id, "A-1", 7, None, market.now)
    for _ in range(3):
        market.served(mug, lost=(cup,), pctr=0.25)
    return first, second


def test_a_report_has_rates_costs_and_losses(client: TestClient, seats: tuple[str, str]) -> None:
    asked = WHEN | {"by": ["day", "advertiser"]}
    answer = client.get("/v1/reports", params=asked, headers=HEADERS)
    assert answer.status_code == 200
    report = answer.json()
    lines = {line["advertiser"]: line for line in report["lines"]}
    first = lines[seats[0]]
    low, high = rates.wilson(1, 1)
    assert first | {"category": None, "ad": None, "campaign": None, "hour": None} == first
    assert (first["day"], first["impressions"], first["clicks"]) == ("2026-11-25", 1, 1)
    assert (first["click_rate"], first["click_rate_low"], first["click_rate_high"]) == (1, low, high)
    assert (first["expected_micros"], first["charged_micros"]) == (10 * UNIT, 40 * UNIT)
    assert (first["cost_per_click_micros"], first["cost_per_conversion_micros"]) == (40 * UNIT, 40 * UNIT)
    assert (first["auctions"], first["lost"]) == (4, {"not_placed": {"auctions": 3, "share": 0.75}})
    assert lines[seats[1]]["cost_per_click_micros"] is None
    assert (report["total"]["impressions"], report["currency"], report["next"]) == (5, "USD", None)


def test_an_advertiser_sees_its_own(
    client: TestClient, store: Store, market: Market, seats: tuple[str, str]
) -> None:
    headers = own(store, market, seats[1])
    report = client.get("/v1/reports", params=WHEN | {"by": "advertiser"}, headers=headers).json()
    assert [line["advertiser"] for line in report["lines"]] == [seats[1]]
    assert report["total"]["charged_micros"] == 0
    asked = WHEN | {"advertiser": seats[0]}
    assert client.get("/v1/reports", params=asked, headers=headers).status_code == 404
    assert client.get("/v1/reports", params=asked, headers=HEADERS).json()["total"]["clicks"] == 1
    assert client.get("/v1/reports", params=WHEN).status_code == 401


@pytest.mark.parametrize("how", [{"params": {"format": "csv"}}, {"headers": {"Accept": "text/csv"}}])
def test_a_report_comes_as_csv(client: TestClient, seats: tuple[str, str], how: dict[str, Any]) -> None:
    params = WHEN | {"by": ["hour", "category"]} | how.get("params", {})
    answer = client.get("/v1/reports", params=params, headers=HEADERS | how.get("headers", {}))
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    (row,) = csv.DictReader(io.StringIO(answer.text))
    assert (row["hour"], row["category"]) == ("2026-11-25T12:00Z", "cups")
    assert (row["impressions"], row["charged_micros"], row["lost_not_placed"]) == ("5", "400000", "3")
    assert float(row["lost_not_placed_share"]) == 3 / 8


def test_lines_come_in_pages(client: TestClient, seats: tuple[str, str]) -> None:
    asked = WHEN | {"by": "ad", "limit": "1"}
    first = client.get("/v1/reports", params=asked, headers=HEADERS).json()
    second = client.get("/v1/reports", params=asked | {"offset": first["next"]}, headers=HEADERS).json()
    assert (first["next"], second["next"]) == (1, None)
    assert first["lines"][0]["ad"] != second["lines"][0]["ad"]
    assert first["total"] == second["total"]
    page = client.get("/v1/reports", params=asked | {"format": "csv"}, headers=HEADERS)
    assert page.headers["raylla-next"] == "1"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"from": "2026-11-25T10:30Z"}, "query.from"),
        ({"from": "2026-11-25T10:00+05:30"}, "query.from"),
        ({"to": "yesterday"}, "query.to"),
        ({"from": "2026-11-26", "to": "2026-11-25"}, "query.from"),
        ({"to": "0001-01-01"}, "calendar"),
        ({"by": ["day", "hour"]}, "query.by"),
        ({"by": "moon"}, "by"),
        ({"format": "xml"}, "format"),
    ],
)
def test_what_cannot_be_reported_is_named(client: TestClient, asked: dict[str, Any], said: str) -> None:
    answer = client.get("/v1/reports", params=asked, headers=HEADERS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_field")
    assert said in answer.json()["error"]["message"]


def test_wilsons_interval_is_that_of_the_book() -> None:
    assert [round(end, 4) for end in rates.wilson(10, 100)] == [0.0552, 0.1744]
    assert [round(end, 4) for end in rates.wilson(0, 20)] == [0.0, 0.1611]


CSV = (
    "title,category,url,bid_micros,labels,paused\n"
    "Lumo Cup,Cups,https://lumo.example/1,640000,new;blue,\n"
    'Lumo "Tall" Cup,Cups,https://lumo.example/2,650000,,true\n'
)
BAD = CSV + (
    "Bad @ Cup,Cups,https://lumo.example/3,640000,,\n"
    "Cup,Cups,nowhere,640000,,\n"
    "Cup,Cups,https://lumo.example/5,640001,,\n"
    "Cup,Cups,https://lumo.example/6,much,,\n"
    "Cup,Cups,https://lumo.example/7,640000,,perhaps\n"
    "Cup,Cups\n"
    ",Cups,https://lumo.example/9,640000,,\n"
    "Cup,| bid 9,https://lumo.example/10,640000,,\n"
)
FIELDS = [
    (4, "title"),
    (5, "url"),
    (6, "bid_micros"),
    (7, "bid_micros"),
    (8, "paused"),
    (9, None),
    (10, "title"),
    (11, "category"),
]


def send(client: TestClient, campaign: str, text: str, kind: str = "text/csv", **how: Any) -> Any:
    headers = how.pop("headers", HEADERS) | {"Content-Type": kind}
    path = f"/v1/campaigns/{campaign}/ads/upload"
    return client.post(path, content=text.encode(errors="surrogateescape"), headers=headers, **how)


@pytest.fixture
def campaign(market: Market) -> str:
    return market.listing(market.seat()).campaign_id


def listed(store: Store, campaign: str) -> list[tuple[str, int, bool, list[str]]]:
    rows = sorted(store.parties.ads(campaign, "", 1000), key=lambda one: one.row)
    return [(one.title, one.bid_micros, one.paused, one.labels) for one in rows][1:]


def test_a_table_is_listed(client: TestClient, store: Store, campaign: str) -> None:
    answer = send(client, campaign, CSV)
    assert answer.status_code == 201
    said = answer.json()
    assert (said["listed"], said["refused"], said["errors"]) == (2, 0, [])
    wanted = [("Lumo Cup", 640_000, False, ["new", "blue"]), ('Lumo "Tall" Cup', 650_000, True, [])]
    assert listed(store, campaign) == wanted
    assert [store.parties.ad(id)[0].title for id in said["ids"]] == [one[0] for one in wanted]
    lines = [
        {"title": "Oak", "category": "Cups", "url": "https://oak.example", "bid": 3, "labels": ["a"]},
        {"title": "Elm", "category": "Cups", "url": "https://elm.example", "bid_micros": 20_000},
    ]
    text = "\n".join(map(json.dumps, lines))
    assert send(client, campaign, text, "application/jsonl").json()["listed"] == 2
    assert listed(store, campaign)[2:] == [("Oak", 3 * UNIT, False, ["a"]), ("Elm", 2 * UNIT, False, [])]
    assert audit(store).discrepancies == []


def test_bad_rows_are_named_by_row_and_field(client: TestClient, store: Store, campaign: str) -> None:
    answer = send(client, campaign, BAD)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_rows")
    assert [(one["row"], one["field"]) for one in answer.json()["errors"]] == FIELDS
    assert listed(store, campaign) == []
    good = send(client, campaign, BAD, params={"rows": "good"})
    said = good.json()
    assert (good.status_code, said["listed"], said["refused"], len(said["ids"])) == (201, 2, 8, 2)
    assert [(one["row"], one["field"]) for one in said["errors"]] == FIELDS
    assert all(one["reason"] for one in said["errors"])
    assert len(listed(store, campaign)) == 2


@pytest.mark.parametrize(
    ("text", "kind", "status", "said"),
    [
        ("", "text/csv", 422, "no rows"),
        ("title,url\n", "text/csv", 422, "no rows"),
        ("name of it\nx\n", "text/csv", 422, "no column for title"),
        ('title\n"open', "text/csv", 422, "never closed"),
        ("caf\udce9\nx\n", "text/csv", 422, "no column for title"),
        ("{}", "application/json", 415, "text/csv"),
        ("title\nCup\n", "text/csv", 422, "rows at fault: 1"),
    ],
)
def test_what_is_no_table_is_refused(
    client: TestClient, campaign: str, text: str, kind: str, status: int, said: str
) -> None:
    answer = send(client, campaign, text, kind)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]
    assert "/tmp" not in answer.text
    assert "--map" not in answer.text


def test_nobody_uploads_into_anothers_campaign(
    client: TestClient, store: Store, market: Market, campaign: str
) -> None:
    other = own(store, market, market.seat("Vara"))
    assert send(client, campaign, CSV, headers=other).status_code == 404
    assert send(client, campaign, CSV, headers={}).status_code == 401
    assert listed(store, campaign) == []


def test_an_upload_has_a_limit_of_its_own(app: FastAPI, client: TestClient, campaign: str) -> None:
    app.add_middleware(Envelope, largest=10, largest_upload=len(CSV))
    assert send(client, campaign, CSV).status_code == 201
    refused = send(client, campaign, CSV + " ")
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_large")
    assert "serving.largest_upload" in refused.json()["error"]["message"]
    small = client.post(f"/v1/campaigns/{campaign}/ads", json={"title": "x" * 20}, headers=HEADERS)
    assert "serving.largest_body" in small.json()["error"]["message"]


def test_too_many_rows_are_refused(
    client: TestClient, campaign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "MOST_ROWS", 1)
    assert "more than 1 rows" in send(client, campaign, CSV).json()["error"]["message"]


def test_the_default_time_is_thirty_days_to_tomorrow(client: TestClient) -> None:
    report = client.get("/v1/reports", headers=HEADERS).json()
    since, until = (dt.datetime.fromisoformat(report[name]) for name in ("since", "until"))
    assert until - since == dt.timedelta(days=30)
    assert since < web.now() < until
