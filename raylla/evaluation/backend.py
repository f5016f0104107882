"""What mechanisms work with while they are compared: one run's engines, judge and pCTR models.

Everything is asked for once: the same prompt, answer or judgement comes back from what is kept, so that
a sweep over settings, or an evaluation after one that was stopped, costs what it adds.  Texts that were
asked for count in a mechanism's cost whether or not they were kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from raylla.actors.judge import JudgeItem, Judgement, judge_item
from raylla.actors.pool import Pool
from raylla.auction import ReadAnswer, penalty
from raylla.config import Config, Sampling
from raylla.engines.protocol import Aggregate, Aggregated, Generated, Given, Request, Scored
from raylla.errors import BudgetError
from raylla.evaluation.kept import ANSWERS, JOINT_ANSWERS, JUDGEMENTS, SCORES, SECONDS, Kept, Kind
from raylla.irpo.crew import Panel
from raylla.irpo.dispatch import dealt
from raylla.irpo.organic import organic_request
from raylla.irpo.shards.parts import ORGANIC
from raylla.mechanisms.protocol import BASE, TRAINED, Joint, Prompt
from raylla.progress import Steps
from raylla.records import Planned, Prediction
from raylla.reward.rows import ClickRow, click_rows
from raylla.runs.state import Run
from raylla.runs.versions import committed, named, untouched
from raylla.terms.native import Detector
from raylla.terms.protocol import (
    ORGANIC_ANSWERS,
    known_terms,
    named_terms,
    needs_of,
    term_values,
    weighted,
)
from raylla.terms.sources import Sources
from raylla.world import World, prompts
from raylla.world.bids import highest_bid, seed_of
from raylla.world.fit import Fit

DONE_BY = {"generate": "prompts", "aggregate": "prompts", "score": "scores", "judge": "judgements"}
"""What workers' methods do, as progress counts it."""
_Value = TypeVar("_Value")
_SLACK = 10
"""Losses that are no sign yet: a single auction has few answers."""


class EvaluationBackend:
    """A `mechanisms.protocol.Backend` on the actors of ``crew``, for the weights and world of ``run``.

    Args:
        config: the run's own, perhaps with other settings of `evaluation`.
        kept: what is known already; whatever is asked for is added.
        measure: whose penalty and reward terms make the rewards of tables; none: ``config``'s own.
        detector: of native ads; without one, terms that need it are not measured.
    """

    def __init__(
        self,
        run: Run,
        config: Config,
        crew: Panel,
        world: World,
        kept: Kept,
        progress: Steps,
        measure: Config | None = None,
        detector: Detector | None = None,
    ) -> None:
        versions = committed(run)
        self.run = run
        self.world = world
        self.config = config
        self.measure = measure or config
        known = named_terms(known_terms())
        self.terms = [term for term in known if detector is not None or "detector" not in needs_of(term)]
        self.fit = Fit(world, self._encode)
        self.sources = Sources(self.fit, self._untold, detector, config.serving.disclosure)
        self.versions = {weights.name: (weights, probe) for weights, probe in versions}
        self._untouched = untouched(run)
        self.aliases = {BASE: versions[0][0].name, TRAINED: versions[-1][0].name}
        self._crew = crew
        self._kept = kept
        self._progress = progress
        self._predicted: dict[tuple[object, ...], dict[str, Prediction]] = {}
        self._held: tuple[int, int] | None = None
        self._lost: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()

    @property
    def highest_bid(self) -> float:
        """The most that the run's bids may be and its prompts can say."""
        return highest_bid(self.config)

    def write(self, version: str, wanted: Sequence[Prompt]) -> list[Generated]:
        """Answers under a weight version, by its name or `BASE` or `TRAINED`, in the order asked."""
        name = self.aliases.get(version, version)
        requests: dict[str, Request] = {}
        ids = []
        for prompt in wanted:
            planned, messages = prompt.planned, self._messages(prompt)
            id = f"{planned.auction.id}/{prompt.name}/{prompt.n}/{messages}"
            seed = seed_of(self.config.seed, f"{name}/{planned.auction.id}/{prompt.name}")
            requests[id] = Request(id, messages, prompt.n, seed, turns=len(planned.query.turns))
            ids.append(id)
        missing = [request for id, request in requests.items() if not self._kept.holds(ANSWERS, [name, id])]
        if missing:
            self._load(name)
            for generated in self._ask(self._crew.rollouts, "generate", missing, name):
                self._kept.put(ANSWERS, [name, generated.request_id], generated)
        return [self._kept.get(ANSWERS, [name, id]) for id in ids]

    def write_jointly(self, version: str, wanted: Sequence[Joint]) -> list[Aggregated]:
        """Answers that the models of an auction's ads write together, in the order asked."""
        name = self.aliases.get(version, version)
        requests: dict[str, Aggregate] = {}
        ids = []
        for joint in wanted:
            planned = joint.planned
            alone = [Prompt(planned, (ad,), (None,), joint.n) for ad in planned.ads]
            messages = tuple(self._messages(prompt) for prompt in alone)
            id = f"{planned.auction.id}/{joint.name}/{joint.n}/{joint.rule}/{joint.bids}/{messages}"
            seed = seed_of(self.config.seed, f"{name}/{planned.auction.id}/{joint.name}")
            turns = len(planned.query.turns)
            requests[id] = Aggregate(id, messages, joint.bids, joint.rule, joint.n, seed, turns)
            ids.append(id)
        missing = [
            request for id, request in requests.items() if not self._kept.holds(JOINT_ANSWERS, [name, id])
        ]
        if missing:
            self._load(name)
            for aggregated in self._ask(self._crew.rollouts, "aggregate", missing, name):
                self._kept.put(JOINT_ANSWERS, [name, aggregated.id], aggregated)
        return [self._kept.get(JOINT_ANSWERS, [name, id]) for id in ids]

    def score(self, version: str, wanted: Sequence[tuple[Prompt, Sequence[int]]]) -> list[float]:
        """Summed log-probability (nats) of each answer's token ids after its prompt, under a weight
        version and before temperature and cuts."""
        return [scored.logprob for scored in self._scored(version, wanted, None)]

    def score_sampled(self, version: str, wanted: Sequence[tuple[Prompt, Sequence[int]]]) -> list[Scored]:
        """`score` after temperature and cuts: how probable sampling under a version makes each answer.

        Raises:
            ConfigError: as `raylla.engines.sampled.likeliest`.
        """
        return self._scored(version, wanted, self.config.ad_llm.sampling)

    def _scored(
        self, version: str, wanted: Sequence[tuple[Prompt, Sequence[int]]], sampling: Sampling | None
    ) -> list[Scored]:
        name = self.aliases.get(version, version)
        how = "" if sampling is None else f"/{sampling.model_dump_json()}"
        given = [
            Given(
                f"{self._messages(prompt)}/{list(token_ids)}{how}",
                self._messages(prompt),
                tuple(token_ids),
                turns=len(prompt.planned.query.turns),
                room=self.config.prompt_room,
                sampling=sampling,
            )
            for prompt, token_ids in wanted
        ]
        missing = {answer.id: answer for answer in given if not self._kept.holds(SCORES, [name, answer.id])}
        if missing:
            self._load(name)
            for scored in self._ask(self._crew.rollouts, "score", list(missing.values()), name):
                self._kept.put(SCORES, [name, scored.id], scored)
        return [self._kept.get(SCORES, [name, answer.id]) for answer in given]

    def judge(self, answers: Sequence[ReadAnswer]) -> list[dict[str, bool] | None]:
        """The User-LLM's clicks by ad id on each answer; none where it could not be read."""
        return [judgement.clicks for judgement in self.judgements(answers)]

    def judgements(self, answers: Sequence[ReadAnswer]) -> list[Judgement]:
        """What the User-LLM says of each answer, with its probabilities where it gives them.

        An answer that occurs several times among those of one auction is judged anew each time.
        """
        keys: list[tuple[str, int, str]] = []
        seen: dict[tuple[str, str], int] = {}
        items: list[tuple[tuple[str, int, str], JudgeItem]] = []
        for answer in answers:
            planned, text = answer.planned, answer.text
            count = seen[planned.auction.id, text] = seen.get((planned.auction.id, text), -1) + 1
            key = (planned.auction.id, count, text)
            keys.append(key)
            if self._kept.holds(JUDGEMENTS, key):
                continue
            item = judge_item(
                self.config.user_llm,
                str(len(items)),
                planned.query,
                planned.profile,
                text,
                answer.parsed.placements,
                {ad.id: ad for ad in planned.ads},
                seed_of(self.config.seed, f"judge/{key}"),
            )
            items.append((key, item))
        names = {item.sample_id: key for key, item in items}
        for judgement in self._ask(self._crew.judges, "judge", [item for _, item in items]):
            self._kept.put(JUDGEMENTS, names[judgement.sample_id], judgement)
        return [self._kept.get(JUDGEMENTS, key) for key in keys]

    def predict(self, answers: Sequence[ReadAnswer], epoch: int) -> list[dict[str, float]]:
        """Click probability of each placed ad by the pCTR model that the run saved after ``epoch``."""
        return [
            {ad: prediction.mean for ad, prediction in predictions.items()}
            for predictions in self.predict_intervals(answers, epoch)
        ]

    def predict_intervals(self, answers: Sequence[ReadAnswer], epoch: int) -> list[dict[str, Prediction]]:
        """`predict` with an interval around each probability."""
        # An auction may be held among some of its candidates alone, and then a text places fewer of them.
        keys = [(epoch, answer.planned.auction.id, answer.text, answer.parsed.ad_ids) for answer in answers]
        asked = []
        for key, answer in zip(keys, answers, strict=True):
            if key not in self._predicted:
                self._predicted[key] = {}
                planned, placed = answer.planned, answer.parsed.placements
                ads = self.world.ad_by_id
                impressions = click_rows("", planned.query, planned.profile, answer.text, placed, ads, None)
                asked += [(key, row) for row in impressions]
        if asked:
            chances = self._crew.persistently(lambda: self._chances(epoch, [row for _, row in asked]))
            for (key, row), chance in zip(asked, chances, strict=True):
                self._predicted[key][row.ad_id] = chance
        return [self._predicted[key] for key in keys]

    def relevance(self, auctions: Sequence[Planned]) -> list[NDArray[np.float64]]:
        """Cosine of query and ad by the pCTR's text encoder, [n] for each; see `Fit`."""
        return self.fit.relevance(auctions)

    def costs(self, answers: Sequence[ReadAnswer]) -> list[float]:
        """What each answer costs its reader, in bid units: lambda s_resp, less the weighted terms."""
        settings, weights = self.config.penalty, self.config.term_weights
        values = term_values([term for term in self.terms if term.name in weights], self.sources, answers)
        return [
            settings.weight * penalty(answer.parsed, settings) - sum(weighted(worth, weights))
            for answer, worth in zip(answers, values, strict=True)
        ]

    def organic(self, auctions: Sequence[Planned], what: str) -> list[Generated]:
        """``planned.n`` answers to each auction's question of the untouched model, told of no ads; auctions
        with the same question and number have the same, and for another ``what`` others are drawn."""
        written: dict[tuple[str, int], Generated] = {}
        for n in dict.fromkeys(planned.n for planned in auctions):
            planned = {auction.query.id: auction for auction in auctions if auction.n == n}
            drawn = self.untouched_answers(
                [organic_request(self.config, auction, what, n) for auction in planned.values()]
            )
            written |= {(id, n): answers for id, answers in zip(planned, drawn, strict=True)}
        return [written[planned.query.id, planned.n] for planned in auctions]

    def untouched_answers(self, requests: Sequence[Request]) -> list[Generated]:
        """Answers under the weights that no training for ads has changed, in the order asked."""
        keys = [
            ["untouched", request.id, request.messages, request.n, request.seed] for request in requests
        ]
        return self._of_untouched("generate", ANSWERS, requests, keys)

    def untouched_scores(self, given: Sequence[Given]) -> list[Scored]:
        """`score` of texts under those weights, in the order asked."""
        keys = [["untouched", answer.messages, answer.text, answer.room] for answer in given]
        return self._of_untouched("score", SCORES, given, keys)

    def _of_untouched(
        self, method: str, kind: Kind[_Value], items: Sequence[Any], keys: Sequence[object]
    ) -> list[_Value]:
        missing = {
            item.id: (item, key)
            for item, key in zip(items, keys, strict=True)
            if not self._kept.holds(kind, key)
        }
        if missing:
            if self._crew.version != self._untouched:
                self._crew.refresh(self._untouched, None)
            asked = [item for item, _ in missing.values()]
            for answered in self._ask(self._crew.rollouts, method, asked, self._untouched.name):
                name = answered.request_id if isinstance(answered, Generated) else answered.id
                self._kept.put(kind, missing[name][1], answered)
        return [self._kept.get(kind, key) for key in keys]

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The pCTR's text encoder's vectors, [len(texts), dim]."""
        return self._encode(texts)

    def begin(self) -> None:
        """Begin a piece of work whose wall time is to be told."""
        self._kept.begin()

    def took(self, what: Sequence[object], seconds: float) -> float | None:
        """The wall time of ``what``, kept from when it was done; none where something of it was known
        before it was begun, ``seconds`` ago."""
        if not self._kept.holds(SECONDS, what):
            if self._kept.recalled:
                return None
            self._kept.put(SECONDS, what, seconds)
        return self._kept.get(SECONDS, what)

    def generator(self, planned: Planned, what: str) -> np.random.Generator:
        """Random numbers that depend on the run's seed, the auction and ``what`` alone."""
        return np.random.default_rng(seed_of(self.config.seed, f"{what}/{planned.auction.id}"))

    def bound(self, what: str, lost: int, total: int) -> None:
        """Count ``lost`` of ``total`` more, and refuse to go on where too much of all so far was lost.

        Raises:
            BudgetError: more than ``irpo.max_drop_share`` of it, and more than `_SLACK`.
        """
        self._lost[what] += lost
        self._asked[what] += total
        lost, total, share = self._lost[what], self._asked[what], self.config.irpo.max_drop_share
        if lost > max(share * total, _SLACK):
            raise BudgetError(
                f"{lost} of {total} {what} were lost, more than irpo.max_drop_share={share} allows; "
                "see the engine's and judge's output"
            )

    def _untold(self, auctions: Sequence[Planned]) -> list[tuple[str, ...]]:
        """The organic answers that terms read; those of `reader.reading`, where it asks for as many."""
        asked = [replace(planned, n=ORGANIC_ANSWERS) for planned in auctions]
        return [
            tuple(draw.text for draw in generated.completions) for generated in self.organic(asked, ORGANIC)
        ]

    def _messages(self, prompt: Prompt) -> prompts.Messages:
        planned = prompt.planned
        return prompts.of(self.config.ad_llm, planned.query, planned.profile, prompt.ads, prompt.bids)

    def _encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self._crew.persistently(
            lambda: self._crew.ask_reward("encode", list(texts))
        )
        return vectors

    def _chances(self, epoch: int, wanted: Sequence[ClickRow]) -> list[Prediction]:
        """What the pCTR model of ``epoch`` says; a reward trainer that was started anew holds none yet."""
        held = (epoch, self._crew.reward.restarts)
        if self._held != held:
            self._crew.ask_reward("load", self.run.reward(epoch), self.config.pctr)
            self._held = held
        predictions: list[Prediction] = self._crew.ask_reward("predict_intervals", list(wanted))
        return predictions

    def _load(self, name: str) -> None:
        weights, probe = self.versions.get(name) or named(self.run, name)
        if self._crew.version != weights:
            self._crew.refresh(weights, probe)

    def _ask(self, pool: Pool, method: str, items: Sequence[Any], *args: Any) -> Iterator[Any]:
        """What the workers of ``pool`` yield for ``items``; some of it twice, where a worker was lost."""
        restart, deadline = self._crew.restart, self.config.deadlines.sample
        self._progress.expect(DONE_BY[method], len(items))
        for item in dealt(pool, method, items, *args, restart=restart, deadline=deadline):
            self._progress.advance(DONE_BY[method], 1, _tokens(item))
            yield item


def by_ads(answer: ReadAnswer, name: str) -> ReadAnswer:
    """The answer as its judgement is kept: by ``name`` and the ads that it places, which depend on the
    candidates."""
    auction = replace(answer.planned.auction, id="/".join([name, *answer.parsed.ad_ids]))
    return replace(answer, planned=replace(answer.planned, auction=auction))


def _tokens(item: object) -> int:
    """What was sampled for it."""
    if isinstance(item, Aggregated):
        return sum(text.tokens for text in item.texts)
    return sum(len(draw.token_ids) for draw in item.completions) if isinstance(item, Generated) else 0
