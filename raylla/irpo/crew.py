"""The actors that one run works with: started side by side, refreshed together, stopped together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from raylla.actors.judge import JudgeWorker
from raylla.actors.policy import PolicyTrainer
from raylla.actors.pool import Call, Pool, Record, gather
from raylla.actors.reward import RewardWorker
from raylla.actors.rollout import RolloutWorker
from raylla.actors.weights import WeightStore, begin_load, roll_out
from raylla.config import Actors, Config
from raylla.engines import AdapterRoom, Probe, open_engine
from raylla.errors import WorkerLostError
from raylla.models import base, resolve
from raylla.records import WeightVersion
from raylla.runs.observe import Observer

_Result = TypeVar("_Result")


class Crew:
    """Rollout, judge and reward actors, the weight store and the DPO trainer of one run."""

    def __init__(self, config: Config, storage: Path, version: WeightVersion, watch: Observer) -> None:
        here = config.ray.in_process
        record: Record = watch.timeline.add
        judge_model = resolve(config.user_llm.path, "user_llm.path")
        encoder = resolve(config.pctr.encoder, "pctr.encoder")
        self.config = config
        self.version = version
        self._first = version
        self._probe: Probe | None = None
        self._watch = watch
        args: tuple[Any, ...] = (
            version.path,
            config.ad_llm.sampling,
            config.engine,
            config.seed,
            version.name,
        )
        over: tuple[str, ...] = ()
        if config.rollout.adapters == "shared" and config.lora is not None:
            args = *args, partial(open_engine, room=AdapterRoom.of(config.lora))
            over = (base(config.ad_llm.path, "ad_llm.path"),)
        self.rollouts = Pool("rollout", RolloutWorker, args, config.rollout, here, record)
        self.judges = Pool(
            "judge",
            JudgeWorker,
            (judge_model, config.user_llm.sampling, config.engine, config.seed),
            config.judge,
            here,
            record,
        )
        self.reward = Pool(
            "reward-trainer",
            RewardWorker,
            (encoder, config.pctr, config.seed),
            config.reward_trainer,
            here,
            record,
        )
        # Beside the engines that read from it: a head node has no room for a model's weights.
        beside = Actors(workers=1, cpus=0, labels=config.rollout.labels)
        self.store = Pool("weight-store", WeightStore, over, beside, here)
        self.policy = PolicyTrainer(
            config.dpo, config.seed, here, storage / "trainer", config.deadlines, config.lora
        )

    @property
    def needs(self) -> set[str]:
        """Names of the weight versions that are live, or that a worker started anew begins with."""
        return {self.version.name, self._first.name}

    def start(self, trainer: bool = True) -> None:
        """Start every actor side by side, the DPO trainer if it is wanted, and wait for the engines.

        Pools that grow start at their least. Without a trainer nothing else needs their room while
        they rest, and all of their workers are started.
        """
        pools = (self.rollouts, self.judges, self.reward, self.store)
        for pool in pools:
            pool.create(pool.least if trainer else pool.most)
        if trainer:
            self.policy.start()
        for pool in pools:
            pool.wait_ready(self.config.deadlines.start)
            for _ in range(pool.restarts):
                self._watch.lost(pool.name)

    def refresh(self, version: WeightVersion, probe: Probe | None) -> list[float]:
        """Make every rollout engine hold ``version``; it is the current one only when all do.

        Returns each engine's mean |log-probability difference| to the trainer.
        """
        differences = self.persistently(lambda: self._roll_out(version, probe, self.rollouts.members))
        self.version, self._probe = version, probe
        return differences

    def _roll_out(self, version: WeightVersion, probe: Probe | None, workers: Sequence[int]) -> list[float]:
        deadline = self.config.deadlines.sync
        return roll_out(self.rollouts, self.store, version, probe, deadline, workers)

    def persistently(self, work: Callable[[], _Result]) -> _Result:
        """What ``work`` returns; where a worker is lost meanwhile, it is done again from its start.

        Raises:
            WorkerLostError: a worker was lost once more than its group's ``max_restarts``.
        """
        while True:
            try:
                return work()
            except WorkerLostError as lost:
                self.restart(lost)

    def restart(self, lost: WorkerLostError) -> None:
        """Start a lost worker anew; a rollout worker holds the live weights again when this returns.

        Raises:
            WorkerLostError: its group was started anew ``max_restarts`` times already.
        """
        pools = (self.rollouts, self.judges, self.reward, self.store)
        pool = next(pool for pool in pools if pool.name == lost.pool)
        pool.restart(lost, self.config.deadlines.start)
        self._watch.lost(pool.name)
        if pool is self.rollouts and self.version != self._first:
            self.persistently(lambda: self._roll_out(self.version, self._probe, [lost.worker]))

    def bring_up(self, pool: Pool, worker: int) -> Call | None:
        """Have a worker that has just begun load the live weights; none: it holds what it needs.

        Does not wait for the load; the weights go from the store, and not through the driver.
        """
        if pool is not self.rollouts or self.version == self._first:
            return None
        live, probe, deadline = self.version, self._probe, self.config.deadlines.sync
        return self.persistently(lambda: begin_load(pool, self.store, live, probe, deadline, worker))

    def ask_reward(self, method: str, *args: Any) -> Any:
        """One call of the reward trainer, within ``deadlines.reward``."""
        return self.reward_answer(self.reward.call(0, method, *args))

    def reward_answer(self, call: Call) -> Any:
        """What a call of the reward trainer returned, within ``deadlines.reward``."""
        what = f"the reward trainer's {call.method}"
        return gather([call], self.config.deadlines.reward, what)[0]

    def stop(self) -> None:
        """Stop everything; safe to call twice."""
        self.policy.stop()
        for pool in (self.rollouts, self.judges, self.reward, self.store):
            pool.stop()
