"""W&B can neither stop nor hold up a run."""

from __future__ import annotations

import json
import sys
import time
import types
from pathlib import Path

import pytest

from raylla.config import parse
from raylla.observe import Observer


def _hanging(**_: object) -> None:
    time.sleep(60)


def _dead(**_: object) -> None:
    raise ConnectionError("no route to W&B")


@pytest.mark.parametrize("init", [_hanging, _dead])
def test_metrics_go_on_without_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: object) -> None:
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    watch = Observer(parse({"wandb": {"mode": "online", "timeout": 0.5}}, "test"), tmp_path)
    started = time.monotonic()
    with watch.stage("epoch 1: sample", answers=2):
        watch.advance("answers", 2, 10)
    watch.metrics(1, {"test/revenue": 3.0})
    watch.close()
    assert time.monotonic() - started < 10
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["test/revenue"] == 3.0
    assert line["epoch"] == 1
    assert watch.wall["epoch 1: sample"] >= 0
