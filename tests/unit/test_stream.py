"""Answers and judgements as they come in: phases, repeated texts, losses, what the learner gets when."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from raylla.actors.judge import JudgeItem, Judgement, JudgeWorker
from raylla.actors.pool import Call, Pool, gather
from raylla.config import Actors, Config, Engine, Engines, parse_config
from raylla.engines.protocol import Completion, Generated, Request
from raylla.errors import BudgetError, RunError
from raylla.irpo.learning import AUCTIONS_PER_CALL, Learner
from raylla.irpo.sampling import Sampled, Stream
from raylla.irpo.schedule import auctions
from raylla.irpo.scoring import judged_rates, rows_of
from raylla.irpo.stages import read_sampled
from raylla.records import Answer, Click, Prediction, WeightVersion
from raylla.reward.rows import ClickRow
from raylla.runs.observe import Observer
from raylla.runs.state import Run, save_records
from raylla.storage import home
from raylla.world import World
from tests.worlds import asked_world

PHASES = ("reward", "preference", "test")


class Writer:
    """Answers each request with texts drawn by its seed, some of them alike; refuses some requests."""

    def __init__(self, log: list[str], refused: str = "") -> None:
        self._log = log
        self._refused = refused

    def ready(self) -> None: ...

    def load(self) -> None:
        self._log.append("load")

    def generate(self, requests: list[Request], version: str) -> Iterator[Generated]:
        for request in sorted(requests, key=lambda one: (one.id.split("/")[1] == "test", one.seed)):
            self._log.append(f"write {request.id}")
            if self._refused and self._refused in request.id:
                yield Generated(request.id, (1,), (), "too long")
                continue
            rng = random.Random(request.seed)
            lines = request.messages[0]["content"].splitlines()[:2]
            ads = [line[line.index("@") :] for line in lines]
            texts = [
                rng.choice([f"Take {ads[0]}.", f"Or {ads[1]} now.", "None."]) for _ in range(request.n)
            ]
            yield Generated(request.id, (1,), tuple(Completion(text, (2, 3), True) for text in texts))


class Reader:
    """Clicks by the item's seed; cannot read some."""

    def __init__(self, log: list[str], unread: str = "") -> None:
        self._log = log
        self._unread = unread

    def ready(self) -> None: ...

    def judge(self, items: list[JudgeItem]) -> Iterator[Judgement]:
        for item in reversed(items):
            self._log.append(f"read {item.sample_id}")
            rng = random.Random(item.seed)
            clicks = {ad: rng.random() < 0.5 for ad in item.ad_ids}
            unread = bool(self._unread) and self._unread in item.sample_id
            yield Judgement(item.sample_id, None if unread else clicks, 1)


class Babbler:
    """The engine of a User-LLM that has lost its mind."""

    def __init__(self, path: str, settings: object, seed: int) -> None: ...

    def generate(self, requests: list[Request], sampling: object) -> Iterator[Generated]:
        for request in requests:
            text = random.Random(request.seed).choice(
                ['{"Ad-1": tru', "I would click!", "[1, 0]", "{}", ""]
            )
            yield Generated(request.id, (1,), (Completion(text, (2,), True),))


class Chooser:
    """The engine of a User-LLM that says how probable a click is: by the seed and the ad."""

    def __init__(self, path: str, settings: object, seed: int) -> None: ...

    def generate(self, requests: list[Request], sampling: object) -> Iterator[Generated]:
        for request in requests:
            assert request.choices == ("yes", "no")
            p = random.Random(f"{request.seed}/{request.messages[1]['content']}").uniform(0.01, 0.99)
            said = (math.log(p) - 2, math.log(1 - p) - 2)
            yield Generated(request.id, (1,), (Completion("", (2,), False, None, said),))


class Scorer:
    """Keeps the order of its calls."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def ready(self) -> None: ...

    def take(self, rows: list[ClickRow]) -> None:
        self._log.append(f"take {[row.sample_id for row in rows]}")

    def update(self) -> dict[str, float]:
        self._log.append("update")
        return {"rows": 1.0}

    def predict_intervals(self, rows: list[ClickRow]) -> list[Prediction]:
        self._log.append(f"predict {[row.sample_id for row in rows]}")
        return [Prediction(0.5, 0.4, 0.6)] * len(rows)

    def evaluate(self, rows: list[ClickRow]) -> dict[str, float]:
        self._log.append(f"evaluate {[row.sample_id for row in rows]}")
        return {"auc": 0.5}

    def save(self, directory: Path) -> None:
        self._log.append("save")


class Crew:
    """Pools in this process."""

    def __init__(self, refused: str = "", unread: str = "", grown: Engines | None = None) -> None:
        self.log: list[str] = []
        self.joined: list[str] = []
        self.calls: list[str] = []
        self.version = WeightVersion("v0", 0, "")
        self.rollouts = self._pool("rollout", Writer, (self.log, refused), grown or Engines(workers=2))
        self.judges = self._pool("judge", Reader, (self.log, unread), Engines())
        self.reward = self._pool("reward-trainer", Scorer, (self.calls,), Actors())

    def _pool(self, name: str, kind: type, args: tuple[Any, ...], actors: Actors) -> Pool:
        pool = Pool(name, kind, args, actors, in_process=True)
        pool.start(1)
        return pool

    def bring_up(self, pool: Pool, worker: int) -> Call:
        self.joined.append(f"{pool.name}[{worker}]")
        return pool.call(worker, "load")

    def reward_answer(self, call: Any) -> Any:
        return gather([call], 1, "the reward trainer")[0]


@pytest.fixture(scope="module")
def world() -> World:
    return asked_world(config().world)


def config(**irpo: object) -> Config:
    tree = {"world": {"profiles": 12}, "irpo": {"reward_answers": 4, "preference_answers": 3, **irpo}}
    return parse_config(tree, "test")


def stream(settings: Config, world: World, crew: Crew) -> Stream:
    watch = Observer(settings, None)
    return Stream(settings, world, crew, watch, auctions(settings, world, 1))  # type: ignore[arg-type]


def everything(settings: Config, world: World, crew: Crew) -> Sampled:
    found = stream(settings, world, crew)
    found.until(PHASES)
    return found.result(*PHASES)


def test_the_order_of_work_changes_nothing_that_comes_of_it(world: World) -> None:
    crews = Crew(), Crew()
    overlapped, apart = (
        everything(config(overlap=overlap), world, crew)
        for overlap, crew in zip((True, False), crews, strict=True)
    )
    assert overlapped.answers == apart.answers
    assert list(overlapped.clicks.items()) == list(apart.clicks.items())
    # One after another, no phase begins before the one before is answered and then judged.
    kinds = [f"{line.split()[0]} {line.split('/')[1]}" for line in crews[1].log]
    assert list(dict.fromkeys(kinds)) == [
        "write reward", "read reward", "write preference", "write test", "read test"
    ]  # fmt: skip
    assert kinds == sorted(kinds, key=list(dict.fromkeys(kinds)).index)
    assert crews[0].log != crews[1].log


def test_a_text_that_repeats_is_judged_once_for_all_its_draws(world: World) -> None:
    crew = Crew()
    found = everything(config(), world, crew)
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


def test_a_pool_grows_with_the_work_and_goes_back_and_nothing_else_changes(world: World) -> None:
    crew, fixed = Crew(grown=Engines(workers=4, min_workers=1)), Crew()
    settings = config()
    few = settings.model_copy(update={"engine": Engine(max_num_seqs=8)})
    watch = Observer(few, None)
    with watch.timeline.epoch(1):
        found = Stream(few, world, crew, watch, auctions(few, world, 1))  # type: ignore[arg-type]
        found.until(PHASES)
    assert found.result(*PHASES).answers == everything(settings, world, fixed).answers
    assert list(found.result(*PHASES).clicks.items()) == list(everything(few, world, fixed).clicks.items())
    # Each who joined loaded the live weights before its first answer, and the pool is small again.
    assert crew.joined == ["rollout[1]", "rollout[2]", "rollout[3]"]
    assert crew.log.count("load") == 3
    assert crew.rollouts.members == (0,)
    assert watch.timeline.epochs[0]["pools"]["rollout"]["most"] == 4


def test_a_pool_does_not_grow_for_what_one_worker_holds(world: World) -> None:
    crew = Crew(grown=Engines(workers=4, min_workers=1))
    everything(config().model_copy(update={"engine": Engine(max_num_seqs=10_000)}), world, crew)
    assert crew.joined == []


def test_until_waits_for_nothing_else(world: World) -> None:
    crew = Crew()
    found = stream(config(), world, crew)
    found.until(["reward", "preference"])
    assert found.due("preference") == 0
    assert found.due("test") > 0
    assert len(list(found.result("reward", "preference").of("test"))) == 0
    found.until(["test"])
    assert found.due("test") == 0


@pytest.mark.parametrize(
    ("refused", "unread", "message"),
    [("reward", "", r"\d+ of \d+ answers under v0"), ("", "reward", r"\d+ of \d+ judgements under v0")],
)
def test_losses_are_counted_by_draw_and_bounded(
    world: World, refused: str, unread: str, message: str
) -> None:
    found = stream(config(), world, Crew(refused, unread))
    found.until(PHASES)
    assert found.result("test").dropped.total() == 0
    with pytest.raises(BudgetError, match=message):
        found.result("reward", "preference")
    lenient = everything(config(max_drop_share=1.0), world, Crew(refused, unread))
    asked = sum(one.n for one in lenient.plan.values() if one.phase == "reward")
    lost = lenient.dropped["answer"] + lenient.dropped["judgement"]
    assert lost == asked - sum(1 for _ in lenient.judged("reward"))


def test_a_judge_that_returns_garbage_teaches_nothing_and_is_bounded(world: World) -> None:
    settings = config()
    mad = JudgeWorker, ("", settings.user_llm.sampling, settings.engine, 0, Babbler)
    crew = Crew()
    crew.judges = crew._pool("judge", *mad, Actors())
    found = stream(settings, world, crew)
    found.until(PHASES)
    with pytest.raises(BudgetError, match=r"(\d+) of \1 judgements .* irpo.max_drop_share=0.05 allows"):
        found.result("reward", "preference")
    crew.judges = crew._pool("judge", *mad, Actors())
    lenient = everything(config(max_drop_share=1.0), world, crew)
    judged = [(answer, clicks) for _, answer, clicks in lenient.judged("reward")]
    assert judged
    assert all("@" not in answer.text and not clicks for answer, clicks in judged)
    assert rows_of(world, lenient, "reward") == []


def test_probabilities_are_kept_with_the_clicks_and_score_answers(world: World, tmp_path: Path) -> None:
    tree = config(reward="judge", judgements=4).model_dump(mode="json")
    tree["user_llm"] |= {"reading": "token"}
    settings = parse_config(tree, "test")
    crew = Crew()
    args = ("", settings.user_llm.sampling, settings.engine, 0, Chooser)
    crew.judges = crew._pool("judge", JudgeWorker, args, Actors())
    found = everything(settings, world, crew)
    placing = {name for name, ads in found.clicks.items() if ads}
    assert placing
    assert found.probabilities.keys() == placing
    assert all(found.probabilities[name].keys() == found.clicks[name].keys() for name in placing)
    told = [p for ads in found.probabilities.values() for p in ads.values()]
    clicked = [click for name in placing for click in found.clicks[name].values()]
    assert sum(clicked) / len(clicked) == pytest.approx(sum(told) / len(told), abs=0.1)
    # One reading is enough, and it is what scores the answer.
    run = Run(home(tmp_path), settings)
    rates = judged_rates(run, found)
    assert rates.keys() == {answer.sample_id for _, answer in found.of("preference")}
    for name, ads in rates.items():
        assert f"{name}#1" not in found.clicks
        assert ads == found.probabilities.get(f"{name}#0", {})
    directory = run.fresh(run.records("epoch-1/sample"))
    save_records(directory / "answers.parquet", found.answers, Answer)
    save_records(directory / "clicks.parquet", found.click_records(), Click)
    (directory / "judged.json").write_text(json.dumps(sorted(found.clicks)))
    run.commit("epoch-1/sample", [], {"weight_version": "v0"})
    again = read_sampled(run, "epoch-1/sample", list(found.plan.values()))
    assert (again.clicks, again.probabilities) == (found.clicks, found.probabilities)


def test_the_reward_trainer_is_asked_the_same_whenever_answers_come(world: World, tmp_path: Path) -> None:
    settings = config()
    run = Run(home(tmp_path), settings)
    planned = auctions(settings, world, 1)
    assert len([one for one in planned if one.phase == "reward"]) > 2 * AUCTIONS_PER_CALL
    calls = []
    for as_they_come in (True, False):
        crew = Crew()
        source = stream(settings, world, crew)
        learner = Learner(run, crew, world, 1, planned)  # type: ignore[arg-type]
        early = 0
        if as_they_come:
            source.until(["reward", "preference"], partial(learner.advance, source))
            early = len(learner._calls)
        source.until(PHASES)
        result = source.result(*PHASES)
        learned = learner.finish(result)
        assert learned.fit == {"rows": 1.0}
        assert learned.rates.keys() == {
            answer.sample_id for _, answer in source.result(*PHASES).of("preference")
        }
        assert (early > 4) == as_they_come
        calls.append(crew.calls)
    assert calls[0] == calls[1]
    assert [line.split()[0] for line in calls[0]][-2:] == ["evaluate", "save"]
    held = set(calls[0][-2].split("'")[1::2])
    assert held
    assert not any(name in line for name in held for line in calls[0] if line.startswith("take"))


class Silent(Writer):
    """Answers without an ad."""

    def generate(self, requests: list[Request], version: str) -> Iterator[Generated]:
        for request in requests:
            yield Generated(request.id, (1,), (Completion("None.", (2, 3), True),) * request.n)


def test_answers_without_ads_end_a_run_before_anything_is_trained(world: World, tmp_path: Path) -> None:
    settings = config()
    planned = auctions(settings, world, 1)
    crew = Crew()
    crew.rollouts = crew._pool("rollout", Silent, ([],), Engines())
    source = stream(settings, world, crew)
    learner = Learner(Run(home(tmp_path), settings), crew, world, 1, planned)  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"0 of \d+ judged answers of v0 .* \(0\.0%\).*raylla warmstart"):
        source.until(PHASES, partial(learner.advance, source))
    assert not any(line.startswith("update") for line in crew.calls)
