"""Answers and judgements as they come in: phases, repeated texts, losses, what the learner gets when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raylla.actors.judge import JudgeWorker
from raylla.config import Config, Engine, Engines, Rollout, Section, Shards, parse_config
from raylla.engines.protocol import Completion, Generated, Request
from raylla.errors import BudgetError, RunError
from raylla.irpo.learning import Learner
from raylla.irpo.sampling import Sampled, Stream
from raylla.irpo.schedule import CHUNK_AUCTIONS, plan_chunk
from raylla.irpo.scoring import judged_rates, rows_of
from raylla.irpo.shards.dealing import Dealing
from raylla.irpo.shards.parts import read_chunk
from raylla.runs.state import Run
from raylla.world import World
from tests.unit.streams import Babbler, Chooser, Doubled, Writer
from tests.worlds import asked_world

PHASES = ("reward", "preference", "test")


@pytest.fixture(scope="module")
def world() -> World:
    return asked_world(config().world)


def config(**irpo: object) -> Config:
    answers = {"reward_answers": 4, "preference_answers": 3}
    tree = {
        "world": {"profiles": 12},
        "rollout": {"workers": 2},
        "irpo": answers | irpo,
        "ray": {"in_process": True},
        "wandb": {"mode": "disabled"},
    }
    return parse_config(tree, "test")


def changed(settings: Config, **sections: Section) -> Config:
    return settings.model_copy(update=sections)


def dealing(world: World, crew: Doubled, place: Path) -> Dealing:
    """An epoch of a new run that is about to be sampled."""
    crew.start()
    return Dealing(Run.create(place, crew.config), crew, world, 1)


def read(found: Dealing, place: Path, world: World) -> Sampled:
    """What the shards wrote."""
    sampled = Sampled({}, found.version)
    for chunk in found.chunks:
        if found.whole(chunk):
            sampled.add(read_chunk(str(place), chunk, plan_chunk(found._config, world, chunk)))
    return sampled


def everything(world: World, crew: Doubled, place: Path) -> Sampled:
    found = dealing(world, crew, place)
    found.until(PHASES)
    found.totals(*PHASES)
    return read(found, place, world)


def test_the_order_of_work_changes_nothing_that_comes_of_it(world: World, tmp_path: Path) -> None:
    crews = [Doubled(config(overlap=overlap)) for overlap in (True, False)]
    found = [dealing(world, crew, tmp_path / str(place)) for place, crew in enumerate(crews)]
    found[0].until(PHASES)
    for phase in PHASES:
        found[1].until([phase])
    overlapped, apart = (read(one, tmp_path / str(place), world) for place, one in enumerate(found))
    assert overlapped.answers == apart.answers
    assert list(overlapped.clicks.items()) == list(apart.clicks.items())
    # One after another, no phase begins before the one before is answered and then judged.
    kinds = [f"{line.split()[0]} {line.split('/')[1]}" for line in crews[1].log]
    assert list(dict.fromkeys(kinds)) == [
        "write reward", "read reward", "write preference", "write test", "read test"
    ]  # fmt: skip
    assert kinds == sorted(kinds, key=list(dict.fromkeys(kinds)).index)
    assert crews[0].log != crews[1].log


def test_a_text_that_repeats_is_judged_once_for_all_its_draws(world: World, tmp_path: Path) -> None:
    crew = Doubled(config())
    found = everything(world, crew, tmp_path)
    read = [line.removeprefix("read ") for line in crew.log if line.startswith("read")]
    texts: dict[tuple[str, str], list[str]] = {}
    for phase in ("reward", "test"):
        for _, answer in found.of(phase):  # type: ignore[arg-type]
            texts.setdefault((answer.auction_id, answer.text), []).append(answer.sample_id)
    placing = {key: names for key, names in texts.items() if "@" in key[1]}
    assert sorted(read) == sorted(names[0] for names in placing.values())
    assert any(len(names) > 1 for names in placing.values())
    for names in texts.values():
        assert all(found.clicks[name] == found.clicks[names[0]] for name in names)


def test_a_pool_grows_with_the_work_and_goes_back_and_nothing_else_changes(
    world: World, tmp_path: Path
) -> None:
    grown = changed(config(), rollout=Rollout(workers=4, min_workers=1), engine=Engine(max_num_seqs=8))
    crew = Doubled(grown)
    with crew.watch.timeline.epoch(1):
        found = everything(world, crew, tmp_path / "grown")
    fixed = everything(world, Doubled(config()), tmp_path / "fixed")
    assert found.answers == fixed.answers
    assert list(found.clicks.items()) == list(fixed.clicks.items())
    # Each who joined loaded the live weights before its first answer, and the pool is small again.
    assert crew.joined == ["rollout[1]", "rollout[2]", "rollout[3]"]
    assert crew.log.count("load") == 3
    pools = crew.watch.timeline.epochs[0]["pools"]
    assert pools["rollout"]["most"] == 4
    assert crew.watch.timeline._sizes[-1].workers == 1


def test_a_pool_does_not_grow_for_what_one_worker_holds(world: World, tmp_path: Path) -> None:
    engines = {"rollout": Rollout(workers=4, min_workers=1), "engine": Engine(max_num_seqs=10_000)}
    crew = Doubled(changed(config(), **engines))
    everything(world, crew, tmp_path)
    assert crew.joined == []


def test_a_shard_has_no_more_in_hand_than_it_may(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, most = changed(config(), shards=Shards(auctions=20)), []
    settle = Stream._settle

    def counted(self: Stream, held: Any) -> None:
        most.append(len(self._hand))
        settle(self, held)

    monkeypatch.setattr(Stream, "_settle", counted)
    bounded = everything(world, Doubled(few), tmp_path / "bounded")
    assert CHUNK_AUCTIONS <= max(most) <= 20
    most.clear()
    whole = everything(world, Doubled(config()), tmp_path / "whole")
    assert max(most) > 20
    assert bounded.answers == whole.answers
    assert bounded.clicks == whole.clicks


def test_until_waits_for_nothing_else(world: World, tmp_path: Path) -> None:
    found = dealing(world, Doubled(config(overlap=False)), tmp_path)
    found.until(["reward", "preference"])
    assert found.due("preference") == 0
    assert found.due("test") > 0
    assert not any(found.whole(chunk) for chunk in found.of("test"))
    found.until(["test"])
    assert found.due("test") == 0


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    ("refused", "unread", "message"),
    [("reward", "", r"\d+ of \d+ answers under v0"), ("", "reward", r"\d+ of \d+ judgements under v0")],
)
def test_losses_are_counted_by_draw_over_all_shards_and_bounded(
    world: World, tmp_path: Path, refused: str, unread: str, message: str, shards: int
) -> None:
    engines = {"rollout": Rollout(workers=3), "judge": Engines(workers=3)}
    found = dealing(
        world,
        Doubled(changed(config(), **engines, shards=Shards(workers=shards)), refused, unread),
        tmp_path / "strict",
    )
    found.until(PHASES)
    assert found.totals("test").dropped.total() == 0
    with pytest.raises(BudgetError, match=message):
        found.totals("reward", "preference")
    settings = changed(config(max_drop_share=1.0), **engines, shards=Shards(workers=shards))
    found = dealing(world, Doubled(settings, refused, unread), tmp_path / "lenient")
    found.until(PHASES)
    totals = found.totals("reward")
    asked = sum(chunk.answers for chunk in found.of("reward"))
    sampled = read(found, tmp_path / "lenient", world)
    assert totals.dropped.total() == asked - sum(1 for _ in sampled.judged("reward")) > 0
    assert list(found.sample_ids(*PHASES)) == [answer.sample_id for answer in sampled.answers]


def test_a_judge_that_returns_garbage_teaches_nothing_and_is_bounded(world: World, tmp_path: Path) -> None:
    settings = config()
    mad = JudgeWorker, ("", settings.user_llm.sampling, settings.engine, 0, Babbler)
    crew = Doubled(settings)
    crew.reader = mad
    found = dealing(world, crew, tmp_path / "strict")
    found.until(PHASES)
    with pytest.raises(BudgetError, match=r"(\d+) of \1 judgements .* irpo.max_drop_share=0.05 allows"):
        found.totals("reward", "preference")
    crew = Doubled(config(max_drop_share=1.0))
    crew.reader = mad
    lenient = everything(world, crew, tmp_path / "lenient")
    judged = [(answer, clicks) for _, answer, clicks in lenient.judged("reward")]
    assert judged
    assert all("@" not in answer.text and not clicks for answer, clicks in judged)
    assert rows_of(world, lenient, "reward") == []


def test_probabilities_are_kept_with_the_clicks_and_score_answers(world: World, tmp_path: Path) -> None:
    tree = config(reward="judge", judgements=4).model_dump(mode="json")
    tree["user_llm"] |= {"reading": "token"}
    settings = parse_config(tree, "test")
    crew = Doubled(settings)
    crew.reader = JudgeWorker, ("", settings.user_llm.sampling, settings.engine, 0, Chooser)
    found = everything(world, crew, tmp_path)
    placing = {name for name, ads in found.clicks.items() if ads}
    assert placing
    assert found.probabilities.keys() == placing
    assert all(found.probabilities[name].keys() == found.clicks[name].keys() for name in placing)
    told = [p for ads in found.probabilities.values() for p in ads.values()]
    clicked = [click for name in placing for click in found.clicks[name].values()]
    assert sum(clicked) / len(clicked) == pytest.approx(sum(told) / len(told), abs=0.1)
    # One reading is enough, and it is what scores the answer.
    rates = judged_rates(settings, found)
    assert rates.keys() == {answer.sample_id for _, answer in found.of("preference")}
    for name, ads in rates.items():
        assert f"{name}#1" not in found.clicks
        assert ads == found.probabilities.get(f"{name}#0", {})


@pytest.mark.parametrize("reward", ["pctr", "judge"])
def test_the_reward_trainer_is_asked_the_same_whenever_answers_come(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reward: str
) -> None:
    monkeypatch.setattr("raylla.irpo.shards.dealing._NEWS", 0.0)  # of each answer, however quick all are
    settings = config(reward=reward)
    calls, learned = [], []
    for as_they_come in (True, False):
        crew = Doubled(settings)
        found = dealing(world, crew, tmp_path / str(as_they_come))
        assert len(found.of("reward")) > 2
        learner = Learner(Run.open(tmp_path / str(as_they_come)), crew, found)
        if as_they_come:
            found.until(["reward", "preference"], learner.advance)
            assert any(line.startswith("take") for line in crew.calls)
        found.until(PHASES)
        assert as_they_come == bool(crew.calls)
        learned.append(learner.finish())
        assert learned[-1].fit == {"rows": 1.0}
        assert learned[-1].held_out == {"auc": 0.5}
        calls.append(crew.calls)
    assert calls[0] == calls[1]
    assert learned[0].parts == learned[1].parts
    assert [line.split()[0] for line in calls[0]][-2:] == ["measure", "save"]
    assert any(line.startswith("predict") for line in calls[0]) == (reward == "pctr")
    held = {name for line in calls[0] if line.startswith("keep") for name in line.split("'")[1::2]}
    assert held
    assert not any(name in line for name in held for line in calls[0] if line.startswith("take"))


class Silent(Writer):
    """Answers without an ad."""

    def generate(self, requests: list[Request], version: str) -> Iterator[Generated]:
        for request in requests:
            yield Generated(request.id, (1,), (Completion("None.", (2, 3), True),) * request.n)


def test_answers_without_ads_end_a_run_before_anything_is_trained(world: World, tmp_path: Path) -> None:
    crew = Doubled(config())
    crew.writer = Silent, ([],)
    found = dealing(world, crew, tmp_path)
    learner = Learner(Run.open(tmp_path), crew, found)
    with pytest.raises(RunError, match=r"0 of \d+ judged answers of v0 .* \(0\.0%\).*raylla warmstart"):
        found.until(PHASES, learner.advance)
    assert not any(line.startswith("update") for line in crew.calls)
