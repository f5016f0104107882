"""The loop itself on sleeping actors, as `raylla bench overlap` measures it: in both orders the same."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from raylla.actors import Pool
from raylla.bench.parts import driver
from raylla.bench.parts.overlap import measure, scripted_epoch
from raylla.bench.scripted import Latencies, ScriptedRollout, ScriptedSquad
from raylla.config import Config, Deadlines, Rollout, parse_config
from raylla.engines import Generated, Request
from raylla.irpo import schedule
from raylla.irpo.sampling import Stream
from raylla.models import resolve
from raylla.records import Answer, WeightVersion
from raylla.runs.observe import Observer
from raylla.runs.state import Run
from tests.worlds import asked_world

LATENCIES = Latencies(
    answer=0.001, judgement=0.001, take=0.001, update=0.001, predict=0.001, group=0.005, load=0.01
)


def config(overlap: bool) -> Config:
    irpo = {"epochs": 1, "reward_answers": 4, "preference_answers": 3, "overlap": overlap}
    return parse_config({"world": {"profiles": 12}, "irpo": irpo, "wandb": {"mode": "disabled"}}, "test")


@pytest.mark.usefixtures("cluster")
def test_an_epoch_of_sleepers(tmp_path: Path) -> None:
    world = asked_world(config(True).world)
    version = WeightVersion("v0", 0, resolve("pocket:ad-llm", "test"))
    told, ids = [], []
    for overlap in (True, False):
        run = tmp_path / str(overlap)
        told.append(scripted_epoch(config(overlap), run, world, version, LATENCIES))
        lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
        ids.append([line["sample_id"] for line in lines if "sample_id" in line])
        assert set(Run.open(run).commits) == {
            f"epoch-1/{stage}" for stage in ("sample", "learn", "test", "align")
        }
    assert ids[0] == ids[1]
    for one in told:
        assert 0 < one["critical_seconds"] <= one["wall_seconds"]
    # What was slept is what is found out again.
    found = measure(tmp_path / "False")
    for name in ("answer", "judgement", "take", "update", "group", "load"):
        assert getattr(found, name) >= getattr(LATENCIES, name)


class Hangs(ScriptedRollout):
    """A worker that never says anything, as often as there are files in ``claims``."""

    def __init__(self, latencies: Latencies, claims: Path) -> None:
        super().__init__(latencies)
        self._claims = claims

    def generate(self, requests: list[Request], version: str) -> Iterator[Generated]:
        for claim in self._claims.iterdir():
            with suppress(FileNotFoundError):
                claim.unlink()
                time.sleep(3600)
        yield from super().generate(requests, version)


@pytest.mark.usefixtures("cluster")
def test_workers_that_hang_are_found_out_while_others_still_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        (tmp_path / str(number)).touch()
    settings = config(True).model_copy(
        update={"rollout": Rollout(workers=3, cpus=0, max_restarts=2), "deadlines": Deadlines(sample=2)}
    )
    slow = replace(LATENCIES, answer=0.1)
    watch = Observer(settings, None)
    squad = ScriptedSquad(slow, (), settings, WeightVersion("v0", 0, ""), watch)
    squad.rollouts = Pool("rollout", Hangs, (slow, tmp_path), settings.rollout)
    squad.take_over(settings, squad.version, watch)
    world = asked_world(settings.world)
    chunks = [chunk for chunk in schedule.chunks(settings, world, 1) if chunk.phase == "reward"][:3]
    answers: list[Answer] = []
    squad.start()
    try:
        stream = Stream(settings, world, squad, watch, lambda _, found: answers.extend(found.answers))
        stream.add(chunks, {})
        left = []
        monkeypatch.setattr(watch, "lost", lambda _: left.append(len(stream._hand)))
        while stream.busy:
            stream.work(1)
    finally:
        squad.stop()
    assert len(left) == 2
    # Of the third worker's share something was still to come, too.
    assert left[-1] > sum(len(chunk.queries) for chunk in chunks) * 2 / 3
    assert len(answers) == sum(chunk.answers for chunk in chunks)


@pytest.mark.usefixtures("cluster")
def test_sleepers_that_share_a_process_are_a_pool_like_any_other(tmp_path: Path) -> None:
    settings = config(True).model_copy(update={"rollout": Rollout(workers=5, cpus=0)})
    told = driver.epoch(tmp_path, settings, LATENCIES, (0.5, 1.5))
    lines = [json.loads(line) for line in (tmp_path / "timeline.jsonl").read_text().splitlines()]
    assert {line["actor"] for line in lines if "actor" in line} >= {f"rollout[{n}]" for n in range(5)}
    planned = schedule.auctions(settings, driver.synthetic_world(settings), 1)
    assert told.answers == sum(one.n for one in planned)
    assert 0 < told.critical <= told.wall
    assert told.share > 0
