"""A supervised job is told step by step; the trainer itself is scripted."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from raylla.config import parse_config
from raylla.engines.protocol import Probe
from raylla.policy.jobs import Told, TuneJob, TuneResult
from raylla.progress import Steps
from raylla.warmstart import train

RESULT = TuneResult("v0", "somewhere", 3, (2.0, float("nan"), 1.5), Probe((), (), ()), 10, 1.0)


class Trainer:
    """Tells of three steps, of which the second has no loss."""

    def __init__(self, *_: object) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def tune(self, job: TuneJob, told: Told) -> TuneResult:
        for step, loss in enumerate(RESULT.losses, start=1):
            told(step, 3, loss)
        return RESULT


def test_a_line_for_each_step_and_strict_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "PolicyTrainer", Trainer)
    config = parse_config({"warmstart": {"data": "answers.jsonl"}}, "test")
    chosen = config.warmstart
    assert chosen is not None
    job = TuneJob("v0", "source", "target", (), chosen, 0, str(tmp_path / "checkpoints"), "base")
    said = io.StringIO()
    found = train.tune(config, chosen, job, tmp_path / "out", Steps(Console(file=said)), "warm start")
    assert found is RESULT
    assert [line.split(" ", 2)[2] for line in said.getvalue().splitlines()][:-1] == [
        "warm start: begun",
        "step 1/3: loss 2.000",
        "step 2/3: loss nan",
        "step 3/3: loss 1.500",
    ]
    lines = (tmp_path / "out" / "losses.jsonl").read_text().splitlines()
    assert "NaN" not in lines[1]
    assert [json.loads(line)["loss"] for line in lines] == [2.0, None, 1.5]
