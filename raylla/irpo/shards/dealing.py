"""An epoch's chunks, dealt to the shards: the driver's side of sampling.

The driver learns which chunks are whole and how many answers they hold.  What is made of them later it asks
their shard for, and passes on by reference.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from raylla.actors.pool import DONE, Call, gather, next_item, soon, soon_reference
from raylla.errors import BudgetError, InputLostError, WorkerHungError, WorkerLostError
from raylla.irpo.crew import Crew
from raylla.irpo.schedule import Chunk, chunks
from raylla.irpo.shards.grouping import KeptGroups
from raylla.irpo.shards.notes import News, Whole
from raylla.records import Phase
from raylla.runs.state import Run
from raylla.world import World, bids

TRAINING: tuple[Phase, ...] = ("reward", "preference")
IN_FLIGHT = 16
"""Chunks of which something is asked for, or on its way, at most: what they hold is in nobody's way."""

_NEWS = 0.1
"""Seconds between two news of a shard in the driver's own process."""


@dataclass(slots=True, eq=False)
class ShardCall:
    """One question to the shard of a chunk: its first answer, once it is there, is ``told``."""

    chunk: Chunk
    method: str
    args: tuple[Any, ...]
    call: Call
    told: Any = None


@dataclass(slots=True)
class Totals:
    """What came in of some phases: answers by phase, answers with a judgement, and what was dropped."""

    samples: dict[str, int] = field(default_factory=dict)
    judgements: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


class Dealing:
    """One epoch's chunks under the live weights, and who has them."""

    def __init__(self, run: Run, crew: Crew, world: World, epoch: int) -> None:
        self.epoch, self.version = epoch, crew.version.name
        self.chunks = chunks(run.config, world, epoch)
        self._config, self._crew, self._place = run.config, crew, run.place
        self._world = crew.share(world)
        self._calls: list[Call] = []
        self._given: dict[int, list[Chunk]] = {shard: [] for shard in crew.shards.members}
        self._whole: dict[int, Whole] = {}
        self._asked: dict[ShardCall, None] = {}
        self._open = {chunk.stage for chunk in self.chunks if run.committed(chunk.stage) is None}
        for stage in self._open:
            run.clear(stage)
        self._todo = [chunk for chunk in self.chunks if chunk.stage in self._open]
        self._left = Counter(chunk.phase for chunk in self._todo)
        crew.persistently(lambda: self._begin(crew.shards.members))

    def of(self, *phases: Phase) -> list[Chunk]:
        """The chunks of some phases, in the order of the plan."""
        return [chunk for chunk in self.chunks if chunk.phase in phases]

    def kept_groups(self, wanted: Sequence[Chunk]) -> KeptGroups | None:
        """What makes the groups of these chunks anew, from their records; none where they are kept by this
        process, and are lost with it alone."""
        if self._crew.here:
            return None
        return KeptGroups(self._config, self._world, self._place, tuple(wanted))

    def due(self, phase: Phase) -> int:
        """Answers of a phase that are still to come."""
        return sum(chunk.answers for chunk in self.of(phase) if not self.whole(chunk))

    def whole(self, chunk: Chunk) -> bool:
        """Whether a chunk's answers are there, judged and written."""
        return chunk.stage not in self._open or chunk.number in self._whole

    def until(self, phases: Sequence[Phase], then: Callable[[], None] = lambda: None) -> None:
        """Take what comes in until every chunk of ``phases`` is whole; ``then`` runs after each news.

        Raises:
            WorkerLostError: a shard, or a worker of one, was lost once more than its group's
                ``max_restarts``.
        """
        self._give(phases)
        while self._wanted(phases):
            self.turn()
            then()

    def turn(self, seconds: float = math.inf) -> None:
        """Take the next news of a shard that samples, if it comes within ``seconds``; without such a shard
        at once."""
        if not self._calls:
            return
        left = min(call.heard for call in self._calls) + self._crew.patience - time.monotonic()
        try:
            found = soon(self._calls, max(0.0, min(seconds, left)))
            if found is None and left <= seconds:
                found = next_item(self._calls, 0, f"news of the answers under {self.version}")
            if found is not None:
                self._hear(*found)
        except WorkerLostError as lost:
            self._recover(lost)

    def ask(self, chunk: Chunk, method: str, *args: Any) -> ShardCall:
        """Ask the shard of a chunk something about it."""
        asked = ShardCall(chunk, method, args, self._call(chunk, method, args))
        self._asked[asked] = None
        return asked

    def reply(self, asked: ShardCall, seconds: float = 0.0) -> tuple[Any, Any] | None:
        """What was told, and a reference to what goes to others; none where it is not there within
        ``seconds``. A shard that says nothing in time is lost.

        Raises:
            WorkerLostError: a worker outside the shards was lost meanwhile, or a shard once more than its
                ``max_restarts``.
        """
        reference = None
        try:
            if asked.told is None and (found := soon([asked.call], seconds)) is not None:
                asked.told = found[1]
            if asked.told is not None:
                reference = soon_reference(asked.call, seconds)
            if reference is None:
                self._refuse_silence(asked)
        except InputLostError as lost:  # the reward trainer's predictions
            trainer = self._crew.reward
            raise InputLostError(str(lost), trainer.name, trainer.members[0]) from lost
        except WorkerLostError as lost:
            if lost.pool != self._crew.shards.name:
                raise
            self._recover(lost)
            return None
        if reference is None:
            return None
        del self._asked[asked]
        return asked.told, reference

    def forget(self, asked: ShardCall) -> None:
        """Nobody waits for the reply."""
        self._asked.pop(asked, None)

    def each(self, wanted: Sequence[Chunk], method: str, *args: Any) -> Iterator[tuple[Any, Any]]:
        """`reply` of each chunk's shard, in their order, some asked ahead.

        Raises:
            WorkerLostError: as `reply`, or a shard said nothing in time.
        """
        coming, waiting = deque(wanted), deque[ShardCall]()
        try:
            while coming or waiting:
                while coming and len(waiting) < IN_FLIGHT:
                    waiting.append(self.ask(coming.popleft(), method, *args))
                yield self._answered(waiting[0])
                waiting.popleft()
        finally:
            for asked in waiting:
                self.forget(asked)

    def totals(self, *phases: Phase) -> Totals:
        """What came in of these phases, over all shards, and the drop budget enforced.

        Raises:
            BudgetError: more than ``irpo.max_drop_share`` of the answers or judgements were lost.
        """
        totals = Totals(dict.fromkeys(sorted(phases), 0))
        judged = 0
        for whole in (self._whole[chunk.number] for chunk in self.of(*phases)):
            totals.samples[whole.phase] += whole.answers
            totals.judgements += whole.read
            totals.dropped.update(dict(zip(("answer", "judgement"), whole.dropped, strict=True)))
            judged += whole.judged
        share = self._config.irpo.max_drop_share
        asked = sum(chunk.answers for chunk in self.of(*phases))
        for kind, total in (("answer", asked), ("judgement", judged)):
            lost = totals.dropped[kind]
            if lost > share * total:
                raise BudgetError(
                    f"{lost} of {total} {kind}s under {self.version} were dropped, more than "
                    f"irpo.max_drop_share={share} allows; see the engine's and judge's output"
                )
        return totals

    def sample_ids(self, *phases: Phase) -> Iterator[str]:
        """Ids of the answers that came in of these phases, in the order of the plan."""
        for chunk in self.of(*phases):
            refused = self._whole[chunk.number].refused
            for place, auction in enumerate(chunk.auction_ids):
                if place not in refused:
                    for draw in range(chunk.n or 1):  # a user was answered once
                        yield bids.sample_id(auction, draw)

    def _answered(self, asked: ShardCall) -> tuple[Any, Any]:
        while (reply := self.reply(asked, self._crew.patience)) is None:
            pass  # asked anew
        return reply

    def _refuse_silence(self, asked: ShardCall) -> None:
        call, patience = asked.call, self._crew.patience
        if time.monotonic() - call.heard > patience:
            what = f"{asked.method} of {asked.chunk.stage}/{asked.chunk.part}"
            raise WorkerHungError(
                f"{what}: nothing came from {call.worker} within {patience:g} s; look at its log, or raise "
                "deadlines.sample",
                call.pool,
                call.index,
            )

    def _wanted(self, phases: Sequence[Phase]) -> bool:
        if any(self._left[phase] for phase in phases):
            return True
        if any(self._left.values()) and self._config.irpo.overlap:
            return False  # what is still sampled is nobody's who waits
        return bool(self._calls)  # their ends: a shard samples in one call at a time

    def _give(self, phases: Sequence[Phase]) -> None:
        """Have the shards sample what is wanted: everything at once, or without overlap what is waited
        for."""
        overlap = self._config.irpo.overlap
        given = [chunk for chunk in self._todo if overlap or chunk.phase in phases]
        self._todo = [chunk for chunk in self._todo if not overlap and chunk.phase not in phases]
        if not given:
            return
        for shard in self._given:
            own = [chunk for chunk in given if self._shard(chunk) == shard]
            self._given[shard] += own
            self._sample(shard, own)

    def _sample(self, shard: int, own: list[Chunk]) -> None:
        hold = _NEWS if self._crew.here else self._config.shards.news
        self._calls.append(self._crew.shards.call(shard, "sample", own, not self._todo, hold))

    def _hear(self, call: Call, news: News | object) -> None:
        if news is DONE:
            self._calls.remove(call)
        elif isinstance(news, News):
            for whole in news.whole:
                self._whole[whole.number] = whole
                self._left[whole.phase] -= 1
            self._crew.hear(call.index, news)

    def _begin(self, shards: Sequence[int]) -> None:
        calls = [self._crew.shards.call(shard, "begin", self._world, self._place) for shard in shards]
        for call, news in zip(calls, gather(calls, self._crew.patience, "shards to begin"), strict=True):
            news.spans.clear()  # of what was done before this epoch
            self._crew.hear(call.index, news)

    def _recover(self, lost: WorkerLostError) -> None:
        """Start a shard anew; it samples what of its chunks is not whole, and is asked again."""
        crew, shard = self._crew, lost.worker
        crew.restart(lost)
        crew.persistently(lambda: self._begin([shard]))
        self._calls = [call for call in self._calls if call.index != shard]
        left = [chunk for chunk in self._given[shard] if not self.whole(chunk)]
        if left:
            self._sample(shard, left)
        for asked in self._asked:
            if self._shard(asked.chunk) == shard:
                asked.call, asked.told = self._call(asked.chunk, asked.method, asked.args), None

    def _call(self, chunk: Chunk, method: str, args: tuple[Any, ...]) -> Call:
        return self._crew.shards.call(self._shard(chunk), method, chunk, *args)

    def _shard(self, chunk: Chunk) -> int:
        return chunk.number % len(self._given)
