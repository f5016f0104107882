"""The playground: what the page is served with, and the page itself in headless Chromium."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from raylla.config import Sampling
from raylla.records import Profile
from raylla.serving.engine.wire import Piece
from raylla.serving.money.records import Invalid, PriceRule
from raylla.serving.store import Store
from raylla.serving.tracing import NO_TRACE, Carrier
from tests.unit.serving.market import ADMIN_KEY, UNIT, Market
from tests.unit.serving.scripted import HEADERS, Endpoint, Script, endpoint, tokenizer

CHROMIUM = Path("/usr/bin/chromium")
USERS = (Profile("p7", "34 nurse Oslo", ("cups", "tea")), Profile("p8", "<i>52</i> parent", ("snacks",)))
LISTED = re.compile(r"^\S+ \D?(\d+) \d\d (@[^@\n]+@\[Ad-\d+\])$", re.MULTILINE)


class _Greedy(Script):
    """A `Writer` that places the ad with the highest bid of its prompt."""

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, stream: bool, trace: Carrier = NO_TRACE
    ) -> AsyncGenerator[Piece, None]:
        listed = LISTED.findall(tokenizer().decode(prompt))
        best = max(listed, key=lambda one: int(one[0]))[1] if listed else "nothing"
        self.text = f"A good choice is <b>light</b>. Many people like {best} for daily use."
        async for piece in super().generate(prompt, sampling, stream):
            yield piece


def _endpoint(store: Store, market: Market, **serving: object) -> Endpoint:
    seat = market.seat()
    market.listing(seat, bid=40, title="Oak Barn Cup")
    market.listing(seat, bid=20, title="Lumo & Sons <u>Cup</u>")
    return endpoint(store, writer=_Greedy(), users=USERS, **serving)


def test_the_page_lets_nothing_in_from_elsewhere(store: Store, market: Market) -> None:
    client = TestClient(_endpoint(store, market).app)
    kinds = {"/": "text/html", "/playground/page.css": "text/css", "/playground/page.js": "text/javascript"}
    for path, kind in kinds.items():
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert not re.search(r"https?://", answer.text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", answer.text)


def test_start_and_auctions_want_a_key(store: Store, market: Market) -> None:
    client = TestClient(_endpoint(store, market).app)
    assert client.get("/playground/start").status_code == 401
    assert client.get("/v1/auctions/auc_1").status_code == 401
    assert client.get("/v1/auctions/auc_1", headers=HEADERS).status_code == 404
    start = client.get("/playground/start", headers=HEADERS).json()
    assert [user["id"] for user in start["users"]] == ["p7", "p8"]
    assert (start["max_bid"], start["micros_per_unit"]) == (100, UNIT)


@pytest.mark.parametrize("rule", PriceRule)
@pytest.mark.parametrize("test", [False, True])
def test_an_auction_says_what_was_booked(store: Store, market: Market, rule: PriceRule, test: bool) -> None:
    client = TestClient(_endpoint(store, market).app)
    served = market.served(market.listing(market.seat("Oak")), rule=rule, resampled=False, test=test)
    path = f"/v1/auctions/{served.id}"
    (before,) = client.get(path, headers=HEADERS).json()["impressions"]
    store.click(market.claims(served), market.now, Invalid.PREFETCH)
    store.click(market.claims(served), market.now)
    (after,) = client.get(path, headers=HEADERS).json()["impressions"]
    price = served.impressions[0].price_micros
    at_once = rule is PriceRule.EXPECTED
    assert (before["clicked"], after["clicked"]) == (False, True)
    assert (before["invalid_clicks"], after["invalid_clicks"]) == ({}, {"prefetch": 1})
    assert before["charged_at"] == ("impression" if at_once else "click")
    assert before["booked_micros"] == (price if at_once and not test else None)
    assert after["booked_micros"] == (None if test else price)
    booked = "accrual" if rule is PriceRule.RESAMPLED else "charge"
    assert after["booked_as"] == (None if test else booked)


@contextmanager
def _listening(app: Any) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < until, "the test's server does not start"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM}: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        # Of itself it says "HeadlessChrome", and a robot's click is not charged.
        person = "--user-agent=Mozilla/5.0 (X11; Linux x86_64) Chrome/142.0.0.0 Safari/537.36"
        opened = tools.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", person])
        yield opened
        opened.close()


def test_ask_move_a_bid_click_and_see_the_charge(
    store: Store, market: Market, browser: Any, tmp_path: Path
) -> None:
    """By keyboard alone, but for the ad's click."""
    made = _endpoint(store, market)
    with _listening(made.app) as url:
        page = browser.new_page()
        page.set_default_timeout(60_000)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{url}/#key={ADMIN_KEY}")
        page.locator("#question").wait_for()
        assert ADMIN_KEY not in page.url
        assert page.locator("#user option").all_inner_texts()[2] == "<i>52</i> parent, likes snacks"
        page.select_option("#user", label="34 nurse Oslo, likes cups, tea")
        page.locator("#question").focus()
        page.keyboard.type("which cup?")
        page.keyboard.press("Enter")
        link = page.locator("#answer a")
        link.wait_for()
        assert "A good choice is <b>light</b>. Many people like" in page.inner_text("#answer")
        assert link.inner_text() == "Oak Barn Cup"
        assert "Sponsored" in page.inner_text("#answer .ad")
        assert "34 nurse Oslo" in made.writer.prompts[-1]
        rows = page.locator(".candidate")
        assert rows.count() == 2
        other = rows.filter(has_text="Lumo & Sons <u>Cup</u>")
        assert "25 % clicks (20 % to 30 %) · $0.40 per click" in page.inner_text(".candidate.placed")

        other.locator(".slider").focus()
        for _ in range(55):
            page.keyboard.press("ArrowRight")
        assert other.locator(".bid").inner_text() == "$0.75"
        assert other.locator(".was").inner_text() == "own bid $0.20"
        page.keyboard.press("Enter")
        page.locator("#answer a", has_text="Lumo & Sons <u>Cup</u>").wait_for()
        with page.expect_popup():
            page.locator("#answer a").click()
        page.locator("#charges .amount").wait_for()
        assert "nothing is billed" in page.inner_text("#charges li")
        assert page.inner_text("#charges .amount") == "$0.75"

        page.locator("#test").focus()
        page.keyboard.press("Space")
        page.locator("#ask").focus()
        page.keyboard.press("Enter")
        page.locator("#answer a", has_text="Oak Barn Cup").wait_for()
        with page.expect_popup():
            page.locator("#answer a").click()
        page.locator("#charges .amount.booked").wait_for()
        assert page.inner_text("#charges .amount.booked") == "$0.40"
        page.screenshot(path=str(tmp_path / "playground.png"), full_page=True)
        assert problems == []
    entries = [one for row in store.parties.advertisers("", 10) for one in store.ledger(row.id, 0, 10)]
    assert [entry.amount_micros for entry in entries] == [40 * UNIT]


def test_a_wrong_key_is_said_and_every_control_has_a_name(
    store: Store, market: Market, browser: Any
) -> None:
    with _listening(_endpoint(store, market).app) as url:
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(url)
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        page.locator("#error", has_text="valid API key").wait_for()
        page.fill("#key", ADMIN_KEY)
        page.press("#key", "Enter")
        page.fill("#question", "which cup?")
        page.click("#ask")
        page.locator(".candidate").nth(1).wait_for()
        controls = page.locator(
            "input:visible, select:visible, textarea:visible, button:visible, a:visible"
        )
        for place in range(controls.count()):
            control = controls.nth(place)
            named = (
                control.get_attribute("aria-label")
                or control.inner_text()
                or control.evaluate(
                    "element => Array.from(element.labels ?? []).map(one => one.textContent).join('')"
                )
            )
            assert named.strip(), control.evaluate("element => element.outerHTML")
