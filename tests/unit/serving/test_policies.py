"""One engine, many policies: who answers as whom, what comes and goes, and what cannot share an engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from raylla.config import Config, Sampling, parse_config
from raylla.engines.protocol import Probe
from raylla.errors import ConfigError, EndpointError, WeightError
from raylla.models import Adapter
from raylla.records import WeightVersion
from raylla.runs.state import Run
from raylla.serving.auction.exchange import Traffic
from raylla.serving.deploy import app, deploy
from raylla.serving.deploy.cluster import Dashboard
from raylla.serving.deploy.policies import Policies, RoleWriter, adapter_room, shared_base
from raylla.serving.deploy.versions import Target
from raylla.serving.engine.engine import AsyncEngine
from raylla.serving.engine.wire import Piece, PolicyRole
from raylla.serving.store import open_store
from raylla.serving.tracing import Carrier
from tests.unit.serving.scripted import Script
from tests.unit.serving.test_rollout import ADDRESS, Serve

LORA = {"rank": 4, "alpha": 8, "targets": ["q_proj", "up_proj"]}
PROBE = {"prompt_token_ids": [1], "token_ids": [2], "logprobs": [-0.5]}
SETTINGS = {"base_model_name_or_path": "pocket:ad-llm", "r": 4, "target_modules": ["q_proj"]}


class Engine:
    """An `AsyncEngine` that says who would answer, and refuses the version called ``broken``."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.events: list[str] = []

    async def hold(self, version: WeightVersion, probe: Probe | None) -> float:
        assert (probe is not None) == (version.name != "v0")
        if version.name == "broken":
            raise WeightError("the probe differs")
        assert len(self.held) < 2
        self.held.append(version.path)
        self.events.append(f"hold {version.name}")
        return 0.01

    def drop(self, version: WeightVersion) -> None:
        self.held.remove(version.path)
        self.events.append(f"drop {version.name}")

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, stream: bool, trace: Carrier, policy: str = ""
    ) -> AsyncGenerator[Piece, None]:
        assert policy == "" or policy in self.held
        yield Piece((1,), "stop", Path(policy).name if policy else "base")


def adapter(place: Path, **settings: object) -> None:
    place.mkdir(parents=True)
    Adapter(SETTINGS | settings, b"").write(place)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of adapters over the pocket model: v0 (the base) to v3 and broken; v3 is of a larger rank."""
    made = Run.create(tmp_path / "run", Config.model_validate({"irpo": {"epochs": 4}, "lora": LORA}))
    for epoch, name in enumerate(("v1", "v2", "v3", "broken"), start=1):
        adapter(Path(made.weights(name)), r=8 if name == "v3" else 4)
        made.commit(f"epoch-{epoch}/align", [], {"weight_version": name, "probe": PROBE})
    made.fresh(made.path / "reward" / "epoch-1")
    return made.path


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def policies(engine: Engine, run: Path) -> Policies:
    return Policies(cast(AsyncEngine, engine), shared_base(Run.open(run).config))


def answers(policies: Policies) -> dict[str, str]:
    """Role -> the version that answers."""

    async def one(role: PolicyRole) -> str:
        writer = RoleWriter(policies, role)
        return (await anext(writer.generate([1], Sampling(), False))).version

    roles: tuple[PolicyRole, ...] = ("stable", "canary", "organic")
    return {role: asyncio.run(one(role)) for role in roles}


def test_roles_change_names_and_one_version_comes_at_a_time(
    policies: Policies, engine: Engine, run: Path
) -> None:
    v1, v2 = Target(str(run), "v1"), Target(str(run), "v2")
    asyncio.run(policies.want(v1, None))
    assert answers(policies) == {"stable": "v1", "canary": "v1", "organic": "base"}
    asyncio.run(policies.want(v1, v2))
    assert answers(policies) == {"stable": "v1", "canary": "v2", "organic": "base"}
    assert (policies.held, policies.canary, policies.problem) == (v1, v2, None)
    asyncio.run(policies.want(v2, None))  # promoted: nothing is loaded
    assert answers(policies) == {"stable": "v2", "canary": "v2", "organic": "base"}
    assert engine.events == ["hold v1", "hold v2", "drop v1"]
    asyncio.run(policies.want(v2, v1))
    asyncio.run(policies.want(v2, None))  # rolled back
    assert engine.events[3:] == ["hold v1", "drop v1"]
    asyncio.run(policies.want(Target(str(run), "v0"), None))  # the base itself: no adapter
    assert answers(policies) == {"stable": "base", "canary": "base", "organic": "base"}
    assert engine.held == []


def test_a_refused_version_leaves_what_was_live(policies: Policies, engine: Engine, run: Path) -> None:
    v1, broken = Target(str(run), "v1"), Target(str(run), "broken")
    asyncio.run(policies.want(v1, broken))
    assert answers(policies) == {"stable": "v1", "canary": "v1", "organic": "base"}
    assert (policies.held, policies.canary) == (v1, None)
    assert policies.problem == f"weight version broken of {run}: the probe differs"
    asyncio.run(policies.want(broken, None))
    assert policies.held == v1
    asyncio.run(policies.want(v1, None))
    assert policies.problem is None
    assert engine.events == ["hold v1"]


@pytest.mark.parametrize("broken", ["broken", "missing"])
def test_a_stable_version_that_cannot_be_taken_is_never_the_base(
    policies: Policies, engine: Engine, run: Path, broken: str
) -> None:
    v1, bad = Target(str(run), "v1"), Target(str(run), broken)
    with pytest.raises(EndpointError, match="no weight version is live here: none was wished for"):
        answers(policies)
    with pytest.raises(WeightError, match=f"weight version {broken} of {run}: "):
        asyncio.run(policies.want(bad, v1))
    assert (policies.held, policies.canary, engine.held) == (None, None, [])
    for role in ("stable", "canary", "organic"):
        with pytest.raises(EndpointError, match=f"no weight version is live here: .*{broken} of"):
            asyncio.run(
                anext(RoleWriter(policies, cast(PolicyRole, role)).generate([1], Sampling(), False))
            )
    asyncio.run(policies.want(v1, None))
    assert answers(policies) == {"stable": "v1", "canary": "v1", "organic": "base"}


def test_an_engine_that_heard_nothing_between_has_room_for_the_next(
    policies: Policies, engine: Engine, run: Path
) -> None:
    v1, v2, v3 = (Target(str(run), name) for name in ("v1", "v2", "v3"))
    asyncio.run(policies.want(v1, v2))
    asyncio.run(policies.want(v3, None))
    assert (policies.held, policies.problem) == (v3, None)
    assert engine.events == ["hold v1", "hold v2", "drop v2", "hold v3", "drop v1"]


def test_who_asks_for_no_ads_is_answered_by_the_base_where_that_is_wished() -> None:
    stable, canary, organic = Script(), Script(), Script()
    served = Traffic(stable, canary, 1.0)
    assert served.writer("r", ads=False) == (canary, True)
    served.organic = organic
    assert served.writer("r", ads=False) == (organic, False)
    assert served.writer("r", ads=True) == (canary, True)
    assert Config.model_validate({"serving": {"adapters": "shared", "organic": "untouched"}})
    with pytest.raises(ConfigError, match="set adapters: shared"):
        parse_config({"serving": {"organic": "untouched"}}, "test")


def shared(tmp_path: Path, **serving: object) -> Config:
    told = {"database": f"sqlite:///{tmp_path}/raylla.db", "adapters": "shared", **serving}
    return Config.model_validate({"serving": told})


@pytest.mark.parametrize("colocate", [True, False])
def test_a_canary_is_in_the_engine_that_serves(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colocate: bool
) -> None:
    serve = Serve()
    monkeypatch.setattr(httpx, "request", serve.request)
    monkeypatch.setattr(httpx, "get", serve.get)
    monkeypatch.setattr("raylla.serving.deploy.cluster.POLL_SECONDS", 0.0)
    config, target = app.effective(shared(tmp_path, colocate=colocate), run, "v1")
    open_store(config.serving.database).close()
    at = Dashboard(ADDRESS)
    at.apply(json.loads(json.dumps(app.manifest(config, target))), 1)

    def told() -> dict[str, Any]:
        (application,) = serve.config["applications"]
        return {one["name"]: one["user_config"] for one in application["deployments"]}

    v1, v2 = ({"run": str(run), "version": name} for name in ("v1", "v2"))
    apart = {"Engine", "Predictor"}
    assert told().keys() == {"Ingress"} | (set() if colocate else apart)
    deploy.canary(at, str(run), "v2", 0.7)
    assert (told()["Ingress"]["canary"], told()["Ingress"]["share"]) == (v2, 0.7)
    assert colocate or told()["Engine"] == {"version": v1, "canary": v2}
    deploy.promote(at)
    assert (told()["Ingress"]["stable"], told()["Ingress"]["canary"]) == (v2, None)
    assert colocate or told()["Engine"] == {"version": v2, "canary": None}
    with pytest.raises(WeightError, match=r"version v3 of .* its rank is 8, the engine has room for 4"):
        deploy.canary(at, str(run), "v3", 0.1)
    assert told()["Ingress"]["stable"] == v2


def test_what_cannot_share_an_engine_is_refused_before_anything_loads(run: Path, tmp_path: Path) -> None:
    config = shared(tmp_path)
    for changed, why in (
        ({"target_modules": ["q_proj", "lm_head"]}, "it changes lm_head"),
        ({"target_modules": "all-linear"}, "no list of layers"),
        ({"r": "four"}, r"its ranks are \['four'\], not whole numbers"),
        ({"use_dora": True}, "peft_type=LORA use_dora"),
        ({"base_model_name_or_path": "pocket:user-llm"}, "its base is .*user-llm, the endpoint's"),
    ):
        Adapter(SETTINGS | changed, b"").write(run / "weights" / "v2")
        with pytest.raises(WeightError, match=f"version v2 of .* cannot share the engine: .*{why}"):
            app.effective(config, run, "v2")
    whole = Run.create(tmp_path / "whole", Config.model_validate({"irpo": {"epochs": 1}}))
    whole.fresh(whole.path / "reward" / "epoch-1")
    with pytest.raises(ConfigError, match=r"serving\.adapters=shared: the run was trained without `lora`"):
        app.effective(config, whole.path, "v0")


def test_room_is_what_the_run_trains_and_the_base_has_its_own_name() -> None:
    config = Config.model_validate({"lora": LORA})
    room = adapter_room(config)
    assert (room.most, room.rank, room.targets) == (2, 4, ("q_proj", "up_proj"))
    assert shared_base(config).name == "v0"
    warm = config.model_copy(update={"warmstart": object()})
    assert shared_base(warm).name == "untouched"
