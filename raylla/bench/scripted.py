"""Measurement apparatus: actors that sleep for as long as real ones were measured to work.

With them an epoch needs no core, so that its wall time is what it would be with a core for each actor.
The loop, the pools, Ray and the records are the real ones; only the engines and trainers are scripted.
"""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from raylla.actors import JudgeItem, Judgement, Pool, WeightStore
from raylla.actors.host import Host
from raylla.actors.policy import with_parts
from raylla.actors.pool import gather
from raylla.actors.spans import Batch
from raylla.auction.markup import MARKUP
from raylla.config import Actors, Config, Engines, Pctr
from raylla.engines import Completion, Generated, Probe, Request
from raylla.irpo.crew import Crew
from raylla.irpo.shards.squad import MakeSquad, Squad, Witness, sliced
from raylla.policy.jobs import AlignJob, Alignment, AlignResult, Reference, Told
from raylla.records import Ids, Prediction, WeightVersion
from raylla.reward.rows import ClickRow, auction_of
from raylla.runs.observe import Observer
from raylla.storage import here, making

REPORTED = ("auc", "log_loss", "calibration_error", "calibration_floor", "base_rate", "rows", "coverage")
"""What the evaluation of a pCTR model reports, as far as a table shows it."""


@dataclass(frozen=True)
class Latencies:
    """Seconds of work of one actor: for each answer, judgement, row and group, and of one load."""

    answer: float
    judgement: float
    take: float
    update: float
    predict: float
    group: float
    load: float


class ScriptedRollout:
    """Answers in order, at the measured rate."""

    def __init__(self, latencies: Latencies) -> None:
        self._latencies = latencies

    def ready(self) -> None:
        """At once."""

    def generate(self, requests: list[Request], version: str) -> Iterator[Generated]:
        """Each draw places one of the prompt's ads, so that the judge has something to read."""
        for request in requests:
            time.sleep(self._latencies.answer * request.n)
            ads = [found.group(0) for found in re.finditer(MARKUP, request.messages[-1]["content"])]
            draws = (f"Take {ads[draw % len(ads)]}, choice {draw}." for draw in range(request.n))
            yield Generated(request.id, Ids([1]), tuple(Completion(text, Ids([2]), True) for text in draws))

    def load(self, weights: Any, probe: Probe | None, version: str) -> float:
        """A refresh in place."""
        time.sleep(self._latencies.load)
        return 0.0


class WordyRollout(ScriptedRollout):
    """Answers as long as real ones, and takes as much longer for the longer ones.

    Args:
        spread: lengths of answers ÷ their mean, to draw from.
        prompt: tokens of a prompt.
        answer: tokens of an answer, on average.
    """

    def __init__(self, latencies: Latencies, spread: tuple[float, ...], prompt: int, answer: int) -> None:
        super().__init__(latencies)
        self._spread = spread
        self._ids = Ids(range(50_000, 50_000 + prompt))
        self._answer = answer

    def generate(self, requests: list[Request], version: str) -> Iterator[Generated]:
        """Each draw places one of the prompt's ads, and no two say the same."""
        for request in requests:
            rng = random.Random(request.seed)
            sizes = rng.choices(self._spread, k=request.n)
            time.sleep(self._latencies.answer * sum(sizes))
            told = "".join(message["content"] for message in request.messages)
            ads = [found.group(0) for found in re.finditer(MARKUP, told)][-10:]
            draws = []
            for draw, size in enumerate(sizes):
                tokens = max(8, round(size * self._answer))
                text = f"Take {ads[draw % len(ads)]}, choice {draw}." + " and" * tokens
                draws.append(Completion(text, Ids(range(60_000, 60_000 + tokens)), True, -1.0 * tokens))
            yield Generated(request.id, self._ids, tuple(draws))


class House:
    """A process in which many scripted workers live; each call has a thread."""

    def __init__(self) -> None:
        self._rooms: dict[int, Host] = {}

    def stream(self, room: int, hold: float, method: str, *args: Any) -> Iterator[Batch]:
        """`Host.stream` of one of them."""
        yield from self._rooms.setdefault(room, Host()).stream(hold, method, *args)


class Crowd(Pool):
    """A pool whose workers, which sleep, share processes: the driver cannot tell the difference."""

    ROOMS = 64
    """Workers of one process."""

    def _actor(self, index: int) -> Any:
        if len(self._hosts) % self.ROOMS == 0:
            self._house = ray.remote(House).options(num_cpus=0, max_concurrency=2 * self.ROOMS).remote()
        return self._house

    def _stream(self, worker: int, method: str, *args: Any) -> Any:
        stream = self._hosts[worker].stream.options(num_returns="streaming")
        return stream.remote(worker, self._hold, method, *args)


class ScriptedJudge:
    """Clicks on what the seed says."""

    def __init__(self, latencies: Latencies) -> None:
        self._latencies = latencies

    def ready(self) -> None:
        """At once."""

    def judge(self, items: list[JudgeItem]) -> Iterator[Judgement]:
        """One judgement after another."""
        for item in items:
            time.sleep(self._latencies.judgement)
            rng = random.Random(item.seed)
            yield Judgement(item.sample_id, {ad: rng.random() < 0.3 for ad in item.ad_ids}, 1)


class ScriptedReward:
    """Predicts what a row's name says."""

    def __init__(self, latencies: Latencies) -> None:
        self._latencies = latencies
        self._taken, self._kept = 0, 0

    def ready(self) -> None:
        """At once."""

    def take(self, rows: list[ClickRow], held: frozenset[str]) -> None:
        """Encode."""
        taken = sum(auction_of(row) not in held for row in rows)
        self._taken += taken
        time.sleep(self._latencies.take * taken)
        self.keep(rows, held)

    def keep(self, rows: list[ClickRow], auctions: frozenset[str] | None = None) -> None:
        """Keep for `measure`."""
        self._kept += sum(auctions is None or auction_of(row) in auctions for row in rows)

    def update(self) -> dict[str, float]:
        """Train on what was taken."""
        rows, self._taken = self._taken, 0
        time.sleep(self._latencies.update * rows)
        return {"rows": float(rows)}

    def predict(self, rows: list[ClickRow]) -> Iterator[Any]:
        """Encode and predict."""
        time.sleep(self._latencies.predict * len(rows))
        yield len(rows)
        rates = (random.Random(f"{row.sample_id}/{row.ad_id}").random() for row in rows)
        yield [Prediction(rate, rate, rate) for rate in rates]

    def measure(self) -> dict[str, float]:
        """As long as predicting what was kept, and no figures."""
        time.sleep(self._latencies.predict * self._kept)
        self._kept = 0
        return dict.fromkeys(REPORTED, 0.0)

    def save(self, place: str) -> None:
        """A directory to find again."""
        Path(place).mkdir(parents=True, exist_ok=True)

    def load(self, place: str, settings: Pctr) -> None:
        """Nothing to load."""
        self._kept = 0


class ScriptedAlign:
    """The DPO trainer of a whole group of workers."""

    def __init__(self, latencies: Latencies) -> None:
        self._latencies = latencies

    def ready(self) -> None:
        """At once."""

    def align(self, job: AlignJob) -> AlignResult:
        """The base weights again, under the new name."""
        began = time.time()
        job = with_parts(job)
        time.sleep(self._latencies.group * len(job.groups))
        with here(job.source) as source, making(job.target) as directory:
            shutil.copytree(source, directory, dirs_exist_ok=True)
        pairs = sum(len(group.losers) for group in job.groups)
        probe = Probe((1,), (2,), (0.0,))
        once = (0.0,)
        return AlignResult(
            job.version,
            job.target,
            1,
            pairs,
            once,
            once,
            once,
            probe,
            time.time() - began,
            0,
            Reference("rollout"),
            began=began,
        )


class ScriptedPolicy:
    """Stands in for `actors.policy.PolicyTrainer`."""

    def __init__(self, latencies: Latencies, deadline: float, here: bool) -> None:
        self._deadline = deadline
        self._pool = Pool("policy-trainer", ScriptedAlign, (latencies,), Actors(cpus=0), here)

    def start(self) -> None:
        """Begin to start."""
        self._pool.start(self._deadline)

    def begin(self, job: AlignJob) -> Alignment:
        """Sleep in the background."""
        call = self._pool.call(0, "align", job)
        what = f"weight version {job.version}"

        def wait(told: Told) -> AlignResult:
            result: AlignResult = gather([call], self._deadline, what)[0]
            return result

        return Alignment(job, wait)

    def stop(self) -> None:
        """End the actor."""
        self._pool.stop()


class ScriptedSquad(Squad):
    """The engines of a shard that sleep; they reserve no CPU.

    Args:
        latencies: how long.
        wordy: of answers as long as real ones, the arguments of `WordyRollout` after the latencies.
    """

    def __init__(
        self,
        latencies: Latencies,
        wordy: tuple[Any, ...],
        config: Config,
        version: WeightVersion,
        watch: Witness,
        number: int = 0,
        of: int = 1,
    ) -> None:
        def group(engines: Engines) -> Engines:
            return sliced(engines, number, of).model_copy(update={"cpus": 0, "gpus": 0})

        where = (config.ray.in_process, watch.spent, (number, of))
        rollouts, judges, args = group(config.rollout), group(config.judge), (latencies, *wordy)
        if wordy:
            self.rollouts: Pool = Crowd("rollout", WordyRollout, args, rollouts, *where)
        else:
            self.rollouts = Pool("rollout", ScriptedRollout, args, rollouts, *where)
        self.judges = Pool("judge", ScriptedJudge, (latencies,), judges, *where)
        self.store = Pool("weight-store", WeightStore, (), Actors(cpus=0), config.ray.in_process)
        self.take_over(config, version, watch)


class ScriptedCrew(Crew):
    """A crew of sleepers, as many as the config has actors; but for shards they reserve no CPU."""

    def __init__(
        self,
        config: Config,
        version: WeightVersion,
        latencies: Latencies,
        watch: Observer,
        make: MakeSquad | None = None,
    ) -> None:
        group = config.reward_trainer.model_copy(update={"cpus": 0, "gpus": 0})
        here = config.ray.in_process
        self.reward = Pool("reward-trainer", ScriptedReward, (latencies,), group, here, watch.spent)
        self.policy: Any = ScriptedPolicy(latencies, config.deadlines.start, here)
        self.take_on(config, version, watch, make or partial(ScriptedSquad, latencies, ()))
