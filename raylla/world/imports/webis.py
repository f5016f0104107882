"""Import of real data: the Webis collection of ads and queries for generated native advertising.

Ten topics, each with `advertisements/{topic}_qualities.csv` (advertisement, type, qualities),
`advertisements/{topic}_query_pairs.csv` (query, advertisement: ads that suit a query) and
`queries/{topic}_queries.txt`.  It knows no users: they are drawn here, with topics as interests.
"""

from __future__ import annotations

import csv
import io
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from raylla import config
from raylla.errors import WorldError
from raylla.records import Ad, Profile, Query
from raylla.world import build, store
from raylla.world.prompts import neutral
from raylla.world.synthetic import lexicon
from raylla.world.texts import clean_title
from raylla.world.world import World

TOPICS = (
    "banking",
    "car",
    "gaming",
    "healthcare",
    "real_estate",
    "restaurant",
    "shopping",
    "streaming",
    "vacation",
    "workout",
)
UNLISTED = frozenset({("gaming", "Sega")})
"""Ads that the published pairs name and no published list holds: such pairs are dropped."""


@dataclass
class _Source:
    """The files' content while it is read: titles in order with their first topic, and the rest."""

    topic_of: dict[str, str] = field(default_factory=dict)
    title_of: dict[str, dict[str, str]] = field(default_factory=dict)
    queries: dict[str, dict[str, None]] = field(default_factory=dict)
    pairs: dict[tuple[str, str], dict[str, None]] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)


def import_webis(path: Path, out: Path | None, settings: config.World, seed: int) -> World:
    """Read the collection at ``path`` into a world of all its ads and queries.

    An ad that several topics list belongs to the first of them; ids go with the order of files, in
    steps.  ``settings.profiles`` users are drawn, each query goes to one who cares for its topic, and
    profiles are split by ``settings.test_share``.  The world is saved to ``out`` unless that is None;
    `build.sample_queries` cuts it to the size of a run.  Its notes count what was changed: titles cleaned
    or listed twice, queries listed twice, ads of pairs spelled otherwise than in the lists or missing
    from them.

    Raises:
        WorldError: a file is missing, partial or contradictory; names the file and the line.
    """
    source = _read(path)
    ads = {
        title: Ad(build.scattered_id(index), title, _words(topic), _words(topic))
        for index, (title, topic) in enumerate(source.topic_of.items())
    }
    profiles = _profiles(settings.profiles, seed)
    queries, related = _queries(source, ads, profiles, settings.test_share, seed)
    world = World("webis", seed, profiles, tuple(ads.values()), queries, related, notes=dict(source.notes))
    store.check_world(world)
    if out is not None:
        store.save_world(world, out)
    return world


def _read(path: Path) -> _Source:
    source = _Source()
    for topic in TOPICS:
        _read_ads(source, topic, path / "advertisements" / f"{topic}_qualities.csv")
        _read_queries(source, topic, path / "queries" / f"{topic}_queries.txt")
    # pairs come last: some name an ad that only another topic lists
    for topic in TOPICS:
        _read_pairs(source, topic, path / "advertisements" / f"{topic}_query_pairs.csv")
    return source


def _read_ads(source: _Source, topic: str, file: Path) -> None:
    titles = source.title_of.setdefault(topic, {})
    for line, (raw, _, _) in _table(file, ("advertisement", "type", "qualities")):
        title = clean_title(raw)
        if not title:
            raise WorldError(f"{file}, line {line}: advertisement={raw!r} is empty; fill or drop the row")
        source.notes["titles_cleaned"] += title != raw
        source.notes["titles_repeated"] += title in source.topic_of
        source.topic_of.setdefault(title, topic)
        titles[_folded(title)] = title
    if not titles:
        raise WorldError(f"{file} lists no ads; the file is partial: fetch it again")


def _read_queries(source: _Source, topic: str, file: Path) -> None:
    asked = source.queries.setdefault(topic, {})
    for line in io.StringIO(_decoded(file), newline=None):
        text = neutral(line)
        if text:
            source.notes["queries_repeated"] += text in asked
            asked[text] = None
    if not asked:
        raise WorldError(f"{file} lists no queries; the file is partial: fetch it again")


def _read_pairs(source: _Source, topic: str, file: Path) -> None:
    for line, (query, name) in _table(file, ("query", "advertisement")):
        text, title = neutral(query), clean_title(name)
        if text not in source.queries[topic]:
            raise WorldError(f"{file}, line {line}: query={query!r} is not in {topic}_queries.txt; add it")
        if (topic, title) in UNLISTED:
            source.notes["pairs_unlisted"] += 1
            continue
        if title not in source.topic_of:
            spelled = _respelled(source, topic, title)
            if spelled is None:
                raise WorldError(
                    f"{file}, line {line}: advertisement={name!r} is in no qualities file; "
                    f"add it to {topic}_qualities.csv or drop the pair"
                )
            source.notes["pairs_respelled"] += 1
            title = spelled
        source.pairs.setdefault((topic, text), {})[title] = None


def _respelled(source: _Source, topic: str, title: str) -> str | None:
    """The listed title that differs from ``title`` only in case or apostrophes, own topic first."""
    folded = _folded(title)
    for name in (topic, *TOPICS):
        if folded in source.title_of[name]:
            return source.title_of[name][folded]
    return None


def _profiles(count: int, seed: int) -> tuple[Profile, ...]:
    """Users with an age, an occupation, a city and three topics; each topic interests some."""
    rng = random.Random(f"{seed}/webis/profiles")
    profiles = []
    for index in range(count):
        first = TOPICS[index % len(TOPICS)]
        others = rng.sample([topic for topic in TOPICS if topic != first], lexicon.INTERESTS - 1)
        basics = lexicon.basics(rng)
        profiles.append(Profile(f"p{index}", basics, tuple(_words(topic) for topic in (first, *others))))
    return tuple(profiles)


def _queries(
    source: _Source, ads: dict[str, Ad], profiles: tuple[Profile, ...], test_share: float, seed: int
) -> tuple[tuple[Query, ...], dict[str, tuple[str, ...]]]:
    """All queries, each given to a user, and the ads paired with them: query id -> ad ids."""
    splits = build.split_users(profiles, test_share, seed)
    rng = random.Random(f"{seed}/webis/queries")
    asked: defaultdict[str, int] = defaultdict(int)
    queries: list[Query] = []
    related: dict[str, tuple[str, ...]] = {}
    for topic, texts in source.queries.items():
        name = _words(topic)
        interested = [profile for profile in profiles if name in profile.interests] or list(profiles)
        rng.shuffle(interested)
        for text, profile in zip(texts, cycle(interested), strict=False):
            id = f"{profile.id}-{asked[profile.id]}"
            asked[profile.id] += 1
            queries.append(Query(id, profile.id, text, name, name, splits[profile.id]))
            paired = source.pairs.get((topic, text), {})
            if paired:
                related[id] = tuple(ads[title].id for title in paired)
    return tuple(queries), related


def _table(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """(line, row) of a CSV file with exactly these columns, its header checked and left out."""
    reader = csv.reader(io.StringIO(_decoded(file), newline=""), strict=True)
    try:
        header = next(reader, None)
        if header is None or tuple(header) != columns:
            missing = [column for column in columns if column not in (header or ())]
            what = (
                f"has no column {missing[0]!r}" if missing else f"has the columns {', '.join(header or ())}"
            )
            raise WorldError(f"{file}, line 1: the table {what}; its header is {','.join(columns)}")
        for row in reader:
            if len(row) != len(columns):
                raise WorldError(
                    f"{file}, line {reader.line_num}: {len(row)} columns instead of {len(columns)}; "
                    "quote cells that hold a comma"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise WorldError(f"{file}, line {reader.line_num}: not CSV: {error}; mend the quotes") from None


def _decoded(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise WorldError(f"{file}: {error.strerror or error}; fetch the collection again") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise WorldError(f"{file}, line {line}: byte {data[error.start]:#04x} is not UTF-8") from None


def _folded(title: str) -> str:
    return title.casefold().replace("’", "'")


def _words(topic: str) -> str:
    return topic.replace("_", " ")
