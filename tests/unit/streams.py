"""Doubles of what works in a stream of answers: engines, a judge, a reward trainer and their crew."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from raylla.actors.judge import JudgeItem, Judgement
from raylla.actors.pool import Call, Pool
from raylla.actors.weights import WeightStore
from raylla.config import Actors, Config
from raylla.engines.protocol import Completion, Generated, Request
from raylla.irpo.crew import Crew
from raylla.irpo.shards.squad import Squad, sliced
from raylla.records import Prediction, WeightVersion
from raylla.reward.rows import ClickRow, auction_of
from raylla.runs.observe import Observer


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

    def take(self, rows: list[ClickRow], held: frozenset[str]) -> None:
        self._log.append(f"take {[row.sample_id for row in rows if auction_of(row) not in held]}")
        self._log.append(f"keep {[row.sample_id for row in rows if auction_of(row) in held]}")

    def update(self) -> dict[str, float]:
        self._log.append("update")
        return {"rows": 1.0}

    def predict(self, rows: list[ClickRow]) -> Iterator[Any]:
        self._log.append(f"predict {[row.sample_id for row in rows]}")
        yield len(rows)
        yield [Prediction(0.5, 0.4, 0.6)] * len(rows)

    def measure(self) -> dict[str, float]:
        self._log.append("measure")
        return {"auc": 0.5}

    def save(self, directory: Path) -> None:
        self._log.append("save")


class Doubles(Squad):
    """Engines in this process, and what they are asked."""

    def __init__(self, crew: Doubled, config: Config, version: WeightVersion, watch: Any, *of: int) -> None:
        group = sliced(config.rollout, *of), sliced(config.judge, *of)
        self.rollouts = Pool("rollout", *crew.writer, group[0], True, watch.spent, (of[0], of[1]))
        self.judges = Pool("judge", *crew.reader, group[1], True, watch.spent, (of[0], of[1]))
        self.store = Pool("weight-store", WeightStore, (), Actors(), True)
        self.take_over(config, version, watch)
        self._joined = crew.joined

    def bring_up(self, pool: Pool, worker: int) -> Call:
        self._joined.append(f"{pool.name}[{worker}]")
        return pool.call(worker, "load")


class Doubled(Crew):
    """A crew in this process."""

    def __init__(self, settings: Config, refused: str = "", unread: str = "") -> None:
        self.log: list[str] = []
        self.joined: list[str] = []
        self.calls: list[str] = []
        self.writer: tuple[Any, ...] = (Writer, (self.log, refused))
        self.reader: tuple[Any, ...] = (Reader, (self.log, unread))
        self.watch = Observer(settings, None)
        self.reward = Pool("reward-trainer", Scorer, (self.calls,), Actors(), True)
        self.policy = SimpleNamespace(start=lambda: None, stop=lambda: None)
        self.take_on(settings, WeightVersion("v0", 0, ""), self.watch, partial(Doubles, self))
