"""The pCTR model's part of an epoch, handed over as soon as what it needs is there.

The reward trainer runs its calls in the order in which they are made. They are made in the order of
the plan, whenever that is, a few auctions at a time: phase 1 to be encoded, the update once all of
it is judged, then phase 2 to be scored. So the model and the scores do not depend on when answers
came in, only the waiting does.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from raylla.actors.pool import Call
from raylla.auction import parse
from raylla.errors import RunError, WorkerLostError
from raylla.irpo.crew import Crew
from raylla.irpo.sampling import Sampled
from raylla.irpo.scoring import careful_rate, rows_of, values_of
from raylla.records import Phase, Planned, Prediction
from raylla.reward.rows import ClickRow, click_rows
from raylla.runs.state import Run
from raylla.storage import absolute
from raylla.world import World

AUCTIONS_PER_CALL = 16
"""Auctions of one call."""


class AnswerSource(Protocol):
    """Where answers come from: a stream that is under way, or a finished stage."""

    def whole(self, auction_id: str) -> bool:
        """Whether an auction's answers are there and judged."""

    def part(self, auctions: Sequence[Planned]) -> Sampled:
        """What has come in of these auctions."""


@dataclass(slots=True)
class Learned:
    """``rates``: click probability of each ad of every phase-2 answer, by sample id, lowered towards the
    low end of its interval by `irpo.risk`; ``fit`` and
    ``held_out``: what the update and the evaluation on held-out auctions reported; ``terms``: values of
    ``reward_terms`` of every phase-2 answer, by sample id and name."""

    rates: dict[str, dict[str, float]] = field(default_factory=dict)
    fit: dict[str, float] = field(default_factory=dict)
    held_out: dict[str, float] = field(default_factory=dict)
    terms: dict[str, dict[str, float]] = field(default_factory=dict)


class Learner:
    """Takes one epoch's answers to the reward trainer and its predictions back."""

    def __init__(self, run: Run, crew: Crew, world: World, epoch: int, planned: Sequence[Planned]) -> None:
        config = run.config
        last = config.irpo.reward_epochs
        self._run, self._crew, self._world, self._epoch = run, crew, world, epoch
        self._planned = planned
        self._learns = last is None or epoch <= last
        self._predicts = config.irpo.reward == "pctr"
        self._held = held_out(run, planned)
        self._begin()

    def _begin(self) -> None:
        """From the epoch's start: as at first, and where the reward trainer was lost."""
        self._chunks = {phase: _chunks(self._planned, phase) for phase in ("reward", "preference")}
        self._held_rows: list[ClickRow] = []
        self._read, self._placing = 0, 0
        self._updated = False
        self._calls: list[tuple[Call, Callable[[Any], None]]] = []
        self._learned = Learned()
        config = self._run.config
        start = self._run.reward(self._epoch - 1) if self._epoch > 1 else config.pctr.start
        if start is not None:
            self._ask("load", absolute(start), config.pctr)

    def advance(self, source: AnswerSource) -> None:
        """Hand over everything of ``source`` that is whole and whose turn it is."""
        for auctions in self._whole("reward", source):
            part = source.part(auctions)
            every = rows_of(self._world, part, "reward")
            self._read += sum(1 for _ in part.judged("reward"))
            self._placing += len({row.sample_id for row in every})
            self._held_rows += [row for row in every if _auction(row) in self._held]
            if self._learns:
                self._ask("take", [row for row in every if _auction(row) not in self._held])
        if not self._updated and not self._chunks["reward"]:
            self._updated = True
            self._refuse_bare()
            if self._learns:
                self._ask("update", then=self._fitted)
        if self._updated and self._predicts:
            for auctions in self._whole("preference", source):
                self._predict(source.part(auctions))

    def _refuse_bare(self) -> None:
        """End a run whose answers hold hardly an ad, before anything is trained on them.

        Raises:
            RunError: fewer than `irpo.least_placed` of the judged answers place one.
        """
        least = self._run.config.irpo.least_placed
        if self._placing and self._placing >= least * self._read:
            return
        raise RunError(
            f"epoch {self._epoch}: {self._placing} of {self._read} judged answers of "
            f"{self._crew.version.name} place a valid ad ({self._placing / max(1, self._read):.1%}), less "
            f"than irpo.least_placed={least:g}: there is nothing to learn clicks from; teach the model to "
            "place ads with `raylla warmstart`, or start from one that does (ad_llm.path)"
        )

    def finish(self, source: AnswerSource) -> Learned:
        """Hand over the rest, save the model, and wait for all that was asked.

        Raises:
            DeadlineError: a call took longer than ``deadlines.reward``.
        """

        def rest() -> None:
            self.advance(source)
            self._ask("evaluate", self._held_rows, then=self._evaluated)
            self._ask("save", self._run.reward(self._epoch))

        self._wait(rest)
        answered = source.part([one for one in self._planned if one.phase == "preference"])
        self._learned.terms = values_of(self._run, self._crew, self._world, answered, "preference")
        return self._learned

    def settle(self, source: AnswerSource) -> None:
        """Wait for all that was asked so far."""
        self._wait(lambda: self.advance(source))

    def _wait(self, ask: Callable[[], None]) -> None:
        """``ask``, then wait; where the reward trainer is lost, all of it again from the beginning."""
        while True:
            ask()
            try:
                for call, then in self._calls:
                    then(self._crew.reward_answer(call))
            except WorkerLostError as lost:
                self._crew.restart(lost)
                self._begin()
            else:
                self._calls.clear()
                return

    def _whole(self, phase: Phase, source: AnswerSource) -> Iterator[list[Planned]]:
        """The next chunks of a phase, as long as they are whole."""
        chunks = self._chunks[phase]
        while chunks and all(source.whole(planned.auction.id) for planned in chunks[0]):
            yield chunks.popleft()

    def _predict(self, sampled: Sampled) -> None:
        asked: list[ClickRow] = []
        ads = self._world.ad_by_id
        for planned, answer in sampled.of("preference"):
            placed = parse(answer.text, planned.ads).placements
            self._learned.rates[answer.sample_id] = {}
            asked += click_rows(
                answer.sample_id, planned.query, planned.profile, answer.text, placed, ads, None
            )
        self._ask("predict_intervals", asked, then=lambda found: self._predicted(asked, found))

    def _predicted(self, asked: Sequence[ClickRow], found: Sequence[Prediction]) -> None:
        risk = self._run.config.irpo.risk
        for row, one in zip(asked, found, strict=True):
            self._learned.rates[row.sample_id][row.ad_id] = careful_rate(one, risk)

    def _fitted(self, found: dict[str, float]) -> None:
        self._learned.fit = found

    def _evaluated(self, found: dict[str, float]) -> None:
        self._learned.held_out = found

    def _ask(self, method: str, *args: Any, then: Callable[[Any], None] = lambda _: None) -> None:
        self._calls.append((self._crew.reward.call(0, method, *args), then))


def held_out(run: Run, planned: Sequence[Planned]) -> set[str]:
    """Phase-1 auctions that the pCTR model never learns from; it is measured on them."""
    auctions = [one.auction.id for one in planned if one.phase == "reward"]
    count = int(len(auctions) * run.config.irpo.pctr_holdout)
    return set(random.Random(f"{run.config.seed}/holdout").sample(auctions, count))


def _auction(row: ClickRow) -> str:
    return row.sample_id.rpartition("/")[0]


def _chunks(planned: Sequence[Planned], phase: Phase) -> deque[list[Planned]]:
    auctions = [one for one in planned if one.phase == phase]
    return deque(
        auctions[start : start + AUCTIONS_PER_CALL] for start in range(0, len(auctions), AUCTIONS_PER_CALL)
    )
