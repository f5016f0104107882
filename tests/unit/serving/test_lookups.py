"""Look-ups of webhooks' hosts that hang hold up their own destinations only."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from raylla.serving.billing import notices
from raylla.serving.store import Store
from tests.unit.serving.market import Market
from tests.unit.serving.test_notices import Hook, Post, queue, until


class Names:
    """Name servers that know this machine; for hosts of `bad.example` they are silent until ``back``."""

    def __init__(self) -> None:
        self.back = threading.Event()
        self.asked: Counter[str] = Counter()
        self._look = socket.getaddrinfo

    def look(self, host: str, *arguments: Any, **more: Any) -> Any:
        self.asked[host] += 1
        if host.endswith("bad.example"):
            self.back.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return self._look("127.0.0.1" if host.endswith(".example") else host, *arguments, **more)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    made = Names()
    monkeypatch.setattr(socket, "getaddrinfo", made.look)
    yield made
    made.back.set()


def test_look_ups_that_hang_hold_up_their_own_destinations_only(
    market: Market, store: Store, hook: Hook, names: Names
) -> None:
    seat, hosts = market.seat(), [f"{number}.bad.example" for number in range(40)]
    queue(store, market, seat, *[f"http://{host}/" for host in hosts * 3], hook.url)
    post = Post(store, market.now)

    async def sent() -> None:
        await until(post.sender, lambda: bool(hook.got))
        names.back.set()

    asyncio.run(sent())
    assert post.states(seat)[-1] == (1, True, False, None)
    assert {names.asked[host] for host in hosts} == {1}, "one look-up at a time for each destination"


def test_a_destination_whose_look_up_hangs_fails_and_is_asked_again_when_it_ends(
    market: Market, store: Store, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "TIMEOUT_SECONDS", 0.1)
    seat = market.seat()
    queue(store, market, seat, *["http://bad.example/"] * 10)
    post = Post(store, market.now)
    assert post.send() == notices.BREAK_AFTER
    assert [error for _, _, _, error in post.states(seat) if error] == ["no answer in 0.1 s"] * 5
    assert (post.send(), names.asked["bad.example"]) == (0, 1), "the destination waits as a whole"
    assert post.send(later=notices.FIRST_BREAK_SECONDS) == 1
    assert names.asked["bad.example"] == 1
    names.back.set()
    monkeypatch.setattr(notices, "TIMEOUT_SECONDS", 10.0)
    assert post.send(later=notices.LONGEST_PAUSE_SECONDS) == 1
    assert "Temporary failure" in "".join(str(error) for _, _, _, error in post.states(seat))


def test_look_ups_that_hang_are_bounded(
    market: Market, store: Store, hook: Hook, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(notices, "QUEUES", 2)
    seat = market.seat()
    queue(store, market, seat, *[f"http://{number}.bad.example/" for number in range(5)], hook.url)
    post = Post(store, market.now)
    for _ in range(3):
        post.send()
    assert sorted(names.asked) == ["0.bad.example", "1.bad.example"]
    names.back.set()
    for _ in range(200):
        if hook.got:
            break
        post.send(later=1)
    assert hook.got
