"""A replica that cannot take what it should: it answers nothing in its place, and says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import RayError

from raylla.config import Config, Sampling
from raylla.engines.protocol import Probe
from raylla.errors import EndpointError, RunError, StorageError, WeightError
from raylla.records import WeightVersion
from raylla.runs.state import Run
from raylla.serving.deploy import replicas, versions
from raylla.serving.deploy.replicas import CanaryReplica, EngineReplica
from raylla.serving.deploy.states import State, common, states
from raylla.serving.deploy.versions import Holding, Target, take_pctr
from raylla.serving.engine.engine import AsyncEngine
from raylla.serving.engine.predictor import Predictor
from raylla.serving.engine.wire import Piece
from raylla.serving.tracing import NO_TRACE, Carrier

GOOD, BROKEN = {"run": "RUN", "version": "v1"}, {"run": "RUN", "version": "broken"}


class Engine:
    """An `AsyncEngine` that begins with the base and refuses the version called ``broken``."""

    version = "base"

    async def load(self, version: WeightVersion, probe: Probe | None) -> float:
        if version.name == "broken":
            raise StorageError("the bucket is gone")
        self.version = version.name
        return 0.0

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, stream: bool, trace: Carrier
    ) -> AsyncGenerator[Piece, None]:
        yield Piece((1,), "stop", self.version)

    def check(self) -> None:
        """It is well."""


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_begun", lambda tree: tree)
    monkeypatch.setattr(replicas, "_open_engine", lambda _: Holding(cast(AsyncEngine, Engine())))
    monkeypatch.setattr(
        versions, "weights", lambda target: (WeightVersion(target.version, 1, target.version), None)
    )


def answer(replica: EngineReplica) -> str:
    return asyncio.run(anext(replica.generate([1], Sampling(), False, NO_TRACE, "stable"))).version


def test_an_engine_without_its_stable_version_does_not_become_ready() -> None:
    replica = EngineReplica({})
    with pytest.raises(WeightError, match="weight version broken of RUN: the bucket is gone"):
        asyncio.run(replica.reconfigure({"version": BROKEN}))
    with pytest.raises(EndpointError, match="no weight version is live here: weight version broken"):
        answer(replica)
    asyncio.run(replica.reconfigure({"version": GOOD}))
    assert answer(replica) == "v1"
    asyncio.run(replica.reconfigure({"version": BROKEN}))  # what was live goes on
    assert answer(replica) == "v1"
    told = asyncio.run(replica.state())
    assert told == State(Target("RUN", "v1"), None, ("weight version broken of RUN: the bucket is gone",))


def test_a_canary_without_its_version_says_why_and_is_then_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replica = CanaryReplica({})
    asyncio.run(replica.reconfigure({"version": None}))
    replica.check_health()
    asyncio.run(replica.reconfigure({"version": BROKEN}))
    replica.check_health()  # as Serve asks before it is up
    assert asyncio.run(replica.state()).problems == ("weight version broken of RUN: the bucket is gone",)
    with pytest.raises(EndpointError, match="no weight version is live here"):
        answer(replica)
    later = time.monotonic() + replicas.REFUSED_SECONDS + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(EndpointError, match="the bucket is gone"):
        replica.check_health()
    asyncio.run(replica.reconfigure({"version": GOOD}))
    replica.check_health()
    assert answer(replica) == "v1"


class Clicks:
    """A `Predictor` whose models are loaded, or not."""

    version = ""
    error: Exception | None = None

    def load(self, place: str, version: str) -> None:
        if self.error is not None:
            raise self.error
        self.version = version


@pytest.mark.parametrize("error", [RunError("holds no whole reward model"), OSError("holds no whole disk")])
def test_a_pctr_model_that_is_not_usable_leaves_the_old_one_or_none(
    tmp_path: Path, error: Exception
) -> None:
    made = Run.create(tmp_path / "run", Config.model_validate({"irpo": {"epochs": 1}}))
    made.fresh(made.path / "reward" / "epoch-1")
    target, clicks = Target(str(made.path), "v1"), Clicks()
    clicks.error = error
    with pytest.raises(RunError, match=f"pCTR model of {made.path} for version v1: holds no whole"):
        take_pctr(cast(Predictor, clicks), target)
    clicks.error = None
    assert take_pctr(cast(Predictor, clicks), target) is None
    assert clicks.version == "run/epoch-1"
    clicks.error = error
    assert "for version v1: holds no whole" in (take_pctr(cast(Predictor, clicks), target) or "")
    assert clicks.version == "run/epoch-1"


class Handle:
    """A handle to replicas that say so."""

    deployment_name = "Engine"

    def __init__(self, *said: Any, error: Exception | None = None) -> None:
        self.said, self.error = said, error

    def broadcast(self, method: str) -> Any:
        assert method == "state"
        return SimpleNamespace(results_async=self.results)

    async def results(self, timeout_s: float, return_exceptions: bool) -> list[Any]:
        assert return_exceptions
        if self.error is not None:
            raise self.error
        return list(self.said)


def test_a_version_is_live_where_all_replicas_hold_it() -> None:
    one, two = (State(Target("RUN", name)) for name in ("v1", "v2"))
    said = asyncio.run(states(Handle(one, ValueError("it is ill"), two), 1.0))
    assert said[0] == one
    assert said[1] == State(problems=("a replica of Engine does not say what it holds: it is ill",))
    assert common([each.held for each in said]) is None
    assert common([one.held, one.held]) == Target("RUN", "v1")
    assert common([]) is None
    for error in (TimeoutError(), RayError()):
        (silent,) = asyncio.run(states(Handle(error=error), 1.0))
        said_of_it = f"a replica of Engine does not say what it holds: {type(error).__name__}"
        assert silent.problems == (said_of_it,)
