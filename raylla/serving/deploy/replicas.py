"""What the deployments of the Serve application hold: engine, pCTR model, and the ingress over them.

A replica is made from the config and then told its versions by Serve (`reconfigure`, see
`raylla.serving.deploy.versions`), at its start as at every change.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.exceptions import RayServeException
from sqlalchemy.exc import SQLAlchemyError
from transformers import AutoTokenizer

from raylla import models
from raylla.config import Config, Sampling, parse_config
from raylla.errors import EndpointError, RayllaError, WeightError
from raylla.records import WeightVersion
from raylla.reward.rows import ClickRow
from raylla.runs.state import Run
from raylla.serving.auction.auctioneer import Auctioneer
from raylla.serving.auction.eligibility import Eligibility
from raylla.serving.auction.exchange import Traffic, Writer
from raylla.serving.billing.notices import Sender
from raylla.serving.deploy.policies import Policies, RoleWriter, adapter_room, shared_base
from raylla.serving.deploy.states import State, common, states
from raylla.serving.deploy.supervision import Supervisor
from raylla.serving.deploy.versions import Holding, Target, take_pctr
from raylla.serving.engine.engine import start_engine
from raylla.serving.engine.predictor import Oracle, Predictor, Rate
from raylla.serving.engine.remote import RemoteOracle, RemoteWriter
from raylla.serving.engine.wire import Piece, PolicyRole
from raylla.serving.http import web
from raylla.serving.http.api import Health, create
from raylla.serving.http.reports import Reports
from raylla.serving.logs import log_json
from raylla.serving.security import keyring
from raylla.serving.security.keys import Access
from raylla.serving.security.tokens import TokenKeys
from raylla.serving.store import open_store
from raylla.serving.tracing import Carrier, begin_traces
from raylla.world import store as worlds
from raylla.world.retrieval import Retrieval, Vectors, questions

log = logging.getLogger("raylla.serving")
PLAYERS = 30
"""Users to choose from in the playground."""
CANARY_POLL = 0.5
STORE_THREADS = 4
LOOKUPS = 64
HEALTH_SECONDS = 5.0
REFUSED_SECONDS = 10.0
"""How long a canary without a version is left alone, so that its reason is heard."""


def _begun(tree: dict[str, Any]) -> Config:
    """The config of a replica that begins: its log lines and traces go where it says from here on."""
    config = parse_config(tree, "serve config")
    log_json()
    begin_traces(config.serving.traces)
    return config


def _open_engine(config: Config) -> Holding | Policies:
    """An engine with the base model's weights, which answers once a run's version comes with `want`."""
    if config.serving.adapters == "shared":
        base, room = shared_base(config), adapter_room(config)
        return Policies(
            start_engine(base.path, config.engine, config.seed, base, config.deadlines.start, room),
            base,
        )
    path = models.resolve(config.ad_llm.path, "ad_llm.path")
    version = WeightVersion("v0", 0, path)
    engine = start_engine(path, config.engine, config.seed, version, config.deadlines.start)
    return Holding(engine)


class EngineReplica:
    """An engine on its own: deployment `Engine`."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self._holding = _open_engine(_begun(tree))

    async def reconfigure(self, wanted: dict[str, Any]) -> None:
        """Take over the versions that Serve says.

        Raises:
            WeightError: none is live, and the stable one cannot be; Serve then starts another replica.
        """
        if target := Target.of(wanted["version"]):
            await self._holding.want(target, Target.of(wanted.get("canary")))

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, stream: bool, trace: Carrier, role: PolicyRole
    ) -> AsyncGenerator[Piece, None]:
        """See `AsyncEngine.generate`, as ``role``."""
        async for piece in self._holding.generate(prompt, sampling, stream, trace, role):
            yield piece

    async def state(self) -> State:
        """What it holds, and why not another version."""
        return _state(self._holding)

    def check_health(self) -> None:
        """Asked by Serve, which starts another replica where this raises."""
        self._holding.engine.check()


class CanaryReplica(EngineReplica):
    """The engine of a version that is tried: deployment `Canary`.

    A version that it cannot take is what a trial may find: it comes up, answers nothing and says why in
    `state`, for `raylla deploy` to roll back. Where nobody does, Serve starts another.
    """

    _refused = math.inf

    async def reconfigure(self, wanted: dict[str, Any]) -> None:
        """Take over the version that Serve says, if that can be."""
        try:
            await super().reconfigure(wanted)
        except WeightError:  # logged, and in its state
            self._refused = time.monotonic()

    def check_health(self) -> None:
        """See `EngineReplica`."""
        super().check_health()
        if self._holding.held is None and time.monotonic() - self._refused > REFUSED_SECONDS:
            raise EndpointError(self._holding.problem)


class PredictorReplica:
    """The pCTR model on its own: deployment `Predictor`."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self._predictor = Predictor(_begun(tree))
        self._problem: str | None = None

    async def reconfigure(self, wanted: dict[str, Any]) -> None:
        """Take over the newest model of the run that Serve says; an unusable one leaves the old."""
        self._problem = take_pctr(self._predictor, Target(**wanted["version"]))

    async def state(self) -> State:
        """Why it does not predict with the model that it should, if it does not."""
        return State(problems=_told(self._problem))

    async def rates(self, rows: list[ClickRow], trace: Carrier) -> tuple[str, list[Rate]]:
        """See `Oracle`."""
        return await self._predictor.rates(rows, trace)

    async def encode(self, texts: list[str], trace: Carrier) -> Vectors:
        """See `Oracle`."""
        return await self._predictor.encode(texts, trace)


@serve.ingress()
class Ingress:
    """HTTP, the auctioneer and, where colocated, engine and pCTR model."""

    def __init__(
        self, tree: dict[str, Any], canary: Any = None, engine: Any = None, predictor: Any = None
    ) -> None:
        self._config = config = _begun(tree)
        run = Run.open(_run(config))  # held while it is read: its working copy goes with it
        self._world = worlds.load_world(run.part("world"))
        self._store = open_store(config.serving.database)
        self._store.denominate(config.serving.currency)
        self._canary = canary
        self._holding = _open_engine(config) if engine is None else None
        self._predictor = Predictor(config) if predictor is None else None
        self._engine = engine
        self._others = [engine, predictor] if engine is not None else _peers()
        """Handles to whom the state of versions is asked of; none: this replica is all there is."""
        self._pctr_problem: str | None = None
        self._oracle: Oracle = self._predictor or RemoteOracle(predictor)
        untouched = config.serving.organic == "untouched"
        self._traffic = Traffic(
            self._writer("stable"), organic=self._writer("organic") if untouched else None
        )
        self._tokens = TokenKeys.parse(keyring.read_keyring(config.serving.database).token_keys)
        self._eligibility = Eligibility(self._store, config.serving, config.world.max_bid)
        self._threads = ThreadPoolExecutor(STORE_THREADS, thread_name_prefix="store")
        self._wanted_canary: Target | None = None
        self._problems: list[str] = []
        self._live: Target | None = None
        self._app = self._create()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    async def reconfigure(self, wanted: dict[str, Any]) -> None:
        """Take over the versions and shares that Serve says."""
        stable = Target(**wanted["stable"])
        self._wanted_canary, self._traffic.share = Target.of(wanted["canary"]), float(wanted["share"])
        self._problems = []
        if self._wanted_canary is None:
            self._traffic.canary = None  # first: what follows may outlast the canary's replica
        if self._holding:
            await self._holding.want(stable, self._wanted_canary)
        if self._predictor:
            self._pctr_problem = take_pctr(self._predictor, stable)
        if self._auctioneer.retrieval is None:
            await self._begin()

    async def state(self) -> State:
        """What is held here, and why not another version or pCTR model."""
        own = State() if self._holding is None else _state(self._holding)
        return replace(own, problems=own.problems + _told(self._pctr_problem))

    def check_health(self) -> None:
        """Asked by Serve, which starts another replica where this raises."""
        if self._holding:
            self._holding.engine.check()

    def _create(self) -> FastAPI:
        config = self._config
        keys = keyring.read_keyring(config.serving.database)
        with models.local(models.resolve(config.ad_llm.path, "ad_llm.path")) as found:
            tokenizer = AutoTokenizer.from_pretrained(found)
        self._auctioneer = Auctioneer(
            config,
            self._traffic,
            self._oracle,
            self._store,
            self._eligibility,
            self._tokens,
            tokenizer,
            self._threads,
        )
        reports = self._reports = Reports(self._revenue_today, lambda: self._auctioneer.ongoing)
        self._supervisor = Supervisor(reports.task_failed)
        services = web.Services(
            self._store,
            self._tokens,
            Access(self._store.parties, keys.admin_key),
            config.serving,
            config.world.max_bid,
            reports.clicked,
        )
        tested = {query.profile_id for query in self._world.of("test")}
        users = [user for user in self._world.profiles if user.id in tested][:PLAYERS]
        return create(config, self._auctioneer, services, reports, self._health, users)

    async def _begin(self) -> None:
        """Read the catalogue, then go on looking at it; send notices; watch for the canary."""
        retrieval = Retrieval(await self._oracle.encode(questions(self._world)))
        loop = asyncio.get_running_loop()
        # Look-ups of hosts run there, and one that hangs must not hold up the others.
        loop.set_default_executor(ThreadPoolExecutor(LOOKUPS, thread_name_prefix="lookup"))

        def refresh() -> None:
            catalogue = self._eligibility.refresh(datetime.now(UTC))
            retrieval.refresh(
                catalogue.ads,
                lambda texts: asyncio.run_coroutine_threadsafe(self._oracle.encode(texts), loop).result(),
            )

        async def keep_fresh() -> None:
            await loop.run_in_executor(self._threads, refresh)

        await keep_fresh()
        self._auctioneer.retrieval = retrieval
        sender = Sender(self._store.outbox, self._tokens, self._config.serving, web.now)
        every = self._config.serving.refresh
        for name, seconds, once in (
            ("catalogue", every, keep_fresh),
            ("notices", every, sender.look),
            ("canary", CANARY_POLL, self._watch_canary),
        ):
            self._supervisor.start(name, seconds, once)
            self._reports.watch(name, partial(self._supervisor.age, name))

    def _writer(self, role: PolicyRole) -> Writer:
        """Who answers as ``role``: this replica's engine, or a deployment's."""
        if role == "canary" and self._canary is not None:
            return RemoteWriter(self._canary, role)
        if self._holding is not None:
            return RoleWriter(self._holding, role)
        return RemoteWriter(self._engine, role)

    async def _watch_canary(self) -> None:
        """Give the canary its share while who answers as it holds the version that it should; else that
        share is the stable version's."""
        if (wanted := self._wanted_canary) is None:
            return
        if self._canary is not None:
            said = await states(self._canary, HEALTH_SECONDS)
            live = common([one.held for one in said])
        else:
            asked = self._holding is None
            said = await states(self._engine, HEALTH_SECONDS) if asked else (await self.state(),)
            live = common([one.canary for one in said])
        ready = live == wanted == self._wanted_canary
        self._live = live
        self._traffic.canary = self._writer("canary") if ready else None
        self._problems = [problem for one in said for problem in one.problems]

    async def _health(self) -> Health:
        problems = list(self._problems) if self._wanted_canary else []
        ok = True
        try:
            self.check_health()
            await asyncio.wait_for(self._reachable(), HEALTH_SECONDS)
        except (RayllaError, SQLAlchemyError, TimeoutError) as error:
            ok = False
            problems.append(f"{type(error).__name__}: {error}")
        asked = [states(handle, HEALTH_SECONDS) for handle in self._others]
        engines, *more = await asyncio.gather(*asked) if asked else [(await self.state(),)]
        held = [one.held for one in engines if one.held is not None]
        stable = common(held)
        problems += [problem for one in (engines, *more) for told in one for problem in told.problems]
        if len(set(held)) > 1:
            problems.append("engines hold " + " and ".join(sorted({one.version for one in held})))
        canary = self._live.version if self._traffic.canary and self._live else None
        tasks = self._supervisor.problems()
        return Health(
            status="unavailable" if not (ok and held) else "degraded" if tasks else "ok",
            versions={"stable": stable.version if stable else None, "canary": canary},
            problems=list(dict.fromkeys(problems)),
            tasks=tasks,
        )

    async def _reachable(self) -> bool:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._store.spending, datetime.now(UTC).date())
        return True

    def _revenue_today(self) -> int:
        return self._store.revenue(datetime.now(UTC).date())


def _state(holding: Holding | Policies) -> State:
    return State(holding.held, holding.canary, _told(holding.problem))


def _told(problem: str | None) -> tuple[str, ...]:
    return (problem,) if problem else ()


def _peers() -> list[Any]:
    """A handle to all replicas of the deployment that this process is one of; none outside of Serve."""
    try:
        context = serve.get_replica_context()
    except RayServeException:
        return []
    return [serve.get_deployment_handle(context.deployment, context.app_name)]


def _run(config: Config) -> str:
    assert config.serving.run is not None  # `app.effective` has seen to it
    return config.serving.run
