"""What a stage leaves behind: results before the commit, every figure of the trainer in the metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from raylla.config import parse_config
from raylla.engines.protocol import Probe
from raylla.irpo import results, stages
from raylla.policy.jobs import AlignJob, Alignment, AlignResult, Reference, Told
from raylla.records import WeightVersion
from raylla.runs.observe import Observer
from raylla.runs.state import Run
from raylla.world import World

CONFIG = parse_config({"wandb": {"mode": "disabled"}}, "test")


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", CONFIG)


@pytest.fixture
def watch(run: Run) -> Iterator[Observer]:
    watch = Observer(run.config, run.path)
    yield watch
    watch.close()


def test_a_run_that_counts_as_finished_has_its_results(
    run: Run, watch: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "read_test", lambda *_: None)
    monkeypatch.setattr(results, "epoch_row", lambda run, world, epoch, tested: {"epoch": epoch - 1})
    monkeypatch.setattr(results, "before_and_after", lambda *_: [])
    world = cast(World, None)
    append = run.home.append

    def kill(lines: bytes) -> None:
        append(lines)
        raise Killed

    monkeypatch.setattr(run.home, "append", kill)
    with pytest.raises(Killed):
        stages.conclude(run, watch, world)
    opened = Run.open(run.path)
    assert opened.committed("conclude") == {"wall_seconds": 0.0}
    found = json.loads((run.path / "results.json").read_text())
    assert found["epochs"] == [{"epoch": epoch} for epoch in range(CONFIG.irpo.epochs + 1)]
    assert found["wall_seconds"] == {"conclude": 0.0}
    again = stages.conclude(opened, watch, world)
    assert again["wall_seconds"] == found["wall_seconds"]
    assert opened.ledger.read_text().count("conclude") == 1


def test_an_alignment_s_figures_reach_the_metrics(run: Run, watch: Observer) -> None:
    job = AlignJob("v1", "v0", run.weights("v1"), (), 0)
    result = AlignResult(
        version="v1",
        path=job.target,
        steps=2,
        pairs=4,
        losses=(0.7, 0.5),
        accuracies=(0.5, 1.0),
        margins=(0.0, 0.2),
        probe=Probe((1,), (2,), (-1.0,)),
        seconds=1.5,
        tokens=100,
        reference=Reference("recomputed"),
        shifts=(0.0, 0.125),
        learning_rates=(1e-4, 5e-5),
        grad_norms=(2.0, 1.75),
    )
    counted: list[tuple[str, int, int]] = []
    watch.reach = lambda *count: counted.append(count)  # type: ignore[method-assign]

    def wait(told: Told) -> AlignResult:
        told(1, 2, 0.7)
        told(2, 2, 0.5)
        return result

    alignment = cast(Alignment, SimpleNamespace(job=job, wait=wait))
    stages.align(run, watch, 1, WeightVersion("v0", 0, "v0", None), alignment)
    line: dict[str, Any] = json.loads((run.path / "metrics.jsonl").read_text())
    assert line["align/learning_rates"] == [1e-4, 5e-5]
    assert line["align/grad_norms"] == [2.0, 1.75]
    assert counted == [("steps", 1, 2), ("steps", 2, 2)]
    assert line["align/winner_shifts"] == [0.0, 0.125]
    committed = Run.open(run.path).committed("epoch-1/align")
    assert committed is not None
    assert committed["grad_norms"] == [2.0, 1.75]
