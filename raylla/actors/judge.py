"""The User-LLM at work: says which ads of an answer it would click, and asks queries.

Its word is one JSON object for all ads of an answer, ``{"Ad-1234": 0, "Ad-5678": 1}``, read strictly:
what cannot be read is asked again once and then reported as unread, never taken for "no click".  Or it is
one word for each ad (``user_llm.reading: token``), of which the probability alone is read: there is nothing
to misread, and the click is drawn from it.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raylla.actors.rollout import OpenEngine
from raylla.config import Engine as Settings
from raylla.config import Sampling, UserLlm
from raylla.engines import Generated, Request, open_engine
from raylla.records import Ad, Placement, Profile, Query
from raylla.world import clicks as click_model
from raylla.world import prompts
from raylla.world.passages import passage
from raylla.world.turns import in_context

_TRIES = 2
BRACES = frozenset("{}")
BITS = {"0": False, "1": True}


@dataclass(frozen=True, slots=True)
class AdItem:
    """One ad to judge by itself: its prompt, and what is left of its click probability beside the others
    of the answer (`raylla.world.clicks.crowding`)."""

    messages: list[dict[str, str]]
    crowding: float


@dataclass(frozen=True, slots=True)
class JudgeItem:
    """One answer to judge: the prompt, and the ids of the ads placed in it (each once).

    Where there is ``each``, in the order of the ads, these are asked in place of ``messages``.
    """

    sample_id: str
    messages: list[dict[str, str]]
    ad_ids: tuple[str, ...]
    seed: int
    each: tuple[AdItem, ...] = ()


@dataclass(frozen=True, slots=True)
class Judgement:
    """Clicks by ad id, or none where the judge could not be read in ``attempts`` tries.

    ``error`` says why the engine refused the prompt, where it did; ``probabilities``, by ad id, are what
    the clicks were drawn from, where each ad was asked for by itself.
    """

    sample_id: str
    clicks: dict[str, bool] | None
    attempts: int
    error: str | None = None
    probabilities: dict[str, float] | None = None


def judge_item(
    user_llm: UserLlm,
    sample_id: str,
    query: Query,
    profile: Profile,
    text: str,
    placements: Sequence[Placement],
    ads: Mapping[str, Ad],
    seed: int,
) -> JudgeItem:
    """What the User-LLM is asked about the ``placements`` of an answer, as ``user_llm.reading`` has it."""
    shown = [ads[placement.ad_id] for placement in placements]
    ids = tuple(ad.id for ad in shown)
    if user_llm.reading == "json":
        messages = prompts.judge(user_llm.prompt, query, profile, text, shown)
        return JudgeItem(sample_id, messages, ids, seed)
    factors = click_model.crowding(placements, ads)
    said = [passage(text, ad.title).text for ad in shown]
    each = tuple(
        AdItem(prompts.judge_click(in_context(query), ad.title, ad.description, about), factors[ad.id])
        for ad, about in zip(shown, said, strict=True)
    )
    return JudgeItem(sample_id, [], ids, seed, each)


def parse_clicks(text: str, ad_ids: Sequence[str]) -> dict[str, bool] | None:
    """Clicks by ad id, in the order of ``ad_ids``; none for anything but what was asked for.

    What was asked for is one JSON object with exactly the key ``Ad-<id>`` of each ad, once, and
    each value 0, 1, false or true. Words or a code fence around it are fine, another brace is not.
    """
    start = text.find("{")
    try:
        pairs, end = _STRICT.raw_decode(text, max(0, start))
    except (ValueError, RecursionError):
        return None
    if BRACES & {*text[: max(0, start)], *text[end:]}:
        return None
    if not isinstance(pairs, tuple) or not all(isinstance(value, bool) for _, value in pairs):
        return None
    clicks = dict(pairs)
    keys = [f"Ad-{ad_id}" for ad_id in ad_ids]
    if len(pairs) != len(clicks) or sorted(clicks) != sorted(keys):
        return None
    return {ad_id: clicks[key] for ad_id, key in zip(ad_ids, keys, strict=True)}


def click_probability(yes: float, no: float) -> float:
    """P(yes) / (P(yes) + P(no)) of two log-probabilities (nats)."""
    odds = math.exp(-abs(yes - no))
    return (1 if yes >= no else odds) / (1 + odds)


def drawn(probability: float, seed: int, ad_id: str) -> bool:
    """A click with this probability: the same for the same seed and ad, on any worker."""
    return random.Random(f"{seed}/{ad_id}").random() < probability


def retry_seed(seed: int) -> int:
    """The seed of the second try: as good as unrelated, and the same on any worker."""
    return int.from_bytes(hashlib.blake2b(f"retry {seed}".encode(), digest_size=6).digest())


class JudgeWorker:
    """A worker of a `Pool`; its weights never change.

    Args:
        model_path: where the User-LLM is; whatever `models.resolve` knows.
        engine: makes the engine of a path, settings and seed.
    """

    def __init__(
        self,
        model_path: str,
        sampling: Sampling,
        settings: Settings,
        seed: int,
        engine: OpenEngine = open_engine,
    ) -> None:
        self._sampling = sampling
        self._engine = engine(model_path, settings, seed)

    def ready(self) -> None:
        """Returns when the engine can answer."""

    def judge(self, items: list[JudgeItem]) -> Iterator[Judgement]:
        """One judgement per item, each as soon as it is known; sample ids must differ.

        An answer without ads is judged without asking (no clicks, no attempts).
        """
        asked = {item.sample_id: item for item in items if item.ad_ids and not item.each}
        if len({item.sample_id for item in items}) != len(items):
            raise ValueError("two items to judge have the same sample_id")
        yield from (Judgement(item.sample_id, {}, 0) for item in items if not item.ad_ids)
        yield from self._judge_each([item for item in items if item.each])
        for attempt in range(1, _TRIES + 1):
            unread: dict[str, JudgeItem] = {}
            for generated in self.ask(_requests(asked, attempt)):
                item = asked[generated.request_id]
                clicks = _read(generated, item)
                if clicks is None and generated.error is None and attempt < _TRIES:
                    unread[item.sample_id] = item
                else:
                    yield Judgement(item.sample_id, clicks, attempt, generated.error)
            asked = unread

    def _judge_each(self, items: Sequence[JudgeItem]) -> Iterator[Judgement]:
        """Judgements of items whose ads are asked for one by one, each as soon as its last ad is read."""
        requests: dict[str, Request] = {}
        read: dict[str, tuple[JudgeItem, dict[str, Generated]]] = {}
        for item in items:
            found: dict[str, Generated] = {}
            for asked in item.each:
                name = str(len(requests))
                requests[name] = Request(name, asked.messages, 1, item.seed, choices=prompts.CLICK_ANSWERS)
                read[name] = item, found
        for generated in self.ask(list(requests.values())):
            item, found = read[generated.request_id]
            found[generated.request_id] = generated
            if len(found) == len(item.each):
                yield _judgement(item, [found[name] for name in sorted(found, key=int)])

    def ask(self, requests: list[Request]) -> Iterator[Generated]:
        """The User-LLM's own words: each request's texts as they finish."""
        yield from self._engine.generate(requests, self._sampling)


def _judgement(item: JudgeItem, read: Sequence[Generated]) -> Judgement:
    """Clicks drawn from what was read of each ad; none where the engine refused one of the prompts."""
    error = next((draw.error for draw in read if draw.error is not None), None)
    if error is not None:
        return Judgement(item.sample_id, None, 1, error)
    probabilities = {
        ad_id: click_probability(*generated.completions[0].choices) * asked.crowding
        for ad_id, generated, asked in zip(item.ad_ids, read, item.each, strict=True)
    }
    clicks = {ad_id: drawn(p, item.seed, ad_id) for ad_id, p in probabilities.items()}
    return Judgement(item.sample_id, clicks, 1, None, probabilities)


def _requests(items: Mapping[str, JudgeItem], attempt: int) -> list[Request]:
    return [
        Request(name, item.messages, 1, item.seed if attempt == 1 else retry_seed(item.seed))
        for name, item in sorted(items.items())
    ]


def _read(generated: Generated, item: JudgeItem) -> dict[str, bool] | None:
    if generated.error is not None or not generated.completions[0].finished:
        return None
    return parse_clicks(generated.completions[0].text, item.ad_ids)


def _bit(number: str) -> Any:
    if number not in BITS:
        raise ValueError(number)
    return BITS[number]


_STRICT = json.JSONDecoder(object_pairs_hook=tuple, parse_int=_bit, parse_float=_bit, parse_constant=_bit)
