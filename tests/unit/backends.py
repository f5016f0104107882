"""An evaluation's backend with a model and a judge that follow a rule."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from raylla import config
from raylla.actors.judge import JudgeItem, Judgement
from raylla.actors.pool import Pool
from raylla.config import Actors
from raylla.engines.protocol import (
    Aggregate,
    Aggregated,
    Completion,
    Generated,
    Given,
    JointText,
    Opening,
    Request,
    Scored,
)
from raylla.evaluation.backend import EvaluationBackend
from raylla.evaluation.kept import kept
from raylla.progress import Steps
from raylla.records import Ad, Prediction, Profile, Query
from raylla.runs.state import Run
from raylla.storage import home
from raylla.terminal import plain_console
from raylla.world import World

ADS = tuple(Ad(str(1000 + i), f"Brand Word{i}", "tea", "food") for i in range(3))
LINE = re.compile(r"tea \u00a4?(\S+) \d\d (@.+?@\[Ad-\d+\])")
Rule = Callable[[float], float]


class Writer:
    """Places each listed ad with the chance that ``rule`` gives its bid; hidden bids count as 50."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self.asked: list[Request] = []
        self.read: list[Given] = []
        self.joint: list[Aggregate] = []

    def generate(self, requests: list[Request], version: str) -> Iterator[Generated]:
        for request in requests:
            self.asked.append(request)
            listed = LINE.findall(request.messages[0]["content"])
            draws = []
            for draw in range(request.n):
                rng = random.Random(request.seed + draw)
                chances = [self._rule(50 if bid == "?" else float(bid)) for bid, _ in listed]
                shown = [
                    mark for chance, (_, mark) in zip(chances, listed, strict=True) if rng.random() < chance
                ]
                draws.append(Completion(f"Try {', '.join(shown) or 'nothing'}.", (1, 2), True))
            yield Generated(request.id, (1,) * 5, tuple(draws))

    def aggregate(self, requests: list[Aggregate], version: str) -> Iterator[Aggregated]:
        """A bidder drawn in proportion to its bid places its ad, for half of it."""
        for request in requests:
            self.joint.append(request)
            marks = [LINE.findall(messages[0]["content"]) for messages in request.prompts]
            assert all(len(one) == 1 and one[0][0] == "?" for one in marks)  # its own ad, no bid
            texts = []
            for draw in range(request.n):
                (place,) = random.Random(request.seed + draw).choices(range(len(marks)), request.bids)
                opened = Opening(place, 4, request.bids[place] / 2)
                texts.append(JointText(f"Try {marks[place][0][1]}.", 3, True, (opened,)))
            yield Aggregated(request.id, tuple(5 * (bid > 0) for bid in request.bids), tuple(texts))

    def score(self, given: list[Given], version: str) -> Iterator[Scored]:
        for one in given:
            self.read.append(one)
            length = len(one.token_ids) or len(one.text.split())
            yield Scored(one.id, -float(sum(one.token_ids)) - len(one.messages[0]["content"]), length)


class Encoded:
    """Vectors that follow from a text alone."""

    @staticmethod
    def encode(texts: list[str]) -> np.ndarray:
        return np.array([np.random.default_rng(zlib.crc32(text.encode())).normal(size=8) for text in texts])


class Reader:
    """Clicks everything, or cannot be read; says that a click is as probable as ``told``."""

    def __init__(self, unread: bool, told: float | None = None) -> None:
        self._unread = unread
        self.told = told
        self.read: list[str] = []

    def judge(self, items: list[JudgeItem]) -> Iterator[Judgement]:
        for item in items:
            self.read.append(item.sample_id)
            told = None if self.told is None else dict.fromkeys(item.ad_ids, self.told)
            clicks = None if self._unread else dict.fromkeys(item.ad_ids, True)
            yield Judgement(item.sample_id, clicks, 1, None, told)


def make(path: Path, rule: Rule, queries: int = 30, unread: bool = False) -> Any:
    """A backend, and the workers behind it."""
    profile = Profile("p", "30 nurse Oslo", ("tea",))
    asked = tuple(Query(f"q{i}", "p", f"which tea {i}?", "tea", "food", "test") for i in range(queries))
    tuned = tuple(Query(f"t{i}", "p", f"what tea {i}?", "tea", "food", "train") for i in range(10))
    world = World("w", 0, (profile,), ADS, asked + tuned)
    settings = config.parse_config(
        {"world": {"candidates": 3, "ads": 3}, "penalty": {"per_ad": 0, "free_ads": 3}}, "test"
    )
    writer, reader = Writer(rule), Reader(unread)
    pools = []
    for name, worker in (("rollout", writer), ("judge", reader)):
        pool = Pool(name, lambda worker=worker: worker, (), Actors(), in_process=True)  # type: ignore[arg-type]
        worker.ready = lambda: None  # type: ignore[attr-defined]
        pool.start(10)
        pools.append(pool)

    def ask_reward(method: str, *args: Any) -> Any:
        if method == "encode":
            return Encoded.encode(*args)
        return [Prediction(0.5, 0.3, 0.6)] * len(args[0]) if method == "predict_intervals" else None

    crew: Any = SimpleNamespace(
        rollouts=pools[0],
        judges=pools[1],
        reward=SimpleNamespace(restarts=0),
        version=None,
        refresh=lambda *_: [],
        ask_reward=ask_reward,
        persistently=lambda work: work(),
        restart=None,  # nobody is lost
    )
    run = Run(home(path), settings)
    backend = EvaluationBackend(run, settings, crew, world, kept(run, settings), Steps(plain_console()))
    return SimpleNamespace(backend=backend, writer=writer, reader=reader)
