"""Sends billing and loss notices: signed webhooks, retried with growing pauses until a deadline.

    POST <burl or lurl>
    Raylla-Signature: t=<Unix seconds>,k=<key id>,v1=<hex HMAC-SHA256 of "<t>.<body>">

The key is the advertiser's (`GET /v1/advertisers/{id}/notice-key`). A status of 2xx is receipt; 408, 425,
429, 5xx and no answer are tried again, anything else is given up. Redirects are not followed and answers
are not read. A notice may arrive twice: its ``id`` says so.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import hmac
import json
import logging
import random
from collections.abc import Callable

import httpx
from sqlalchemy.exc import SQLAlchemyError

from raylla.config import Serving
from raylla.serving.addresses import AddressError, target
from raylla.serving.store.outbox import Outbox, Outgoing
from raylla.serving.tokens import TokenKeys

BATCH = 20
TIMEOUT_SECONDS = 10.0
"""Longest time of one attempt, from the look-up of the host to the answer's status."""
LONGEST_PAUSE_SECONDS = 300.0
_LEASE = dt.timedelta(seconds=6 * TIMEOUT_SECONDS)
_AGAIN = (408, 425, 429)
log = logging.getLogger("raylla.serving")


class Undelivered(Exception):  # noqa: N818
    """An attempt that failed; ``final`` where another would too."""

    def __init__(self, why: str, final: bool) -> None:
        super().__init__(why)
        self.final = final


class Sender:
    """Empties the outbox. Several may run, in one process or many: each notice is leased to one."""

    def __init__(
        self, outbox: Outbox, tokens: TokenKeys, serving: Serving, clock: Callable[[], dt.datetime]
    ) -> None:
        self._outbox = outbox
        self._tokens = tokens
        self._private = serving.private_notices
        self._deadline = dt.timedelta(seconds=serving.notice_deadline)
        self._clock = clock

    async def run(self, every: float) -> None:
        """Send what is due every ``every`` seconds, until cancelled; a store that is away is waited for."""
        while True:
            try:
                tried = await self.send_due()
            except SQLAlchemyError as error:
                log.warning("notices wait for the store: %s", error)
                tried = 0
            if tried < BATCH:
                await asyncio.sleep(every)

    async def send_due(self) -> int:
        """Try the notices that are due now, a batch at most; returns how many were tried."""
        due = await asyncio.to_thread(self._outbox.take, self._clock(), BATCH, _LEASE)
        if due:
            async with httpx.AsyncClient(follow_redirects=False, trust_env=False) as client:
                await asyncio.gather(*(self._try(client, notice) for notice in due))
        return len(due)

    async def _try(self, client: httpx.AsyncClient, notice: Outgoing) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._post(client, notice)
        except TimeoutError:
            await self._failed(notice, Undelivered(f"no answer in {TIMEOUT_SECONDS:g} s", False))
        except Undelivered as error:
            await self._failed(notice, error)
        else:
            await asyncio.to_thread(self._outbox.sent, notice.id, self._clock())

    async def _post(self, client: httpx.AsyncClient, notice: Outgoing) -> None:
        try:
            where = await target(notice.url, self._private)
        except AddressError as error:
            raise Undelivered(str(error), final=True) from None
        body = json.dumps(notice.body, sort_keys=True, separators=(",", ":")).encode()
        headers = {"Host": where.host, "Content-Type": "application/json"} | self._signature(notice, body)
        status = 0
        for number, url in enumerate(where.urls, start=1):
            try:
                async with client.stream(
                    "POST", url, content=body, headers=headers, extensions={"sni_hostname": where.name}
                ) as answer:
                    status = answer.status_code
                break
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if not isinstance(error, httpx.ConnectError) or number == len(where.urls):
                    raise Undelivered(f"{type(error).__name__}: {error}", final=False) from None
        if not 200 <= status < 300:
            raise Undelivered(f"status {status}", final=status < 500 and status not in _AGAIN)

    def _signature(self, notice: Outgoing, body: bytes) -> dict[str, str]:
        key_id, key = self._tokens.derive(f"notices/{notice.advertiser_id}")
        at = int(self._clock().timestamp())
        mac = hmac.new(key, f"{at}.".encode() + body, hashlib.sha256).hexdigest()
        return {"Raylla-Signature": f"t={at},k={key_id},v1={mac}"}

    async def _failed(self, notice: Outgoing, error: Undelivered) -> None:
        pause = min(LONGEST_PAUSE_SECONDS, 2.0**notice.attempts) * random.uniform(0.5, 1.0)
        again = self._clock() + dt.timedelta(seconds=pause)
        if error.final or again > notice.created + self._deadline:
            log.warning("notice given up: %s", error, extra={"notice_id": notice.id})
            await asyncio.to_thread(self._outbox.give_up, notice.id, str(error))
        else:
            await asyncio.to_thread(self._outbox.retry, notice.id, again, str(error))
