"""One weight version's answers and their judgements in one shard, streamed.

Rollout workers share the requests of the shard's chunks in the order in which they are needed: phase 1,
phase 2, test.  Where their number is fixed and all chunks fit into `shards.auctions` each gets its share at
once; else parts that get smaller towards the end, so that there is work for who joins.  The judge starts on
the first finished answer and takes what has gathered whenever it is free; nothing else waits for it.
A chunk whose last answer is judged is handed on to be written, and forgotten here.

Without ``irpo.overlap`` a shard is given the chunks of one phase after those of the other, and the answers
go to the judge when all of them are there: the order of Algorithm 1 as written.  Samples, seeds and
judgements are the same either way, and in any number of shards.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from raylla.actors.judge import JudgeItem, Judgement, judge_item
from raylla.actors.pool import DONE, Call, next_item, soon
from raylla.auction import ReadAnswer, parse
from raylla.config import Config
from raylla.engines.protocol import Generated, Request
from raylla.errors import WorkerLostError
from raylla.irpo.dispatch import Dispatch
from raylla.irpo.schedule import Chunk, plan_chunk
from raylla.irpo.shards.squad import Squad, Witness
from raylla.records import Answer, Click, Phase, Planned
from raylla.world import World, bids, prompts

JUDGE_BATCH = 128

ORDER: tuple[Phase, ...] = ("reward", "preference", "test")
"""Phases in the order in which they are needed."""


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
    _read: dict[str, ReadAnswer] = field(default_factory=dict, repr=False, compare=False)

    def read(self, answer: Answer) -> ReadAnswer:
        """One of the answers with its auction and what it places; its text is parsed once."""
        if answer.sample_id not in self._read:
            self._read[answer.sample_id] = ReadAnswer.of(self.plan[answer.auction_id], answer.text)
        return self._read[answer.sample_id]

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

    def add(self, other: Sampled) -> None:
        """Take what came in of later auctions, too."""
        self.plan |= other.plan
        self.answers += other.answers
        self.clicks |= other.clicks
        self.dropped.update(other.dropped)
        self.probabilities |= other.probabilities
        self.terms |= other.terms

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


@dataclass(slots=True)
class _InHand:
    """An auction that is asked for: ``open`` counts what is still to come, its answers and judgements."""

    planned: Planned
    chunk: int
    answers: list[Answer] | None = None
    clicks: dict[str, dict[str, bool]] = field(default_factory=dict)
    probabilities: dict[str, dict[str, float]] = field(default_factory=dict)
    open: int = 1


@dataclass(slots=True)
class Chunked:
    """A chunk in hand: ``left`` of its auctions are not whole. When none is, ``judged`` draws were read,
    and ``refused`` are the places of the auctions that the engine would not answer."""

    chunk: Chunk
    auctions: list[Planned]
    left: int
    judged: int = 0
    refused: list[int] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


ServedAnswers = Mapping[str, tuple[list[Answer], dict[str, dict[str, bool]]]]
"""Answers to auctions that users were answered, and their clicks by sample id, by auction id."""


class Stream:
    """What the live weights answer to one shard's chunks of an epoch, as it comes in.

    Args:
        keep: takes a chunk that is whole, with what came in of it.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        squad: Squad,
        watch: Witness,
        keep: Callable[[Chunked, Sampled], None],
    ) -> None:
        self.version = squad.version.name
        self._config = config
        self._world = world
        self._squad = squad
        self._watch = watch
        self._keep = keep
        start = config.deadlines.start
        self._rollouts = Dispatch(squad.rollouts, squad.bring_up, watch, start)
        self._judges = Dispatch(squad.judges, squad.bring_up, watch, start)
        self._coming: deque[Chunk] = deque()
        self._served: dict[str, tuple[list[Answer], dict[str, dict[str, bool]]]] = {}
        self._chunks: dict[int, Chunked] = {}
        self._hand: dict[str, _InHand] = {}
        self._asked: deque[Planned] = deque()
        self._queue: dict[Phase, deque[JudgeItem]] = {}
        self._read: dict[str, tuple[str, list[str]]] = {}

    def add(self, chunks: Sequence[Chunk], served: ServedAnswers) -> None:
        """Ask for these chunks, after those that came before; ``served`` has those that need no asking."""
        self._coming += chunks
        self._served |= served

    @property
    def busy(self) -> bool:
        """Whether something is still to come, if only the ends of calls."""
        return bool(self._coming or self._chunks or self._rollouts.calls or self._judges.calls)

    def work(self, seconds: float) -> None:
        """Take what comes in for so long, or until there is nothing more.

        Raises:
            WorkerLostError: a worker was lost, or said nothing for ``deadlines.sample`` seconds of its
                work, once more than its group's ``max_restarts``.
        """
        until = time.monotonic() + seconds
        while self.busy:
            try:
                found = self._next(until)
                if found is not None:
                    self._take(*found)
            except WorkerLostError as lost:
                self._send_again(lost)
            if time.monotonic() >= until:
                return

    def close(self) -> None:
        """No more chunks come: go back to the least workers at once."""
        self._rollouts.close()
        self._judges.close()

    def _admit(self) -> None:
        """Take chunks in hand, as many as may be: at least one."""
        most = self._config.shards.auctions
        while self._coming and (not self._hand or len(self._hand) + len(self._coming[0].queries) <= most):
            chunk = self._coming.popleft()
            auctions = plan_chunk(self._config, self._world, chunk)
            self._chunks[chunk.number] = Chunked(chunk, auctions, len(auctions))
            self._hand |= {planned.auction.id: _InHand(planned, chunk.number) for planned in auctions}
            self._asked += (planned for planned in auctions if planned.n)
            for planned in auctions:
                if not planned.n:
                    self._hand_in(self._hand[planned.auction.id])

    def _hand_in(self, held: _InHand) -> None:
        """Keep what an auction was answered elsewhere, and what of it was clicked."""
        answers, clicks = self._served.pop(held.planned.auction.id)
        held.answers, held.clicks = answers, clicks
        self._settle(held)

    def _deal(self) -> None:
        """Give free rollout workers their share of the requests, and have more of them where some wait."""
        queue, free, pool = self._asked, self._rollouts.free, self._squad.rollouts
        # So many fill an engine. While many wait it gets more, for each part's end leaves it half empty.
        fill = max(1, self._config.engine.max_num_seqs // queue[0].n) if queue else 1
        if queue and free:
            part = max(fill, len(queue) // (2 * pool.most)) * len(free)
            all_known = pool.least == pool.most and not self._coming
            count = len(queue) if all_known else min(part, len(queue))
            dealt = [queue.popleft() for _ in range(count)]
            for place, worker in enumerate(sorted(free)[: len(dealt)]):
                share = dealt[place :: len(free)]
                asked = [self._request(planned) for planned in share]
                self._rollouts.give(worker, share, "generate", asked, self.version)
        self._rollouts.fit(len(queue) / fill)

    def _request(self, planned: Planned) -> Request:
        """Made when it is sent: the prompts of all auctions together would fill the memory."""
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
        self._squad.restart(lost)
        left = [planned for planned in self._rollouts.lost() if self._unanswered(planned)]
        self._asked.extendleft(reversed(left))
        for item in reversed(self._judges.lost()):
            if item.sample_id in self._read:
                auction, _ = self._read[item.sample_id]
                self._waiting(self._hand[auction].planned.phase).appendleft(item)

    def _unanswered(self, planned: Planned) -> bool:
        held = self._hand.get(planned.auction.id)
        return held is not None and held.answers is None

    def _waiting(self, phase: Phase) -> deque[JudgeItem]:
        return self._queue.setdefault(phase, deque())

    def _feed(self) -> None:
        """Give free judges what has gathered, of the phase that is needed first."""
        early = bool(self._asked or self._rollouts.calls) and not self._config.irpo.overlap
        free = [] if early else self._judges.free
        while free and any(self._queue.values()):
            queue = next(self._queue[phase] for phase in ORDER if self._queue.get(phase))
            batch = [queue.popleft() for _ in range(min(JUDGE_BATCH, len(queue)))]
            self._judges.give(free.pop(0), batch, "judge", batch)
        self._judges.fit(0 if early else sum(map(len, self._queue.values())) / JUDGE_BATCH)

    def _next(self, until: float) -> tuple[Call, object] | None:
        """Hand out what waits, then take what comes in next, if it does ``until`` then; pools change their
        size meanwhile."""
        what, limit = f"the next answer or judgement under {self.version}", self._config.deadlines.sample
        self._admit()
        if not self.busy:
            return None  # all was answered elsewhere
        self._deal()
        self._feed()
        now = time.monotonic()
        working = [*self._rollouts.calls, *self._judges.calls]
        left = min((call.heard for call in working), default=math.inf) + limit - now
        wake = min(self._rollouts.wake(), self._judges.wake(), until - now)
        calls = [*self._rollouts.waits, *self._judges.waits]
        found = soon(calls, max(0.0, min(left, wake))) if calls else None
        if found is None and (left <= wake or not calls):
            return next_item(working, 0, what)
        return found

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
        held = self._hand[generated.request_id]
        planned, chunked = held.planned, self._chunks[held.chunk]
        call.was(planned.phase)
        if generated.error is not None:
            chunked.dropped["answer"] += planned.n
            chunked.refused.append(chunked.auctions.index(planned))
        held.answers = [
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
        self._submit(held, held.answers)
        tokens = sum(len(completion.token_ids) for completion in generated.completions)
        self._watch.advance(planned.phase, len(held.answers), tokens)
        self._settle(held)

    def _submit(self, held: _InHand, answers: Sequence[Answer]) -> None:
        """Queue each distinct text once: what the judge says of it holds for all draws of it.

        Each draw's click keeps its own chance, so that nothing is biased; draws of one text are no
        longer independent, and the first one's name gives the judge's seed.
        """
        alike: dict[str, list[str]] = {}
        for answer in answers:
            alike.setdefault(answer.text, []).append(answer.sample_id)
        for text, names in alike.items():
            for same in zip(*(self._readings(held.planned.phase, name) for name in names), strict=True):
                self._queue_reading(held, text, list(same))

    def _readings(self, phase: Phase, sample_id: str) -> list[str]:
        """Names of the judgements that an answer needs."""
        if phase != "preference":
            return [sample_id]
        if self._config.irpo.reward == "judge":
            return readings(sample_id, self._config.readings)
        return []

    def _queue_reading(self, held: _InHand, text: str, names: list[str]) -> None:
        planned = held.planned
        placements = parse(text, planned.ads).placements
        if not placements:
            held.clicks.update((name, {}) for name in names)
            return
        item = judge_item(
            self._config.user_llm,
            names[0],
            planned.query,
            planned.profile,
            text,
            placements,
            {ad.id: ad for ad in planned.ads},
            bids.seed_of(self._config.seed, f"judge/{self.version}/{names[0]}"),
        )
        self._waiting(planned.phase).append(item)
        self._read[names[0]] = (planned.auction.id, names)
        held.open += 1
        self._watch.expect("judgements", 1)

    def _take_judgement(self, call: Call, judgement: Judgement) -> None:
        """Keep one judgement; an unparseable one is dropped and counted."""
        auction, names = self._read.pop(judgement.sample_id)
        held = self._hand[auction]
        chunked = self._chunks[held.chunk]
        call.was(held.planned.phase)
        chunked.judged += len(names)
        if judgement.clicks is None:
            chunked.dropped["judgement"] += len(names)
        else:
            held.clicks |= dict.fromkeys(names, judgement.clicks)
        if judgement.probabilities is not None:
            held.probabilities |= dict.fromkeys(names, judgement.probabilities)
        self._watch.advance("judgements", 1, 0)
        self._settle(held)

    def _settle(self, held: _InHand) -> None:
        """Something of an auction has come in; a chunk of which nothing more is to come is handed on."""
        held.open -= 1
        if held.open:
            return
        chunked = self._chunks[held.chunk]
        chunked.left -= 1
        if chunked.left:
            return
        sampled = Sampled({planned.auction.id: planned for planned in chunked.auctions}, self.version)
        sampled.dropped.update(chunked.dropped)
        for name in sampled.plan:
            held = self._hand.pop(name)
            sampled.answers += held.answers or []
            sampled.clicks.update(sorted(held.clicks.items()))
            sampled.probabilities.update(held.probabilities)
        del self._chunks[held.chunk]
        self._keep(chunked, sampled)
