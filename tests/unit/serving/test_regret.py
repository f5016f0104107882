"""Regret from outside: where the model follows a rule, against theory and the same rule inside."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import random
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from raylla import config
from raylla.actors.judge import Judgement
from raylla.auction import ReadAnswer, incentives
from raylla.config import Sampling
from raylla.engines.protocol import Completion, Generated, Request
from raylla.errors import BudgetError, ConfigError, EndpointError, RunError
from raylla.evaluation import incentives as inside
from raylla.evaluation.outside import auditing, perturbing
from raylla.mechanisms.llm import LlmAuction
from raylla.progress import Steps
from raylla.records import Ad, Profile, Query, WeightVersion
from raylla.runs.observe import Observer
from raylla.runs.state import Run
from raylla.serving.deploy import versions
from raylla.serving.engine.wire import Piece
from raylla.serving.money.records import PriceRule, Served
from raylla.serving.security.keys import Role
from raylla.serving.store import Store
from raylla.serving.tracing import NO_TRACE, Carrier
from raylla.terminal import plain_console
from raylla.world import World
from raylla.world import store as worlds
from tests.unit.backends import Writer, make
from tests.unit.serving.market import UNIT, Market
from tests.unit.serving.scripted import HEADERS, Endpoint, Script, endpoint, tokenizer

BASE = "http://endpoint.test"
BIDS = (10, 30, 50, 70, 90)
LISTED = re.compile(r"(?:cups|tea) \S?(\d+) \d\d (@(.+?)@\[Ad-\d+\])")
QUESTIONS = tuple(Query(f"q{i}", "p", f"which cup {i}?", "cups", "kitchen", "test") for i in range(20))
PROFILE = Profile("p", "30 nurse Oslo", ())


def places(prompt: str, seed: int) -> str:
    """Each listed ad with a chance of a hundredth of its bid, by a draw of its own."""
    shown = [
        mark
        for bid, mark, title in LISTED.findall(prompt)
        if random.Random(f"{seed}/{title}").random() < float(bid) / 100
    ]
    return f"Try {', '.join(shown) or 'nothing'}."


class Ruled(Script):
    """An engine that follows `places`."""

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, stream: bool, trace: Carrier = NO_TRACE
    ) -> AsyncGenerator[Piece, None]:
        said = places(tokenizer().decode(prompt), sampling.seed)  # type: ignore[attr-defined]
        yield Piece(tuple(tokenizer()(said, add_special_tokens=False)["input_ids"]), None, self.version)
        yield Piece((tokenizer().eos_token_id,), "stop", self.version)


class RuledInside(Writer):
    """The same engine inside."""

    def generate(self, requests: list[Request], version: str) -> Iterator[Generated]:
        for one in requests:
            said = [places(one.messages[-1]["content"], one.seed + draw) for draw in range(one.n)]
            yield Generated(one.id, (1,), tuple(Completion(text, (1, 2), True) for text in said))


@dataclass(frozen=True)
class Stand:
    """An endpoint that follows the rule, and what lists its ads."""

    one: Endpoint
    market: Market
    seat: str
    world: World

    def client(self, key: str | None = None) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {key}"} if key else HEADERS
        transport = httpx.ASGITransport(app=self.one.app)
        return httpx.AsyncClient(transport=transport, base_url=BASE, headers=headers)

    def ask(self, work: Callable[[httpx.AsyncClient], Any], key: str | None = None) -> Any:
        async def drive() -> Any:
            async with self.client(key) as client:
                return await work(client)

        return asyncio.run(drive())

    def held(self, bids: Sequence[int] = BIDS, answers: int = 3, **how: Any) -> perturbing.Perturbed:
        def work(client: httpx.AsyncClient) -> Any:
            auditor = perturbing.Auditor(client, 8, 0, Steps(plain_console(quiet=True)))
            return perturbing.audit_endpoint(auditor, self.world, QUESTIONS, bids, answers, **how)

        found: perturbing.Perturbed = self.ask(work)
        return found

    def recorded(self) -> list[Served]:
        now = dt.datetime.now(dt.UTC)
        return list(self.one.store.auctions(now - dt.timedelta(hours=1), now + dt.timedelta(hours=1), None))


def stand(store: Store, **serving: Any) -> Stand:
    market = Market(store, dt.datetime.now(dt.UTC))
    seat = market.seat()
    listed = [market.listing(seat, bid=bid, title=f"Brand Word{bid}") for bid in (20, 50, 80)]
    one = endpoint(store, writer=Ruled(), **serving)
    return Stand(one, market, seat, World("w", 0, (PROFILE,), tuple(ad.ad for ad in listed), QUESTIONS))


def clicked(answers: Sequence[ReadAnswer]) -> list[Judgement]:
    """A reader who clicks everything that is shown."""
    return [Judgement("", {ad.id: True for ad in answer.planned.ads}, 1) for answer in answers]


@pytest.mark.slow
def test_regret_is_what_theory_says_and_what_is_measured_inside(store: Store, tmp_path: Path) -> None:
    """x(b) = b / 100 at first price: a value v gains most by bidding v / 2, as far as the grid has it."""
    standing = stand(store)
    seen = standing.held()
    assert (seen.versions, seen.pctr_versions) == (["v1"], ["run/epoch-1"])
    assert seen.terms == perturbing.PriceTerms(UNIT, 100, PriceRule.FIRST_PRICE)
    settings = standing.one.config
    outside = perturbing.responses_outside(seen, "judge", clicked, settings)
    made = make(tmp_path, lambda bid: 1.0)
    made.writer.__class__ = RuledInside
    again = [replace(one.planned, n=3) for one in seen.probed]
    bids = [float(bid) for bid in BIDS]
    backend = made.backend
    backend.aliases["TRAINED"] = "v0"
    places_of = [one.place for one in seen.probed]
    within = inside.responses(backend, LlmAuction(), {}, again, bids, places_of)
    rates = np.array(BIDS) / 100
    truth = incentives.regret(bids, rates, rates * np.array(BIDS)).mean()
    assert truth == pytest.approx((0 + 2 + 6 + 12 + 20) / 5)
    tables = [inside.regret_table([one], bids, 1000, 0) for one in (outside, within)]
    for table in tables:
        own = table["rules"]["own"]
        assert own["regret"]["utility"]["low"] <= truth * 1.05  # a maximum over noise is above the truth's
        assert own["regret"]["utility"]["high"] >= truth
        assert own["least_utility"]["mean"] == pytest.approx(0)  # first price: the truth gains nothing
        assert own["regret"]["value"]["low"] <= 0.5
        assert table["click_rate"] == pytest.approx(rates, abs=0.1)
    apart = inside.regret_difference(outside, within, bids, 1000, 0)
    assert apart["utility"]["low"] <= 0 <= apart["utility"]["high"]
    assert apart["utility"]["mean"] == pytest.approx(
        tables[0]["rules"]["own"]["regret"]["utility"]["mean"]
        - tables[1]["rules"]["own"]["regret"]["utility"]["mean"]
    )
    # An endpoint that would charge half of it is found out.
    cheaper = outside[0], outside[1] / 2
    low = inside.regret_difference(cheaper, within, bids, 1000, 0)["utility"]["high"]
    assert low < 0


def test_nothing_is_charged_and_every_record_says_test(store: Store) -> None:
    standing = stand(store)
    before = store.parties.advertiser(standing.seat).balance_micros
    standing.held(bids=(10, 90), answers=1)
    recorded = standing.recorded()
    assert len(recorded) == len(QUESTIONS) * 3  # a probe, and one at each bid
    assert all(one.auction.test for one in recorded)
    assert not any(one.clicked or one.charged_micros for one in recorded)
    assert store.parties.advertiser(standing.seat).balance_micros == before
    assert list(store.ledger(standing.seat, 0, 10)) == []


def test_one_bid_moves_and_rivals_bid_what_they_bid(store: Store) -> None:
    standing = stand(store)
    seen = standing.held(bids=(10, 90), answers=1)
    own = {ad.id: bid for ad, bid in zip(standing.world.ads, (20, 50, 80), strict=True)}
    assert {one.ad_id for one in seen.probed} == own.keys()  # drawn for each question
    for one in seen.probed:
        assert one.planned.bids == own
    asked = [{title: int(bid) for bid, _, title in LISTED.findall(prompt)} for prompt in _prompts(standing)]
    for bids in asked[len(QUESTIONS) :]:
        moved = {int(title.removeprefix("Brand Word")): bid for title, bid in bids.items()}
        assert sum(bid != own for own, bid in moved.items()) == 1


def _prompts(standing: Stand) -> list[str]:
    return [tokenizer().decode(one.auction.prompt_token_ids) for one in standing.recorded()]


@pytest.mark.parametrize("rule", ["first_price", "expected"])
def test_rates_of_the_endpoint_in_place_of_a_judge(store: Store, rule: str) -> None:
    """Each shown ad is clicked at 0.25, as the scripted pCTR model says."""
    standing = stand(store, price_rule=rule)
    seen = standing.held(bids=(20, 80))
    clicks, paid = perturbing.responses_outside(seen, "ctr", _nobody, standing.one.config)
    shown = np.array(
        [[sum(one.price is not None for one in draws) for draws in row] for row in seen.answers]
    )
    assert clicks == pytest.approx(shown / 3 * 0.25)
    assert paid == pytest.approx(clicks * np.array([20, 80]))  # bid x pCTR for each impression, or click


def _nobody(answers: Any) -> Any:
    raise AssertionError


@pytest.mark.slow
def test_answers_that_cannot_be_read_are_left_out_up_to_a_share(store: Store) -> None:
    standing = stand(store)
    seen = standing.held(bids=(20, 80), answers=2)

    def read(unread: int) -> perturbing.JudgeReads:
        def judged(answers: Sequence[ReadAnswer]) -> list[Judgement]:
            found = clicked(answers)
            return [replace(one, clicks=None) if at < unread else one for at, one in enumerate(found)]

        return judged

    whole, _ = perturbing.responses_outside(seen, "judge", clicked, standing.one.config)
    some, _ = perturbing.responses_outside(seen, "judge", read(3), standing.one.config)
    assert ((whole == some) | (whole > some)).all()
    assert (whole > some).sum() in (1, 2, 3)
    with pytest.raises(BudgetError, match=r"40 of .* answers could not be judged"):
        perturbing.responses_outside(seen, "judge", read(40), standing.one.config)


def test_an_advertiser_s_own_ads_alone(store: Store) -> None:
    standing = stand(store)
    mine = standing.market.seat("Mine")
    ad = standing.market.listing(mine, bid=40, title="Mine Word40").ad
    standing.one.refresh()
    _, secret = store.parties.add_key(Role.ADVERTISER, mine, "auditor", dt.datetime.now(dt.UTC))
    assert standing.ask(perturbing.ads_of, secret) == {ad.id}
    seen = standing.held(bids=(10, 90), answers=1, ads=frozenset({ad.id}))
    assert {one.ad_id for one in seen.probed} == {ad.id}
    with pytest.raises(EndpointError, match="an admin's"):
        standing.ask(perturbing.ads_of)
    with pytest.raises(EndpointError, match="0 of 20 questions have such an ad among their candidates"):
        standing.held(ads=frozenset({"9"}))


@pytest.mark.parametrize("bids", [(10,), (0, 10), (30, 10), (10, 101), (10, 10)])
def test_grids_that_an_endpoint_would_not_take(store: Store, bids: tuple[int, ...]) -> None:
    standing = stand(store)
    with pytest.raises(ConfigError, match="two or more whole bids in increasing order, from 1 to"):
        standing.held(bids=bids)
    assert not standing.recorded()


def test_an_endpoint_that_holds_no_tests_is_asked_once(store: Store) -> None:
    asked: list[Any] = []

    def gateway(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/playground/start":
            said = {"micros_per_unit": UNIT, "max_bid": 100, "price_rule": "first_price"}
            return httpx.Response(200, json=said)
        asked.append(json.loads(request.content))
        message = {"role": "assistant", "content": "Tea.", "annotations": []}
        return httpx.Response(200, json={"choices": [{"message": message}], "raylla": {"ads": []}})

    async def drive() -> None:
        transport = httpx.MockTransport(gateway)
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
            auditor = perturbing.Auditor(client, 8, 0, Steps(plain_console(quiet=True)))
            world = World("w", 0, (PROFILE,), (), QUESTIONS)
            await perturbing.audit_endpoint(auditor, world, QUESTIONS, BIDS, 1)

    with pytest.raises(EndpointError, match="lists no candidates of a test auction"):
        asyncio.run(drive())
    assert [one["raylla"]["test"] for one in asked] == [True]


def plan(**changed: Any) -> auditing.AuditPlan:
    return replace(auditing.AuditPlan(BASE, "key", 30, 1, (10, 90), "ctr"), **changed)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with a world of questions, never trained."""
    made = Run.create(tmp_path / "run", config.parse_config({"wandb": {"mode": "disabled"}}, "test"))
    ads = tuple(Ad(str(place), f"Brand Word{place}", "cups", "kitchen") for place in range(3))
    users = PROFILE, replace(PROFILE, id="r")
    trained = Query("t", "r", "what cup?", "cups", "kitchen", "train")
    worlds.save_world(World("w", 0, users, ads, (*QUESTIONS, trained)), made.path / "world")
    return made


def test_what_a_client_can_get_wrong(run: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Observer(run.config, None, plain_console(quiet=True))
    with pytest.raises(EndpointError, match=r"http://127.0.0.1:9 does not answer .*raylla serve"):
        auditing.audit_regret(run, plan(url="http://127.0.0.1:9"), watch)
    with pytest.raises(RunError, match="5 test questions are too few"):
        auditing.audit_regret(run, plan(questions=5), watch)
    with pytest.raises(ConfigError, match="--inside counts the judge's clicks"):
        auditing.audit_regret(run, plan(inside=True), watch)
    with pytest.raises(RunError, match="is not finished"):
        auditing.audit_regret(run, plan(inside=True, clicks="judge"), watch)
    standing = stand(store)
    monkeypatch.setattr(perturbing, "client_of", lambda url, key, seconds: standing.client(key))
    with pytest.raises(EndpointError, match=r"401: .*invalid_api_key"):
        auditing.audit_regret(run, plan(), watch)


@pytest.mark.parametrize(
    ("changed", "option"),
    [
        ({"url": "http://[::1"}, "--url"),
        ({"url": "http://127.0.0.1:99999"}, "--url"),
        ({"key": "schl\u00fcssel"}, "--key"),
        ({"advertiser_key": "schl\u00fcssel"}, "--advertiser-key"),
    ],
)
def test_an_address_or_key_that_cannot_be_is_refused_before_anything_starts(
    run: Run, changed: dict[str, str], option: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{option}[: ]"):
        auditing.audit_regret(run, plan(**changed), Observer(run.config, None, plain_console(quiet=True)))


def test_inside_is_the_run_that_the_endpoint_serves(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run counts its versions from v0: its pCTR model's name tells which one it is."""
    monkeypatch.setattr(auditing, "committed", lambda _: [(WeightVersion("v1", 1, "place"), None)])
    monkeypatch.setattr(versions, "newest_pctr", lambda _: 2)

    def seen(pctr: str) -> perturbing.Perturbed:
        terms = perturbing.PriceTerms(UNIT, 100, PriceRule.FIRST_PRICE)
        return perturbing.Perturbed(
            terms, [], (10, 90), [[[perturbing.Observed("Tea.", None, 0.0, "v1", pctr)]]]
        )

    auditing._check_same(run, seen("run/epoch-2"))
    for other in ("other/epoch-2", "run/epoch-1"):
        with pytest.raises(RunError, match=f"pCTR model is {other}, and the run's is run/epoch-2"):
            auditing._check_same(run, seen(other))


@pytest.mark.slow
def test_the_report_of_an_endpoint(run: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    standing = stand(store)
    monkeypatch.setattr(perturbing, "client_of", lambda url, key, seconds: standing.client())
    found = auditing.audit_regret(
        run, plan(answers=4), Observer(run.config, None, plain_console(quiet=True))
    )
    assert found["clicks"] == "ctr"
    assert (found["weight_versions"], found["price_rule"]) == (["v1"], "first_price")
    outside = found["outside"]
    assert (outside["queries"], outside["bids"]) == (20, [10, 90])
    assert outside["click_rate"] == pytest.approx([0.025, 0.225], abs=0.05)
    assert outside["rules"].keys() == {"own"}
    assert "inside" not in found
    seen = standing.held(bids=(10, 90), answers=1)
    with pytest.raises(RunError, match="the endpoint answers with v1, and the run's last weights are v0"):
        auditing._check_same(run, seen)
