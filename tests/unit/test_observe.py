"""W&B can neither stop nor hold up a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from raylla.config import parse_config
from raylla.runs import observe
from raylla.runs.gauges import flat
from raylla.runs.observe import Observer
from raylla.runs.tracking import SERVICE_ADDRESS


def _hanging(**_: object) -> None:
    time.sleep(60)


def _dead(**_: object) -> None:
    raise ConnectionError("no route to W&B")


@pytest.mark.parametrize("init", [_hanging, _dead])
def test_metrics_go_on_without_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: object) -> None:
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, setup=_dead))
    watch = Observer(parse_config({"wandb": {"mode": "online", "timeout": 0.5}}, "test"), tmp_path)
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


STOPPED = """
import os, signal, sys, threading
from pathlib import Path
import psutil
from raylla.config import parse_config
from raylla.runs.tracking import SERVICE, SERVICE_ADDRESS, Tracker

tracker = Tracker(parse_config({"wandb": {"mode": "offline", "timeout": 0.5}}, "test"), Path(sys.argv[1]))
begun = threading.Event()
tracker._put(lambda wandb, run: begun.set())
assert begun.wait(120)
(service,) = [one for one in psutil.Process().children() if one.name() == SERVICE]
service.send_signal(signal.SIGSTOP)
for epoch in range(100):
    tracker.log(epoch, {"test/revenue": 3.0})
tracker.close()
assert SERVICE_ADDRESS not in os.environ
"""


@pytest.mark.slow
def test_a_wandb_that_stops_answering_keeps_no_process_from_its_end(tmp_path: Path) -> None:
    """The real one: its hooks at exit used to wait for ever."""
    # Whose W&B this process has used is nothing to that one: it may be gone.
    known = {name: value for name, value in os.environ.items() if name != SERVICE_ADDRESS}
    ended = subprocess.run(
        [sys.executable, "-c", STOPPED, str(tmp_path)],
        timeout=240,
        capture_output=True,
        text=True,
        env=known,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr


class ScriptedWandb(types.SimpleNamespace):
    """A W&B that notes what it is told; keeping an artifact fails where ``broken``."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__(broken=broken, inits=[], logged=[], kept=[], metrics=[], finished=0)

    def init(self, **arguments: object) -> ScriptedWandb:
        self.inits.append(arguments)
        self.id = arguments["id"]
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict[str, object]) -> None:
        self.logged.append(values)

    def Table(self, columns: list[str], data: list[list[str]]) -> tuple[list[str], list[list[str]]]:
        return columns, data

    def Artifact(self, name: str, type: str) -> types.SimpleNamespace:
        if self.broken:
            raise OSError("disk full")
        made = types.SimpleNamespace(name=name, type=type, held=[])
        made.add_reference = lambda uri, checksum: made.held.append(uri)
        made.add_dir = lambda path: made.held.append(path)
        return made

    def log_artifact(self, made: types.SimpleNamespace) -> None:
        self.kept.append((made.name, made.type, made.held))

    def finish(self) -> None:
        self.finished += 1


def test_what_wandb_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = ScriptedWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = parse_config({"wandb": {"mode": "online"}}, "test")
    for _ in range(2):  # a run, and its resumption
        watch = Observer(config, tmp_path)
        watch.metrics(1, {"align/steps": 4})
        watch.table(1, "test/examples", [{"query": "q", "after": 3}])
        watch.artifact("v1", "weights", tmp_path / "weights" / "v1", points=True)
        watch.artifact("report", "report", tmp_path / "report")
        watch.close()
    name = (tmp_path / "wandb-id").read_text()
    assert [(one["id"], one["resume"]) for one in wandb.inits] == [(name, "allow")] * 2
    assert ("*", "epoch") in wandb.metrics
    assert wandb.logged[:2] == [
        {"epoch": 1, "align/steps": 4},
        {"epoch": 1, "test/examples": (["query", "after"], [["q", "3"]])},
    ]
    assert wandb.kept[:2] == [
        (f"{name}-v1", "weights", [f"file://{tmp_path}/weights/v1"]),
        (f"{name}-report", "report", [str(tmp_path / "report")]),
    ]
    assert wandb.finished == 2


def test_a_wandb_that_breaks_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", ScriptedWandb(broken=True))
    watch = Observer(parse_config({"wandb": {"mode": "online", "timeout": 5}}, "test"), tmp_path)
    watch.artifact("v1", "weights", tmp_path)
    watch.metrics(1, {"align/steps": 4})
    watch.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["align/steps"] == 4


def test_names_for_prometheus() -> None:
    nested = {
        "test/revenue": {"mean": 2.5, "low": 1},
        "align/losses": [0.7, 0.5],
        "align/probe": "x",
        "ok": True,
    }
    assert dict(flat(nested)) == {"test_revenue_mean": 2.5, "test_revenue_low": 1, "align_losses": 0.5}


def test_pages_are_walked_only_of_a_process_that_grows_or_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, done = iter([[1000, 500], [1005, 500], [1005, 600], [700, 600], [700]]), threading.Event()
    resident: dict[int, int] = {}
    walked: list[int] = []

    def tree() -> list[int]:
        held = next(looks, None)
        if held is None:
            done.set()
        else:
            resident.clear()
            resident.update(enumerate(held))
        return list(resident)

    def walk(process: int) -> int:
        walked.append(process)
        return resident[process] // 2

    monkeypatch.setattr(observe._Memory, "EVERY", 0.0)
    monkeypatch.setattr(observe._Memory, "SHARE", 1e9)
    monkeypatch.setattr(observe, "_tree", tree)
    monkeypatch.setattr(observe, "_resident", resident.__getitem__)
    monkeypatch.setattr(observe, "_proportional", walk)
    watch = Observer(parse_config({"wandb": {"mode": "disabled"}}, "test"), None)
    assert done.wait(10)
    watch.close()
    assert walked == [0, 1, 1, 0]
    assert watch.peak_memory_bytes == 500 + 300


def test_memory_is_that_of_the_tree() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert observe._tree() >= [os.getpid()]
        assert child.pid in observe._tree()
    own = observe._proportional(os.getpid())
    assert 2**22 < own <= observe._resident(os.getpid())
    assert observe._proportional(child.pid) == observe._resident(child.pid) == 0
