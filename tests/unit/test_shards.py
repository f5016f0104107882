"""One epoch in one shard, two and five, in this process: the same ledger and the same records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from raylla.actors.calls import RayCall
from raylla.actors.placement import needs
from raylla.actors.spans import Span
from raylla.bench.parts.overlap import scripted_epoch
from raylla.bench.scripted import Latencies
from raylla.config import Config, parse_config
from raylla.errors import ConfigError, InputLostError, WorkerLostError
from raylla.irpo.crew import Crew
from raylla.irpo.schedule import Chunk, chunks, plan_chunk
from raylla.irpo.shards.dealing import Dealing, ShardCall
from raylla.irpo.shards.notes import News, Notes
from raylla.irpo.shards.parts import read_chunk, read_groups
from raylla.irpo.shards.squad import sliced
from raylla.models import resolve
from raylla.records import WeightVersion
from raylla.runs.state import Run
from tests import recorded
from tests.worlds import asked_world

AT_ONCE = Latencies(answer=0, judgement=0, take=0, update=0, predict=0, group=0, load=0)


def config(shards: int, **irpo: object) -> Config:
    tree = {
        "world": {"profiles": 24},
        "irpo": {"epochs": 1, "reward_answers": 4, "preference_answers": 3, **irpo},
        "rollout": {"workers": 5},
        "judge": {"workers": 5},
        "shards": {"workers": shards},
        "ray": {"in_process": True},
        "wandb": {"mode": "disabled"},
    }
    return parse_config(tree, "test")


def slept(settings: Config, place: str) -> None:
    """One epoch of sleepers."""
    version = WeightVersion("v0", 0, resolve("pocket:ad-llm", "test"))
    scripted_epoch(settings, place, asked_world(settings.world), version, AT_ONCE)


def epoch(settings: Config, place: Path) -> dict[str, Any]:
    """All that an epoch of sleepers leaves behind and that nobody's clock decides."""
    slept(settings, str(place))
    return left(place, settings)


def left(place: Path, settings: Config) -> dict[str, Any]:
    """What an epoch left."""
    lines = [json.loads(line) for line in (place / "ledger.jsonl").read_text().splitlines()]
    reports = {line["stage"]: line["commit"] for line in lines if "commit" in line}
    tables = {"sample": ("auctions", "answers", "clicks"), "test": ("auctions", "answers", "clicks")}
    return {
        "ids": [line["sample_id"] for line in lines if "sample_id" in line],
        "members": [one["sample_id"] for one in lines if "sample_id" in one and "learn" in one["stage"]],
        "reports": {
            stage: {name: value for name, value in report.items() if name != "wall_seconds"}
            for stage, report in reports.items()
        },
        "records": {
            f"{stage}/{name}": recorded.table(place, f"epoch-1/{stage}", name)
            for stage, names in (tables | {"learn": ("rewards",)}).items()
            for name in names
        },
        "groups": recorded.groups(place, 1),
        "digest": settings.digest(),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "irpo",
    [{}, {"overlap": False}, {"align": "grpo"}, {"reward": "judge", "judgements": 2}],
    ids=["dpo", "one after another", "grpo", "judge"],
)
def test_any_number_of_shards_leaves_the_same(tmp_path: Path, irpo: dict[str, object]) -> None:
    one, two, five = (epoch(config(shards, **irpo), tmp_path / str(shards)) for shards in (1, 2, 5))
    assert len(one["ids"]) > 900
    named = [name for group in one["groups"] for name in (group["winner"], *group["losers"])]
    assert one["members"] == named != []
    assert one["reports"]["epoch-1/learn"]["groups"] == len(one["groups"])
    assert set(one["reports"]) == {f"epoch-1/{stage}" for stage in ("sample", "learn", "test", "align")}
    assert one == two == five


def test_larger_chunks_leave_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = epoch(config(2), tmp_path / "usual")
    monkeypatch.setattr("raylla.irpo.schedule.MOST_CHUNKS", 2)
    large = epoch(config(2), tmp_path / "large")
    parts = [len(list((tmp_path / name).glob("records/*/sample/part-*"))) for name in ("usual", "large")]
    assert parts[0] > parts[1] == 4
    assert large == usual


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.slow
@pytest.mark.parametrize("bucket", [False, True], ids=["path", "bucket"])
@pytest.mark.parametrize("stage", ["sample", "learn", "test"])
def test_a_run_killed_after_a_stage_goes_on_in_other_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, bucket: bool
) -> None:
    whole = epoch(config(1), tmp_path / "whole")
    place = tmp_path / "killed"
    where = f"file://{place}" if bucket else str(place)
    commit = Run.commit

    def kill(self: Run, named: str, *args: Any) -> None:
        commit(self, named, *args)
        if named == f"epoch-1/{stage}":
            raise Killed

    monkeypatch.setattr(Run, "commit", kill)
    with pytest.raises(Killed):
        slept(config(2), where)
    monkeypatch.setattr(Run, "commit", commit)
    slept(config(3), where)
    assert left(Run.open(where).part("records").parent, config(3)) == whole


def test_records_without_parts_are_read_by_chunk(tmp_path: Path) -> None:
    settings = config(2)
    slept(settings, str(tmp_path / "run"))
    world = asked_world(settings.world)
    dealt = [chunk for chunk in chunks(settings, world, 1) if chunk.phase == "preference"]

    def read() -> list[tuple[object, ...]]:
        found = []
        for chunk in dealt:
            sampled = read_chunk(str(tmp_path / "run"), chunk, plan_chunk(settings, world, chunk))
            judged = [answer.sample_id for _, answer, _ in sampled.judged("preference")]
            groups = read_groups(str(tmp_path / "run"), chunk, sampled)
            found.append((list(sampled.plan), sampled.answers, judged, groups))
        return found

    in_parts = read()
    for stage, names in {"sample": ("answers", "clicks"), "learn": ()}.items():
        kept = tmp_path / "run" / "records" / "epoch-1" / stage
        for name in names:
            pq.write_table(
                recorded.table(tmp_path / "run", f"epoch-1/{stage}", name), kept / f"{name}.parquet"
            )
        json_name = "judged.json" if names else "groups.json"
        every = [json.loads((part / json_name).read_text()) for part in sorted(kept.glob("part-*"))]
        (kept / json_name).write_text(json.dumps([one for part in every for one in part]))
        for part in kept.glob("part-*"):
            shutil.rmtree(part)
    assert len(dealt) > 1
    assert read() == in_parts


def test_one_after_another_a_shard_samples_in_one_call_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way = []
    sample = Dealing._sample

    def ask(self: Dealing, shard: int, own: list[Chunk]) -> None:
        under_way.append([call for call in self._calls if call.index == shard])
        sample(self, shard, own)

    monkeypatch.setattr(Dealing, "_sample", ask)
    slept(config(2, overlap=False), str(tmp_path / "run"))
    assert under_way == [[]] * 6  # three phases in two shards


def test_a_shard_that_says_nothing_of_a_chunk_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    dealing = object.__new__(Dealing)
    lost: list[WorkerLostError] = []
    monkeypatch.setattr(Dealing, "_recover", lambda self, error: lost.append(error))
    monkeypatch.setattr("raylla.irpo.shards.dealing.soon", lambda calls, seconds: None)
    dealing._crew = SimpleNamespace(patience=5.0, shards=SimpleNamespace(name="shard"))  # type: ignore[assignment]
    call = RayCall("shard", 1, "score", None, None, None)
    asked = ShardCall(Chunk(3, 1, "preference", ("q-1",), 2), "score", (), call)
    assert dealing.reply(asked) is None
    assert lost == []
    call.heard -= 6
    assert dealing.reply(asked) is None
    assert str(lost[0]).startswith(
        "score of epoch-1/sample/part-00003: nothing came from shard[1] within 5 s"
    )
    assert (lost[0].pool, lost[0].worker) == ("shard", 1)


def test_predictions_that_a_shard_cannot_have_are_the_reward_trainers_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(calls: object, seconds: float) -> None:
        raise InputLostError("what it was given cannot be had", "shard", 1)

    dealing = object.__new__(Dealing)
    monkeypatch.setattr("raylla.irpo.shards.dealing.soon", gone)
    dealing._crew = SimpleNamespace(  # type: ignore[assignment]
        shards=SimpleNamespace(name="shard"), reward=SimpleNamespace(name="reward-trainer", members=(0,))
    )
    call = RayCall("shard", 1, "score", None, None, None)
    asked = ShardCall(Chunk(3, 1, "preference", ("q-1",), 2), "score", (), call)
    with pytest.raises(InputLostError, match="cannot be had") as lost:
        dealing.reply(asked)
    assert (lost.value.pool, lost.value.worker) == ("reward-trainer", 0)


def test_a_shard_that_is_lost_while_it_begins_again_is_made_anew_again() -> None:
    opened: list[tuple[int, ...]] = []
    lost = WorkerLostError("gone", "shard", 1)

    class Opening(Crew):
        def __init__(self) -> None:
            self.shards = SimpleNamespace(name="shard", restart=lambda lost, deadline: None)  # type: ignore[assignment]
            self.pools = (self.shards,)
            self.config = config(2)
            self._watch = _Hears([])  # type: ignore[assignment]

        def _open(self, shards: Sequence[int]) -> None:
            opened.append(tuple(shards))
            if len(opened) == 1:
                raise lost

    Opening().restart(lost)
    assert opened == [(1,), (1,), (1,)]


def test_more_shards_than_engines_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"shards\.workers=6 exceeds the 5 workers that rollout has"):
        config(6)


def test_shards_reserve_room_where_there_are_several() -> None:
    assert [need.group for need in needs(config(1))] == ["rollout", "judge", "reward_trainer", "dpo"]
    shards = needs(config(2))[-1]
    assert (shards.group, shards.workers, shards.cpus) == ("shards", 2, 0.5)


def test_slices_are_all_of_the_workers() -> None:
    group = config(1).rollout.model_copy(update={"workers": 7, "min_workers": 4})
    slices = [sliced(group, number, 3) for number in range(3)]
    assert [one.workers for one in slices] == [3, 2, 2]
    assert [one.least for one in slices] == [2, 1, 1]


def test_the_driver_hears_sums_and_of_every_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[object, ...]] = []
    notes = [Notes(), Notes()]
    crew = object.__new__(Crew)
    crew._sizes = {}
    crew._watch = _Hears(heard)  # type: ignore[assignment]
    for shard, note in enumerate(notes):
        note.pool("rollout", 2 + shard, 1)
        note.advance("reward", 3, 40)
        note.advance("reward", 1, 2)
        note.lost("rollout")
        note.spent(Span(f"rollout[{shard}]", "reward", 0, 1))
        crew.hear(shard, note.take())
        assert note.take() == News()
    assert heard == [
        ("spent", Span("rollout[0]", "reward", 0, 1)),
        ("advance", "reward", 4, 42),
        ("lost", "rollout"),
        ("pool", "rollout", 2, 1),
        ("spent", Span("rollout[1]", "reward", 0, 1)),
        ("advance", "reward", 4, 42),
        ("lost", "rollout"),
        ("pool", "rollout", 5, 2),
    ]


class _Hears:
    def __init__(self, heard: list[tuple[object, ...]]) -> None:
        self._heard = heard

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self._heard.append((name, *args))


def test_a_lost_worker_of_a_shard_is_no_worker_of_the_crew() -> None:
    crew = object.__new__(Crew)
    crew.pools = ()
    lost = WorkerLostError("gone", "rollout", 1)
    with pytest.raises(WorkerLostError) as raised:
        crew.restart(lost)
    assert raised.value is lost
