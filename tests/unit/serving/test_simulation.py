"""Simulated users: what they ask over HTTP, what the User-LLM reads, which URLs they click."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from raylla.actors.judge import JudgeItem, Judgement
from raylla.config import parse_config
from raylla.engines.protocol import Completion, Generated, Request
from raylla.errors import ConfigError, EndpointError
from raylla.online import simulation
from raylla.records import Profile, Query
from raylla.runs.state import Run
from raylla.storage import home
from raylla.world import World, build

CONFIG = parse_config({"world": {"profiles": 6, "ads": 8, "candidates": 3}}, "test")
BASE = "http://endpoint.test"


class _Reader:
    """A User-LLM that asks what it is told, clicks what it is told, and keeps what it read."""

    def __init__(self, clicked: frozenset[str] = frozenset(), unread: frozenset[str] = frozenset()) -> None:
        self.clicked, self.unread = clicked, unread
        self.read: list[JudgeItem] = []

    def ask(self, requests: list[Request]) -> Iterator[Generated]:
        for request in requests:
            texts = [f'"which mug for {request.id} number {draw}?"' for draw in range(request.n)]
            yield Generated(request.id, (), tuple(Completion(text, (), True) for text in texts))

    def judge(self, items: list[JudgeItem]) -> Iterator[Judgement]:
        for item in items:
            self.read.append(item)
            if item.sample_id in self.unread:
                yield Judgement(item.sample_id, None, 2)
            else:
                yield Judgement(item.sample_id, {ad: ad in self.clicked for ad in item.ad_ids}, 1)


def _users() -> dict[str, Profile]:
    return {user.id: user for user in build.profiles(CONFIG.world, 0)}


def _answer(content: str, *ads: tuple[str, str, int]) -> dict[str, object]:
    """A completion that places ads (id, title, offset)."""
    annotations = [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": start,
                "end_index": start + len(title),
                "url": f"{BASE}/v1/clicks/{id}",
                "title": title,
            },
        }
        for id, title, start in ads
    ]
    details = [{"ad_id": id, "cat": ["mugs"], "disclosure": "Sponsored"} for id, _, _ in ads]
    message = {"role": "assistant", "content": content, "annotations": annotations}
    return {"choices": [{"message": message}], "raylla": {"ads": details}}


def _run(
    handler: Callable[[httpx.Request], httpx.Response],
    work: Callable[[httpx.AsyncClient], Awaitable[object]],
) -> object:
    async def drive() -> object:
        transport = httpx.MockTransport(handler)
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
            return await work(client)

    return asyncio.run(drive())


def _converse(
    handler: Callable[[httpx.Request], httpx.Response], reader: _Reader, count: int = 3
) -> object:
    users = _users()
    asked = simulation.worded_questions(reader, CONFIG, list(users.values()), count, 0)
    return _run(handler, lambda client: simulation.converse(client, reader, CONFIG, users, asked, 2, 0))


def test_questions_are_shared_out_and_new_with_another_seed() -> None:
    users = list(_users().values())
    asked = simulation.worded_questions(_Reader(), CONFIG, users, 8, 0)
    assert len(asked) == 8
    counts = sorted(sum(query.profile_id == user.id for query in asked) for user in users)
    assert counts == [1, 1, 1, 1, 2, 2]
    assert all(query.text.startswith("which mug") for query in asked)
    seeds: list[set[int]] = []
    for seed in (0, 1):
        reader = _Reader()
        kept: list[Request] = []
        reader.ask = lambda requests, kept=kept: (kept.extend(requests), iter(()))[1]  # type: ignore
        simulation.worded_questions(reader, CONFIG, users, 8, seed)
        seeds.append({request.seed for request in kept})
    assert not seeds[0] & seeds[1]


def test_ads_are_read_in_markup_and_clicked_where_wanted() -> None:
    content = "A Lumo Cup (Sponsored) or an Oak Mug (Sponsored) would do."
    clicked: list[str] = []

    def endpoint(request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/v1/clicks/"):
            clicked.append(request.url.path.rpartition("/")[2])
            return httpx.Response(302, headers={"Location": "https://shop.example"})
        body = json.loads(request.content)
        assert set(body["raylla"]["profile"]) == {"id", "basics", "interests"}
        assert body["messages"][0]["content"].startswith("which mug")
        return httpx.Response(200, json=_answer(content, ("11", "Lumo Cup", 2), ("12", "Oak Mug", 29)))

    reader = _Reader(clicked=frozenset({"12"}), unread=frozenset({"0/1"}))
    traffic = _converse(endpoint, reader)
    assert isinstance(traffic, simulation.SimulatedTraffic)
    assert "A @Lumo Cup@[Ad-11] or an @Oak Mug@[Ad-12] would do." in reader.read[0].messages[0]["content"]
    assert clicked == ["12", "12"]
    counts = {"asked": 3, "busy": 0, "answered": 3, "shown": 6, "unread": 1, "clicked": 2}
    assert dict(traffic.counts) == counts
    assert traffic.figures()["p50_seconds"] >= 0


def test_a_busy_endpoint_is_asked_again_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(simulation, "TRIES", 2)

    def endpoint(request: httpx.Request) -> httpx.Response:
        text = json.loads(request.content)["messages"][0]["content"]
        asked.append(text)
        if len(set(asked)) == 1 or asked.count(text) == 2:
            return httpx.Response(503, headers={"Retry-After": "0"})
        return httpx.Response(200, json=_answer("No ads here."))

    traffic = _converse(endpoint, _Reader())
    assert isinstance(traffic, simulation.SimulatedTraffic)
    assert (traffic.counts["answered"], traffic.counts["busy"]) == (2, 1)


def test_a_refusal_says_what_the_endpoint_said() -> None:
    refuse = lambda request: httpx.Response(401, json={"error": {"message": "give a valid API key"}})  # noqa: E731
    with pytest.raises(
        EndpointError, match=r"/v1/chat/completions: the endpoint answered 401: .*valid API"
    ):
        _converse(refuse, _Reader())


def test_the_worlds_ads_are_listed_once() -> None:
    world = replace(build.synthetic(CONFIG.world, 0), queries=())
    posted: dict[str, list[dict[str, object]]] = {"ads": [], "campaigns": [], "advertisers": []}

    def endpoint(request: httpx.Request) -> httpx.Response:
        kind = request.url.path.rpartition("/")[2]
        if request.method == "GET" and kind == "start":
            return httpx.Response(200, json={"micros_per_unit": 10_000, "max_bid": 50})
        if request.method == "GET":
            return httpx.Response(200, json={"items": posted["advertisers"][:1]})
        posted[kind].append(json.loads(request.content))
        return httpx.Response(201, json={"id": f"{kind}{len(posted[kind])}"})

    listed = lambda client: simulation.open_accounts(client, world, CONFIG)  # noqa: E731
    assert _run(endpoint, listed) == len(posted["ads"]) == 8
    assert len(posted["campaigns"]) == len(posted["advertisers"]) == len({ad.theme for ad in world.ads})
    bids = [int(str(ad["bid_micros"])) for ad in posted["ads"]]
    assert all(bid % 10_000 == 0 and 1 <= bid // 10_000 <= 50 for bid in bids)
    assert _run(endpoint, listed) == 0


def test_held_out_users_do_not_take_part() -> None:
    users = list(_users().values())
    queries = tuple(
        Query(f"q{user.id}", user.id, "which mug?", "mugs", "kitchen", "test" if place == 0 else "train")
        for place, user in enumerate(users)
    )
    world = World("w", 0, tuple(users), (), queries)
    assert list(simulation.users_of(world)) == [user.id for user in users[1:]]


@pytest.mark.parametrize(
    ("url", "key", "option"),
    [
        ("http://[::1", "key", "--url"),
        ("http://127.0.0.1:99999", "key", "--url"),
        ("http://127.0.0.1:9", "schl\u00fcssel", "--key"),
    ],
)
def test_an_address_or_key_that_cannot_be_is_refused_before_anything_loads(
    tmp_path: Path, url: str, key: str, option: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{option}[: ]"):
        simulation.simulate_users(Run(home(tmp_path), CONFIG), url, key, 8, 1, 0)
