"""`raylla regret`: the regret of an endpoint's advertisers outside and, of the same auctions, inside."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from raylla.actors.judge import Judgement, JudgeWorker, judge_item
from raylla.auction import ReadAnswer
from raylla.auction.checks import Array
from raylla.config import Config
from raylla.errors import ConfigError, EndpointError, RunError
from raylla.evaluation import incentives
from raylla.evaluation.outside import perturbing
from raylla.evaluation.setup import check_runs, engines
from raylla.irpo.schedule import some
from raylla.judging import about
from raylla.mechanisms.llm import LlmAuction
from raylla.models import resolve
from raylla.network import header_key, web_address
from raylla.runs.observe import Observer
from raylla.runs.state import Run
from raylla.runs.versions import committed
from raylla.serving.deploy.versions import Target, pctr_of
from raylla.serving.money.records import PriceRule
from raylla.world import store
from raylla.world.bids import seed_of


@dataclass(frozen=True, slots=True)
class AuditPlan:
    """How an endpoint is asked.

    ``bids`` are whole bid units; ``ads`` those whose bid may move, none: any candidate;
    ``advertiser_key`` adds the ads of its advertiser to them; ``inside`` also holds the same auctions with
    the run's last weights in this process.
    """

    url: str
    key: str
    questions: int
    answers: int
    bids: Sequence[int]
    clicks: perturbing.Clicks = "judge"
    ads: Sequence[str] = ()
    advertiser_key: str | None = None
    concurrency: int = 8
    inside: bool = False


def audit_regret(run: Run, plan: AuditPlan, watch: Observer) -> dict[str, Any]:
    """What `regret.json` holds: the regret outside, and with ``plan.inside`` inside and their difference.

    Raises:
        EndpointError: the endpoint cannot be reached, refuses something or holds no test auctions.
        ConfigError: the URL or a key is unusable, a bid is beyond what it takes, or the judge is not to be
            had.
        RunError: the run has too few test questions, or it is not what the endpoint serves.
    """
    config = run.config
    web_address("--url", plan.url)
    header_key("--key", plan.key)
    header_key("--advertiser-key", plan.advertiser_key or "")
    if plan.inside:
        if plan.clicks != "judge":
            raise ConfigError("--inside counts the judge's clicks; leave out --clicks ctr")
        check_runs([run], config.evaluation)
    seen = _held(run, plan, watch)
    if not plan.inside:
        reads = _reader(config) if plan.clicks == "judge" else _unasked
        with watch.stage("read the answers"):
            outside = perturbing.responses_outside(seen, plan.clicks, reads, config)
        return _report(config, plan, seen, outside, None)
    _check_same(run, seen)
    with engines([run], config.evaluation, watch) as opened:
        backend = opened(run)
        with watch.stage("read the answers"):
            outside = perturbing.responses_outside(seen, plan.clicks, backend.judgements, config)
        with watch.stage("hold the same auctions inside"):
            again = [replace(probed.planned, n=plan.answers) for probed in seen.probed]
            places = [probed.place for probed in seen.probed]
            bids = [float(bid) for bid in seen.bids]
            inside = incentives.responses(backend, LlmAuction(), {}, again, bids, places)
    return _report(config, plan, seen, outside, inside)


def _held(run: Run, plan: AuditPlan, watch: Observer) -> perturbing.Perturbed:
    """The test auctions at the endpoint."""
    config, world = run.config, store.load_world(run.part("world"))
    questions = some(world.of("test"), plan.questions, f"{config.seed}/regret")
    if len(questions) < perturbing.LEAST_QUESTIONS:
        raise RunError(
            f"{len(questions)} test questions are too few for an interval: raise --questions to "
            f"{perturbing.LEAST_QUESTIONS} or more, or give a run with more of them"
        )

    async def drive() -> perturbing.Perturbed:
        ads = frozenset(plan.ads) or None
        if plan.advertiser_key is not None:
            async with perturbing.client_of(plan.url, plan.advertiser_key, config.serving.tmax) as seat:
                ads = (ads or frozenset()) | await perturbing.ads_of(seat)
        async with perturbing.client_of(plan.url, plan.key, config.serving.tmax) as client:
            auditor = perturbing.Auditor(client, plan.concurrency, config.seed, watch)
            return await perturbing.audit_endpoint(auditor, world, questions, plan.bids, plan.answers, ads)

    total = len(questions) * len(plan.bids) * plan.answers
    try:
        with watch.stage("hold test auctions", auctions=total):
            return asyncio.run(drive())
    except httpx.HTTPError as error:
        why = f"{plan.url} does not answer ({error!r}); start it with `raylla serve`"
        raise EndpointError(why) from None


def _check_same(run: Run, seen: perturbing.Perturbed) -> None:
    """Refuse to compare what two mechanisms do."""
    last = committed(run)[-1][0].name
    if seen.versions != [last]:
        raise RunError(
            f"the endpoint answers with {', '.join(seen.versions)}, and the run's last weights are {last}; "
            "give the run that it serves"
        )
    _, own = pctr_of(Target(run.place, last))
    if seen.pctr_versions != [own]:
        raise RunError(
            f"the endpoint's pCTR model is {', '.join(seen.pctr_versions)}, and the run's is {own}: "
            f"another run's {last} may be what answers; give the run that it serves"
        )
    if seen.terms.price_rule is not PriceRule.FIRST_PRICE:
        raise RunError(
            f"the endpoint's price rule is {seen.terms.price_rule.value}, and inside LLM-Auction is "
            "measured at first price; leave out --inside"
        )


def _reader(config: Config) -> perturbing.JudgeReads:
    """The config's User-LLM in this process."""
    model = resolve(config.user_llm.path, "user_llm.path")
    worker = JudgeWorker(model, config.user_llm.sampling, config.engine, config.seed)

    def read(answers: Sequence[ReadAnswer]) -> list[Judgement]:
        items = [
            judge_item(
                config.user_llm,
                str(place),
                answer.planned.query,
                answer.planned.profile,
                answer.text,
                answer.parsed.placements,
                {ad.id: ad for ad in answer.planned.ads},
                seed_of(config.seed, f"{answer.planned.auction.id}/{place}"),
            )
            for place, answer in enumerate(answers)
        ]
        judgements = {judgement.sample_id: judgement for judgement in worker.judge(items)}
        return [judgements[item.sample_id] for item in items]

    return read


def _unasked(answers: Sequence[ReadAnswer]) -> list[Judgement]:
    raise AssertionError("the endpoint's click rates are counted")


def _report(
    config: Config,
    plan: AuditPlan,
    seen: perturbing.Perturbed,
    outside: tuple[Array, Array],
    inside: tuple[Array, Array] | None,
) -> dict[str, Any]:
    bids, settings = [float(bid) for bid in seen.bids], (config.evaluation.bootstrap, config.seed)
    report: dict[str, Any] = {
        "url": plan.url,
        "weight_versions": seen.versions,
        "price_rule": seen.terms.price_rule.value,
        "clicks": about.sources(config.user_llm) if plan.clicks == "judge" else "ctr",
        "answers": plan.answers,
        "outside": incentives.regret_table([outside], bids, *settings),
    }
    if inside is not None:
        report["inside"] = incentives.regret_table([inside], bids, *settings)
        report["difference"] = incentives.regret_difference(outside, inside, bids, *settings)
    return report
