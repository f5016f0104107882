"""The User-LLM at work: says which ads of an answer it would click, and asks queries.

Its word is one JSON object, ``{"Ad-1234": 0, "Ad-5678": 1}``, read strictly: what cannot be read
is asked again once and then reported as unread, never taken for "no click".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raylla.actors.rollout import OpenEngine
from raylla.actors.usage import Meter, Usage
from raylla.config import Engine as Settings
from raylla.config import Sampling
from raylla.engines import Generated, Request, open_engine

TRIES = 2
BITS = {"0": False, "1": True}


@dataclass(frozen=True, slots=True)
class JudgeItem:
    """One answer to judge: the prompt, and the ids of the ads placed in it (each once)."""

    sample_id: str
    messages: list[dict[str, str]]
    ad_ids: tuple[str, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """Clicks by ad id, or none where the judge could not be read in ``attempts`` tries.

    ``error`` says why the engine refused the prompt, where it did.
    """

    sample_id: str
    clicks: dict[str, bool] | None
    attempts: int
    error: str | None = None


def parse_clicks(text: str, ad_ids: Sequence[str]) -> dict[str, bool] | None:
    """Clicks by ad id, in the order of ``ad_ids``; none for anything but what was asked for.

    What was asked for is one JSON object with exactly the key ``Ad-<id>`` of each ad, once, and
    each value 0, 1, false or true. White space around it is fine.
    """
    try:
        pairs = json.loads(
            text, object_pairs_hook=tuple, parse_int=_bit, parse_float=_bit, parse_constant=_bit
        )
    except (ValueError, RecursionError):
        return None
    if not isinstance(pairs, tuple) or not all(isinstance(value, bool) for _, value in pairs):
        return None
    clicks = dict(pairs)
    keys = [f"Ad-{ad_id}" for ad_id in ad_ids]
    if len(pairs) != len(clicks) or sorted(clicks) != sorted(keys):
        return None
    return {ad_id: clicks[key] for ad_id, key in zip(ad_ids, keys, strict=True)}


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
        self._meter = Meter()

    def ready(self) -> None:
        """Returns when the engine can answer."""

    def judge(self, items: list[JudgeItem]) -> Iterator[Judgement]:
        """One judgement per item, each as soon as it is known; sample ids must differ.

        An answer without ads is judged without asking (no clicks, no attempts).
        """
        asked = {item.sample_id: item for item in items if item.ad_ids}
        if len({item.sample_id for item in items}) != len(items):
            raise ValueError("two items to judge have the same sample_id")
        yield from (Judgement(item.sample_id, {}, 0) for item in items if not item.ad_ids)
        for attempt in range(1, TRIES + 1):
            unread: dict[str, JudgeItem] = {}
            for generated in self.ask(_requests(asked, attempt)):
                item = asked[generated.request_id]
                clicks = _read(generated, item)
                if clicks is None and generated.error is None and attempt < TRIES:
                    unread[item.sample_id] = item
                else:
                    yield Judgement(item.sample_id, clicks, attempt, generated.error)
            asked = unread

    def ask(self, requests: list[Request]) -> Iterator[Generated]:
        """The User-LLM's own words: each request's texts as they finish."""
        yield from self._meter.watch(self._engine.generate(requests, self._sampling))

    def stats(self) -> Usage:
        """Tokens and busy seconds since the start."""
        return self._meter.usage


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
