"""Published native-ad answers as auctions with a known answer. Imports no torch.

A row is a question, candidate ads of which one is the answer's own, and the sentences of the published
answer up to the one that holds the ad, its name written in the markup.  Bids are random, so that no sense
of them can be learned; users are drawn, for the data has none.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylla.auction.markup import markup
from raylla.config import Warmstart
from raylla.errors import WorldError
from raylla.records import Ad, Profile, Query
from raylla.strictjson import objects, strange
from raylla.world.build import IDS
from raylla.world.synthetic import lexicon

SAME_TOPIC = 2
"""Candidates of the answer's topic beside its own ad."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_SIGNS = re.compile(r"[@\[\]<>|\u00a4]")


@dataclass(frozen=True, slots=True)
class PublishedAnswer:
    """A published answer that holds an ad: ``brand`` is in the ``text`` word for word."""

    query: str
    topic: str
    brand: str
    text: str


@dataclass(frozen=True, slots=True)
class AnsweredAuction:
    """An auction and the answer to it."""

    query: Query
    profile: Profile
    ads: tuple[Ad, ...]
    bids: tuple[float, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class SplitAnswers:
    """Rows to train on, and those whose brands and questions are in none of them."""

    train: tuple[PublishedAnswer, ...]
    test: tuple[PublishedAnswer, ...]


def read_published(path: Path) -> list[PublishedAnswer]:
    """The answers of the file that hold their ad's name.

    Raises:
        WorldError: the file is missing, or a line is none of the data's; names the file and the line.
    """
    rows: dict[str, dict[str, Any]] = {}
    for where, row in objects(path, lambda why: WorldError(f"warmstart.data: {why}; give another file")):
        wrong = strange(row, ("id", "meta_topic", "query", "response"))
        brand = row.setdefault("advertisement", None)
        if wrong or (brand is not None and (wrong := strange(row, ("advertisement",)))):
            raise WorldError(f"{where} is no published answer: {wrong}; fetch the file again")
        rows[row["id"]] = row
    answers = []
    for row in rows.values():
        brand = " ".join((row["advertisement"] or "").split())
        text = " ".join(row["response"].split())
        if row.get("label") == 1 and brand and brand in text and not _SIGNS.search(brand):
            topic = row["meta_topic"].replace("_", " ")
            answers.append(PublishedAnswer(" ".join(row["query"].split()), topic, brand, text))
    if not answers:
        raise WorldError(f"warmstart.data={str(path)!r} holds no answer with an ad; give another file")
    return answers


def split_answers(answers: Sequence[PublishedAnswer], held_out: float, seed: int) -> SplitAnswers:
    """Hold out a share of the brands, with every question that one of their answers is to."""
    brands = sorted({answer.brand for answer in answers})
    random.Random(f"{seed}/brands").shuffle(brands)
    kept_back = set(brands[: max(1, round(held_out * len(brands)))])
    test = [answer for answer in answers if answer.brand in kept_back]
    asked = {answer.query for answer in test}
    train = [answer for answer in answers if answer.brand not in kept_back and answer.query not in asked]
    return SplitAnswers(tuple(train), tuple(test))


def rows(answers: Sequence[PublishedAnswer], settings: Warmstart, seed: int) -> list[AnsweredAuction]:
    """One row for each answer whose ad stands in its first ``settings.longest_answer`` characters.

    All candidates are brands of ``found``.

    Raises:
        WorldError: there are fewer brands than candidates.
    """
    by_topic: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for published in answers:
        by_topic[published.topic][published.brand] = None
    topic_of = {brand: topic for topic, brands in by_topic.items() for brand in brands}
    if len(topic_of) < settings.candidates:
        raise WorldError(
            f"warmstart.candidates={settings.candidates} exceeds the {len(topic_of)} brands of its rows; "
            "lower it, or raise or lower warmstart.held_out"
        )
    made = []
    for number, published in enumerate(answers):
        told = _shortened(published.text, published.brand)
        if told is None or len(told) > settings.longest_answer:
            continue
        rng = random.Random(f"{seed}/row/{number}")
        ads = _candidates(rng, published, topic_of, settings.candidates)
        own = next(ad for ad in ads if ad.title == published.brand)
        bids = tuple(float(rng.randint(1, 100)) for _ in ads)
        query = Query(
            f"w{number}", f"u{number}", published.query, published.topic, published.topic, "train"
        )
        answer = told.replace(published.brand, markup(own), 1)
        made.append(AnsweredAuction(query, _user(rng, f"u{number}", by_topic), ads, bids, answer))
    return made


def _shortened(text: str, brand: str) -> str | None:
    """The first sentence, and the two that end with the one that holds ``brand``; none where the
    sentences cut its name."""
    sentences = _SENTENCE_END.split(text)
    place = next((place for place, sentence in enumerate(sentences) if brand in sentence), None)
    if place is None:
        return None
    chosen = dict.fromkeys((0, max(0, place - 1), place))
    return " ".join(dict.fromkeys(sentences[index] for index in chosen))


def _candidates(
    rng: random.Random, published: PublishedAnswer, topic_of: dict[str, str], count: int
) -> tuple[Ad, ...]:
    kin = sorted(
        brand for brand, topic in topic_of.items() if topic == published.topic and brand != published.brand
    )
    rest = sorted(brand for brand, topic in topic_of.items() if topic != published.topic)
    chosen = [published.brand, *rng.sample(kin, min(len(kin), SAME_TOPIC, count - 1))]
    chosen += rng.sample(rest, min(len(rest), count - len(chosen)))
    rng.shuffle(chosen)
    ids = rng.sample(IDS, len(chosen))
    return tuple(
        Ad(str(id), brand, topic_of[brand], topic_of[brand]) for id, brand in zip(ids, chosen, strict=True)
    )


def _user(rng: random.Random, id: str, topics: dict[str, Any]) -> Profile:
    basics = f"{rng.randrange(18, 80)} {rng.choice(lexicon.PERSONAS)} {rng.choice(lexicon.CITIES)}"
    return Profile(id, basics, tuple(rng.sample(sorted(topics), min(lexicon.INTERESTS, len(topics)))))
