"""Billing and loss notices: signed, retried, given up, and never sent to a private address."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import ipaddress
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from raylla.serving.billing import notices
from raylla.serving.billing.notices import Sender
from raylla.serving.deploy.supervision import Supervisor
from raylla.serving.money.records import PriceRule
from raylla.serving.security.addresses import AddressError, Resolver, destination, public, target
from raylla.serving.security.addresses import Hook as Address
from raylla.serving.store import Store, models
from tests.unit.serving.hooks import Hook, Post, billed
from tests.unit.serving.market import UNIT, Market


async def until(sender: Sender, done: Callable[[], bool]) -> None:
    """Have the sender work as it does at the endpoint."""
    supervisor = Supervisor()
    supervisor.start("notices", 0.01, sender.look)
    async with asyncio.timeout(60):
        while not done():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
    assert supervisor.problems() == []
    supervisor.stop()


def test_a_charge_is_told_once_signed_with_its_macros_filled(
    market: Market, store: Store, hook: Hook
) -> None:
    macros = "p=${AUCTION_CLICK_PRICE}&m=${AUCTION_PRICE}&i=${AUCTION_IMP_ID}&c=${AUCTION_CURRENCY}"
    seat = billed(market, f"{hook.url}/b?{macros}")
    post = Post(store, market.now)
    assert (post.send(), post.send()) == (1, 0)
    ((path, headers, body),) = hook.got
    told = json.loads(body)
    assert path == f"/b?p=0.640000&m=&i={told['impid']}&c=USD"
    assert (told["click_price"], told["click_price_unit"]) == ("0.640000", "USD per click")
    assert "auction_price" not in told
    assert (told["price_micros"], told["seat"], told["charge"]) == (64 * UNIT, seat, "charge")
    assert headers["Host"] == hook.url.removeprefix("http://")
    assert post.states(seat) == [(1, True, False, None)]


def test_impression_billing_is_told_at_the_impression(market: Market, store: Store, hook: Hook) -> None:
    billed(market, hook.url + "/b?m=${AUCTION_PRICE}&p=${AUCTION_CLICK_PRICE}", PriceRule.EXPECTED)
    Post(store, market.now).send()
    ((path, _, body),) = hook.got
    told = json.loads(body)
    assert (told["click_id"], told["charged_at"]) == (None, "impression")
    assert told["price_micros"] == 192_000  # 0.64 x 0.3, of one impression
    assert (told["auction_price"], told["auction_price_unit"]) == ("192.000000", "USD per 1000 impressions")
    assert path == "/b?m=192.000000&p="


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

    seat = billed(market, hook.url)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
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
        asyncio.run(target(url, False, Resolver(1)))


def test_public_addresses_are_connected_to_as_checked() -> None:
    assert public(ipaddress.ip_address("93.184.215.14"))
    found = asyncio.run(target("https://1.1.1.1:8443/a?b=c#d", False, Resolver(1)))
    assert (found.urls, found.host) == (("https://1.1.1.1:8443/a?b=c",), "1.1.1.1:8443")


def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(2, 1, 6, "", (address, 80)) for address in ("93.184.215.14", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(AddressError, match=r"10\.0\.0\.1"):
        asyncio.run(target("http://both.example/", False, Resolver(1)))


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

    asyncio.run(until(Post(store, market.now).sender, lambda: bool(hook.got)))
    assert len(hook.got) == 1


def test_an_unsent_notice_survives_in_the_store(market: Market, store: Store) -> None:
    seat = billed(market, "http://localhost:1/")
    with store.database.reading() as session:
        (row,) = session.query(models.StoredNotice).filter_by(advertiser_id=seat)
    assert (row.due, row.attempts, row.kind) == (market.now, 0, "burl")


@pytest.fixture
def silent() -> Iterator[str]:
    """A hook that takes calls and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(200)
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


def queue(store: Store, market: Market, seat: str, *urls: str) -> None:
    """Notices that are due now, in this order."""
    with store.database.writing() as session:
        for number, url in enumerate(urls):
            at = market.now - dt.timedelta(seconds=len(urls) - number)
            row = models.StoredNotice(
                id=f"ntc_{number:03}", advertiser_id=seat, kind="burl", url=url, body={}, created=at, due=at
            )
            row.destination = destination(url)
            session.add(row)


def test_a_hook_that_hangs_holds_up_nobody_elses_notices(
    market: Market, store: Store, hook: Hook, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "TIMEOUT_SECONDS", 300.0)
    seat = market.seat()
    queue(store, market, seat, *[silent] * 100, hook.url)
    post = Post(store, market.now)
    asyncio.run(until(post.sender, lambda: bool(hook.got)))
    states = post.states(seat)
    assert states[100] == (1, True, False, None)
    assert sum(tried for tried, _, _, _ in states[:100]) == notices.AT_ONCE
    monkeypatch.setattr(notices, "TIMEOUT_SECONDS", 0.2)
    assert post.send(later=61) <= notices.BREAK_AFTER + notices.AT_ONCE
    assert all(due for _, _, due, _ in post.states(seat)[:100])
    assert post.send() == 0, "the destination waits as a whole"
    assert post.send(later=notices.FIRST_BREAK_SECONDS) == 1, "then one of it is tried"


def test_a_destination_that_is_back_gets_all_of_its_own(market: Market, store: Store, hook: Hook) -> None:
    hook.statuses = [503] * notices.BREAK_AFTER + [200]
    seat = market.seat()
    queue(store, market, seat, *[hook.url] * 12)
    post = Post(store, market.now)
    assert notices.BREAK_AFTER <= post.send() < 12
    assert post.send(later=300) == 12
    assert all(sent for _, sent, _, _ in post.states(seat))


def test_what_waits_behind_a_broken_destination_is_given_up_in_time(market: Market, store: Store) -> None:
    seat = market.seat()
    queue(store, market, seat, *["http://127.0.0.1:1/"] * 20)
    post = Post(store, market.now, notice_deadline=60)
    post.send()
    assert sum(due for _, _, due, _ in post.states(seat)) == 20
    post.send(later=61)
    assert [due for _, _, due, _ in post.states(seat)] == [False] * 20
    assert {str(error).split(" ")[0] for _, _, _, error in post.states(seat)} <= {
        "http://127.0.0.1:1",
        "ConnectError:",
    }


def test_no_single_notice_stops_the_sender(
    market: Market, store: Store, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    seat = market.seat()
    odd = [
        "https://svc:p[w@hooks.lumo.example/billed",
        "http://[::1/",
        "http://x:99999/",
        "",
        "http://a b/",
    ]
    queue(store, market, seat, *odd, hook.url + "/odd", hook.url + "/fine")
    sign = Sender._signature

    def signature(self: Sender, notice: Any, body: bytes) -> dict[str, str]:
        if notice.url.endswith("/odd"):
            raise ZeroDivisionError("nobody foresaw this")
        return sign(self, notice, body)

    monkeypatch.setattr(Sender, "_signature", signature)
    post = Post(store, market.now)
    asyncio.run(until(post.sender, lambda: sum(due for _, _, due, _ in post.states(seat)) == 1))
    states = post.states(seat)
    assert [(sent, due) for _, sent, due, _ in states[: len(odd)]] == [(False, False)] * len(odd)
    assert states[-2][1:3] == (False, True)
    assert states[-2][3] == "ZeroDivisionError: nobody foresaw this"
    assert states[-1][1] is True


def test_user_and_password_of_the_url_are_sent_as_authorization(
    market: Market, store: Store, hook: Hook
) -> None:
    seat = billed(market, hook.url.replace("http://", "http://us%65r:p%3Aw%C3%A9@") + "/b")
    Post(store, market.now).send()
    ((path, headers, _),) = hook.got
    wanted = base64.b64encode("user:p:w\u00e9".encode()).decode()
    assert (path, headers["Authorization"]) == ("/b", f"Basic {wanted}")
    assert headers["Host"] == hook.url.removeprefix("http://")
    assert seat


def test_the_next_address_is_tried_where_one_hangs(
    market: Market, store: Store, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = hook.server.server_address[1]
    found = [(2, 1, 6, "", (address, port)) for address in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(notices, "CONNECT_SECONDS", 0.3)
    seat = billed(market, hook.url)
    with socket.socket() as full, ExitStack() as waiting:
        full.bind(("127.0.0.2", port))
        full.listen(0)
        for _ in range(3):  # what does not fit into its backlog is not even refused
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.2", port))
        post = Post(store, market.now)
        post.send()
    assert post.states(seat) == [(1, True, False, None)]


def test_a_host_that_is_not_found_now_is_looked_up_again(
    market: Market, store: Store, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    seat = billed(market, hook.url)
    look, away = socket.getaddrinfo, [True]

    def sometimes(*arguments: Any, **more: Any) -> Any:
        if away:
            away.pop()
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return look(*arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", sometimes)
    post = Post(store, market.now)
    post.send()
    assert post.states(seat)[0][1:3] == (False, True)
    post.send(later=5)
    assert post.states(seat)[0][1:3] == (True, False)


def test_a_url_is_read_at_the_door_as_it_is_called() -> None:
    hook = Address.parse("HTTPS://us:pw@Hooks.Lumo.EXAMPLE.:8443/b?x=1#y")
    assert (hook.name, hook.host) == ("hooks.lumo.example", "hooks.lumo.example:8443")
    assert hook.destination == "https://hooks.lumo.example:8443"
    assert hook.at(ipaddress.ip_address("2001:db8::1")) == "https://[2001:db8::1]:8443/b?x=1"
    assert Address.parse("https://[2001:db8::1]/").host == "[2001:db8::1]"
    for odd in (
        "https://a:b[c@x.example/",
        "https:/x.example",
        "http://a%41.example/",
        "http://x..example/",
    ):
        with pytest.raises(AddressError):
            Address.parse(odd)
