"""`raylla evaluate` as a command: what its runs were told reaches their buckets, however it ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raylla.cli import app
from raylla.config import Config
from raylla.errors import StoppedError
from raylla.evaluation import evaluate
from raylla.evaluation.kept import SECONDS, kept
from raylla.runs.state import Run


def test_a_stopped_evaluation_leaves_what_it_was_told_in_every_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [f"file://{tmp_path}/bucket/seed-{seed}" for seed in (0, 1)]
    for seed, place in enumerate(places):
        Run.create(place, Config(seed=seed)).home.save()

    def told(runs: Sequence[Run], *_: Any) -> dict[str, Any]:
        for run in runs:
            kept(run, run.config).put(SECONDS, "test", 1.5)
        raise StoppedError("stopped by SIGTERM", 143)

    monkeypatch.setattr(evaluate, "evaluate_runs", told)
    result = CliRunner().invoke(app, ["evaluate", *places])
    assert result.exit_code == 143
    for seed in (0, 1):
        (file,) = (tmp_path / "bucket" / f"seed-{seed}" / "evaluation").iterdir()
        assert '"kind": "seconds"' in file.read_text()
