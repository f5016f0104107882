"""Plans of machines without GPUs, whose groups share the cores: memory, kernels, and what Python takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from raylla import config, precision
from raylla.cli import app
from raylla.plan import Lengths, budget, hardware
from raylla.plan.hardware import CORE, GPUS, HALF_CORE, WIDE_CORE, core
from raylla.plan.memory import DRIVER, ENGINE_PROCESS, TRAINER_PROCESS
from raylla.plan.work import Counts

CONFIGS = Path(__file__).parents[2] / "configs"
ONE = config.load_config(CONFIGS / "qwen3-4b-1node.yaml")
H100 = GPUS["h100"]


def test_memory_of_all_processes_of_a_machine_without_gpus() -> None:
    pocket = config.load_config(CONFIGS / "pocket.yaml")
    found = budget(pocket, H100, Lengths(100, 30, 60, 10), cores=2)
    size = 4 * 1_115_520
    parts = {one.group: dict(one.parts) for one in found.memory}
    workspace = 8192 * 4 * (4 * 128 + 3 * 384)
    cache = 256 * 2**20
    assert parts["rollout"] == {
        "weights": size,
        "KV cache": cache,
        "workspace": workspace,
        "process": ENGINE_PROCESS,
    }
    answers = pocket.dpo.micro_groups * pocket.irpo.preference_answers * 30
    assert parts["dpo"]["logits"] == 2 * 4 * answers * 2048
    assert parts["dpo"]["process"] == TRAINER_PROCESS
    # The store's two copies of a version with its head, and one in each engine.
    workers = pocket.rollout.workers
    assert parts["driver"] == {
        "processes": DRIVER,
        "weight version": (2 + workers) * 4 * (1_115_520 + 2048 * 128),
    }
    assert found.host_bytes == pytest.approx(
        sum(
            count * sum(parts[group].values())
            for group, count in (
                ("rollout", workers),
                ("judge", pocket.judge.workers),
                ("dpo", pocket.dpo.workers),
                ("reward", 1),
                ("driver", 1),
            )
        )
    )
    assert found.memory[0].limit == CORE.memory
    assert {one.group for one in budget(ONE, H100, Lengths.of(ONE), cores=2).memory} == {
        "rollout",
        "judge",
        "dpo",
    }


def test_cores_do_not_matter_where_there_are_gpus() -> None:
    assert budget(ONE, H100, Lengths.of(ONE), cores=2) == budget(ONE, H100, Lengths.of(ONE))


def test_a_plan_of_cores_says_how_many() -> None:
    result = CliRunner().invoke(app, ["plan", "pocket", "--cores", "3"])
    assert "pocket: 3 cores that all groups share" in result.output
    assert "all processes together" in result.output


def test_cores_are_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "unit", lambda: None)
    monkeypatch.setattr(hardware, "unit", lambda: None)
    assert (core("auto"), core("bfloat16"), core("float32")) == (CORE, CORE, CORE)
    monkeypatch.setattr(precision, "unit", lambda: "avx512_bf16")
    monkeypatch.setattr(hardware, "unit", lambda: "avx512_bf16")
    assert (core("auto"), core("bfloat16"), core("float32")) == (HALF_CORE, HALF_CORE, WIDE_CORE)


def test_what_python_takes_of_a_core_is_counted() -> None:
    pocket = config.load_config(CONFIGS / "pocket.yaml")
    counts = Counts.of(pocket)
    found = budget(pocket, H100, Lengths.of(pocket), cores=2, counts=counts)
    assert found.phase("learn").times["handling"] == pytest.approx(1.2e-3 * counts.encoded)
    assert found.phase("deploy").times["handling"] == pytest.approx(4 * 1_115_520 / 0.6e9 + 0.06)
    gpus = budget(ONE, H100, Lengths.of(ONE))
    assert all("handling" not in one.times for one in gpus.phases)


def test_cores_keep_kernels_of_bfloat16() -> None:
    pocket = config.load_config(CONFIGS / "pocket.yaml")
    halves = pocket.model_copy(
        update={
            "engine": pocket.engine.model_copy(update={"dtype": "bfloat16"}),
            "dpo": pocket.dpo.model_copy(update={"precision": "bfloat16"}),
        }
    )
    plain, half = (
        {one.group: one.parts for one in budget(one, H100, Lengths.of(one), cores=2).memory}
        for one in (pocket, halves)
    )
    assert [half[group]["kernels"] for group in ("rollout", "judge", "dpo")] == [0.5e9, 0.5e9, 0.95e9]
    assert all("kernels" not in parts for parts in plain.values())
    assert "kernels" not in half["reward"]
