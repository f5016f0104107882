"""The actors that one run works with: started side by side, refreshed together, stopped together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from raylla.actors.policy import PolicyTrainer
from raylla.actors.pool import Call, Pool, gather
from raylla.actors.reward import RewardWorker
from raylla.config import Config
from raylla.engines.protocol import Probe
from raylla.irpo.shards.notes import News
from raylla.irpo.shards.shard import Shard
from raylla.irpo.shards.squad import MakeSquad, Pools, Squad
from raylla.models import resolve
from raylla.records import WeightVersion
from raylla.runs.observe import Observer

BESIDE = 3
"""Calls that a shard has at once: the sampling of an epoch, and what is asked of its records meanwhile."""

_SLACK = 60.0
"""Seconds that a shard has for its own work beside its workers' deadlines."""


class AskingReward(Pools):
    """Pools of which one is the reward trainer's."""

    reward: Pool

    def ask_reward(self, method: str, *args: Any) -> Any:
        """One call of the reward trainer, within ``deadlines.reward``."""
        call = self.reward.call(self.reward.members[0], method, *args)
        what = f"the reward trainer's {call.method}"
        return gather([call], self.config.deadlines.reward, what)[0]


class Panel(Squad, AskingReward):
    """The engines and the reward trainer that evaluations ask: one squad, of this process."""

    def __init__(self, config: Config, version: WeightVersion, watch: Observer) -> None:
        super().__init__(config, version, watch)
        self.reward = reward_pool(config, watch)
        self.pools = (*self.pools, self.reward)


class Crew(AskingReward):
    """The shards, which have the engines, the reward trainer and the policy trainer of one run.

    Args:
        make: what makes the engines of a shard.
    """

    def __init__(
        self,
        config: Config,
        storage: Path,
        version: WeightVersion,
        watch: Observer,
        make: MakeSquad = Squad,
    ) -> None:
        self.reward = reward_pool(config, watch)
        self.policy: Any = PolicyTrainer(
            config.dpo,
            config.seed,
            config.ray.in_process,
            storage / "trainer",
            config.deadlines,
            config.lora,
        )
        self.take_on(config, version, watch, make)

    def take_on(self, config: Config, version: WeightVersion, watch: Observer, make: MakeSquad) -> None:
        """Have the shards of the config beside the trainers that are there."""
        here = config.ray.in_process or config.shards.workers == 1
        args = (config, version, make, watch if config.shards.workers == 1 else None)
        self.shards = Pool("shard", Shard, args, config.shards, here, beside=BESIDE)
        super().__init__(config, watch, (self.shards, self.reward))
        self.here = here
        self.version = self._first = version
        self._probe: Probe | None = None
        self._sizes: dict[str, dict[int, tuple[int, int]]] = {}
        self._shared: dict[int, tuple[Any, Any]] = {}

    @property
    def needs(self) -> set[str]:
        """Names of the weight versions that are live, or that a worker started anew begins with."""
        return {self.version.name, self._first.name}

    @property
    def encoder(self) -> Pool | None:
        """The reward trainer, for shards to have texts encoded; none where no reward term reads any."""
        if not self.config.reward_terms:
            return None
        return self.reward if self.here else self.reward.handle()

    @property
    def patience(self) -> float:
        """Seconds within which a shard says something, though it may have a worker to start anew first."""
        deadlines = self.config.deadlines
        return deadlines.start + deadlines.sync + deadlines.sample + _SLACK

    def start(self) -> None:
        """Start every actor side by side, and wait for the engines."""
        self.shards.create()
        self.reward.create()
        self.policy.start()
        self.wait_ready(self.shards)
        self.persistently(lambda: self._open(self.shards.members))
        self.wait_ready(self.reward)

    def refresh(self, version: WeightVersion, probe: Probe | None) -> None:
        """Make every rollout engine hold ``version``; it is the current one only when all do."""
        self.persistently(lambda: self._load(self.shards.members, version, probe))
        self.version, self._probe = version, probe

    def share(self, thing: Any) -> Any:
        """``thing`` as an argument for every shard, which is sent to a machine once."""
        if self.here:
            return thing
        if id(thing) not in self._shared:
            self._shared = {id(thing): (thing, ray.put(thing))}
        return self._shared[id(thing)][1]

    def stored(self, thing: Any) -> Any:
        """What a shard made, as a reference to Ray's store where there is one: it is not kept here."""
        return thing if self.config.ray.in_process or isinstance(thing, ray.ObjectRef) else ray.put(thing)

    def hear(self, shard: int, news: News) -> None:
        """Tell the observer what a shard noted."""
        for span in news.spans:
            self._watch.spent(span)
        for kind, count, tokens in news.done:
            self._watch.advance(kind, count, tokens)
        for kind, more in news.expected:
            self._watch.expect(kind, more)
        for text, style in news.said:
            self._watch.say(text, style)
        for group in news.lost:
            self._watch.lost(group)
        for name, workers, joining in news.sizes:
            of = self._sizes.setdefault(name, {})
            of[shard] = workers, joining
            self._watch.pool(name, *map(sum, zip(*of.values(), strict=True)))

    def stop(self) -> None:
        """Stop everything; safe to call twice."""
        self.policy.stop()
        if self.here and self.shards.size:
            self.shards.broadcast("stop", deadline=_SLACK, what="the engines to stop")
        super().stop()  # An actor's engines end with it.

    def _prepare(self, pool: Pool, worker: int) -> None:
        if pool is self.shards:
            self.persistently(lambda: self._open((worker,)))

    def _open(self, shards: Sequence[int]) -> None:
        """Have shards start their engines, and load what is live."""
        of, what = self.config.shards.workers, "the engines of every shard to be ready"
        self._hear_all([self.shards.call(shard, "open", shard, of) for shard in shards], what)
        if self.version != self._first:
            self._load(shards, self.version, self._probe)

    def _load(self, shards: Sequence[int], version: WeightVersion, probe: Probe | None) -> None:
        what = f"weight version {version.name} to be live in every shard"
        self._hear_all([self.shards.call(shard, "refresh", version, probe) for shard in shards], what)

    def _hear_all(self, calls: Sequence[Call], what: str) -> None:
        for call, news in zip(calls, gather(calls, self.patience, what), strict=True):
            self.hear(call.index, news)


def reward_pool(config: Config, watch: Observer) -> Pool:
    """The reward trainer's pool of one."""
    encoder = resolve(config.pctr.encoder, "pctr.encoder")
    args = (encoder, config.pctr, config.seed)
    return Pool(
        "reward-trainer", RewardWorker, args, config.reward_trainer, config.ray.in_process, watch.spent
    )
