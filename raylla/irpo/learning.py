"""The pCTR model's part of an epoch, handed over as soon as what it needs is there.

The reward trainer runs its calls in the order in which they are made. They are made in the order of
the plan, whenever that is, a chunk at a time: phase 1 to be encoded, the update once all of it is judged,
then phase 2 to be predicted. So the model and the scores do not depend on when answers came in, or in which
shard, only the waiting does.  Rows, predictions and groups go from shards to the trainers and back by
reference: few at once, so that they fill nobody's memory.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from raylla.actors.pool import Call, next_item, soon, soon_reference
from raylla.errors import RunError, WorkerLostError
from raylla.irpo.crew import Crew
from raylla.irpo.schedule import Chunk
from raylla.irpo.shards.dealing import IN_FLIGHT, TRAINING, Dealing, ShardCall
from raylla.irpo.shards.shard import ScoredChunk
from raylla.runs.state import Run
from raylla.storage import absolute

WAIT = 0.05
"""Seconds between two looks at the shards that sample, while the learner is waited for."""


@dataclass(slots=True)
class Learned:
    """``parts``: of each phase-2 chunk, in order, what its scoring came to, and a reference to its groups;
    ``fit`` and ``held_out``: what the update and the evaluation on held-out auctions reported."""

    parts: list[tuple[ScoredChunk, Any]] = field(default_factory=list)
    fit: dict[str, float] = field(default_factory=dict)
    held_out: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Training:
    """A call of the reward trainer: ``then`` takes its answer; one of a ``chunk`` predicts it."""

    call: Call
    then: Callable[[Any], None]
    chunk: Chunk | None = None
    predicted: bool = False


class Learner:
    """Takes one epoch's answers to the reward trainer, and its predictions back to the shards."""

    def __init__(self, run: Run, crew: Crew, dealing: Dealing) -> None:
        config = run.config
        last = config.irpo.reward_epochs
        self._run, self._crew, self._dealing = run, crew, dealing
        self._stage = f"epoch-{dealing.epoch}/learn"
        self._learns = last is None or dealing.epoch <= last
        self._predicts = config.irpo.reward == "pctr"
        self._held = held_out(run, dealing.of("reward"))
        self._rows, self._scores = deque[ShardCall](), deque[ShardCall]()
        self._open = run.committed(self._stage) is None
        if self._open:
            run.clear(self._stage)
            self._begin()

    def advance(self, seconds: float = 0.0) -> None:
        """Hand over everything that is whole and whose turn it is, and take what is there; what is nearest
        to its end is waited for, up to ``seconds``.

        Raises:
            WorkerLostError: the reward trainer was lost once more than its ``max_restarts``, or took longer
                for a call than ``deadlines.reward``.
        """
        if not self._open:
            return
        try:
            self._take_scores(seconds)
            self._take_trained(0 if self._scores else seconds)
            self._read_ahead()
            self._hand_over(0 if self._scores or self._calls else seconds)
        except WorkerLostError as lost:
            self._crew.restart(lost)
            self._begin()

    def finish(self) -> Learned:
        """Hand over the rest, save the model, and wait for all that was asked; shards go on sampling
        meanwhile."""
        while not (self._closed and not self._calls and not self._scores):
            self._dealing.turn(WAIT)
            self.advance(WAIT)
        self._open = False
        return self._learned

    def settle(self) -> None:
        """Wait for all that was asked so far, and what that leads to."""
        self.advance()
        while self._rows or self._calls or self._scores:
            self.advance(WAIT)

    def _begin(self) -> None:
        """From the epoch's start: as at first, and where the reward trainer was lost."""
        for asked in (*self._rows, *self._scores):
            self._dealing.forget(asked)
        self._todo = {phase: deque(self._dealing.of(phase)) for phase in TRAINING}
        self._rows, self._scores = deque(), deque()
        self._calls = deque[_Training]()
        self._heard = time.monotonic()
        self._read, self._placing = 0, 0
        self._updated, self._closed = False, False
        self._learned = Learned()
        config = self._run.config
        epoch = self._dealing.epoch
        start = self._run.reward(epoch - 1) if epoch > 1 else config.pctr.start
        if start is not None:
            self._ask("load", absolute(start), config.pctr)

    def _read_ahead(self) -> None:
        """Ask the shards for the rows of the next chunks, as long as those are whole."""
        rewarded, preferred = self._todo["reward"], self._todo["preference"]
        while self._next(rewarded):
            self._rows.append(self._dealing.ask(rewarded.popleft(), "rows"))
        while self._predicts and self._updated and self._next(preferred):
            self._rows.append(self._dealing.ask(preferred.popleft(), "rows"))
        while not self._predicts and self._next(preferred):
            self._score(preferred.popleft(), None)

    def _next(self, todo: deque[Chunk]) -> bool:
        under_way = len(self._rows) + len(self._calls) + len(self._scores)
        return bool(todo) and under_way < IN_FLIGHT and self._dealing.whole(todo[0])

    def _hand_over(self, seconds: float) -> None:
        """Give the trainer the rows that are there, in the order of the plan."""
        while self._rows and (reply := self._dealing.reply(self._rows[0], seconds)) is not None:
            (read, placing), rows = reply
            chunk = self._rows.popleft().chunk
            if chunk.phase == "preference":
                call = self._crew.reward.call(0, "predict", rows)
                self._under_way(_Training(call, lambda _: None, chunk))
                continue
            self._read += read
            self._placing += placing
            held = self._held.intersection(chunk.auction_ids)
            self._ask("take" if self._learns else "keep", rows, held)
        if not self._updated and not self._rows and not self._todo["reward"]:
            self._updated = True
            self._refuse_bare()
            if self._learns:
                self._ask("update", then=self._fitted)
        if self._updated and not self._closed and not self._rows and not self._todo["preference"]:
            self._closed = True
            self._ask("measure", then=self._measured)
            self._ask("save", self._run.reward(self._dealing.epoch))

    def _take_trained(self, seconds: float) -> None:
        """Take what the trainer has done; send predictions to the shards that score by them."""
        while self._calls and self._trained(self._calls[0], seconds):
            self._calls.popleft()
            self._heard = time.monotonic()
        limit = self._crew.config.deadlines.reward
        if self._calls and time.monotonic() - self._heard > limit:
            next_item([self._calls[0].call], 0, f"the reward trainer's {self._calls[0].call.method}")

    def _trained(self, one: _Training, seconds: float) -> bool:
        """Whether a call is done, and what it gave taken."""
        if not one.predicted:
            found = soon([one.call], seconds)
            if found is None:
                return False
            if one.chunk is None:
                one.call.finish()
                one.then(found[1])
                return True
            one.call.was("predict_intervals")
            one.predicted = True
        predictions = soon_reference(one.call, seconds)
        if predictions is None or one.chunk is None:
            return False
        one.call.finish()
        self._score(one.chunk, predictions)
        return True

    def _take_scores(self, seconds: float) -> None:
        while self._scores and (reply := self._dealing.reply(self._scores[0], seconds)) is not None:
            self._scores.popleft()
            scored, groups = reply
            self._learned.parts.append((scored, self._crew.stored(groups)))

    def _score(self, chunk: Chunk, predictions: Any) -> None:
        self._scores.append(self._dealing.ask(chunk, "score", predictions, self._crew.encoder))

    def _refuse_bare(self) -> None:
        """End a run whose answers hold hardly an ad, before anything is trained on them.

        Raises:
            RunError: fewer than `irpo.least_placed` of the judged answers place one.
        """
        least = self._run.config.irpo.least_placed
        if self._placing and self._placing >= least * self._read:
            return
        raise RunError(
            f"epoch {self._dealing.epoch}: {self._placing} of {self._read} judged answers of "
            f"{self._crew.version.name} place a valid ad ({self._placing / max(1, self._read):.1%}), less "
            f"than irpo.least_placed={least:g}: there is nothing to learn clicks from; teach the model to "
            "place ads with `raylla warmstart`, or start from one that does (ad_llm.path)"
        )

    def _fitted(self, report: dict[str, float]) -> None:
        self._learned.fit = report

    def _measured(self, report: dict[str, float]) -> None:
        self._learned.held_out = report

    def _ask(self, method: str, *args: Any, then: Callable[[Any], None] = lambda _: None) -> None:
        self._under_way(_Training(self._crew.reward.call(0, method, *args), then))

    def _under_way(self, one: _Training) -> None:
        if not self._calls:
            self._heard = time.monotonic()
        self._calls.append(one)


def held_out(run: Run, rewarded: list[Chunk]) -> frozenset[str]:
    """Phase-1 auctions that the pCTR model never learns from; it is measured on them."""
    auctions = [name for chunk in rewarded for name in chunk.auction_ids]
    count = int(len(auctions) * run.config.irpo.pctr_holdout)
    return frozenset(random.Random(f"{run.config.seed}/holdout").sample(auctions, count))
