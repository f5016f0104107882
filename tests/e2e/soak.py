"""Traffic as a market makes it, honest and not: questions, clicks, replays, forgeries, late clicks.

`soak` drives a running endpoint and reports what came back; `verify` then holds that against its store.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from raylla.serving.billing.audit import audit
from raylla.serving.security.tokens import Claims, TokenKeys
from raylla.serving.store import Store
from raylla.world import World

WORKERS = 6


@dataclass
class Traffic:
    """What a soak has seen."""

    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    auctions: set[str] = field(default_factory=set)
    clicked: set[str] = field(default_factory=set)
    """Impressions with an authentic click in time that was answered with a redirect."""
    late: set[str] = field(default_factory=set)
    """Impressions that were clicked after their token's end, and only then."""
    pending: list[tuple[float, str, str]] = field(default_factory=list)
    """Tokens kept until they have expired: when, impression, URL."""


async def soak(
    url: str, key: str, world: World, seconds: float, ttl: float, midway: Callable[[], None] | None
) -> Traffic:
    """Send traffic for ``seconds``; ``midway`` is called in the middle of it, to break something."""
    seen = Traffic()
    ends = time.monotonic() + seconds
    async with httpx.AsyncClient(
        base_url=url, timeout=60, headers={"Authorization": f"Bearer {key}"}
    ) as http:

        async def break_something() -> None:
            await asyncio.sleep(seconds / 2)
            if midway is not None:
                await asyncio.to_thread(midway)

        workers = [_worker(http, world, seen, random.Random(place), ttl, ends) for place in range(WORKERS)]
        await asyncio.gather(break_something(), *workers)
        await asyncio.sleep(ttl + 1)
        for _, impression, path in seen.pending:
            await _click(http, seen, path, "late")
            seen.late.add(impression)
    return seen


def verify(seen: Traffic, store: Store) -> Counter[str]:
    """Hold the traffic against the store; counts of what was found, by name.

    Raises:
        AssertionError: an unexpected answer, a lost auction, a missing or double charge, a budget
            overrun, or a discrepancy of the audit.
    """
    assert seen.problems == []
    now = dt.datetime.now(dt.UTC)
    served = {one.auction.id: one for one in store.auctions(now - dt.timedelta(days=1), now, None)}
    assert seen.auctions <= served.keys(), f"lost: {seen.auctions - served.keys()}"
    found: Counter[str] = Counter(auctions=len(served))
    for one in served.values():
        lines = Counter(entry.impression_id for entry in store.charges(one.auction.id))
        assert all(count == 1 for count in lines.values()), f"charged twice: {lines}"
        for shown in one.auction.impressions:
            found["impressions"] += 1
            assert (shown.id in seen.clicked) <= (shown.id in one.clicked), f"click lost: {shown.id}"
            if shown.id in seen.late:
                assert shown.id not in lines, f"a late click was charged: {shown.id}"
            if shown.id in one.clicked:
                # Authentic and in time: charged once, or its budget was spent.
                found["charged" if shown.id in lines else "beyond budget"] += 1
            else:
                assert shown.id not in lines, f"charged without a click: {shown.id}"
    for campaign in store.parties.campaigns(None, "", 10_000):
        assert store.parties.spent(campaign.id, now.date()) <= campaign.daily_budget_micros
    checked = audit(store)
    assert checked.discrepancies == []
    found["audited"] = sum(checked.counts.values())
    return found


async def _worker(
    http: httpx.AsyncClient, world: World, seen: Traffic, rng: random.Random, ttl: float, ends: float
) -> None:
    profiles = {one.id: one for one in world.profiles}
    while time.monotonic() < ends:
        query = rng.choice(world.queries)
        profile = profiles[query.profile_id]
        user = {"id": profile.id, "basics": profile.basics, "interests": list(profile.interests)}
        body = {
            "model": "raylla",
            "messages": [{"role": "user", "content": query.text}],
            "stream": rng.random() < 0.5,
            "raylla": {"profile": user, "ads": rng.random() < 0.95},
        }
        asked = time.monotonic()
        for impression, path in await _ask(http, seen, body):
            chance = rng.random()
            if chance < 0.1:
                seen.pending.append((asked, impression, path))
            elif chance < 0.9:
                for _ in range(rng.choice((1, 1, 2, 5))):
                    status = await _click(http, seen, path, "in time")
                    # Answered well within the token's life, or its fate is not known here.
                    if status == 302 and time.monotonic() - asked < ttl - 1:
                        seen.clicked.add(impression)
            await _click(http, seen, _forged(path, rng), "forged")


async def _ask(http: httpx.AsyncClient, seen: Traffic, body: dict[str, Any]) -> list[tuple[str, str]]:
    """Impressions of an answer, and the path of the click on each."""
    answer = await http.post("/v1/chat/completions", json=body)
    _note(seen, answer, "stream" if body["stream"] else "whole", {200, 503})
    if answer.status_code != 200:
        return []
    if body["stream"]:
        lines = [line[6:] for line in answer.text.split("\n\n") if line.startswith("data: {")]
        events = [json.loads(line) for line in lines]
        if "error" in events[-1]:
            seen.statuses["stream ended by an error"] += 1
            return []
        whole = next(event for event in events if "raylla" in event)
        annotations = whole["choices"][0]["delta"]["annotations"]
    else:
        whole = answer.json()
        annotations = whole["choices"][0]["message"]["annotations"]
    if whole["raylla"]["auction_id"]:
        seen.auctions.add(whole["raylla"]["auction_id"])
    return [
        (ad["impid"], httpx.URL(one["url_citation"]["url"]).path)
        for ad, one in zip(whole["raylla"]["ads"], annotations, strict=True)
    ]


async def _click(http: httpx.AsyncClient, seen: Traffic, path: str, kind: str) -> int:
    answer = await http.get(path)
    _note(seen, answer, f"click {kind}", {400} if kind == "forged" else {302, 503})
    return answer.status_code


def _note(seen: Traffic, answer: httpx.Response, what: str, allowed: set[int]) -> None:
    seen.statuses[f"{what}: {answer.status_code}"] += 1
    typed = answer.status_code != 503 or ("retry-after" in answer.headers and "error" in _json(answer))
    if answer.status_code not in allowed or not typed:
        seen.problems.append(f"{what}: {answer.status_code} {dict(answer.headers)} {answer.text[:300]}")


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return {}


def _forged(path: str, rng: random.Random) -> str:
    """The path of a token that was tampered with: another price, a flipped bit, a key of one's own."""
    prefix, _, token = path.rpartition("/")
    key_id, payload, mac = token.split(".")
    way = rng.randrange(3)
    if way == 0:
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        claims[5] = 1
        raw = json.dumps(claims, separators=(",", ":")).encode()
        payload = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    elif way == 1:
        mac = ("A" if mac[0] != "A" else "B") + mac[1:]
    else:
        genuine = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return f"{prefix}/{TokenKeys({key_id: b'f' * 32}).sign(Claims(*genuine))}"
    return f"{prefix}/{key_id}.{payload}.{mac}"
