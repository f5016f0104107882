"""One weight version's answers and their judgements, streamed.

Each rollout worker gets its share of all requests at once, in the order in which they are
needed: phase 1, phase 2, test.  The judge starts on the first finished answer and takes what
has gathered whenever it is free; nothing else waits for it.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from raylla.actors.judge import JudgeItem, Judgement
from raylla.actors.pool import DONE, Call, next_item
from raylla.auction import parse
from raylla.config import Config
from raylla.engines.protocol import Generated, Request
from raylla.errors import BudgetError
from raylla.irpo.crew import Crew
from raylla.observe import Observer
from raylla.records import Answer, Click, Phase, Planned
from raylla.world import World, bids, prompts

JUDGE_BATCH = 128


@dataclass(slots=True)
class Sampled:
    """What one sampling stage brought in. Answers are in the order of the plan."""

    plan: dict[str, Planned]
    answers: list[Answer] = field(default_factory=list)
    clicks: dict[str, dict[str, bool]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)

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

    def tests(self) -> Sampled:
        """The test answers alone: all that the table at the end needs."""
        plan = {name: planned for name, planned in self.plan.items() if planned.phase == "test"}
        answers = [answer for _, answer in self.of("test")]
        names = {answer.sample_id for answer in answers}
        clicks = {name: ads for name, ads in self.clicks.items() if name in names}
        return Sampled(plan, answers, clicks)

    def click_records(self) -> list[Click]:
        """All judgements, flat."""
        return [
            Click(sample_id, ad_id, clicked)
            for sample_id, ads in self.clicks.items()
            for ad_id, clicked in ads.items()
        ]


def readings(sample_id: str, count: int) -> list[str]:
    """Names of the judgements of one answer that is read ``count`` times."""
    return [f"{sample_id}#{reading}" for reading in range(count)]


def seed_of(seed: int, name: str) -> int:
    """A 31-bit sampling seed that depends on the run's seed and the sample's name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big") >> 1


def sample_answers(
    config: Config, world: World, crew: Crew, watch: Observer, begun: Sampled, version: str
) -> Sampled:
    """Answer every auction of the plan with weights ``version``; judge phases "reward" and "test", and
    "preference", several times, where the judge is the reward.  What ``begun`` holds already, the
    answers and clicks of auctions that were served to users, stays as it is.

    Raises:
        BudgetError: more than ``irpo.max_drop_share`` of the answers or judgements were lost.
        DeadlineError: no sample finished for ``deadlines.sample`` seconds.
    """
    stage = _Stage(config, world, watch, version, begun)
    rollouts = _start_rollouts(config, crew, list(begun.plan.values()), version)
    judges: dict[Call, int] = {}
    free = deque(range(crew.judges.size))
    while rollouts or judges or stage.queue:
        while stage.queue and free:
            batch = [stage.queue.popleft() for _ in range(min(JUDGE_BATCH, len(stage.queue)))]
            worker = free.popleft()
            judges[crew.judges.call(worker, "judge", batch)] = worker
        call, item = next_item(
            [*rollouts, *judges], config.deadlines.sample, f"the next answer or judgement under {version}"
        )
        if item is DONE:
            if call in judges:
                free.append(judges.pop(call))
            else:
                rollouts.remove(call)
        elif isinstance(item, Generated):
            stage.take_answers(item)
        else:
            stage.take_judgement(item)
    return stage.finish()


def _start_rollouts(config: Config, crew: Crew, planned: Sequence[Planned], version: str) -> list[Call]:
    requests = [
        Request(
            item.auction.id,
            prompts.answer(config.ad_llm.prompt, item.query, item.profile, item.ads, item.auction.bids),
            item.n,
            seed_of(config.seed, f"{version}/{item.auction.id}"),
        )
        for item in planned
        if item.n
    ]
    size = crew.rollouts.size
    return [
        crew.rollouts.call(worker, "generate", requests[worker::size], version) for worker in range(size)
    ]


class _Stage:
    """What has come in so far, and what still has to go to the judge."""

    def __init__(self, config: Config, world: World, watch: Observer, version: str, begun: Sampled) -> None:
        self.config = config
        self.catalogue = world.ad_ids
        self.watch = watch
        self.version = version
        self.queue: deque[JudgeItem] = deque()
        self.result = begun
        self.judgements = 0

    def take_answers(self, generated: Generated) -> None:
        """Keep the answers of one request, and queue those that the judge has to read."""
        planned = self.result.plan[generated.request_id]
        if generated.error is not None:
            self.result.dropped["answer"] += planned.n
            return
        for draw, completion in enumerate(generated.completions):
            answer = Answer(
                bids.sample_id(planned.auction.id, draw),
                planned.auction.id,
                draw,
                self.version,
                completion.text,
                generated.prompt_token_ids,
                completion.token_ids,
                completion.logprob,
            )
            self.result.answers.append(answer)
            if planned.phase != "preference":
                self._submit(planned, answer, answer.sample_id)
            elif self.config.irpo.reward == "judge":
                for name in readings(answer.sample_id, self.config.irpo.judgements):
                    self._submit(planned, answer, name)
        tokens = sum(len(completion.token_ids) for completion in generated.completions)
        self.watch.advance("answers", len(generated.completions), tokens)

    def _submit(self, planned: Planned, answer: Answer, name: str) -> None:
        parsed = parse(answer.text, planned.ads, self.catalogue)
        if not parsed.placements:
            self.result.clicks[name] = {}
            return
        by_id = {ad.id: ad for ad in planned.ads}
        shown = [by_id[ad_id] for ad_id in parsed.ad_ids]
        form = self.config.user_llm.prompt
        messages = prompts.judge(form, planned.query, planned.profile, answer.text, shown)
        seed = seed_of(self.config.seed, f"judge/{self.version}/{name}")
        self.queue.append(JudgeItem(name, messages, parsed.ad_ids, seed))
        self.watch.expect("judgements", 1)

    def take_judgement(self, judgement: Judgement) -> None:
        """Keep one judgement; an unparseable one is dropped and counted."""
        self.judgements += 1
        if judgement.clicks is None:
            self.result.dropped["judgement"] += 1
        else:
            self.result.clicks[judgement.sample_id] = judgement.clicks
        self.watch.advance("judgements", 1, 0)

    def finish(self) -> Sampled:
        """Answers in the order of the plan, and the drop budget enforced."""
        order = {name: place for place, name in enumerate(self.result.plan)}
        self.result.answers.sort(key=lambda answer: (order[answer.auction_id], answer.draw))
        asked = sum(planned.n for planned in self.result.plan.values())
        for kind, total in (("answer", asked), ("judgement", self.judgements)):
            lost = self.result.dropped[kind]
            if lost > self.config.irpo.max_drop_share * total:
                raise BudgetError(
                    f"{lost} of {total} {kind}s under {self.version} were dropped, more than "
                    f"irpo.max_drop_share={self.config.irpo.max_drop_share} allows; "
                    "see the engine's and judge's output"
                )
        return self.result
