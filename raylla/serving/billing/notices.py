"""Sends billing and loss notices: signed webhooks, retried with growing pauses until a deadline.

    POST <burl or lurl>
    webhook-id, webhook-timestamp, webhook-signature, Raylla-Signature   (security/signing.py)
    Authorization: Basic ...   where the URL has a user and password

The secret is the advertiser's (`GET /v1/advertisers/{id}/notice-key`). A status of 2xx is receipt; 408,
425, 429, 5xx and no answer are tried again, anything else is given up. Redirects are not followed and
answers are not read. A notice may arrive twice: its ``webhook-id`` says so.

    due notices ──▶ a queue for each destination (scheme, host, port) ──▶ up to AT_ONCE at a time
                    BREAK_AFTER failures in a row: all of it waits, then one is tried

so that a hook that hangs, or the look-up of its host, holds up nobody else's notices, and its own only for
the sender's sake.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import httpx

from raylla.config import Serving
from raylla.serving.security.addresses import AddressError, Resolver, target
from raylla.serving.security.signing import notice_keys, signed
from raylla.serving.security.tokens import TokenKeys
from raylla.serving.store.clients.outbox import Outbox, Outgoing

QUEUES = 256
"""Most destinations at a time, with those whose look-up still hangs."""
AT_ONCE = 4
"""Most attempts at a time to one destination."""
BREAK_AFTER = 5
TIMEOUT_SECONDS = 10.0
"""Longest time of one attempt, from the look-up of the host to the answer's status."""
CONNECT_SECONDS = 2.0
"""Longest time until one of the host's addresses answers; then comes the next."""
ADDRESSES = 4
"""Most addresses of a host that are tried."""
LONGEST_PAUSE_SECONDS = 300.0
FIRST_BREAK_SECONDS = 10.0
_LEASE = dt.timedelta(seconds=6 * TIMEOUT_SECONDS)
_AGAIN = (408, 425, 429)
_T = TypeVar("_T")
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
        self._tls = httpx.create_ssl_context()
        # Threads of its own, beside those of look-ups, which may hang.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="outbox")
        self._resolver = Resolver(QUEUES)
        self._queues: dict[str, asyncio.Task[int]] = {}
        self._failures: Counter[str] = Counter()
        """By destination, in a row."""
        self._paused: dict[str, float] = {}
        """Destination whose queue ended by an error -> when it may begin again (monotonic)."""

    async def look(self) -> list[asyncio.Task[int]]:
        """Begin to empty the queue of every destination that has notices due, where none has begun; returns
        all that are at work, each of which says in the end how many notices it tried."""
        self._tidy()
        due = await self._ask(self._outbox.waiting, self._clock(), QUEUES)
        for destination in due:
            if len(self._queues.keys() | self._resolver.busy()) >= QUEUES:
                break
            if destination not in self._queues and time.monotonic() >= self._paused.get(destination, 0.0):
                self._queues[destination] = asyncio.create_task(self._empty(destination))
        return list(self._queues.values())

    def _tidy(self) -> None:
        """Forget queues that have been emptied; one that an error has ended begins again after a pause."""
        for destination, task in list(self._queues.items()):
            if not task.done():
                continue
            del self._queues[destination]
            if task.cancelled() or (error := task.exception()) is None:
                self._paused.pop(destination, None)
                continue
            self._failures[destination] += 1
            pause = min(LONGEST_PAUSE_SECONDS, 0.1 * 2.0 ** self._failures[destination])
            self._paused[destination] = time.monotonic() + pause
            log.error("notices to %s wait %g s: %r", destination, pause, error, exc_info=error)

    async def _empty(self, destination: str) -> int:
        """Try what is due to one destination, until nothing is or it seems to be away; returns how many."""
        tried, limits = 0, httpx.Timeout(TIMEOUT_SECONDS, connect=CONNECT_SECONDS)
        async with httpx.AsyncClient(
            follow_redirects=False, trust_env=False, verify=self._tls, timeout=limits
        ) as client:
            while True:
                width = 1 if self._failures[destination] else AT_ONCE
                taken = await self._ask(self._outbox.take, self._clock(), width, _LEASE, destination)
                if not taken:
                    return tried
                attempts = (self._attempt(client, notice) for notice in taken)
                ends = await asyncio.gather(*attempts, return_exceptions=True)
                for notice, end in zip(taken, ends, strict=True):
                    await self._note(destination, notice, end)
                tried += len(taken)
                if self._failures[destination] >= BREAK_AFTER:
                    await self._break(destination)
                    return tried

    async def _attempt(self, client: httpx.AsyncClient, notice: Outgoing) -> None:
        """Returns once the notice has arrived.

        Raises:
            Undelivered: it has not.
        """
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._post(client, notice)
        except TimeoutError:
            raise Undelivered(f"no answer in {TIMEOUT_SECONDS:g} s", False) from None

    async def _post(self, client: httpx.AsyncClient, notice: Outgoing) -> None:
        try:
            where = await target(notice.url, self._private, self._resolver)
        except AddressError as error:
            raise Undelivered(str(error), error.final) from None
        body = json.dumps(notice.body, sort_keys=True, separators=(",", ":")).encode()
        headers = {**where.headers, "Content-Type": "application/json"} | self._signature(notice, body)
        status, urls = 0, where.urls[:ADDRESSES]
        for number, url in enumerate(urls, start=1):
            try:
                async with client.stream(
                    "POST", url, content=body, headers=headers, extensions={"sni_hostname": where.name}
                ) as answer:
                    status = answer.status_code
                break
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if number == len(urls):
                    raise Undelivered(f"{type(error).__name__}: {error}", final=False) from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise Undelivered(f"{type(error).__name__}: {error}", final=False) from None
        if not 200 <= status < 300:
            raise Undelivered(f"status {status}", final=status < 500 and status not in _AGAIN)

    def _signature(self, notice: Outgoing, body: bytes) -> dict[str, str]:
        return signed(notice_keys(self._tokens, notice.advertiser_id), notice.id, self._clock(), body)

    async def _note(self, destination: str, notice: Outgoing, end: BaseException | None) -> None:
        """Write down how an attempt ended; whatever an odd notice has raised is its own failure."""
        if end is None:
            self._failures.pop(destination, None)
            await self._ask(self._outbox.sent, notice.id, self._clock())
            return
        final = isinstance(end, Undelivered) and end.final
        why = str(end) if isinstance(end, Undelivered) else f"{type(end).__name__}: {end}"
        if not isinstance(end, Undelivered):
            log.error("a notice failed oddly: %s", why, extra={"notice_id": notice.id}, exc_info=end)
        if final:
            self._failures.pop(destination, None)
        else:
            self._failures[destination] += 1
        again = self._clock() + _pause(2.0**notice.attempts)
        if final or again > notice.created + self._deadline:
            log.warning("notice given up: %s", why, extra={"notice_id": notice.id})
            await self._ask(self._outbox.give_up, notice.id, why)
        else:
            await self._ask(self._outbox.retry, notice.id, again, why)

    async def _break(self, destination: str) -> None:
        """Let all that is due to a destination wait; what has waited for too long is given up."""
        failures = self._failures[destination]
        now = self._clock()
        until = now + _pause(FIRST_BREAK_SECONDS * 2.0 ** (failures - BREAK_AFTER))
        why = f"{destination} has not answered {failures} times in a row"
        log.warning("%s: its notices wait until %s", why, until.isoformat(timespec="seconds"))
        await self._ask(self._outbox.postpone, destination, until, now - self._deadline, why)

    async def _ask(self, call: Callable[..., _T], *arguments: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)


def _pause(seconds: float) -> dt.timedelta:
    return dt.timedelta(seconds=min(LONGEST_PAUSE_SECONDS, seconds) * random.uniform(0.5, 1.0))
