"""Traffic as a market makes it, honest and not: conversations by chat and Responses, the clients that
people use, clicks, replays, forgeries, late clicks, and prefetches and robots that click ahead of anyone.

`soak` drives a running endpoint and reports what came back; `verify` then holds that against its store, and
the reports against the ledger.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from raylla.serving.billing.audit import audit
from raylla.serving.money.records import Served
from raylla.serving.security.tokens import Claims, TokenKeys
from raylla.serving.store import Store
from raylla.world import World
from tests.unit.serving import clients

WORKERS = 6
AWAY = ("503", "overloaded", "unavailable", "the engine")
"""What a client's error says where the endpoint could not answer, and said so."""
CUT = "max_output_tokens"
"""What a client's error says that takes no answer which was cut because it was as long as it may be."""
LOOPING = "repeating the same chunk"
"""What LiteLLM's error says of a model that writes one word a hundred times, as a pocket model may."""
FURTHER = "and a cheaper one?"
MACHINES = (
    ("HEAD", {}),
    ("GET", {"Sec-Purpose": "prefetch"}),
    ("GET", {"X-Moz": "prefetch"}),
    ("GET", {"User-Agent": "Twitterbot/1.0"}),
    ("GET", {"User-Agent": "WhatsApp/2.23.20.0 A"}),
)
"""Requests for a click that no person has made: method and headers."""


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
    unasked: set[str] = field(default_factory=set)
    """Impressions that machines alone have clicked: prefetches, HEAD, robots."""
    pending: list[tuple[float, str, str]] = field(default_factory=list)
    """Tokens kept until they have expired: when, impression, URL."""
    clients: Counter[str] = field(default_factory=Counter)
    """How the parts of the clients' snippets ended."""
    over: bool = False
    """Nobody is to ask any more."""


async def soak(
    url: str,
    key: str,
    world: World,
    seconds: float,
    ttl: float,
    events: Sequence[Callable[[], None]],
    by: Sequence[str] = (),
    pause: float = 0.0,
) -> Traffic:
    """Send traffic for ``seconds`` and as long as ``events`` take, which happen in it evenly spread; the
    clients of `tests.unit.serving.clients` that ``by`` names take turns beside it. Who has asked waits
    ``pause`` seconds before the next question."""
    seen = Traffic()
    async with httpx.AsyncClient(
        base_url=url, timeout=60, headers={"Authorization": f"Bearer {key}"}
    ) as http:

        async def happen() -> None:
            try:
                for event in events:
                    await asyncio.sleep(seconds / (len(events) + 1))
                    await asyncio.to_thread(event)
                await asyncio.sleep(seconds / (len(events) + 1))
            finally:
                seen.over = True

        workers = [_worker(http, world, seen, random.Random(place), ttl, pause) for place in range(WORKERS)]
        await asyncio.gather(happen(), asyncio.to_thread(_clients, by, url, key, seen), *workers)
        await asyncio.sleep(ttl + 1)
        for _, impression, path in seen.pending:
            await _click(http, seen, path, "late")
            seen.late.add(impression)
    return seen


def verify(seen: Traffic, store: Store, report: Mapping[str, Any]) -> Counter[str]:
    """Hold the traffic and the whole ``report`` against the store; counts of what was found, by name.

    Raises:
        AssertionError: an unexpected answer, a lost auction, a missing or double charge, a machine's click
            that counts, a budget overrun, a report that is not the ledger's, or a discrepancy of the audit.
    """
    assert not seen.problems, "\n".join(seen.problems[:9])
    now = dt.datetime.now(dt.UTC)
    served = {one.auction.id: one for one in store.auctions(now - dt.timedelta(days=1), now, None)}
    assert seen.auctions <= served.keys(), f"lost: {seen.auctions - served.keys()}"
    found: Counter[str] = Counter(auctions=len(served))
    for one in served.values():
        lines = Counter(entry.impression_id for entry in store.charges(one.auction.id))
        assert all(count == 1 for count in lines.values()), f"charged twice: {lines}"
        for shown in one.auction.impressions:
            found["test impressions" if one.auction.test else "impressions"] += 1
            assert (shown.id in seen.clicked) <= (shown.id in one.clicked), f"click lost: {shown.id}"
            if shown.id in seen.late:
                assert shown.id not in lines, f"a late click was charged: {shown.id}"
            if shown.id in seen.unasked:
                found["clicked by machines alone"] += 1
                assert shown.id not in one.clicked, f"no person clicked: {shown.id}"
            if shown.id in one.clicked:
                # Authentic and in time: charged once, or its budget was spent.
                found["charged" if shown.id in lines else "beyond budget"] += 1
            else:
                assert shown.id not in lines, f"charged without a click: {shown.id}"
    _reported(report, found, served, store)
    for campaign in store.parties.campaigns(None, "", 10_000):
        assert store.parties.spent(campaign.id, now.date()) <= campaign.daily_budget_micros
    checked = audit(store)
    assert checked.discrepancies == []
    found["audited"] = sum(checked.counts.values())
    return found


def _reported(
    report: Mapping[str, Any], found: Counter[str], served: Mapping[str, Served], store: Store
) -> None:
    """Hold a report by campaign against what was served, and its money against the ledger's lines."""
    assert report["total"]["clicks"] == found["charged"] + found["beyond budget"]
    assert report["total"]["impressions"] == found["impressions"]
    assert report["total"]["invalid_clicks"] > 0
    charged: Counter[str] = Counter()
    for one in served.values():
        for entry in store.charges(one.auction.id):
            charged[str(entry.campaign_id)] += entry.amount_micros
    assert charged == {
        line["campaign"]: line["charged_micros"] for line in report["lines"] if line["charged_micros"]
    }


async def _worker(
    http: httpx.AsyncClient, world: World, seen: Traffic, rng: random.Random, ttl: float, pause: float
) -> None:
    profiles = {one.id: one for one in world.profiles}
    while not seen.over:
        query = rng.choice(world.queries)
        profile = profiles[query.profile_id]
        user = {"id": profile.id, "basics": profile.basics, "interests": list(profile.interests)}
        said = Said(query.text, {"profile": user, "ads": rng.random() < 0.95}, rng.random() < 0.5)
        ask = rng.choice((_chat, _responses))
        asked = time.monotonic()
        got = await ask(http, seen, said)
        await _clicks(http, seen, got, rng, ttl, asked)
        if got.text and rng.random() < 0.3:
            asked = time.monotonic()
            further = replace(said, question=FURTHER, before=(said.question, got.text), after=got.id)
            await _clicks(http, seen, await ask(http, seen, further), rng, ttl, asked)
        await asyncio.sleep(pause)


@dataclass(frozen=True)
class Said:
    """A question, what the request says to raylla, whether it streams, and what was said before."""

    question: str
    raylla: Mapping[str, Any]
    stream: bool
    before: tuple[str, ...] = ()
    after: str | None = None


@dataclass(frozen=True)
class Got:
    """An answer's id and text, and of its ads the impressions and the paths of their clicks."""

    id: str | None = None
    text: str = ""
    ads: tuple[tuple[str, str], ...] = ()


async def _clicks(
    http: httpx.AsyncClient, seen: Traffic, got: Got, rng: random.Random, ttl: float, asked: float
) -> None:
    for impression, path in got.ads:
        chance = rng.random()
        ahead = rng.random() < 0.3
        if ahead:
            await _machine(http, seen, path, rng)
        if chance < 0.1:
            seen.pending.append((asked, impression, path))
        elif chance < 0.9:
            for _ in range(rng.choice((1, 1, 2, 5))):
                status = await _click(http, seen, path, "in time")
                # Answered well within the token's life, or its fate is not known here.
                if status == 302 and time.monotonic() - asked < ttl - 1:
                    seen.clicked.add(impression)
        elif ahead:
            seen.unasked.add(impression)
        await _click(http, seen, _forged(path, rng), "forged")


async def _machine(http: httpx.AsyncClient, seen: Traffic, path: str, rng: random.Random) -> None:
    method, headers = rng.choice(MACHINES)
    answer = await http.request(method, path, headers=headers)
    _note(seen, answer, "click by a machine", {302, 503})


async def _chat(http: httpx.AsyncClient, seen: Traffic, said: Said) -> Got:
    turns = zip(("user", "assistant"), said.before, strict=False)
    messages = [{"role": role, "content": text} for role, text in turns]
    body = {
        "model": "raylla",
        "messages": [*messages, {"role": "user", "content": said.question}],
        "stream": said.stream,
        "raylla": said.raylla,
    }
    whole, text = await _answer(http, seen, "/v1/chat/completions", body, "chat")
    if whole is None:
        return Got()
    (choice,) = whole["choices"]
    last = choice["delta" if said.stream else "message"]
    cited = [each["url_citation"]["url"] for each in last["annotations"]]
    return _got(seen, whole["raylla"], whole["id"], text or last.get("content") or "", cited)


async def _responses(http: httpx.AsyncClient, seen: Traffic, said: Said) -> Got:
    body = {"model": "raylla", "input": said.question, "stream": said.stream, "raylla": said.raylla}
    if said.after is not None:
        body["previous_response_id"] = said.after
    whole, _ = await _answer(http, seen, "/v1/responses", body, "response")
    if whole is None:
        return Got()
    part = whole["output"][0]["content"][0]
    cited = [each["url"] for each in part["annotations"]]
    return _got(seen, whole["raylla"], whole["id"], part["text"], cited)


def _got(seen: Traffic, raylla: Mapping[str, Any], id: str, text: str, cited: Sequence[str]) -> Got:
    if raylla["auction_id"]:
        seen.auctions.add(raylla["auction_id"])
    paths = [httpx.URL(url).path for url in cited]
    return Got(id, text, tuple(zip((ad["impid"] for ad in raylla["ads"]), paths, strict=True)))


async def _answer(
    http: httpx.AsyncClient, seen: Traffic, path: str, body: Mapping[str, Any], kind: str
) -> tuple[dict[str, Any] | None, str]:
    """The answer, or of a stream the event that has its ads, and the text streamed; None: an error."""
    answer = await http.post(path, json=body)
    follows = len(body.get("messages", ())) > 1 or "previous_response_id" in body
    what = f"{kind}{' with history' if follows else ''}, {'stream' if body['stream'] else 'whole'}"
    _note(seen, answer, what, {200, 503})
    if answer.status_code != 200:
        return None, ""
    if not body["stream"]:
        return answer.json(), ""
    datas = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    events = [json.loads(data) for data in datas]
    last = events[-1]
    if "error" in last or last.get("type") in ("error", "response.failed"):
        seen.statuses["stream ended by an error"] += 1
        return None, ""
    if kind == "response":
        return last["response"], ""
    text = "".join(
        event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"]
    )
    return next(event for event in events if "raylla" in event), text


def _clients(names: Sequence[str], url: str, key: str, seen: Traffic) -> None:
    """The snippets of docs/clients.md, one client after the other, until the soak ends."""
    for name in itertools.cycle(names):
        if seen.over:
            return
        early = ""  # what follows a case that ended early lacks that one's answer
        for case, ended in clients.run(name, url, key)["cases"].items():
            if case == "object":  # what a model writes that learned nothing but advertisements
                continue
            if any(word in ended["error"] for word in AWAY):
                early = early or "turned away"
            elif CUT in ended["error"]:
                early = early or "cut at its longest"
            elif LOOPING in ended["error"]:
                early = early or "the model repeats itself"
            seen.clients[early or ("failed" if ended["error"] else "done")] += 1
            if ended["error"] and not early:
                seen.problems.append(f"{name}, {case}: {ended['error'][-1000:]}")


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
