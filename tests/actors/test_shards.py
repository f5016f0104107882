"""Shards as actors: what they leave is what one in the driver leaves, though one is killed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import ray
from rich.console import Console

from raylla.actors.policy import with_parts
from raylla.actors.spans import unpacked
from raylla.bench.scripted import Latencies, ScriptedCrew, ScriptedSquad
from raylla.config import Config, parse_config
from raylla.irpo import stages
from raylla.irpo.crew import Crew
from raylla.irpo.loop import run_epoch
from raylla.irpo.shards.dealing import Dealing
from raylla.irpo.shards.notes import News
from raylla.models import resolve
from raylla.policy.jobs import Alignment
from raylla.records import WeightVersion
from raylla.runs.observe import Observer
from raylla.runs.state import Run
from tests import recorded
from tests.actors.lost import lost
from tests.worlds import asked_world

SLOW = Latencies(
    answer=0.004, judgement=0.001, take=0.001, update=0.001, predict=0.001, group=0.005, load=0.01
)


def config(shards: int) -> Config:
    tree = {
        "world": {"profiles": 24},
        "irpo": {"epochs": 1, "reward_answers": 4, "preference_answers": 3},
        "rollout": {"workers": 3},
        "judge": {"workers": 2},
        "shards": {"workers": shards, "cpus": 0},
        "wandb": {"mode": "disabled"},
    }
    return parse_config(tree, "test")


def epoch(settings: Config, place: Path, kill: bool = False) -> tuple[list[str], Observer]:
    """An epoch of sleepers; ids of its samples, in the ledger's order."""
    version = WeightVersion("v0", 0, resolve("pocket:ad-llm", "test"))
    run = Run.create(place, settings)
    watch = Observer(settings, run.path, Console(quiet=True))
    crew = ScriptedCrew(settings, version, SLOW, watch, partial(ScriptedSquad, SLOW, ()))
    hear = crew.hear

    def strike(shard: int, news: News) -> None:
        hear(shard, news)
        if kill and news.whole and shard == 1 and not watch.restarts["shard"]:
            ray.kill(crew.shards._hosts[shard])

    crew.hear = strike  # type: ignore[method-assign]
    try:
        crew.start()
        run_epoch(run, crew, watch, asked_world(settings.world), 1)
    finally:
        crew.stop()
        watch.close()
    lines = [json.loads(line) for line in run.ledger.read_text().splitlines()]
    return [line["sample_id"] for line in lines if "sample_id" in line], watch


@pytest.mark.usefixtures("cluster")
def test_a_killed_shard_is_made_anew_and_redoes_only_what_it_had_not_written(tmp_path: Path) -> None:
    alone, _ = epoch(config(1), tmp_path / "alone")
    ids, watch = epoch(config(2), tmp_path / "killed", kill=True)
    assert watch.restarts["shard"] == 1
    assert ids == alone
    for stage in ("sample", "test"):
        for name in ("auctions", "answers", "clicks"):
            tables = [
                recorded.table(tmp_path / run, f"epoch-1/{stage}", name) for run in ("alone", "killed")
            ]
            assert tables[0].equals(tables[1]), f"{stage}/{name}"
    assert recorded.groups(tmp_path / "alone", 1) == recorded.groups(tmp_path / "killed", 1)
    spans = [json.loads(line) for line in (tmp_path / "killed" / "timeline.jsonl").read_text().splitlines()]
    actors = {line["actor"] for line in spans if "actor" in line}
    assert actors >= {"rollout[0]", "rollout[1]", "rollout[2]", "judge[0]", "judge[1]", "reward-trainer[0]"}


@pytest.mark.usefixtures("cluster")
def test_groups_that_are_lost_on_their_way_are_read_from_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, jobs = stages.begin_align, []

    def lose(run: Run, crew: Crew, dealing: Dealing, learned: Sequence[stages.Part]) -> Alignment:
        """What a node takes along that goes between learning and alignment."""
        whole = [unpacked(ray.get(groups)) for scored, groups in learned if scored.groups]
        gone = lost()
        left = [(scored, groups if at % 2 else gone) for at, (scored, groups) in enumerate(learned)]
        alignment = begin(run, crew, dealing, left)
        jobs.append((with_parts(alignment.job), alignment.job.whole(whole), len(whole)))
        return alignment

    monkeypatch.setattr(stages, "begin_align", lose)
    epoch(config(2), tmp_path / "run")
    ((found, whole, parts),) = jobs
    assert parts > 2
    assert found.groups
    assert found == whole
    committed = Run.open(str(tmp_path / "run")).committed("epoch-1/align")
    assert committed is not None
    assert committed["pairs"] == sum(len(group.losers) for group in whole.groups)
