"""What an advertiser of a running endpoint gains by not bidding the truth, measured from outside, as an
auditor would who has nothing but an application's key.

Test auctions, which charge nothing, are held for the same questions at each bid of a grid for one of the
ads; rivals bid what they bid.  Who is shown and what it costs is what the responses say; clicks are what a
judge reads into the answers, or the endpoint's own click rates.  The arithmetic is that of the regret which
`raylla evaluate` measures inside, and the same auctions can be held inside as well, to set one against the
other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import httpx
import numpy as np

from raylla.actors.judge import Judgement
from raylla.auction import ReadAnswer
from raylla.auction.checks import Array
from raylla.config import Config
from raylla.errors import BudgetError, ConfigError, EndpointError
from raylla.network import loopback
from raylla.online.simulation import ask_endpoint, checked_json, read_back
from raylla.progress import Steps
from raylla.records import Ad, Auction, Planned, Profile, Query
from raylla.serving.money.records import PriceRule
from raylla.world import World
from raylla.world.bids import seed_of
from raylla.world.synthetic import lexicon

LEAST_QUESTIONS = 10
"""Fewer make no interval."""
SLACK = 10
"""Judgements that may be lost whatever their share."""
Clicks = Literal["judge", "ctr"]
JudgeReads = Callable[[Sequence[ReadAnswer]], list[Judgement]]
"""A User-LLM, of answers with their auctions."""


@dataclass(frozen=True, slots=True)
class PriceTerms:
    """What an endpoint says of its prices: micros of its currency in a bid unit, and the highest bid in
    units."""

    micros_per_unit: int
    max_bid: int
    price_rule: PriceRule


@dataclass(frozen=True, slots=True)
class Probed:
    """A question's auction as the endpoint held it, bids in units, and the place of the ad whose bid
    moves."""

    planned: Planned
    place: int

    @property
    def ad_id(self) -> str:
        """The ad whose bid moves."""
        return self.planned.auction.ad_ids[self.place]


@dataclass(frozen=True, slots=True)
class Observed:
    """One answer at one bid: its text in the model's markup and the ad's price in bid units and the
    endpoint's click rate, where it was shown; and which weights and pCTR model made it."""

    text: str
    price: float | None
    rate: float
    version: str
    pctr_version: str


@dataclass(frozen=True, slots=True)
class Perturbed:
    """What came of all test auctions: ``answers`` [questions][bids][draws]."""

    terms: PriceTerms
    probed: Sequence[Probed]
    bids: Sequence[int]
    answers: Sequence[Sequence[Sequence[Observed]]]

    @property
    def versions(self) -> list[str]:
        """The weight versions that answered."""
        return sorted({observed.version for row in self.answers for some in row for observed in some})

    @property
    def pctr_versions(self) -> list[str]:
        """The pCTR models that rated the answers, each as RUN/epoch-N."""
        return sorted({observed.pctr_version for row in self.answers for some in row for observed in some})


class Auditor:
    """Asks an endpoint; every auction is a test.

    Args:
        client: sends a key of role application, or admin.
        concurrency: requests at once.
        seed: of sampling, the same at each bid, and of which ads are drawn.
    """

    def __init__(self, client: httpx.AsyncClient, concurrency: int, seed: int, watch: Steps) -> None:
        self._client, self._seed, self._watch = client, seed, watch
        self._room = asyncio.Semaphore(concurrency)

    async def terms(self) -> PriceTerms:
        """What bids and prices are counted in.

        Raises:
            EndpointError: it does not say so.
        """
        said = checked_json(await self._client.get("/playground/start"))
        try:
            return PriceTerms(said["micros_per_unit"], said["max_bid"], PriceRule(said["price_rule"]))
        except (KeyError, TypeError, ValueError):
            raise EndpointError("GET /playground/start: this is no endpoint of raylla") from None

    async def probe(
        self, terms: PriceTerms, world: World, questions: Sequence[Query], ads: frozenset[str] | None
    ) -> list[Probed]:
        """One auction of each question, and one of its candidates whose bid will move: of ``ads``, if any.

        Raises:
            EndpointError: the endpoint holds no test auctions, or too few of them have such an ad.
        """
        probed = [
            asked
            for asked in [
                await self._probed(terms, world, questions[0], ads),  # alone: it may be no test auction
                *await asyncio.gather(
                    *(self._probed(terms, world, question, ads) for question in questions[1:])
                ),
            ]
            if asked is not None
        ]
        if len(probed) < LEAST_QUESTIONS:
            whose = "such an ad" if ads is not None else "an ad"
            raise EndpointError(
                f"{len(probed)} of {len(questions)} questions have {whose} among their candidates; "
                f"{LEAST_QUESTIONS} are the least for an interval: ask more questions, or look at "
                "raylla.filtered of a test auction for what keeps ads out"
            )
        return probed

    async def perturb(
        self, terms: PriceTerms, probed: Sequence[Probed], bids: Sequence[int], answers: int
    ) -> Perturbed:
        """``answers`` test auctions of each question at each bid of its ad."""
        asked = [(question, bid, draw) for question in probed for bid in bids for draw in range(answers)]
        got = await asyncio.gather(*(self._observed(terms, *what) for what in asked))
        rows = iter(got)
        table = [[[next(rows) for _ in range(answers)] for _ in bids] for _ in probed]
        return Perturbed(terms, probed, bids, table)

    async def _probed(
        self, terms: PriceTerms, world: World, query: Query, ads: frozenset[str] | None
    ) -> Probed | None:
        answer = await self._ask(query, world.profile_by_id[query.profile_id], {}, 0)
        listed = answer["raylla"]["candidates"]
        rng = np.random.default_rng(seed_of(self._seed, f"regret/ad/{query.id}"))
        mine = {
            candidate["ad_id"]: at
            for at, candidate in enumerate(listed)
            if ads is None or candidate["ad_id"] in ads
        }
        places = [mine[ad] for ad in sorted(mine)]  # prompts list candidates in another order each time
        if not places:
            return None
        units = tuple(candidate["bid_micros"] / terms.micros_per_unit for candidate in listed)
        shown = tuple(_ad(world, candidate) for candidate in listed)
        auction = Auction(f"regret/{query.id}", query.id, tuple(ad.id for ad in shown), units)
        profile = world.profile_by_id[query.profile_id]
        planned = Planned("test", auction, query, profile, shown, 1)
        return Probed(planned, places[int(rng.integers(len(places)))])

    async def _observed(self, terms: PriceTerms, probed: Probed, bid: int, draw: int) -> Observed:
        planned = probed.planned
        bids = {probed.ad_id: bid * terms.micros_per_unit}
        answer = await self._ask(planned.query, planned.profile, bids, draw)
        text, _ = read_back(answer)
        said = answer["raylla"]
        shown = [ad for ad in said["ads"] if ad["ad_id"] == probed.ad_id]
        self._watch.advance("auctions", 1, answer["usage"]["completion_tokens"])
        made_by = said["weight_version"], said["pctr_version"]
        if not shown:
            return Observed(text, None, 0.0, *made_by)
        price = shown[0]["price_micros"] / terms.micros_per_unit
        return Observed(text, price, shown[0]["ctr"], *made_by)

    async def _ask(self, query: Query, profile: Profile, bids: Mapping[str, int], draw: int) -> Any:
        extras = {"test": True, "bids": dict(bids)}
        seed = seed_of(self._seed, f"regret/{query.id}/{draw}")
        async with self._room:
            got = await ask_endpoint(self._client, query, profile, extras, seed)
        if got is None:
            raise EndpointError("the endpoint stays busy; come back, or lower --concurrency")
        answer, _ = got
        if not isinstance(answer.get("raylla", {}).get("candidates"), list):
            raise EndpointError(
                "the endpoint lists no candidates of a test auction, so that it may have held a real one; "
                "nothing more was asked: give the endpoint itself, and no gateway that drops `raylla`"
            )
        return answer


async def audit_endpoint(
    auditor: Auditor,
    world: World,
    questions: Sequence[Query],
    bids: Sequence[int],
    answers: int,
    ads: frozenset[str] | None = None,
) -> Perturbed:
    """All test auctions of one measurement.

    Raises:
        EndpointError: as `Auditor`'s, or the endpoint refuses something.
        ConfigError: a bid is beyond what the endpoint takes.
    """
    terms = await auditor.terms()
    if len(bids) < 2 or sorted(set(bids)) != list(bids) or not 1 <= bids[0] <= bids[-1] <= terms.max_bid:
        raise ConfigError(
            f"--bid {' '.join(map(str, bids))}: give two or more whole bids in increasing order, from 1 to "
            f"the endpoint's {terms.max_bid}"
        )
    probed = await auditor.probe(terms, world, questions, ads)
    return await auditor.perturb(terms, probed, bids, answers)


def responses_outside(
    seen: Perturbed, clicks: Clicks, reads: JudgeReads, config: Config
) -> tuple[Array, Array]:
    """Mean clicks and payments of each question's ad at each bid, both [questions, bids], in bid units.

    Raises:
        BudgetError: the judge could not read more answers than ``irpo.max_drop_share`` allows.
    """
    shape = (len(seen.probed), len(seen.bids))
    clicked, paid, kept = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    shown = [
        (row, column, draw)
        for row, some in enumerate(seen.answers)
        for column, draws in enumerate(some)
        for draw in draws
        if draw.price is not None
    ]
    rates = (
        _judged(seen, shown, reads) if clicks == "judge" else [observed.rate for _, _, observed in shown]
    )
    unread = sum(rate is None for rate in rates)
    if unread > max(config.irpo.max_drop_share * len(rates), SLACK):
        raise BudgetError(
            f"{unread} of {len(rates)} answers could not be judged, more than "
            f"irpo.max_drop_share={config.irpo.max_drop_share} allows; see the judge's output"
        )
    kept += len(seen.answers[0][0])
    for (row, column, observed), rate in zip(shown, rates, strict=True):
        if rate is None or observed.price is None:
            kept[row, column] -= 1
            continue
        clicked[row, column] += rate
        paid[row, column] += observed.price * (1 if seen.terms.price_rule is PriceRule.EXPECTED else rate)
    return clicked / np.maximum(kept, 1), paid / np.maximum(kept, 1)


def _judged(
    seen: Perturbed, shown: Sequence[tuple[int, int, Observed]], reads: JudgeReads
) -> list[float | None]:
    """How probable a click on the ad is in each answer that shows it, by the judge; none where it could not
    be read."""
    asked = []
    for row, column, observed in shown:
        probed = seen.probed[row]
        name = f"{probed.planned.auction.id}/{seen.bids[column]}"
        auction = replace(probed.planned.auction, id=name)
        asked.append(ReadAnswer.of(replace(probed.planned, auction=auction), observed.text))
    rates: list[float | None] = []
    for (row, _, _), judged in zip(shown, reads(asked), strict=True):
        ad = seen.probed[row].ad_id
        told = judged.probabilities or judged.clicks
        rates.append(None if told is None else float(told.get(ad, 0.0)))
    return rates


async def ads_of(client: httpx.AsyncClient) -> frozenset[str]:
    """Ids of the ads of the advertiser whose key ``client`` sends.

    Raises:
        EndpointError: the endpoint refuses, or the key is an admin's.
    """
    seat = checked_json(await client.get("/console/start"))["advertiser_id"]
    if seat is None:
        raise EndpointError("the advertiser's key is an admin's; give one of role advertiser, or name ads")
    ads: set[str] = set()
    for campaign in await _pages(client, f"/v1/advertisers/{seat}/campaigns"):
        ads |= {ad["id"] for ad in await _pages(client, f"/v1/campaigns/{campaign['id']}/ads")}
    return frozenset(ads)


async def _pages(client: httpx.AsyncClient, path: str) -> list[Any]:
    items: list[Any] = []
    after: str | None = ""
    while after is not None:
        page = checked_json(await client.get(path, params={"after": after} if after else {}))
        items += page["items"]
        after = page["next"]
    return items


def client_of(url: str, key: str, seconds: float) -> httpx.AsyncClient:
    """A client of the endpoint at ``url`` with an API key."""
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=seconds, trust_env=not loopback(url))


def _ad(world: World, listed: Any) -> Ad:
    """A candidate as the response names it, with what the world's ad of that title says of itself."""
    known = next((ad for ad in world.ads if ad.title == listed["title"]), None)
    if known is not None:
        return replace(known, id=listed["ad_id"], category=listed["category"])
    category = listed["category"]
    return Ad(listed["ad_id"], listed["title"], category, lexicon.theme_of(category))
