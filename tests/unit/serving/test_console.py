"""The console: what the page is served with, and the page itself in headless Chromium."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from raylla.serving.http import web
from raylla.serving.http.advertisers.console import FILES
from raylla.serving.http.api import Health
from raylla.serving.security.keys import Role
from raylla.serving.store import Store
from tests.unit.serving.market import ADMIN_KEY, UNIT, Market
from tests.unit.serving.test_playground import _listening, browser

__all__ = ["browser"]
HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}
TABLE = (
    "title,category,url,bid\n"
    "Oak <b>Cup</b>,cups,https://lumo.example/oak,30\n"
    "Elm Cup,cups,https://lumo.example/elm,much\n"
)


@pytest.fixture
def app(app: FastAPI) -> FastAPI:
    @app.get("/healthz")
    def healthz() -> Health:
        return Health(status="ok", versions={"stable": "v1", "canary": "v2"}, problems=[])

    return app


def test_the_page_lets_nothing_in_from_elsewhere(client: TestClient) -> None:
    for name, kind in FILES.items():
        answer = client.get("/console" if name == "page.html" else f"/console/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)(?=\w)", answer.text)
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage", answer.text
        )
    page = client.get("/console").text
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|style=", page)
    named = set(re.findall(r'/console/([\w.]+)"', page))
    assert named == FILES.keys() - {"page.html"}
    assert client.get("/console/secrets.txt").status_code == 422


def test_who_signs_in_is_told_what_it_is(client: TestClient, store: Store, market: Market) -> None:
    seat = market.seat()
    roles = {Role.ADVERTISER: seat, Role.APPLICATION: None}
    keys = {role: store.parties.add_key(role, of, "k", market.now)[1] for role, of in roles.items()}

    def start(key: str) -> Any:
        return client.get("/console/start", headers={"Authorization": f"Bearer {key}"})

    assert start(ADMIN_KEY).json() == {
        "role": "admin",
        "advertiser_id": None,
        "currency": "USD",
        "micros_per_unit": UNIT,
        "max_bid": 100,
    }
    own = start(keys[Role.ADVERTISER]).json()
    assert (own["role"], own["advertiser_id"]) == ("advertiser", seat)
    assert start(keys[Role.APPLICATION]).status_code == 403
    assert start("wrong").status_code == 401


def test_every_control_of_the_page_has_a_label(client: TestClient) -> None:
    page = client.get("/console").text
    labelled = set(re.findall(r'<label[^>]* for="([\w-]+)"', page))
    controls = re.findall(r'<(?:input|select)[^>]*\bid="([\w-]+)"[^>]*>', page)
    assert set(controls) - labelled == {"good"}  # within its label
    described = set(re.findall(r'aria-(?:labelledby|describedby|controls)="([\w-]+)"', page))
    assert described <= set(re.findall(r'\bid="([\w-]+)"', page))


@pytest.fixture
def market(store: Store) -> Market:
    return Market(store, web.now())


def _type_amount(page: Any, item: Any, amount: str) -> None:
    """By the keyboard alone."""
    item.locator(".amount").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type(amount)
    page.keyboard.press("Enter")


def _open(browser: Any, url: str, key: str) -> tuple[Any, list[str]]:
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    page.set_default_timeout(60_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if "Security Policy" in said.text else None)
    page.goto(f"{url}/console")
    page.locator("#key").focus()
    page.keyboard.type(key)
    page.keyboard.press("Enter")
    page.locator("#desk").wait_for()
    page.locator("#figures tbody tr").first.wait_for()
    assert key not in page.url
    return page, problems


def test_an_advertiser_sees_its_money_and_steers_by_keyboard(
    app: FastAPI, store: Store, market: Market, browser: Any, tmp_path: Path
) -> None:
    seat = market.seat("Lumo")
    cup = market.listing(seat, bid=40, budget=10**7, title="Lumo <u>Cup</u>")
    other = market.listing(market.seat("Vara"), bid=20)
    for _ in range(3):
        store.click(market.claims(market.served(cup, other)), market.now)
    key = store.parties.add_key(Role.ADVERTISER, seat, "k", market.now)[1]
    table = tmp_path / "ads.csv"
    table.write_text(TABLE)
    with _listening(app) as url:
        page, problems = _open(browser, url, key)
        assert page.inner_text("#about") == "Lumo"
        assert "$1.20" in page.inner_text("#totals")
        assert page.locator("#figures tbody tr").count() == 1
        assert page.locator("#curve svg").get_attribute("aria-label") == "Spend by day (UTC): $1.20 in all"
        assert not page.locator("#versions").is_visible()

        row = page.locator("#campaigns .item")
        _type_amount(page, row, "25.5")
        page.locator("#done", has_text="$25.50 a day").wait_for()
        row.locator(".pause").focus()
        page.keyboard.press("Space")
        page.locator("#done", has_text="is paused").wait_for()
        row.locator(".open").focus()
        page.keyboard.press("Enter")
        ad = page.locator("#ads .item", has_text="Lumo <u>Cup</u>")
        ad.wait_for()
        _type_amount(page, ad, "0.55")
        page.locator("#done", has_text="$0.55 per click").wait_for()

        page.locator("#new-upload").focus()
        page.keyboard.press("Enter")
        page.set_input_files("#file", str(table))
        page.locator("#upload-form button").focus()
        page.keyboard.press("Enter")
        page.locator("#error", has_text="rows at fault: 1").wait_for()
        assert page.locator("#row-errors tbody tr").inner_text().split("\t")[:2] == ["3", "bid"]
        page.locator("#good").check()
        page.locator("#upload-form button").click()
        page.locator("#done", has_text="Ads listed: 1. Rows not listed: 1.").wait_for()
        page.locator("#ads .item", has_text="Oak <b>Cup</b>").wait_for()
        page.screenshot(path=str(tmp_path / "console.png"), full_page=True)
        assert problems == []
    campaign = store.parties.campaign(cup.campaign_id)
    assert (campaign.daily_budget_micros, campaign.paused) == (25_500_000, True)
    assert store.parties.ad(cup.ad.id)[0].bid_micros == 55 * UNIT
    assert sorted(one.title for one in store.parties.ads(cup.campaign_id, "", 10))[1] == "Oak <b>Cup</b>"


def test_an_admin_sees_all_and_every_control_has_a_name(
    app: FastAPI, store: Store, market: Market, browser: Any, tmp_path: Path
) -> None:
    seats = [market.seat(name) for name in ("Lumo", "Vara")]
    listings = [market.listing(seat, bid=40) for seat in seats]
    auction = market.served(*listings)
    for index in range(2):
        store.click(market.claims(auction, index), market.now)
    with _listening(app) as url:
        page, problems = _open(browser, url, ADMIN_KEY)
        assert "Revenue\n$0.80" in page.inner_text("#totals")
        assert "stable v1, canary v2" in page.inner_text("#live")
        page.locator("#by-version tbody tr", has_text="v1").wait_for()
        page.select_option("#by", "advertiser")
        page.locator("#figures tbody tr", has_text="Vara").wait_for()
        page.select_option("#whose", seats[0])
        page.locator("#campaigns .item").wait_for()
        page.locator("#campaigns .open").click()
        page.locator("#ads .item").wait_for()
        page.locator("#new-ad").click()
        controls = page.locator("input:visible, select:visible, button:visible, a:visible")
        for place in range(controls.count()):
            control = controls.nth(place)
            named = control.get_attribute("aria-label") or control.evaluate(
                "one => one.textContent + Array.from(one.labels ?? [], label => label.textContent).join('')"
            )
            assert named.strip(), control.evaluate("element => element.outerHTML")
        page.screenshot(path=str(tmp_path / "console-admin.png"), full_page=True)
        assert problems == []
