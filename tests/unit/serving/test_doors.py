"""What the API's doors take: text that every database takes, domains in any spelling, webhooks that can be
called; and what they refuse, always typed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from raylla.errors import TextError
from raylla.serving.http.web import Services
from raylla.serving.store import CampaignTerms, Store
from tests.unit.serving.market import ADMIN_KEY, UNIT, Market

HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}
NUL, HALF = "cup\x00", "cup\ud83d"


@pytest.fixture
def seat(market: Market) -> str:
    return market.seat()


@pytest.fixture
def campaign(market: Market, seat: str) -> str:
    return market.store.parties.add_campaign(seat, CampaignTerms("c", 10**9), market.now).id


def send(client: TestClient, path: str, body: dict[str, Any], method: str = "POST") -> Any:
    content = json.dumps(body)  # half a pair as JSON escapes it
    answer = client.request(
        method, path, content=content, headers=HEADERS | {"Content-Type": "application/json"}
    )
    assert answer.status_code < 500, answer.text
    return answer


@pytest.mark.parametrize("text", [NUL, HALF])
def test_text_that_not_every_database_takes_is_refused(
    client: TestClient, seat: str, campaign: str, text: str
) -> None:
    ad = {"title": "Cup", "category": "cups", "url": "https://x.example", "bid_micros": UNIT}
    named = {"name": "n", "domain": "x.example"}
    spent = {"name": "n", "daily_budget_micros": 1}
    bodies = [("/v1/advertisers", named | {field: text}) for field in ("name", "domain")]
    bodies += [
        (f"/v1/advertisers/{seat}/campaigns", spent | {field: text}) for field in ("name", "burl", "lurl")
    ]
    bodies += [
        (f"/v1/campaigns/{campaign}/ads", ad | {field: text}) for field in ("title", "category", "theme")
    ]
    bodies += [
        (f"/v1/campaigns/{campaign}/ads", ad | {"labels": [text]}),
        (f"/v1/advertisers/{seat}/payments", {"amount_micros": 1, "reference": text}),
        ("/v1/keys", {"role": "application", "name": text}),
        ("/v1/conversions", {"click_id": "clk_" + "0" * 16, "order_id": text, "value_micros": 1}),
    ]
    for path, body in bodies:
        answer = send(client, path, body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_field"), (path, body)
    assert send(client, "/v1/floors", {"category": text, "floor_micros": 1}, "PUT").status_code == 422


@pytest.mark.parametrize("text", [NUL, HALF])
def test_the_store_takes_it_from_nobody(store: Store, market: Market, text: str) -> None:
    for act in (
        lambda: store.parties.add_advertiser(text, "x.example", market.now),
        lambda: store.parties.set_floor(text, 1),
        lambda: store.parties.campaign(text),
    ):
        with pytest.raises(TextError, match="NUL"):
            act()
    assert store.parties.advertisers("", 9) == []
    assert store.parties.add_advertiser("\u2603 \U0001f600\n", "x.example", market.now).name[0] == "\u2603"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("Lumo.Example", "lumo.example"),
        ("lumo.example.", "lumo.example"),
        ("B\u00dccher.example", "xn--bcher-kva.example"),
        ("bu\u0308cher\u3002example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("stra\u00dfe.example", "xn--strae-oqa.example"),
    ],
)
def test_a_domain_is_kept_in_one_form(client: TestClient, given: str, kept: str) -> None:
    answer = send(client, "/v1/advertisers", {"name": "n", "domain": given})
    assert (answer.status_code, answer.json().get("domain")) == (201, kept)


@pytest.mark.parametrize(
    "given", ["lumo", "", ".", "a..example", "-a.example", "\u2603.example/", "x" * 260]
)
def test_what_is_no_domain_is_refused(client: TestClient, given: str) -> None:
    assert send(client, "/v1/advertisers", {"name": "n", "domain": given}).status_code == 422


@pytest.mark.parametrize(
    "url",
    [
        "https://svc:p[w@hooks.lumo.example/billed",
        "https://us%3Aer:pw@hooks.lumo.example/",
        "https:hooks.lumo.example/billed",
        "https://hooks..lumo.example/",
        "https://ho%6Fks.lumo.example/",
        "https://hooks.lumo.example:0/",
        "https://hooks.lumo.example:99999/",
        "ftp://hooks.lumo.example/",
        "https://${AUCTION_ID}.lumo.example/",
        "https://${AUCTION_ID}.lumo.example?x=1",
        "https://${AUCTION_ID}",
        "https://hooks.lumo.example/${AUCTION_NONE}",
    ],
)
def test_a_webhook_that_cannot_be_called_is_refused_at_the_door(
    client: TestClient, seat: str, url: str
) -> None:
    for field in ("burl", "lurl"):
        body = {"name": "n", "daily_budget_micros": 1, field: url}
        answer = send(client, f"/v1/advertisers/{seat}/campaigns", body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_field")
        assert field in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "url",
    [
        "https://svc:p%5Bw@hooks.lumo.example/billed?x=[1]&p=${AUCTION_PRICE}&c=${AUCTION_CLICK_PRICE}",
        "HTTPS://Hooks.Lumo.Example.:8443/a%20b;c?d=e#f",
        "https://[2001:db8::1]:8443/${AUCTION_ID}",
        "http://xn--bcher-kva.example?x=1",
        "https://hooks.lumo.example?p=${AUCTION_PRICE}",
        "https://hooks.lumo.example:8443#${AUCTION_ID}",
        "https://my_hook.lumo.example/",
        "https://10.1.2.3/private",
    ],
)
def test_a_webhook_that_can_be_called_is_taken(client: TestClient, seat: str, url: str) -> None:
    body = {"name": "n", "daily_budget_micros": 1, "burl": url}
    answer = send(client, f"/v1/advertisers/{seat}/campaigns", body)
    assert (answer.status_code, answer.json()["burl"]) == (201, url)


def test_blocked_names_may_be_spelled_in_any_way(services: Services, client: TestClient) -> None:
    for spelled in ("Tea & Coffee", "TEA  & coffee"):
        answer = send(client, "/v1/floors", {"category": spelled, "floor_micros": 5}, "PUT")
        assert answer.status_code == 200
    listed = client.get("/v1/floors", headers=HEADERS).json()
    assert listed == [{"category": "TEA  & coffee", "floor_micros": 5}]
    assert services.store.parties.floors() == {"TEA  & coffee": 5}
