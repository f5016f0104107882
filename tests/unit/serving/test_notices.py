"""Billing and loss notices: signed, retried, given up, and never sent to a private address."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import hmac
import ipaddress
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from raylla.config import Serving
from raylla.serving.addresses import AddressError, public, target
from raylla.serving.notices import Sender
from raylla.serving.records import PriceRule
from raylla.serving.store import Store, models
from raylla.serving.tokens import TokenKeys
from tests.unit.serving.market import KEYS, UNIT, Market


class Hook:
    """A webhook on loopback: answers with ``statuses`` in turn (the last for ever), keeps what it got."""

    def __init__(self) -> None:
        self.statuses = [204]
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.got.append((self.path, dict(self.headers), body))
                status = hook.statuses.pop(0) if len(hook.statuses) > 1 else hook.statuses[0]
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://localhost:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.server.shutdown()
    made.server.server_close()


class Post:
    """A sender whose clock the test turns."""

    def __init__(self, store: Store, now: dt.datetime, **serving: Any) -> None:
        self.store, self.now = store, now
        settings = Serving(**({"private_notices": True} | serving))
        self.sender = Sender(store.outbox, TokenKeys(KEYS), settings, lambda: self.now)

    def send(self, later: float = 0) -> int:
        self.now += dt.timedelta(seconds=later)
        return asyncio.run(self.sender.send_due())

    def states(self, seat: str) -> list[tuple[int, bool, bool, str | None]]:
        """(attempts, sent, still due, error) of each notice."""
        rows = self.store.outbox.of(seat, "", 100)
        return [(one.attempts, one.sent is not None, one.due is not None, one.error) for one in rows]


def billed(market: Market, url: str, rule: PriceRule = PriceRule.FIRST_PRICE) -> str:
    """An advertiser that has just been billed, and is told at ``url``."""
    seat = market.seat()
    auction = market.served(market.listing(seat, bid=64, burl=url), rule=rule)
    market.store.click(market.claims(auction), market.now)
    return seat


def test_a_charge_is_told_once_signed_with_its_macros_filled(
    market: Market, store: Store, hook: Hook
) -> None:
    seat = billed(market, hook.url + "/b?p=${AUCTION_PRICE}&i=${AUCTION_IMP_ID}&c=${AUCTION_CURRENCY}")
    post = Post(store, market.now)
    assert (post.send(), post.send()) == (1, 0)
    ((path, headers, body),) = hook.got
    told = json.loads(body)
    assert path == f"/b?p=0.640000&i={told['impid']}&c=USD"
    assert (told["price_micros"], told["seat"], told["charge"]) == (64 * UNIT, seat, "charge")
    assert headers["Host"] == hook.url.removeprefix("http://")
    parts = dict(part.split("=", 1) for part in headers["Raylla-Signature"].split(","))
    key_id, key = TokenKeys(KEYS).derive(f"notices/{seat}")
    mac = hmac.new(key, parts["t"].encode() + b"." + body, hashlib.sha256).hexdigest()
    assert (parts["k"], parts["v1"]) == (key_id, mac)
    assert post.states(seat) == [(1, True, False, None)]


def test_impression_billing_is_told_at_the_impression(market: Market, store: Store, hook: Hook) -> None:
    billed(market, hook.url, PriceRule.EXPECTED)
    Post(store, market.now).send()
    assert [json.loads(body)["click_id"] for _, _, body in hook.got] == [None]


def test_a_click_that_costs_nothing_is_not_told(market: Market, store: Store) -> None:
    seat = market.seat()
    auction = market.served(market.listing(seat, burl="http://localhost/"), test=True)
    store.click(market.claims(auction), market.now)
    assert store.outbox.of(seat, "", 10) == []


def test_losers_are_told_why(market: Market, store: Store, hook: Hook) -> None:
    seat = market.seat()
    lost = market.listing(seat, lurl=hook.url + "/l?why=${AUCTION_LOSS}")
    market.served(market.listing(market.seat("Vara")), lost=(lost, market.listing(seat)))
    assert Post(store, market.now).send() == 1
    ((path, _, body),) = hook.got
    assert (path, json.loads(body)["ad_id"]) == ("/l?why=102", lost.ad.id)


def test_failures_are_tried_again_with_growing_pauses(market: Market, store: Store, hook: Hook) -> None:
    hook.statuses = [500, 429, 200]
    seat = billed(market, hook.url)
    post = Post(store, market.now)
    assert post.send() == 1
    assert post.states(seat) == [(1, False, True, "status 500")]
    assert post.send(later=0.5) == 0  # the first pause is 1 to 2 seconds
    assert post.send(later=2) == 1
    assert post.send(later=1) == 0  # the second 2 to 4
    assert post.send(later=4) == 1
    assert post.states(seat) == [(3, True, False, None)]
    assert len({json.loads(body)["id"] for _, _, body in hook.got}) == 1


def test_the_next_address_is_tried_where_one_does_not_answer(
    market: Market, store: Store, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = hook.server.server_address[1]
    found = [(2, 1, 6, "", (address, port)) for address in ("127.0.0.2", "127.0.0.1")]

    async def look(*_: object, **__: object) -> list[tuple[object, ...]]:
        return found

    seat = billed(market, hook.url)
    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", look)
    post = Post(store, market.now)
    post.send()
    assert post.states(seat) == [(1, True, False, None)]


@pytest.mark.parametrize("status", [301, 302, 400, 404])
def test_refusals_and_redirects_are_not_tried_again(
    market: Market, store: Store, hook: Hook, status: int
) -> None:
    hook.statuses = [status]
    seat = billed(market, hook.url)
    post = Post(store, market.now)
    post.send()
    assert post.states(seat) == [(1, False, False, f"status {status}")]
    assert len(hook.got) == 1


def test_after_the_deadline_a_notice_is_given_up(market: Market, store: Store) -> None:
    seat = billed(market, "http://localhost:1/")  # nobody listens there
    post = Post(store, market.now, notice_deadline=60)
    post.send()
    ((_, sent, due, error),) = post.states(seat)
    assert (sent, due) == (False, True)
    assert "ConnectError" in str(error)
    post.send(later=59)
    assert post.states(seat)[0][2] is False
    assert post.send(later=10**6) == 0


def test_a_notice_is_leased_to_one_sender(market: Market, store: Store) -> None:
    billed(market, "http://localhost:1/")
    lease = dt.timedelta(seconds=30)
    assert len(store.outbox.take(market.now, 10, lease)) == 1
    assert store.outbox.take(market.now, 10, lease) == []
    (again,) = store.outbox.take(market.now + lease, 10, lease)
    assert again.attempts == 2


def test_private_addresses_are_refused_unless_configured(market: Market, store: Store, hook: Hook) -> None:
    seat = billed(market, hook.url)
    post = Post(store, market.now, private_notices=False)
    post.send()
    ((_, _, due, error),) = post.states(seat)
    assert not due
    assert "not a public address" in str(error)
    assert hook.got == []


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://10.1.2.3/",
        "http://172.16.0.1/",
        "http://192.168.1.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://[fd00:ec2::254]/",
        "http://[fe80::1]/",
        "http://0.0.0.0/",
        "http://100.64.0.1/",
        "http://224.0.0.1/",
        "http://user@127.0.0.1/",
        "http://example.com@127.0.0.1/",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "http:///nothing",
        "http://x.example:99999/",
    ],
)
def test_ways_around_the_address_check(url: str) -> None:
    with pytest.raises(AddressError):
        asyncio.run(target(url, private=False))


def test_public_addresses_are_connected_to_as_checked() -> None:
    assert public(ipaddress.ip_address("93.184.215.14"))
    found = asyncio.run(target("https://1.1.1.1:8443/a?b=c#d", private=False))
    assert (found.urls, found.host) == (("https://1.1.1.1:8443/a?b=c",), "1.1.1.1:8443")


def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", (address, 80)) for address in ("93.184.215.14", "10.0.0.1")]

    async def look() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", answer)
        await target("http://both.example/", private=False)

    with pytest.raises(AddressError, match=r"10\.0\.0\.1"):
        asyncio.run(look())


def test_the_sender_goes_on_when_the_store_is_back(
    market: Market, store: Store, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    billed(market, hook.url)
    take, away = store.outbox.take, [True, True]

    def taken(*arguments: Any) -> Any:
        if away:
            away.pop()
            raise OperationalError("SELECT 1", {}, Exception("database is locked"))
        return take(*arguments)

    monkeypatch.setattr(store.outbox, "take", taken)

    async def until_told() -> None:
        running = asyncio.create_task(Post(store, market.now).sender.run(0.01))
        async with asyncio.timeout(60):
            while not hook.got:
                await asyncio.sleep(0.01)
        running.cancel()

    asyncio.run(until_told())
    assert len(hook.got) == 1


def test_an_unsent_notice_survives_in_the_store(market: Market, store: Store) -> None:
    seat = billed(market, "http://localhost:1/")
    with store.database.reading() as session:
        (row,) = session.query(models.Notice).filter_by(advertiser_id=seat)
    assert (row.due, row.attempts, row.kind) == (market.now, 0, "burl")
