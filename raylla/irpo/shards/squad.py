"""The engines of one shard: rollout and judge workers, and the store that their weights come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from raylla.actors.judge import JudgeWorker
from raylla.actors.pool import Call, Pool
from raylla.actors.rollout import RolloutWorker
from raylla.actors.spans import Span
from raylla.actors.weights import WeightStore, begin_load, roll_out
from raylla.config import Actors, Config, Engines
from raylla.engines import AdapterRoom, Probe, open_engine
from raylla.errors import WorkerLostError
from raylla.models import base, resolve
from raylla.records import WeightVersion

_Result = TypeVar("_Result")


class Witness(Protocol):
    """Who hears of what a shard's workers do: the run's observer, or what takes it there."""

    def spent(self, span: Span) -> None:
        """What a worker did in one call."""

    def pool(self, name: str, workers: int, joining: int) -> None:
        """From now on ``workers`` of a pool take calls, and ``joining`` more are to."""

    def lost(self, group: str) -> None:
        """A worker of ``group`` was lost and is there again."""

    def say(self, text: str, style: str = "") -> None:
        """A line for whoever watches."""

    def advance(self, kind: str, count: int, tokens: int = 0) -> None:
        """So much more of a kind is done."""

    def expect(self, kind: str, more: int) -> None:
        """So much more of a kind is to be done."""


class Pools:
    """Pools whose lost workers are made anew.

    Args:
        pools: all of them.
    """

    def __init__(self, config: Config, watch: Witness, pools: Sequence[Pool]) -> None:
        self.config = config
        self.pools = tuple(pools)
        self._watch = watch

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
        """Start a lost worker anew; it is in its place again, as the others are, when this returns.

        Raises:
            WorkerLostError: its group was started anew ``max_restarts`` times already, or it is none of
                these pools' own.
        """
        pool = next((pool for pool in self.pools if pool.name == lost.pool), None)
        if pool is None:
            raise lost
        pool.restart(lost, self.config.deadlines.start)
        self._watch.lost(pool.name)
        self._prepare(pool, lost.worker)

    def wait_ready(self, *pools: Pool) -> None:
        """Wait for the workers of ``pools`` that were begun; tell of those that were lost meanwhile."""
        for pool in pools:
            pool.wait_ready(self.config.deadlines.start)
            for _ in range(pool.restarts):
                self._watch.lost(pool.name)

    def stop(self) -> None:
        """End all workers; safe to call twice."""
        for pool in self.pools:
            pool.stop()

    def _prepare(self, pool: Pool, worker: int) -> None:
        """Bring a worker that was made anew to where the others of its pool are."""


class Squad(Pools):
    """Rollout and judge workers number ``number``, ``number + of``, ... of a run: one of ``of`` slices."""

    def __init__(
        self, config: Config, version: WeightVersion, watch: Witness, number: int = 0, of: int = 1
    ) -> None:
        here = config.ray.in_process
        judge_model = resolve(config.user_llm.path, "user_llm.path")
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
        own = sliced(config.rollout, number, of)
        self.rollouts = Pool("rollout", RolloutWorker, args, own, here, watch.spent, (number, of))
        self.judges = Pool(
            "judge",
            JudgeWorker,
            (judge_model, config.user_llm.sampling, config.engine, config.seed),
            sliced(config.judge, number, of),
            here,
            watch.spent,
            (number, of),
        )
        # Beside the engines that read from it: a head node has no room for a model's weights.
        beside = Actors(workers=1, cpus=0, labels=config.rollout.labels)
        self.store = Pool("weight-store", WeightStore, over, beside, here)
        self.take_over(config, version, watch)

    def take_over(self, config: Config, version: WeightVersion, watch: Witness) -> None:
        """Be the squad of these pools, whose rollout workers begin with ``version``."""
        super().__init__(config, watch, (self.rollouts, self.judges, self.store))
        self.version = self._first = version
        self._probe: Probe | None = None

    def start(self, most: bool = False) -> None:
        """Start every worker side by side, those of pools that grow at their least, or at their most where
        nothing else needs their room while they rest; and wait for them."""
        for pool in self.pools:
            pool.create(pool.most if most else pool.least)
        self.wait_ready(*self.pools)

    def refresh(self, version: WeightVersion, probe: Probe | None) -> list[float]:
        """Make every rollout engine hold ``version``; it is the current one only when all do.

        Returns each engine's mean |log-probability difference| to the trainer.
        """
        differences = self.persistently(lambda: self._roll_out(version, probe, self.rollouts.members))
        self.version, self._probe = version, probe
        return differences

    def bring_up(self, pool: Pool, worker: int) -> Call | None:
        """Have a worker that has just begun load the live weights; none: it holds what it needs.

        Does not wait for the load; the weights go from the store, and not through the shard.
        """
        if pool is not self.rollouts or self.version == self._first:
            return None
        live, probe, deadline = self.version, self._probe, self.config.deadlines.sync
        return self.persistently(lambda: begin_load(pool, self.store, live, probe, deadline, worker))

    def _roll_out(self, version: WeightVersion, probe: Probe | None, workers: Sequence[int]) -> list[float]:
        deadline = self.config.deadlines.sync
        return roll_out(self.rollouts, self.store, version, probe, deadline, workers)

    def _prepare(self, pool: Pool, worker: int) -> None:
        if pool is self.rollouts and self.version != self._first:
            self.persistently(lambda: self._roll_out(self.version, self._probe, [worker]))


MakeSquad = Callable[[Config, WeightVersion, Witness, int, int], Squad]
"""Makes the engines of one shard of so many; `Squad` itself, or a bench's."""


def sliced(group: Engines, number: int, of: int) -> Engines:
    """The part of a group's workers that one of ``of`` shards owns."""

    def share(workers: int) -> int:
        return -(-(workers - number) // of)

    least = None if group.min_workers is None else share(group.min_workers)
    return group.model_copy(update={"workers": share(group.workers), "min_workers": least})
