"""Simulated users of a running endpoint: the User-LLM asks over HTTP, reads the answers and clicks.

Traffic for demonstrations, for soak tests, and for an epoch that learns from served auctions: the
users are those of a run's world that it was not tested on, their questions are new.  They work in
waves: all of a wave's questions are asked at once, then read together, then clicked together.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import httpx

from raylla.actors.judge import JudgeItem, Judgement, JudgeWorker, judge_item
from raylla.auction import markup, parse
from raylla.config import Config
from raylla.engines.protocol import Generated, Request
from raylla.errors import EndpointError
from raylla.models import resolve
from raylla.network import header_key, loopback, web_address
from raylla.records import Ad, Profile, Query
from raylla.runs.state import Run
from raylla.world import World, build, prompts, store
from raylla.world.bids import seed_of
from raylla.world.synthetic import lexicon

TRIES = 5
"""Times that a question is asked while the endpoint says that it is busy."""


class Reader(Protocol):
    """The User-LLM (`raylla.actors.JudgeWorker`)."""

    def ask(self, requests: list[Request]) -> Iterator[Generated]: ...

    def judge(self, items: list[JudgeItem]) -> Iterator[Judgement]: ...


@dataclass(frozen=True, slots=True)
class Got:
    """An endpoint's answer to one question, as its user sees it."""

    name: str
    query: Query
    profile: Profile
    text: str
    ads: tuple[Ad, ...]
    urls: tuple[str, ...]
    seconds: float


@dataclass
class SimulatedTraffic:
    """What happened: counts of asked, answered, busy, shown, read, clicked; seconds per answer."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Counts and the median and 95th percentile of an answer's seconds."""
        counts: dict[str, float] = {name: float(count) for name, count in self.counts.items()}
        if self.seconds:
            ordered = sorted(self.seconds)
            counts["p50_seconds"] = ordered[len(ordered) // 2]
            counts["p95_seconds"] = ordered[int(0.95 * (len(ordered) - 1))]
        return counts


def simulate_users(
    run: Run, url: str, key: str, count: int, concurrency: int, seed: int
) -> SimulatedTraffic:
    """``count`` questions of the run's users to the endpoint at ``url``; lists the world's ads first
    where the endpoint has none.

    Args:
        key: of role admin, or application where ads are listed already.
        seed: other seeds ask other questions.

    Raises:
        EndpointError: the endpoint cannot be reached, or refuses something.
        ConfigError: the URL or the key is unusable.
    """
    web_address("--url", url)
    header_key("--key", key)
    config, world = run.config, store.load_world(run.part("world"))
    users = users_of(world)
    model = resolve(config.user_llm.path, "user_llm.path")
    reader = JudgeWorker(model, config.user_llm.sampling, config.engine, config.seed)
    asked = worded_questions(reader, config, list(users.values()), count, seed)

    async def drive() -> SimulatedTraffic:
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(
            base_url=url, headers=headers, timeout=config.serving.tmax, trust_env=not loopback(url)
        ) as client:
            await open_accounts(client, world, config)
            return await converse(client, reader, config, users, asked, concurrency, seed)

    try:
        return asyncio.run(drive())
    except httpx.HTTPError as error:
        raise EndpointError(f"{url} does not answer ({error!r}); start it with `raylla serve`") from None


def users_of(world: World) -> dict[str, Profile]:
    """The users that the world's run was not tested on, by id."""
    return {query.profile_id: world.profile_by_id[query.profile_id] for query in world.of("train")}


async def open_accounts(client: httpx.AsyncClient, world: World, config: Config) -> int:
    """Open accounts for the world's ads where the endpoint has none: an advertiser and a campaign per
    theme, bids of U{1..max_bid}, and budgets that a simulation does not exhaust; how many ads.

    Raises:
        EndpointError: the endpoint refuses something; names what it said.
    """
    if (await _json(client, "GET", "/v1/advertisers", params={"limit": 1}))["items"]:
        return 0
    terms = await _json(client, "GET", "/playground/start")
    unit, top = terms["micros_per_unit"], terms["max_bid"]
    by_theme: defaultdict[str, list[Ad]] = defaultdict(list)
    for ad in world.ads:
        by_theme[ad.theme or "other"].append(ad)
    rng = random.Random(f"{config.seed}/simulation/bids")
    for theme, ads in by_theme.items():
        domain = f"{''.join(c for c in theme.lower() if c.isascii() and c.isalnum()) or 'shop'}.example"
        seat = await _json(client, "POST", "/v1/advertisers", json={"name": theme, "domain": domain})
        budget = len(ads) * top * unit * 1000
        campaign = await _json(
            client,
            "POST",
            f"/v1/advertisers/{seat['id']}/campaigns",
            json={"name": theme, "daily_budget_micros": budget, "pacing": "asap"},
        )
        for ad in ads:
            listing = {
                "title": ad.title,
                "category": ad.category,
                "theme": ad.theme,
                "description": ad.description,
                "url": ad.url or f"https://{domain}/{ad.id}",
                "bid_micros": rng.randint(1, top) * unit,
            }
            await _json(client, "POST", f"/v1/campaigns/{campaign['id']}/ads", json=listing)
    return len(world.ads)


def worded_questions(
    reader: Reader, config: Config, users: Sequence[Profile], count: int, seed: int
) -> list[Query]:
    """``count`` questions of ``users`` in turn, as the User-LLM words them (fewer where it fails)."""
    shares = [count // len(users) + (place < count % len(users)) for place in range(len(users))]
    by_id = {user.id: user for user in users}
    requests = [
        Request(
            user.id,
            prompts.ask(config.user_llm.prompt, user),
            share,
            seed_of(config.seed, f"simulation/{seed}/{user.id}"),
        )
        for user, share in zip(users, shares, strict=True)
        if share
    ]
    asked = []
    for generated in reader.ask(requests):
        user = by_id[generated.request_id]
        for place, completion in enumerate(generated.completions):
            query = build.query_from_text(user, place, completion.text, "train")
            if query is not None:
                asked.append(query)
    random.Random(f"{config.seed}/simulation/{seed}").shuffle(asked)
    return asked


async def converse(
    client: httpx.AsyncClient,
    reader: Reader,
    config: Config,
    users: Mapping[str, Profile],
    asked: Sequence[Query],
    concurrency: int,
    seed: int,
) -> SimulatedTraffic:
    """Have ``asked`` answered by the endpoint, and its ads clicked as the User-LLM says.

    Raises:
        EndpointError: the endpoint refuses a question for another reason than being busy.
    """
    traffic = SimulatedTraffic()
    for start in range(0, len(asked), concurrency):
        wave = asked[start : start + concurrency]
        traffic.counts["asked"] += len(wave)
        answers = await asyncio.gather(
            *(
                _answer(client, f"{seed}/{start + place}", query, users[query.profile_id])
                for place, query in enumerate(wave)
            )
        )
        got = [answer for answer in answers if answer is not None]
        traffic.counts["busy"] += len(wave) - len(got)
        traffic.counts["answered"] += len(got)
        traffic.counts["shown"] += sum(len(answer.ads) for answer in got)
        traffic.seconds += [answer.seconds for answer in got]
        wanted = _read(reader, config, got, traffic)
        await asyncio.gather(*(_click(client, url, traffic) for url in wanted))
    return traffic


async def _answer(client: httpx.AsyncClient, name: str, query: Query, profile: Profile) -> Got | None:
    """The answer to one question; None where the endpoint stays busy."""
    got = await ask_endpoint(client, query, profile)
    if got is None:
        return None
    answer, seconds = got
    text, ads = read_back(answer)
    cited = [
        annotation["url_citation"]["url"] for annotation in answer["choices"][0]["message"]["annotations"]
    ]
    return Got(name, query, profile, text, ads, tuple(cited), seconds)


async def ask_endpoint(
    client: httpx.AsyncClient,
    query: Query,
    profile: Profile,
    extras: Mapping[str, Any] = MappingProxyType({}),
    seed: int | None = None,
) -> tuple[Any, float] | None:
    """The endpoint's answer to one question behind the turns before it, and the seconds that it took; None
    where the endpoint stays busy.

    Args:
        extras: of the `raylla` object, beside the user.
        seed: of sampling; none: the endpoint's own.

    Raises:
        EndpointError: the endpoint refuses it; names what it said.
    """
    user = {"id": profile.id, "basics": profile.basics, "interests": list(profile.interests)}
    before = [{"role": turn.role, "content": turn.text} for turn in query.turns]
    body: dict[str, Any] = {
        "messages": [*before, {"role": "user", "content": query.text}],
        "raylla": {"profile": user, "links": "annotations", **extras},
    }
    if seed is not None:
        body["seed"] = seed
    for _ in range(TRIES):
        started = time.monotonic()
        response = await client.post("/v1/chat/completions", json=body)
        if response.status_code in (429, 503):
            await asyncio.sleep(float(response.headers.get("Retry-After", "1")))
            continue
        return checked_json(response), time.monotonic() - started
    return None


def read_back(answer: Any) -> tuple[str, tuple[Ad, ...]]:
    """The text with its ads put back into the markup that the User-LLM learned to read, and these."""
    message = answer["choices"][0]["message"]
    content, text, at = message["content"], "", 0
    ads = []
    for annotation, detail in zip(message["annotations"], answer["raylla"]["ads"], strict=True):
        cited, category = annotation["url_citation"], detail["cat"][0]
        ad = Ad(detail["ad_id"], cited["title"], category, lexicon.theme_of(category))
        text += content[at : cited["start_index"]] + markup(ad)
        at = cited["end_index"]
        label = f" ({detail['disclosure']})"
        at += len(label) if content.startswith(label, at) else 0
        ads.append(ad)
    return text + content[at:], tuple(ads)


def _read(reader: Reader, config: Config, got: Sequence[Got], traffic: SimulatedTraffic) -> list[str]:
    """Click URLs of the ads that their users want, as the User-LLM judges."""
    items = [
        judge_item(
            config.user_llm,
            answer.name,
            answer.query,
            answer.profile,
            answer.text,
            parse(answer.text, answer.ads).placements,
            {ad.id: ad for ad in answer.ads},
            seed_of(config.seed, f"simulation/judge/{answer.name}"),
        )
        for answer in got
        if answer.ads
    ]
    urls = {
        answer.name: dict(zip((ad.id for ad in answer.ads), answer.urls, strict=True)) for answer in got
    }
    wanted = []
    for judgement in reader.judge(items):
        if judgement.clicks is None:
            traffic.counts["unread"] += 1
            continue
        wanted += [urls[judgement.sample_id][ad] for ad, clicked in judgement.clicks.items() if clicked]
    return wanted


async def _click(client: httpx.AsyncClient, url: str, traffic: SimulatedTraffic) -> None:
    response = await client.get(url, follow_redirects=False)
    if response.status_code != 302:
        checked_json(response)
        raise EndpointError(f"a click was answered with {response.status_code} instead of a redirect")
    traffic.counts["clicked"] += 1


async def _json(client: httpx.AsyncClient, method: str, path: str, **how: Any) -> Any:
    return checked_json(await client.request(method, path, **how))


def checked_json(response: httpx.Response) -> Any:
    """What the endpoint answered.

    Raises:
        EndpointError: it refused, or answered with something else than JSON.
    """
    if response.is_success:
        try:
            return response.json()
        except ValueError:
            raise EndpointError(
                f"{response.request.url}: the answer is no JSON; give the URL of an endpoint of raylla"
            ) from None
    raise EndpointError(
        f"{response.request.method} {response.request.url.path}: the endpoint answered "
        f"{response.status_code}: {response.text[:300]}"
    )
