"""Nodes and pools grow with the work and go with it: Ray's own autoscaler, actors that only wait."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from rich.console import Console

from raylla.actors import Pool, WeightStore
from raylla.actors.placement import check_placement, connect, disconnect
from raylla.bench.scripted import Latencies, ScriptedJudge, ScriptedRollout
from raylla.config import Actors, Config, parse_config
from raylla.engines import Generated, Request
from raylla.irpo.sampling import Stream
from raylla.irpo.schedule import chunks
from raylla.irpo.shards.squad import Squad
from raylla.records import Answer, WeightVersion
from raylla.runs.observe import Observer
from tests.e2e.fleet import Fleet
from tests.worlds import asked_world

MOST = 3
AT_ONCE = Latencies(answer=0, judgement=0, take=0, update=0, predict=0, group=0, load=0)


class Patient(ScriptedRollout):
    """Answers once the file is there, so that there is work left for all who join."""

    def __init__(self, gate: Path) -> None:
        super().__init__(AT_ONCE)
        self._gate = gate

    def generate(self, requests: list[Request], version: str) -> Iterator[Generated]:
        while not self._gate.exists():
            time.sleep(0.05)
        yield from super().generate(requests, version)


class Watch(Observer):
    """Lets the workers answer once all of them are there."""

    def __init__(self, config: Config, directory: Path, gate: Path) -> None:
        super().__init__(config, directory, Console(quiet=True))
        self._gate = gate

    def pool(self, name: str, workers: int, joining: int) -> None:
        super().pool(name, workers, joining)
        if name == "rollout" and workers == MOST:
            self._gate.touch()


class Waiters(Squad):
    """Rollouts that reserve a CPU each, and a judge that reserves none."""

    def __init__(self, config: Config, gate: Path, watch: Observer) -> None:
        self.rollouts = Pool("rollout", Patient, (gate,), config.rollout, record=watch.spent)
        self.judges = Pool("judge", ScriptedJudge, (AT_ONCE,), config.judge, record=watch.spent)
        self.store = Pool("weight-store", WeightStore, (), Actors(cpus=0))
        self.take_over(config, WeightVersion("v0", 0, ""), watch)


def config(address: str, **rollout: object) -> Config:
    tree = {
        "world": {"profiles": 12},
        "engine": {"max_num_seqs": 8},
        "irpo": {"reward_answers": 4, "preference_answers": 3},
        "rollout": {"workers": MOST, "min_workers": 1, "cpus": 1, **rollout},
        "judge": {"cpus": 0},
        "reward_trainer": {"cpus": 0},
        "dpo": {"cpus": 0},
        "ray": {"address": address, "autoscaling": True},
        "wandb": {"mode": "disabled"},
        "deadlines": {"start": 120, "sample": 120},
    }
    return parse_config(tree, "test")


def nodes() -> int:
    """Nodes beside the head."""
    return sum(node["Alive"] and "CPU" in node["Resources"] for node in ray.nodes())


def wait_for(reached: Callable[[], bool]) -> float:
    """Seconds until it is so."""
    began = time.monotonic()
    while not reached():
        assert time.monotonic() < began + 120, f"{nodes()} nodes"
        time.sleep(0.2)
    return time.monotonic() - began


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    found = Fleet(MOST, idle_seconds=2)
    yield found
    disconnect(Config())
    found.close()


@pytest.mark.soak
def test_from_no_node_to_three_and_back(fleet: Fleet, tmp_path: Path) -> None:
    settings = config(fleet.address)
    connect(settings)
    assert check_placement(settings)["CPU"] == -1
    assert nodes() == 0
    world = asked_world(settings.world)
    watch = Watch(settings, tmp_path, tmp_path / "gate")
    crew = Waiters(settings, tmp_path / "gate", watch)
    seconds = {}
    began = time.monotonic()
    for pool in (crew.rollouts, crew.judges):
        pool.create()
    for pool in (crew.rollouts, crew.judges):
        pool.wait_ready(120)
    seconds["0 to 1 node, its engine ready"] = time.monotonic() - began
    planned = chunks(settings, world, 1)
    answers: list[Answer] = []
    with watch.timeline.epoch(1):
        stream = Stream(settings, world, crew, watch, lambda _, found: answers.extend(found.answers))
        stream.add(planned, {})
        began = time.monotonic()
        while stream.busy:
            stream.work(1)
        stream.close()
        assert nodes() == MOST
        seconds["the least to the least, by way of the most"] = time.monotonic() - began
    assert crew.rollouts.size == 1
    assert len(answers) == sum(one.answers for one in planned)
    seconds["the most to 1 node"] = wait_for(lambda: nodes() == 1)
    crew.rollouts.stop()
    crew.judges.stop()
    seconds["1 to no node"] = wait_for(lambda: nodes() == 0)
    lines = [json.loads(line) for line in (tmp_path / "timeline.jsonl").read_text().splitlines()]
    sizes = [line for line in lines if line.get("pool") == "rollout"]
    assert (sizes[0]["workers"], max(size["workers"] for size in sizes), sizes[-1]["workers"]) == (
        1,
        MOST,
        1,
    )
    # Everyone answered, and each from when it had joined.
    assert {line["actor"] for line in lines if "task" in line} >= {f"rollout[{n}]" for n in range(MOST)}
    joined = [size["at"] - sizes[0]["at"] for size in sizes if size["workers"] > 1]
    seconds["of that, until the second worker joined"] = min(joined)
    print(json.dumps({what: round(took, 1) for what, took in seconds.items()}, indent=1))
    watch.close()
