"""A world of anyone's own: a table of ads and a table of queries."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raylla import config
from raylla.errors import WorldError
from raylla.records import Profile, Query, Turn
from raylla.world import build, store
from raylla.world.imports import catalogue
from raylla.world.imports.tablefiles import Cells, Fault, read_rows
from raylla.world.synthetic import lexicon
from raylla.world.texts import MAX_CATEGORY, clean_field, one_line
from raylla.world.turns import read_turns
from raylla.world.world import World

_QUERIES: dict[str, tuple[str, ...]] = {
    "query": ("query", "query_text", "question", "search_term", "prompt", "text"),
    "user": ("user", "user_id", "profile_id", "customer_id"),
    "profile": ("profile", "user_profile", "persona", "basics", "about"),
    "interests": ("interests", "likes"),
    "category": ("category", "query_category", "topic"),
    "turns": ("turns", "history", "conversation"),
}
"""Field of a query -> names that its column has where it is not named."""
MAX_PROFILE = 300
"""Longest line about a user, in characters."""


@dataclass(frozen=True)
class Imported:
    """A world, and the rows of its tables that are not in it."""

    world: World
    faults: tuple[Fault, ...]


@dataclass
class _User:
    """What the tables say of a user; what they do not is drawn."""

    basics: str = ""
    interests: tuple[str, ...] = ()
    asked: list[tuple[str, str, tuple[Turn, ...]]] = field(default_factory=list)
    """Queries, each with its category and what was said before."""


def import_tables(
    ads: Path,
    queries: Path,
    out: Path | None,
    settings: config.World,
    seed: int,
    named: Mapping[str, str] | None = None,
) -> Imported:
    """Read two tables into a world, saved to ``out`` unless that is None; ``named``: field -> column.

    Users are those of the columns `user` or `profile`; where a table has neither, up to
    ``settings.profiles`` are drawn, each with a query at least.  A user of whom nothing is said has an
    age, an occupation and a city drawn, and as interests the categories of what he asks, with others of
    the catalogue.  Whole users are held out by ``settings.test_share``.  Bids are not of a world.

    Raises:
        WorldError: a file cannot be read, a column is not there, more than half of the rows cannot be
            used, or there are fewer than two users.
    """
    named = named or {}
    of_ads, of_queries = _named(named, catalogue.ADS), _named(named, _QUERIES)
    for unknown in named.keys() - of_ads.keys() - of_queries.keys():
        raise WorldError(f"--map {unknown}=: there is no such field; those are {', '.join(_fields())}")
    return assemble("table", catalogue.take_ads(ads, of_ads), queries, of_queries, out, settings, seed)


def assemble(
    name: str,
    taken: catalogue.Taken,
    queries: Path,
    named: Mapping[str, str],
    out: Path | None,
    settings: config.World,
    seed: int,
    change: Callable[[Cells], Cells] = dict,
) -> Imported:
    """The world of ads that were taken and a table of queries; ``change`` has the queries' cells first."""
    notes = Counter(taken.notes)
    users, faults = _users(queries, named, settings.profiles, seed, notes, change)
    categories = list(dict.fromkeys(ad.category for ad in taken.ads))
    profiles = tuple(
        _profile(f"p{index}", user, categories, random.Random(f"{seed}/profiles/{index}"))
        for index, user in enumerate(users)
    )
    splits = build.split_users(profiles, settings.test_share, seed)
    asked = tuple(
        Query(f"{profile.id}-{index}", profile.id, text, category, category, splits[profile.id], turns)
        for profile, user in zip(profiles, users, strict=True)
        for index, (text, category, turns) in enumerate(user.asked)
    )
    world = World(name, seed, profiles, tuple(taken.ads), asked, notes=dict(notes))
    store.check_world(world)
    if out is not None:
        store.save_world(world, out)
    return Imported(world, (*taken.faults, *faults))


def _users(
    file: Path,
    named: Mapping[str, str],
    most: int,
    seed: int,
    notes: Counter[str],
    change: Callable[[Cells], Cells],
) -> tuple[list[_User], list[Fault]]:
    """Who asks what, by the table or dealt out to users without a name."""
    known: defaultdict[str, _User] = defaultdict(_User)
    faults: list[Fault] = []
    seen: set[tuple[str, str, tuple[Turn, ...]]] = set()
    rows = 0
    for line, cells in read_rows(file, catalogue.columns(_QUERIES, named, "query")):
        rows += 1
        if isinstance(cells, Fault):
            faults.append(cells)
            continue
        cells = change(cells)
        text = build.query_text(one_line(cells["query"]))
        if not text:
            why = f"query={cells['query'][:40]!r} says nothing; fill or drop the row"
            faults.append(Fault(file, line, why))
            continue
        who = cells.get("user", "") or cells.get("profile", "")
        try:
            turns = read_turns(cells.get("turns", ""))
        except WorldError as error:
            faults.append(Fault(file, line, str(error)))
            continue
        if (who, text, turns) in seen:
            notes["queries_repeated"] += 1
            continue
        seen.add((who, text, turns))
        user = known[who]
        user.basics = user.basics or clean_field(cells.get("profile", ""), MAX_PROFILE)
        user.interests = user.interests or _listed(cells.get("interests", ""))
        user.asked.append((text, clean_field(cells.get("category", ""), MAX_CATEGORY), turns))
    catalogue.bound(file, rows, faults)
    notes["queries_unusable"] = len(faults)
    unnamed = known.pop("", _User()).asked
    random.Random(f"{seed}/queries").shuffle(unnamed)
    count = min(most, len(unnamed))
    users = [*known.values(), *(_User(asked=unnamed[place::count]) for place in range(count))]
    if len(users) < 2:
        raise WorldError(f"{file}: {len(users)} users ask; at least one is held out for testing: give two")
    return users, faults


def _profile(id: str, user: _User, categories: Sequence[str], rng: random.Random) -> Profile:
    """What is known of a user, and what is drawn of the rest."""
    drawn = lexicon.basics(rng)
    if user.interests:
        return Profile(id, user.basics or drawn, user.interests)
    own = dict.fromkeys(category for _, category, _ in user.asked if category in categories)
    others = [category for category in categories if category not in own]
    more = rng.sample(others, min(len(others), max(0, lexicon.INTERESTS - len(own))))
    return Profile(id, user.basics or drawn, (*own, *more))


def _listed(text: str) -> tuple[str, ...]:
    """Interests in a cell, parted by commas or semicolons."""
    parts = (clean_field(part, MAX_CATEGORY) for part in text.replace(";", ",").split(","))
    return tuple(dict.fromkeys(part for part in parts if part))


def _named(named: Mapping[str, str], fields: Mapping[str, object]) -> dict[str, str]:
    return {field: column for field, column in named.items() if field in fields}


def _fields() -> list[str]:
    return list(dict.fromkeys([*catalogue.ADS, *_QUERIES]))
