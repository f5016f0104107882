"""The synthetic world, and what every world shares: splits, queries from text, candidate ads."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from raylla import config
from raylla.errors import WorldError
from raylla.records import Ad, Profile, Query, Split
from raylla.world.prompts import neutral
from raylla.world.synthetic import grammar, lexicon
from raylla.world.texts import cut
from raylla.world.world import World

IDS = range(1000, 10000)
STRIDE = 3989
MAX_QUERY = 300
"""Longest query text, in characters."""
RELEVANT, KINDRED = 2, 2
"""Candidates of the query's own category, and others of its theme."""


def synthetic(settings: config.World, seed: int) -> World:
    """Profiles and ads of the pocket world; its queries are still to be asked by the User-LLM."""
    return World("synthetic", seed, profiles(settings, seed), catalogue(settings, seed))


def profiles(settings: config.World, seed: int) -> tuple[Profile, ...]:
    """``settings.profiles`` users drawn from the pocket grammar, ids ``p0``, ``p1``, ..."""
    rng = random.Random(f"{seed}/profiles")
    return tuple(grammar.profile(rng, f"p{index}") for index in range(settings.profiles))


def catalogue(settings: config.World, seed: int) -> tuple[Ad, ...]:
    """``settings.ads`` ads spread over the lexicon's categories, with unique titles and ids.

    Raises:
        WorldError: more ads than four-digit ids.
    """
    if settings.ads > len(IDS):
        raise WorldError(f"world.ads={settings.ads}: there are {len(IDS)} four-digit ids; ask for fewer")
    names = _interleaved_categories()
    wanted = [names[index % len(names)] for index in range(settings.ads)]
    return tuple(grammar.draw_catalogue(random.Random(f"{seed}/catalogue"), wanted))


def scattered_id(index: int) -> str:
    """The ``index``-th ad id: four digits in steps that meet none twice, then longer ones.

    Ids that follow each other would begin alike, and a small model that copies one takes its neighbour's.
    """
    return str(IDS.start + (index * STRIDE % len(IDS) if index < len(IDS) else index))


def split_users(users: Sequence[Profile], test_share: float, seed: int) -> dict[str, Split]:
    """Which profiles are held out for testing: profile id -> split, at least one of each.

    Whole profiles are held out, so that no user is known from training when tested.

    Raises:
        WorldError: fewer than two profiles.
    """
    if len(users) < 2:
        raise WorldError(f"world.profiles={len(users)}: a train and a test split need at least 2")
    held_out = min(len(users) - 1, max(1, round(test_share * len(users))))
    ids = [user.id for user in users]
    chosen = set(random.Random(f"{seed}/split").sample(ids, held_out))
    return {id: "test" if id in chosen else "train" for id in ids}


def query_from_text(profile: Profile, index: int, text: str, split: Split) -> Query | None:
    """Query ``{profile}-{index}`` from what the User-LLM wrote, or None where that is no query.

    The text is put on one line, freed of quotation marks around it and of chat control tokens,
    and cut to `MAX_QUERY` characters at a word; its category is the first that a word of it names.
    """
    clean = query_text(text)
    if not clean:
        return None
    category = lexicon.category_of(clean)
    theme = lexicon.theme_of(category) if category else ""
    return Query(f"{profile.id}-{index}", profile.id, clean, category, theme, split)


def query_text(text: str) -> str:
    """``text`` as a query has it (see `query_from_text`), ``""`` where it holds no letter."""
    clean = cut(neutral(text).strip("\"'“”‘’` "), MAX_QUERY)
    return clean if any(character.isalpha() for character in clean) else ""


def candidates(world: World, query: Query, count: int, seed: int) -> tuple[Ad, ...]:
    """The ads that compete for ``query``, fixed by (seed, query id), without repeats, shuffled.

    Two that the data pairs with the query, or else two of its category; two others of its theme;
    the rest from anywhere (from other topics, in a world that pairs queries with ads); any at all for
    a query of no category.  Where the world holds the query's candidates, those.  All of the catalogue,
    in its own order, where it holds no more than ``count``: all prompts then begin alike, and an engine
    reads the list once.
    """
    if count >= len(world.ads):
        return tuple(world.ads)
    if query.id in world.candidates:
        return tuple(world.ad_by_id[id] for id in world.candidates[query.id])
    rng = random.Random(f"{seed}/candidates/{query.id}")
    chosen: dict[str, Ad] = {}
    paired = [world.ad_by_id[id] for id in world.related.get(query.id, ())]
    if query.category or paired:
        own = [ad for ad in world.ads if ad.category == query.category]
        _take(rng, chosen, paired, min(count, RELEVANT))
        _take(rng, chosen, own, min(count, RELEVANT))
        kin = [ad for ad in world.ads if query.theme and ad.theme == query.theme]
        _take(
            rng, chosen, [ad for ad in kin if ad.category != query.category], min(count, RELEVANT + KINDRED)
        )
        _take(rng, chosen, kin, min(count, RELEVANT + KINDRED))
    if world.related:
        _take(rng, chosen, [ad for ad in world.ads if ad.theme != query.theme], count)
    _take(rng, chosen, world.ads, count)
    ads = list(chosen.values())
    rng.shuffle(ads)
    return tuple(ads)


def sample_queries(world: World, count: int, seed: int) -> World:
    """``world`` with at most ``count`` queries, taken evenly over themes and from both splits.

    Splits keep their shares, and each that has queries keeps at least one.

    Raises:
        WorldError: ``count`` is less than 2, so that one split would be left empty.
    """
    if count < 2:
        raise WorldError(f"a world of {count} queries has no train and test split; ask for at least 2")
    if count >= len(world.queries):
        return world
    rng = random.Random(f"{seed}/sample")
    tests = world.of("test")
    wanted = min(len(tests), max(1, round(count * len(tests) / len(world.queries)))) if tests else 0
    kept = {query.id for query in _evenly(rng, tests, wanted)}
    kept |= {query.id for query in _evenly(rng, world.of("train"), count - wanted)}
    return replace(
        world,
        queries=tuple(query for query in world.queries if query.id in kept),
        related={id: ads for id, ads in world.related.items() if id in kept},
        candidates={id: ads for id, ads in world.candidates.items() if id in kept},
    )


def _take(rng: random.Random, chosen: dict[str, Ad], pool: Iterable[Ad], until: int) -> None:
    """Move random ads of ``pool`` into ``chosen`` until it holds ``until`` or the pool is empty."""
    left = [ad for ad in pool if ad.id not in chosen]
    for ad in rng.sample(left, max(0, min(len(left), until - len(chosen)))):
        chosen[ad.id] = ad


def _evenly(rng: random.Random, queries: Sequence[Query], count: int) -> list[Query]:
    """``count`` of ``queries``, one of each theme in turn."""
    by_theme: defaultdict[str, list[Query]] = defaultdict(list)
    for query in queries:
        by_theme[query.theme].append(query)
    for members in by_theme.values():
        rng.shuffle(members)
    turns = [(turn, theme, query) for theme, of in by_theme.items() for turn, query in enumerate(of)]
    turns.sort(key=lambda item: item[:2])
    return [query for _, _, query in turns[:count]]


def _interleaved_categories() -> list[str]:
    """All categories, one of each theme in turn, so that a small catalogue spans the themes."""
    groups = [list(members) for members in lexicon.THEMES.values()]
    return [name for members in zip(*groups, strict=True) for name in members]
