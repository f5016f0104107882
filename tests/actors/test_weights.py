"""Weight versions on their way to the workers: files to arrays, by reference, all or an error."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from raylla.actors import Pool, RolloutWorker, WeightStore, next_item, read_weights, roll_out
from raylla.config import Actors, Sampling
from raylla.config import Engine as Settings
from raylla.engines import Completion, Generated, Probe, Request, Weights
from raylla.errors import WeightError
from raylla.models import Adapter
from raylla.records import WeightVersion


class Adder:
    """An engine whose texts are the sum of its weights; a probe asks for a sum."""

    def __init__(self, model_path: str, settings: Settings, seed: int) -> None:
        self.settings = settings
        self.sum = 0.0

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Generated]:
        for request in requests:
            yield Generated(request.id, (1,), (Completion(f"{self.sum:g}", (2,), True),) * request.n)

    def load(self, weights: Weights, probe: Probe | None) -> float:
        self.sum = float(sum(array.sum() for array in weights.values()))
        difference = abs(self.sum - probe.logprobs[0]) if probe else 0.0
        if difference > (self.settings.probe_tolerance or 0):
            raise WeightError(f"differs by {difference:g}")
        return difference


def save(
    path: Path, value: float, dtype: torch.dtype = torch.bfloat16, tied: bool = False
) -> WeightVersion:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
    save_file({"model.embed_tokens.weight": torch.full((3, 2), value, dtype=dtype)}, path / "a.safetensors")
    save_file({"model.norm.weight": torch.full((4,), value, dtype=dtype)}, path / "b.safetensors")
    return WeightVersion(path.name, 1, str(path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_files_become_float32_whatever_they_hold(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({"w": values, "scalar": values[0, 0].clone()}, tmp_path / "model.safetensors")
    found = read_weights(tmp_path)
    assert found["w"].dtype == np.float32
    assert np.array_equal(found["w"], values.float().numpy())
    assert found["scalar"].shape == ()


def test_a_tied_head_is_added_and_an_untied_one_is_not(tmp_path: Path) -> None:
    tied = read_weights(Path(save(tmp_path / "tied", 2.0, tied=True).path))
    assert tied["lm_head.weight"] is tied["model.embed_tokens.weight"]
    assert set(read_weights(Path(save(tmp_path / "untied", 2.0).path))) == {
        "model.embed_tokens.weight",
        "model.norm.weight",
    }


def test_a_store_of_engines_that_share_a_base_holds_adapters_over_it(tmp_path: Path) -> None:
    base, other = save(tmp_path / "base", 1.0), save(tmp_path / "other", 1.0)
    versions = {}
    for name, over in (("v1", base), ("v2", other)):
        (tmp_path / name).mkdir()
        Adapter({"base_model_name_or_path": over.path, "r": 4}, b"tensors").write(tmp_path / name)
        versions[name] = WeightVersion(name, 1, str(tmp_path / name))
    store = WeightStore(base.path)
    store.publish(base)
    assert store.weights("base") == {}
    store.publish(versions["v1"])
    found = store.weights("v1")
    assert isinstance(found, Adapter)
    assert (found.settings["r"], found.weights) == (4, b"tensors")
    for wrong, why in ((versions["v2"], "other, and the engine's base is"), (other, "whole model and no")):
        with pytest.raises(WeightError, match=why):
            store.publish(wrong)
    assert store.current()[0] == "v1"


def test_unusable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match=r"no \*\.safetensors"):
        read_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"half a f")
    with pytest.raises(WeightError, match=r"model\.safetensors cannot be read"):
        read_weights(tmp_path)
    save_file({"w": torch.zeros(2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightError, match="w is stored as I8"):
        read_weights(tmp_path)


def test_a_store_gives_only_what_it_holds(tmp_path: Path) -> None:
    store = WeightStore()
    with pytest.raises(WeightError, match="no weight version"):
        store.current()
    store.publish(save(tmp_path / "v1", 1.0))
    name, weights = store.current()
    assert (name, float(weights["model.norm.weight"].sum())) == ("v1", 4.0)
    with pytest.raises(WeightError, match="asked for weight version v2, but the store holds v1"):
        store.weights("v2")


def text(pool: Pool, version: str) -> str:
    call = pool.call(0, "generate", [Request("q", [], 1, 0)], version)
    generated: Generated = next_item([call], 20, "an answer")[1]
    return generated.completions[0].text


def test_two_runs_may_name_their_versions_alike(tmp_path: Path) -> None:
    store = WeightStore()
    for run, value in (("one", 1.0), ("two", 2.0)):
        (tmp_path / run).mkdir()
        store.publish(save(tmp_path / run / "v1", value))
        assert store.weights("v1")["model.norm.weight"].tolist() == [value] * 4


@pytest.mark.parametrize("in_process", [False, True])
def test_a_version_is_live_on_all_workers_or_answers_nothing(
    cluster: None, tmp_path: Path, in_process: bool
) -> None:
    args = ("base-model", Sampling(), Settings(probe_tolerance=0.5), 0, "v0", Adder)
    pool = Pool("rollout", RolloutWorker, args, Actors(workers=2), in_process)
    store = Pool("store", WeightStore, (), Actors(cpus=0), in_process)
    for one in (pool, store):
        one.create()
    for one in (pool, store):
        one.wait_ready(60)
    assert text(pool, "v0") == "0"
    versions = [save(tmp_path / f"v{n}", float(n)) for n in (1, 2)]

    assert roll_out(pool, store, versions[0], Probe((1,), (2,), (9.75,)), 20) == [0.25, 0.25]
    assert text(pool, "v1") == "10"
    with pytest.raises(WeightError, match=r"asked for weight version v0, but holds v1"):
        text(pool, "v0")

    with pytest.raises(WeightError, match=r"v2 is not live: (rollout\[.\]: differs by 20(; )?){2}$"):
        roll_out(pool, store, versions[1], Probe((1,), (2,), (0.0,)), 20)
    assert pool.broadcast("version", deadline=20, what="versions") == [None, None]
    with pytest.raises(WeightError, match="holds none"):
        text(pool, "v2")

    with pytest.raises(WeightError, match=r"store\[0\]: weight version at .*: no \*\.safetensors"):
        roll_out(pool, store, WeightVersion("v3", 3, str(tmp_path)), None, 20)
    assert roll_out(pool, store, versions[0], None, 20) == [0.0, 0.0]
    assert text(pool, "v1") == "10"
    for one in (pool, store):
        one.stop()
