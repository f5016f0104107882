"""One weight version's answers and their judgements, streamed.

Rollout workers share all requests in the order in which they are needed: phase 1, phase 2, test.
Where their number is fixed each gets its share at once; where it changes (`rollout.min_workers`), parts
that get smaller towards the end, so that there is work for who joins.  The judge starts on the first
finished answer and takes what has gathered whenever it is free; nothing else waits for it.
`Stream.until` hands control back as soon as the phases that somebody waits for are whole, while the
later ones go on.

Without ``irpo.overlap`` each phase is asked for when it is waited for, and its answers go to the
judge when all of them are there: the order of Algorithm 1 as written.  Samples, seeds and judgements
are the same either way.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from raylla.actors.judge import JudgeItem, Judgement, judge_item
from raylla.actors.pool import DONE, Call, next_item, soon
from raylla.auction import parse
from raylla.config import Config
from raylla.engines.protocol import Generated, Request
from raylla.errors import BudgetError, WorkerLostError
from raylla.irpo.crew import Crew
from raylla.irpo.dispatch import Dispatch
from raylla.records import Answer, Click, Phase, Planned
from raylla.runs.observe import Observer
from raylla.world import World, bids, prompts

JUDGE_BATCH = 128


@dataclass(slots=True)
class Sampled:
    """What some phases of one weight version brought in. Answers are in the order of the plan.

    ``clicks`` and, where the judge gave them, ``probabilities`` are by sample id and ad id; ``terms``, the
    values of ``reward_terms`` where they are known, by sample id and name.
    """

    plan: dict[str, Planned]
    version: str
    answers: list[Answer] = field(default_factory=list)
    clicks: dict[str, dict[str, bool]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    probabilities: dict[str, dict[str, float]] = field(default_factory=dict)
    terms: dict[str, dict[str, float]] = field(default_factory=dict)

    def of(self, phase: Phase) -> Iterator[tuple[Planned, Answer]]:
        """The answers of one phase with their auctions."""
        for answer in self.answers:
            planned = self.plan[answer.auction_id]
            if planned.phase == phase:
                yield planned, answer

    def judged(self, phase: Phase) -> Iterator[tuple[Planned, Answer, dict[str, bool]]]:
        """The answers of one phase that have a judgement: ad id -> clicked."""
        for planned, answer in self.of(phase):
            if answer.sample_id in self.clicks:
                yield planned, answer, self.clicks[answer.sample_id]

    def whole(self, auction_id: str) -> bool:
        """Whether an auction's answers are there and judged: of a finished stage all are."""
        return auction_id in self.plan

    def part(self, auctions: Sequence[Planned]) -> Sampled:
        """What there is of these auctions."""
        plan = {planned.auction.id: planned for planned in auctions}
        answers = [answer for answer in self.answers if answer.auction_id in plan]
        return Sampled(plan, self.version, answers, self.clicks, probabilities=self.probabilities)

    def click_records(self) -> list[Click]:
        """All judgements, flat."""
        return [
            Click(sample_id, ad_id, clicked, self.probabilities.get(sample_id, {}).get(ad_id))
            for sample_id, ads in self.clicks.items()
            for ad_id, clicked in ads.items()
        ]


def readings(sample_id: str, count: int) -> list[str]:
    """Names of the judgements of one answer that is read ``count`` times."""
    return [f"{sample_id}#{reading}" for reading in range(count)]


class Stream:
    """What the live weights answer to the ``planned`` auctions of an epoch, as it comes in."""

    def __init__(
        self,
        config: Config,
        world: World,
        crew: Crew,
        watch: Observer,
        planned: Sequence[Planned],
    ) -> None:
        self.version = crew.version.name
        self.plan = {item.auction.id: item for item in planned}
        self._config = config
        self._catalogue = world.ad_ids
        self._crew = crew
        self._watch = watch
        self._waves = _waves([item for item in planned if item.n], config.irpo.overlap)
        start = config.deadlines.start
        self._rollouts = Dispatch(crew.rollouts, crew.bring_up, watch, start)
        self._judges = Dispatch(crew.judges, crew.bring_up, watch, start)
        self._asked: deque[Planned] = deque()
        self._queue: dict[Phase, deque[JudgeItem]] = {
            phase: deque() for phase in dict.fromkeys(item.phase for item in planned)
        }
        self._read: dict[str, tuple[Planned, list[str]]] = {}
        self._answers: dict[str, list[Answer]] = {}
        self._clicks: dict[str, dict[str, dict[str, bool]]] = {name: {} for name in self.plan}
        self._probabilities: dict[str, dict[str, dict[str, float]]] = {name: {} for name in self.plan}
        self._open = dict.fromkeys(self.plan, 1)
        self._left = Counter(item.phase for item in planned)
        self._judged: Counter[Phase] = Counter()
        self._dropped: dict[Phase, Counter[str]] = {phase: Counter() for phase in self._left}

    def until(self, phases: Sequence[Phase], then: Callable[[], None] = lambda: None) -> None:
        """Take what comes in until every auction of ``phases`` is whole; ``then`` runs after each item.

        Raises:
            WorkerLostError: a worker was lost, or said nothing for ``deadlines.sample`` seconds of its
                work, once more than its group's ``max_restarts``.
        """
        while self._wanted(phases):
            try:
                self._take(*self._next())
            except WorkerLostError as lost:
                self._send_again(lost)
            then()
        if not any(self._left.values()):
            self._rollouts.close()
            self._judges.close()

    def hand_in(self, auction_id: str, answers: list[Answer], clicks: dict[str, dict[str, bool]]) -> None:
        """Keep what an auction was answered elsewhere, and what of it was clicked (by sample id)."""
        self._answers[auction_id], self._clicks[auction_id] = answers, clicks
        self._settle(self.plan[auction_id])

    def due(self, phase: Phase) -> int:
        """Answers of a phase that are still to come."""
        asked = (one for one in self.plan.values() if one.phase == phase)
        return sum(one.n for one in asked if one.auction.id not in self._answers)

    def whole(self, auction_id: str) -> bool:
        """Whether an auction's answers are there and judged."""
        return self._open[auction_id] == 0

    def part(self, auctions: Sequence[Planned]) -> Sampled:
        """What has come in of these auctions, in this order."""
        found = Sampled({planned.auction.id: planned for planned in auctions}, self.version)
        for name in found.plan:
            found.answers += self._answers.get(name, [])
            found.clicks.update(sorted(self._clicks[name].items()))
            found.probabilities.update(self._probabilities[name])
        return found

    def result(self, *phases: Phase) -> Sampled:
        """Everything of these phases, and the drop budget enforced.

        Raises:
            BudgetError: more than ``irpo.max_drop_share`` of the answers or judgements were lost.
        """
        found = self.part([planned for planned in self.plan.values() if planned.phase in phases])
        for phase in phases:
            found.dropped.update(self._dropped.get(phase, {}))
        asked = sum(planned.n for planned in found.plan.values())
        share = self._config.irpo.max_drop_share
        for kind, total in (
            ("answer", asked),
            ("judgement", sum(self._judged[phase] for phase in phases)),
        ):
            lost = found.dropped[kind]
            if lost > share * total:
                raise BudgetError(
                    f"{lost} of {total} {kind}s under {self.version} were dropped, more than "
                    f"irpo.max_drop_share={share} allows; see the engine's and judge's output"
                )
        return found

    def _wanted(self, phases: Sequence[Phase]) -> bool:
        if any(self._left.values()):
            return any(self._left[phase] for phase in phases)
        return bool(self._rollouts.calls or self._judges.calls)  # their ends are still to be taken

    def _ask(self) -> None:
        """Queue the next wave for the rollout workers, once the one before it is answered and judged."""
        busy = self._asked or self._rollouts.calls or self._judges.calls
        if not self._waves or busy or any(self._queue.values()):
            return
        self._asked += self._waves.popleft()

    def _deal(self) -> None:
        """Give free rollout workers their share of the requests, and have more of them where some wait."""
        queue, free, pool = self._asked, self._rollouts.free, self._crew.rollouts
        # So many fill an engine. While many wait it gets more, for each part's end leaves it half empty.
        fill = max(1, self._config.engine.max_num_seqs // queue[0].n) if queue else 1
        if queue and free:
            part = max(fill, len(queue) // (2 * pool.most)) * len(free)
            count = len(queue) if pool.least == pool.most else min(part, len(queue))
            dealt = [queue.popleft() for _ in range(count)]
            for place, worker in enumerate(sorted(free)[: len(dealt)]):
                share = dealt[place :: len(free)]
                asked = [self._request(one) for one in share]
                self._rollouts.give(worker, share, "generate", asked, self.version)
        self._rollouts.fit(len(queue) / fill)

    def _request(self, planned: Planned) -> Request:
        """Made when it is sent: the prompts of all auctions together would fill the driver's memory."""
        config, auction = self._config, planned.auction
        known = config.dpo.reference == "policy" and config.dpo.reference_logprobs == "rollout"
        return Request(
            auction.id,
            prompts.of(config.ad_llm, planned.query, planned.profile, planned.ads, auction.bids),
            planned.n,
            bids.seed_of(config.seed, f"{self.version}/{auction.id}"),
            known and planned.phase == "preference",
            turns=len(planned.query.turns),
        )

    def _send_again(self, lost: WorkerLostError) -> None:
        """Start a lost worker anew, and queue first what it had not finished."""
        if self._rollouts.missed(lost) or self._judges.missed(lost):
            return
        self._crew.restart(lost)
        left = [one for one in self._rollouts.lost() if one.auction.id not in self._answers]
        self._asked.extendleft(reversed(left))
        for item in reversed(self._judges.lost()):
            if item.sample_id in self._read:
                planned, _ = self._read[item.sample_id]
                self._queue[planned.phase].appendleft(item)

    def _feed(self) -> None:
        """Give free judges what has gathered, of the phase that is needed first."""
        early = bool(self._asked or self._rollouts.calls) and not self._config.irpo.overlap
        free = [] if early else self._judges.free
        while free and any(self._queue.values()):
            queue = next(queue for queue in self._queue.values() if queue)
            batch = [queue.popleft() for _ in range(min(JUDGE_BATCH, len(queue)))]
            self._judges.give(free.pop(0), batch, "judge", batch)
        self._judges.fit(0 if early else sum(map(len, self._queue.values())) / JUDGE_BATCH)

    def _next(self) -> tuple[Call, object]:
        """Hand out what waits, then take what comes in next; pools change their size meanwhile."""
        what, limit = f"the next answer or judgement under {self.version}", self._config.deadlines.sample
        while True:
            self._ask()
            self._deal()
            self._feed()
            working = [*self._rollouts.calls, *self._judges.calls]
            left = min((call.heard for call in working), default=math.inf) + limit - time.monotonic()
            wake = min(self._rollouts.wake(), self._judges.wake())
            calls = [*self._rollouts.waits, *self._judges.waits]
            found = soon(calls, max(0.0, min(left, wake))) if calls else None
            if found is not None:
                return found
            if left <= wake:
                return next_item(working, 0, what)

    def _take(self, call: Call, item: object) -> None:
        if self._rollouts.joined(call, item) or self._judges.joined(call, item):
            return
        if isinstance(item, Generated):
            self._take_answers(call, item)
        elif isinstance(item, Judgement):
            self._take_judgement(call, item)
        elif item is DONE:
            (self._judges if call in self._judges.calls else self._rollouts).done(call)

    def _take_answers(self, call: Call, generated: Generated) -> None:
        """Keep the answers to one request, and queue those that the judge has to read."""
        planned = self.plan[generated.request_id]
        call.was(planned.phase)
        if generated.error is not None:
            self._dropped[planned.phase]["answer"] += planned.n
        answers = [
            Answer(
                bids.sample_id(planned.auction.id, draw),
                planned.auction.id,
                draw,
                self.version,
                completion.text,
                generated.prompt_token_ids,
                completion.token_ids,
                completion.logprob,
            )
            for draw, completion in enumerate(generated.completions)
        ]
        self._answers[planned.auction.id] = answers
        self._submit(planned, answers)
        self._settle(planned)
        tokens = sum(len(completion.token_ids) for completion in generated.completions)
        self._watch.advance(planned.phase, len(answers), tokens)

    def _submit(self, planned: Planned, answers: Sequence[Answer]) -> None:
        """Queue each distinct text once: what the judge says of it holds for all draws of it.

        Each draw's click keeps its own chance, so that nothing is biased; draws of one text are no
        longer independent, and the first one's name gives the judge's seed.
        """
        alike: dict[str, list[str]] = {}
        for answer in answers:
            alike.setdefault(answer.text, []).append(answer.sample_id)
        for text, names in alike.items():
            for same in zip(*(self._readings(planned.phase, name) for name in names), strict=True):
                self._queue_reading(planned, text, list(same))

    def _readings(self, phase: Phase, sample_id: str) -> list[str]:
        """Names of the judgements that an answer needs."""
        if phase != "preference":
            return [sample_id]
        if self._config.irpo.reward == "judge":
            return readings(sample_id, self._config.readings)
        return []

    def _queue_reading(self, planned: Planned, text: str, names: list[str]) -> None:
        parsed = parse(text, planned.ads, self._catalogue)
        if not parsed.placements:
            self._clicks[planned.auction.id].update((name, {}) for name in names)
            return
        ads = {ad.id: ad for ad in planned.ads}
        seed = bids.seed_of(self._config.seed, f"judge/{self.version}/{names[0]}")
        item = judge_item(
            self._config.user_llm,
            names[0],
            planned.query,
            planned.profile,
            text,
            parsed.placements,
            ads,
            seed,
        )
        self._queue[planned.phase].append(item)
        self._read[names[0]] = (planned, names)
        self._open[planned.auction.id] += 1
        self._watch.expect("judgements", 1)

    def _take_judgement(self, call: Call, judgement: Judgement) -> None:
        """Keep one judgement; an unparseable one is dropped and counted."""
        planned, names = self._read.pop(judgement.sample_id)
        call.was(planned.phase)
        self._judged[planned.phase] += len(names)
        if judgement.clicks is None:
            self._dropped[planned.phase]["judgement"] += len(names)
        else:
            self._clicks[planned.auction.id].update((name, judgement.clicks) for name in names)
        if judgement.probabilities is not None:
            told = judgement.probabilities
            self._probabilities[planned.auction.id].update((name, told) for name in names)
        self._settle(planned)
        self._watch.advance("judgements", 1, 0)

    def _settle(self, planned: Planned) -> None:
        self._open[planned.auction.id] -= 1
        if self.whole(planned.auction.id):
            self._left[planned.phase] -= 1


def _waves(planned: Sequence[Planned], overlap: bool) -> deque[list[Planned]]:
    """The auctions that are asked for together: all of them, or one phase after another."""
    if overlap:
        return deque([list(planned)] if planned else [])
    waves: dict[Phase, list[Planned]] = {}
    for one in planned:
        waves.setdefault(one.phase, []).append(one)
    return deque(waves.values())
