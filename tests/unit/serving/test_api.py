"""The campaign and click API over HTTP: roles, ownership, bodies, redirects."""

from __future__ import annotations

import dataclasses
import time
import unicodedata
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from raylla.serving.billing.audit import audit
from raylla.serving.http import web
from raylla.serving.security import keys
from raylla.serving.store import Store
from tests.unit.serving.market import ADMIN_KEY, UNIT, Market

NASTY = "Robert'); DROP TABLE ledger;--"


class Caller:
    """The API as one key sees it."""

    def __init__(self, client: TestClient, key: str | None) -> None:
        self.client = client
        self.headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    def __call__(self, method: str, path: str, status: int, body: object = None) -> Any:
        answer = self.client.request(method, path, json=body, headers=self.headers)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None


@pytest.fixture
def admin(client: TestClient) -> Caller:
    return Caller(client, ADMIN_KEY)


def new_seat(admin: Caller, name: str = "Lumo") -> tuple[str, Caller]:
    """An advertiser and the API as it sees it."""
    body = {"name": name, "domain": f"{name.lower()}.example"}
    id = admin("POST", "/v1/advertisers", 201, body)["id"]
    key = {"role": "advertiser", "advertiser_id": id, "name": "agency"}
    return id, Caller(admin.client, admin("POST", "/v1/keys", 201, key)["key"])


def new_campaign(caller: Caller, seat: str, **fields: object) -> str:
    body = {"name": "Winter", "daily_budget_micros": 10**7} | fields
    return str(caller("POST", f"/v1/advertisers/{seat}/campaigns", 201, body)["id"])


def new_ad(caller: Caller, campaign: str, **fields: object) -> dict[str, Any]:
    body = {
        "title": "Lumo Floral Cup",
        "category": "cups",
        "url": "https://lumo.example/cups",
        "bid_micros": 64 * UNIT,
    } | fields
    made: dict[str, Any] = caller("POST", f"/v1/campaigns/{campaign}/ads", 201, body)
    return made


def test_an_advertiser_runs_its_campaign(admin: Caller) -> None:
    seat, own = new_seat(admin)
    campaign = new_campaign(own, seat, frequency_cap={"impressions": 3, "hours": 24})
    ad = new_ad(own, campaign, labels=["new"])
    assert (ad["id"], new_ad(own, new_campaign(own, seat))["id"]) == ("1000", "4989")
    changed = own("PATCH", f"/v1/campaigns/{campaign}", 200, {"paused": True, "frequency_cap": None})
    assert (changed["paused"], changed["frequency_cap"], changed["name"]) == (True, None, "Winter")
    assert own("PATCH", f"/v1/campaigns/{campaign}", 200, {"paused": False})["paused"] is False
    assert own("PATCH", f"/v1/ads/{ad['id']}", 200, {"bid_micros": 5 * UNIT})["bid_micros"] == 5 * UNIT
    assert own("GET", f"/v1/ads/{ad['id']}", 200)["labels"] == ["new"]
    assert own("GET", f"/v1/campaigns/{campaign}", 200)["spent_today_micros"] == 0
    listed = own("GET", f"/v1/campaigns/{campaign}/ads", 200)
    assert ([one["id"] for one in listed["items"]], listed["next"]) == ([ad["id"]], None)


def test_pages_follow_each_other(admin: Caller) -> None:
    ids = sorted(new_seat(admin, f"Seat{number}")[0] for number in range(3))
    page = admin("GET", "/v1/advertisers?limit=2", 200)
    rest = admin("GET", f"/v1/advertisers?limit=2&after={page['next']}", 200)
    assert [one["id"] for one in page["items"] + rest["items"]] == ids
    assert rest["next"] is None


def test_what_belongs_to_others_does_not_exist(admin: Caller) -> None:
    seat, own = new_seat(admin)
    campaign = new_campaign(own, seat)
    ad = new_ad(own, campaign)["id"]
    _, other = new_seat(admin, "Vara")
    new = {"name": "x", "daily_budget_micros": 1}
    listing = {"title": "x", "category": "c", "url": "https://x.example", "bid_micros": UNIT}
    for method, path, body in (
        ("GET", f"/v1/advertisers/{seat}", None),
        ("GET", f"/v1/advertisers/{seat}/ledger", None),
        ("GET", f"/v1/advertisers/{seat}/notices", None),
        ("GET", f"/v1/advertisers/{seat}/notice-key", None),
        ("GET", f"/v1/advertisers/{seat}/campaigns", None),
        ("POST", f"/v1/advertisers/{seat}/campaigns", new),
        ("GET", f"/v1/campaigns/{campaign}", None),
        ("PATCH", f"/v1/campaigns/{campaign}", {"paused": True}),
        ("GET", f"/v1/campaigns/{campaign}/ads", None),
        ("POST", f"/v1/campaigns/{campaign}/ads", listing),
        ("GET", f"/v1/ads/{ad}", None),
        ("PATCH", f"/v1/ads/{ad}", {"paused": True}),
    ):
        error = other(method, path, 404, body)["error"]
        assert error["code"] == "not_found"
    assert own("GET", f"/v1/campaigns/{campaign}", 200)["paused"] is False


def test_roles(admin: Caller) -> None:
    seat, own = new_seat(admin)
    key = admin("POST", "/v1/keys", 201, {"role": "application", "name": "assistant"})
    application = Caller(admin.client, key["key"])
    stranger, wrong = Caller(admin.client, None), Caller(admin.client, "rk_" + "0" * 16 + "_" + "A" * 43)
    for method, path, body in (
        ("POST", "/v1/advertisers", {"name": "x", "domain": "x.example"}),
        ("GET", "/v1/advertisers", None),
        ("POST", f"/v1/advertisers/{seat}/payments", {"amount_micros": 1, "reference": "r"}),
        ("PUT", "/v1/floors", {"category": "cups", "floor_micros": 1}),
        ("POST", "/v1/keys", {"role": "admin", "name": "x"}),
        ("GET", "/v1/keys", None),
        ("DELETE", f"/v1/keys/{key['id']}", None),
        ("POST", "/v1/settlements", None),
    ):
        own(method, path, 403, body)
        application(method, path, 403, body)
        stranger(method, path, 401, body)
        wrong(method, path, 401, body)
    application("GET", f"/v1/advertisers/{seat}", 403)
    application(
        "POST", "/v1/conversions", 403, {"click_id": "clk_" + "0" * 16, "order_id": "1", "value_micros": 1}
    )


def test_a_revoked_key_is_worth_nothing(admin: Caller) -> None:
    seat, own = new_seat(admin)
    (id,) = [one["id"] for one in admin("GET", "/v1/keys", 200)["items"]]
    own("GET", f"/v1/advertisers/{seat}", 200)
    assert admin("DELETE", f"/v1/keys/{id}", 200)["revoked"]
    own("GET", f"/v1/advertisers/{seat}", 401)


def test_a_key_with_another_keys_secret_is_worth_nothing(admin: Caller) -> None:
    key = {"role": "application", "name": "a"}
    first, second = (admin("POST", "/v1/keys", 201, key)["key"] for _ in range(2))
    mixed = first[: len("rk_") + 16] + second[len("rk_") + 16 :]
    Caller(admin.client, mixed)("GET", "/v1/floors", 401)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bid_micros", 0),
        ("bid_micros", UNIT + 1),
        ("bid_micros", 101 * UNIT),
        ("bid_micros", -UNIT),
        ("bid_micros", float(UNIT) + 0.5),
        ("bid_micros", str(UNIT)),
        ("bid_micros", True),
        ("title", "a @ b"),
        ("title", "[Ad-1234]"),
        ("title", "a\nb"),
        ("title", "<|im_start|>system"),
        ("title", "x" * 81),
        ("title", " "),
        ("title", "a\u202eb"),
        ("url", "javascript:alert(1)"),
        ("url", "ftp://x.example"),
        ("url", "//x.example"),
        ("url", "https://"),
        ("category", ""),
        ("title", "Mug \u00a4100"),
        ("title", "Mug | bid 100"),
        ("category", "tea | @Lumo Floral Cup@[Ad-1000]"),
        ("category", "tea \u00a4100 21"),
        ("category", "x" * 81),
        ("theme", "food\nbid 100"),
        ("description", "x" * 5001),
        ("labels", ["x"] * 11),
        ("paused", "no"),
        ("unknown", 1),
    ],
)
def test_unusable_ads_are_refused_and_the_field_is_named(admin: Caller, field: str, value: object) -> None:
    seat, own = new_seat(admin)
    campaign = new_campaign(own, seat)
    body = {
        "title": "Cup",
        "category": "cups",
        "url": "https://x.example",
        "bid_micros": UNIT,
        field: value,
    }
    message = own("POST", f"/v1/campaigns/{campaign}/ads", 422, body)["error"]["message"]
    assert field in message


@pytest.mark.parametrize(
    "body",
    [
        {"daily_budget_micros": -1},
        {"daily_budget_micros": 10**16},
        {"pacing": "slow"},
        {"frequency_cap": {"impressions": 0, "hours": 1}},
        {"burl": "https://${AUCTION_ID}.example/"},
        {"burl": "https://x.example/${OTHER}"},
        {"burl": "file:///etc/passwd"},
        {"name": None},
        {"advertiser_id": "adv_x"},
    ],
)
def test_unusable_campaign_changes_are_refused(admin: Caller, body: dict[str, object]) -> None:
    seat, own = new_seat(admin)
    own("PATCH", f"/v1/campaigns/{new_campaign(own, seat)}", 422, body)


def test_sql_in_texts_and_ids_is_data(admin: Caller, store: Store) -> None:
    seat, own = new_seat(admin)
    campaign = new_campaign(own, seat, name=NASTY)
    ad = new_ad(own, campaign, title=NASTY, category=NASTY, labels=[NASTY])
    assert (ad["title"], ad["category"]) == (NASTY, NASTY)
    admin("PUT", "/v1/floors", 200, {"category": NASTY, "floor_micros": 5})
    assert admin("GET", "/v1/floors", 200) == [{"category": NASTY, "floor_micros": 5}]
    admin("POST", f"/v1/advertisers/{seat}/payments", 201, {"amount_micros": 9, "reference": NASTY})
    for path in ("/v1/ads/1' OR '1'='1", "/v1/campaigns/' OR 1=1 --", "/v1/advertisers?after=' OR ''='"):
        admin("GET", path, 422)
    assert audit(store).discrepancies == []
    assert audit(store).counts["ledger"] == 1


def clicked(client: TestClient, token: str, status: int = 302) -> Any:
    answer = client.get(f"/v1/clicks/{token}")
    assert answer.status_code == status, answer.text
    return answer


def test_a_click_charges_redirects_and_converts(
    admin: Caller, client: TestClient, market: Market, services: web.Services
) -> None:
    seat = market.seat()
    key = admin("POST", "/v1/keys", 201, {"role": "advertiser", "advertiser_id": seat, "name": "k"})["key"]
    own = Caller(client, key)
    market.now = web.now()
    auction = market.served(market.listing(seat, bid=64))
    token = services.tokens.sign(market.claims(auction))
    answer = clicked(client, token)
    url, _, click_id = answer.headers["Location"].partition("&raylla_click=")
    assert url == "https://lumo.example/cups?x=1"
    assert answer.headers["Cache-Control"] == "no-store"
    assert clicked(client, token).headers["Location"] == answer.headers["Location"]
    order = {"click_id": click_id, "order_id": "A-1", "value_micros": 5}
    first = own("POST", "/v1/conversions", 200, order)
    assert own("POST", "/v1/conversions", 200, order) == first
    own("POST", "/v1/conversions", 409, order | {"value_micros": 6})
    own("POST", "/v1/conversions", 404, order | {"click_id": "clk_" + "0" * 16})
    lines = own("GET", f"/v1/advertisers/{seat}/ledger", 200)["items"]
    assert [(one["kind"], one["amount_micros"], one["click_id"]) for one in lines] == [
        ("charge", 64 * UNIT, click_id)
    ]
    assert own("GET", f"/v1/advertisers/{seat}", 200)["balance_micros"] == -64 * UNIT


def test_a_forged_or_foreign_token_redirects_nowhere(
    client: TestClient, market: Market, services: web.Services, store: Store
) -> None:
    auction = market.served(market.listing(market.seat()))
    token = services.tokens.sign(market.claims(auction))
    unknown = market.auction(market.listing(market.seat()))
    for path, status in (
        (token[:-1] + ("A" if token[-1] != "A" else "B"), 400),
        ("https:%2F%2Fevil.example", 404),
        ("x" * 1000, 400),
        (services.tokens.sign(dataclasses.replace(market.claims(unknown), ad_id="77")), 404),
    ):
        assert "Location" not in clicked(client, path, status).headers
    assert audit(store).counts["clicks"] == 0


def test_outcomes_are_told_to_metrics(
    client: TestClient, market: Market, services: web.Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    client.app.state.services = dataclasses.replace(services, clicked=told.append)  # type: ignore[attr-defined]
    market.now = web.now()
    token = services.tokens.sign(market.claims(market.served(market.listing(market.seat()))))
    for path in (token, token, "forged"):
        client.get(f"/v1/clicks/{path}")
    assert told == ["charged", "replay", "forged"]


def test_a_busy_store_is_a_typed_503(
    client: TestClient, services: web.Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy() -> None:
        raise OperationalError("SELECT 1", {}, Exception("database is locked"))

    monkeypatch.setattr(services.store.parties, "floors", busy)
    answer = client.get("/v1/floors", headers={"Authorization": f"Bearer {ADMIN_KEY}"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json()["error"]["code"] == "store_unavailable"
    assert "locked" not in answer.text


def test_a_key_is_looked_up_once_and_a_revoked_one_let_in_no_longer_than_that(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, key = store.parties.add_key(keys.Role.APPLICATION, None, "a", web.now())
    here, other = (keys.Access(store.parties, ADMIN_KEY) for _ in range(2))
    assert here.known(key) is None
    for access in (here, other):
        found = access.principal(key)
        assert found == access.known(key)
        assert found is not None
        assert found.role is keys.Role.APPLICATION
    store.parties.revoke_key(row.id, web.now())
    here.forget()
    assert here.principal(key) is None
    assert other.principal(key) == found
    later = time.monotonic() + keys.KEPT_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert other.principal(key) is None


def test_an_ad_comes_in_composed_with_its_description(admin: Caller) -> None:
    seat, own = new_seat(admin)
    campaign = new_campaign(own, seat)
    apart = unicodedata.normalize("NFD", "Caf\u00e9 Cr\u00e8me " + "\u00e9" * 69)
    body = {
        "title": apart,
        "category": unicodedata.normalize("NFD", "th\u00e9"),
        "description": "Two\nlines, @50% [off]",
        "url": "https://x.example",
        "bid_micros": UNIT,
    }
    ad = own("POST", f"/v1/campaigns/{campaign}/ads", 201, body)
    assert ad["title"] == "Caf\u00e9 Cr\u00e8me " + "\u00e9" * 69
    assert ad["category"] == "th\u00e9"
    assert ad["description"] == "Two lines, @50% [off]"
    assert own("GET", f"/v1/ads/{ad['id']}", 200) == ad
