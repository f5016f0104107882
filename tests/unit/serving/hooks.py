"""A webhook on loopback, and a sender of notices whose clock the test turns."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from raylla.config import Serving
from raylla.serving.billing.notices import Sender
from raylla.serving.money.records import PriceRule
from raylla.serving.security.tokens import TokenKeys
from raylla.serving.store import Store
from tests.unit.serving.market import KEYS, Market


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


class Post:
    """A sender whose clock the test turns."""

    def __init__(self, store: Store, now: dt.datetime, **serving: Any) -> None:
        self.store, self.now = store, now
        settings = Serving(**({"private_notices": True} | serving))
        self.sender = Sender(store.outbox, TokenKeys(KEYS), settings, lambda: self.now)

    def send(self, later: float = 0) -> int:
        self.now += dt.timedelta(seconds=later)
        return asyncio.run(self._send())

    async def _send(self) -> int:
        """Empty the queues of all destinations that have notices due; returns how many were tried."""
        return sum(await asyncio.gather(*await self.sender.look()))

    def states(self, seat: str) -> list[tuple[int, bool, bool, str | None]]:
        """(attempts, sent, still due, error) of each notice."""
        rows = self.store.outbox.of(seat, "", 1000)
        return [(one.attempts, one.sent is not None, one.due is not None, one.error) for one in rows]


def billed(market: Market, url: str, rule: PriceRule = PriceRule.FIRST_PRICE) -> str:
    """An advertiser that has just been billed, and is told at ``url``."""
    seat = market.seat()
    auction = market.served(market.listing(seat, bid=64, burl=url), rule=rule)
    market.store.click(market.claims(auction), market.now)
    return seat
