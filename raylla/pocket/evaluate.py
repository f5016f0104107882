"""`raylla pocket evaluate`: what the pocket models can and cannot do, on held-out prompts.

The prompts are drawn with seeds that no build uses; `unseen` ads have brands that the grammar
never draws in training.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from raylla.actors.judge import parse_clicks
from raylla.auction import Parsed, parse
from raylla.config import Engine, Sampling
from raylla.engines import Generated, Request, open_engine
from raylla.models import resolve
from raylla.records import Ad, Query
from raylla.reward.calibration import auc, calibration
from raylla.world import prompts
from raylla.world.synthetic import grammar

ANSWERING, JUDGING = Sampling(temperature=0.7, top_k=10), Sampling()
"""How the two models sample in the pocket config."""


def evaluate_models(ad_llm: str, user_llm: str, count: int, seed: int = 987_654) -> dict[str, Any]:
    """Figures of both models over ``count`` held-out prompts of each kind (pocket-scale).

    Raises:
        ConfigError: a model does not exist.
    """
    writer = resolve(ad_llm, "--ad-llm")
    judge = resolve(user_llm, "--user-llm")
    return {
        "prompts": count,
        "seed": seed,
        "ad_llm": _answers(writer, count, seed) | _listings(writer, count, seed),
        "user_llm": _judgements(judge, count, seed),
    }


def _generate(
    model: str, messages: Sequence[prompts.Messages], seed: int, n: int = 1, sampling: Sampling = JUDGING
) -> list[Generated]:
    requests = [Request(str(place), prompt, n, seed + n * place) for place, prompt in enumerate(messages)]
    engine = open_engine(model, Engine(), seed)
    generated_by_id = {generated.request_id: generated for generated in engine.generate(requests, sampling)}
    return [generated_by_id[request.id] for request in requests]


def _answers(model: str, count: int, seed: int) -> dict[str, Any]:
    """Format, copying, fluency and indifference to bids of the Ad-LLM."""
    scenes: list[tuple[str, list[Ad], list[float], prompts.Messages]] = []
    for kind, known in (("known", True), ("unseen", False)):
        rng = random.Random(f"{seed}/{kind}")
        for _ in range(count):
            user = grammar.profile(rng)
            about = grammar.query(rng, user)
            candidates = grammar.ads(rng, about.category, 6, known)
            bids = [float(rng.randint(1, 100)) for _ in candidates]
            messages = prompts.answer("compact", about, user, candidates, bids)
            scenes.append((kind, candidates, bids, messages))
    parsed: dict[str, list[Parsed]] = {"known": [], "unseen": []}
    pairs: list[tuple[float, bool]] = []
    fluent, unfinished = 0, 0
    forms = _known_sentences()
    for (kind, candidates, bids, _), generated in zip(
        scenes,
        _generate(model, [scene[-1] for scene in scenes], seed, sampling=ANSWERING),
        strict=True,
    ):
        completion = generated.completions[0]
        answer = parse(completion.text, candidates)
        parsed[kind].append(answer)
        unfinished += not completion.finished
        fluent += completion.finished and _fluent(completion.text, forms)
        pairs += [(bid, ad.id in answer.ad_ids) for ad, bid in zip(candidates, bids, strict=True)]
    broken = {kind: _broken(answers) for kind, answers in parsed.items()}
    kinds = Counter(str(v) for answers in parsed.values() for answer in answers for v in answer.violations)
    placed = [len(answer.placements) for answers in parsed.values() for answer in answers]
    return {
        "broken_share": _broken([answer for answers in parsed.values() for answer in answers]),
        "broken_share_known_brands": broken["known"],
        "broken_share_unseen_brands": broken["unseen"],
        "violations": dict(kinds),
        "ads_per_answer": float(np.mean(placed)),
        "fluent_share": fluent / len(scenes),
        "unfinished_share": unfinished / len(scenes),
        "bid_placement_spearman": float(spearmanr(*zip(*pairs, strict=True)).statistic),
    }


def _listings(model: str, count: int, seed: int) -> dict[str, Any]:
    """Whether it finds the highest bid when told to, and so could in an answer if it learned to want to."""
    rng = random.Random(f"{seed}/listings")
    wanted: list[str] = []
    scenes: list[tuple[list[Ad], prompts.Messages]] = []
    for _ in range(count):
        user = grammar.profile(rng)
        candidates = grammar.ads(rng, rng.choice(user.interests), 6, known=False)
        bids = [float(bid) for bid in rng.sample(range(1, 101), 6)]
        wanted.append(candidates[bids.index(max(bids))].id)
        request = Query("q0", user.id, "top", "", "", "test")
        scenes.append((candidates, prompts.answer("compact", request, user, candidates, bids)))
    answers = _generate(model, [scene[-1] for scene in scenes], seed, sampling=ANSWERING)
    parsed = [
        parse(generated.completions[0].text, candidates)
        for (candidates, _), generated in zip(scenes, answers, strict=True)
    ]
    first = [answer.ad_ids[0] == best for answer, best in zip(parsed, wanted, strict=True) if answer.ad_ids]
    return {
        "top_broken_share": _broken(parsed),
        "top_is_highest_bid": sum(first) / len(scenes),
    }


def _judgements(model: str, count: int, seed: int) -> dict[str, Any]:
    """Parse rate, calibration and ranking of the User-LLM against the click model."""
    rng = random.Random(f"{seed}/judge")
    scenes = [grammar.judged(rng, known=False) for _ in range(count)]
    draws = 8
    chances: list[float] = []
    rates: list[float] = []
    clicks: list[bool] = []
    shown: list[float] = []
    drawn: list[bool] = []
    unread = 0
    for scene, generated in zip(
        scenes, _generate(model, [scene.messages for scene in scenes], seed, draws), strict=True
    ):
        ids = list(scene.probabilities)
        read = [parse_clicks(completion.text, ids) for completion in generated.completions]
        unread += sum(judged is None for judged in read)
        kept = [judged for judged in read if judged is not None]
        for ad, p in scene.probabilities.items():
            if kept:
                chances.append(p)
                rates.append(sum(judged[ad] for judged in kept) / len(kept))
            clicks += [judged[ad] for judged in kept]
            shown += [p] * len(kept)
            drawn += [rng.random() < p for _ in kept]
    asked = _generate(
        model, [prompts.ask("compact", grammar.profile(rng)) for _ in range(min(count, 200))], seed
    )
    return {
        "parsed_share": 1 - unread / (draws * count),
        "impressions": len(clicks),
        "click_rate": float(np.mean(clicks)),
        "click_model_rate": float(np.mean(shown)),
        **calibration(shown, np.array(clicks)),
        "auc_of_judge_clicks": auc(shown, np.array(clicks)),
        "auc_of_model_clicks": auc(shown, np.array(drawn)),
        "auc_of_judge_rates_on_model_clicks": auc(
            np.repeat(rates, draws),
            np.random.default_rng(seed).random(len(chances) * draws) < np.repeat(chances, draws),
        ),
        "rate_correlation": float(np.corrcoef(chances, rates)[0, 1]),
        "queries": [generated.completions[0].text for generated in asked[:5]],
    }


def _broken(parsed: Sequence[Parsed]) -> float:
    """Share of placement attempts that break the format."""
    attempts = sum(answer.attempts for answer in parsed)
    return sum(len(answer.violations) for answer in parsed) / max(1, attempts)


def _known_sentences() -> list[re.Pattern[str]]:
    """The grammar's sentence forms, each slot a word or an attempted placement."""
    forms = (*grammar.OPENERS, *grammar.NATIVE, *grammar.BLUNT, *grammar.CLOSERS)
    slots = re.compile(r"\\\{ad\\\}|\\\{\w+\\\}")
    return [
        re.compile(slots.sub(lambda slot: ".+?" if "ad" in slot[0] else r"[\w'-]+", re.escape(form)))
        for form in forms
    ]


def _fluent(text: str, forms: Sequence[re.Pattern[str]]) -> bool:
    """Whether ``text`` is a sequence of the grammar's sentences, whatever fills their slots."""
    rest = text.strip()
    while rest:
        ends = [match.end() for form in forms if (match := form.match(rest))]
        if not ends:
            return False
        rest = rest[min(ends) :].lstrip()
    return bool(text.strip())
