"""Whoever reads a weight version reads an adapter, and a model of the hub, too."""

from __future__ import annotations

import asyncio
import shutil
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from raylla.actors import WeightStore
from raylla.config import parse_config
from raylla.engines import Probe
from raylla.errors import RunError, WeightError
from raylla.models import read_weights
from raylla.plan.architecture import architecture
from raylla.records import WeightVersion
from raylla.runs import versions
from raylla.runs.state import Run
from raylla.serving.engine.engine import AsyncEngine
from raylla.serving.engine.stepping import Stepper
from raylla.serving.engine.wire import Ready

from .conftest import Adapt

ALIGNED = {"probe": {"prompt_token_ids": [1], "token_ids": [2], "logprobs": [-1.0]}}


def test_a_run_s_versions_may_be_adapters(tiny_model: Path, tmp_path: Path, adapt: Adapt) -> None:
    run = Run.create(tmp_path / "run", parse_config({"ad_llm": {"path": str(tiny_model)}}, "test"))
    adapt(tiny_model, Path(run.weights("v1")))
    run.commit("epoch-1/align", [], ALIGNED | {"weight_version": "v1"})
    base, (version, probe) = versions.committed(run)
    assert (base[0].path, version.path, version.parent) == (str(tiny_model), run.weights("v1"), "v0")
    assert probe == Probe((1,), (2,), (-1.0,))
    store = WeightStore()
    store.publish(version)
    assert store.current()[1].keys() == read_weights(tiny_model).keys()
    assert architecture(version.path, "x") == architecture(str(tiny_model), "x")
    shutil.rmtree(run.weights("v1"))
    with pytest.raises(RunError, match="v1 is missing although the ledger commits it"):
        versions.committed(run)


def test_the_base_of_a_run_may_be_of_the_hub(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: str(tiny_model))
    run = Run.create(tmp_path / "run", parse_config({"ad_llm": {"path": "tea/leaves"}}, "test"))
    base, _ = versions.named(run, "v0")
    store = WeightStore()
    store.publish(base)
    assert store.current()[1].keys() == read_weights(tiny_model).keys()


class Held:
    """A `Live` engine that takes over any weights, and minds its probe."""

    value = 0.0

    def load(self, weights: dict[str, Any], probe: Probe | None) -> float:
        self.value = float(weights["w"].sum())
        if probe is not None and probe.logprobs[0] != self.value:
            raise WeightError("the probe differs")
        return 0.0


@pytest.mark.parametrize("refused", ["probe", "absent", "unfetched"])
def test_a_refused_version_leaves_a_hub_model_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    for name, value in (("base", 5), ("other", 7)):
        (tmp_path / name).mkdir()
        save_file({"w": np.array([value], np.float32)}, tmp_path / name / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: str(tmp_path / "base"))
    place = {"probe": tmp_path / "other", "absent": tmp_path / "none", "unfetched": "package:minilm-l6"}[
        refused
    ]
    live = Held()
    live.value = 5.0
    ours, theirs = Pipe()
    version = WeightVersion("v0", 0, "tea/leaves")
    stepper: Any = Stepper(live, version, theirs)  # type: ignore[arg-type]
    thread = Thread(target=stepper.run)
    thread.start()

    async def body() -> None:
        engine = AsyncEngine(ours, version, thread.is_alive)
        with pytest.raises(WeightError):
            await engine.load(WeightVersion("v1", 1, str(place)), Probe((1,), (1,), (0.0,)))
        engine.check()
        assert engine.version == "v0"

    assert ours.recv() == Ready()
    asyncio.run(asyncio.wait_for(body(), 30))
    ours.close()
    thread.join(30)
    assert live.value == 5.0
