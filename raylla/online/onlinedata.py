"""Served auctions and their clicks as phase 1 of an epoch, in the records of the loop.

The world of such a run has the served users, queries, ads and auctions for training, and for testing
the simulator's held-out users, who meet the served ads.  A served auction's id becomes its query's, so
the run's ledger names every auction that it consumed: ``e1/reward/<auction id>/0``.  A run that goes
on from weights of another run (`ad_llm.path` in its directory) leaves out what that one, and the
runs before it, consumed.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from raylla.auction import parse
from raylla.config import Config
from raylla.errors import RunError, WorldError
from raylla.records import Ad, Answer, Auction, Click, Phase, Profile, Query
from raylla.runs.state import Run
from raylla.serving.money import money
from raylla.serving.money.records import Served, ServedAuction
from raylla.serving.store import open_store
from raylla.storage import above, exists, within
from raylla.world import World, bids, build, store
from raylla.world.prompts import neutral
from raylla.world.texts import check_ad

ANSWERED: Final[Phase] = "reward"
"""The phase whose answers and clicks come from the store."""


@dataclass(frozen=True)
class OnlineData:
    """What was served, oldest first: a world to train on, one answer per auction, and its clicks."""

    world: World
    answers: tuple[Answer, ...]
    clicks: tuple[Click, ...]


def read_served(config: Config, simulated: World) -> OnlineData:
    """Served auctions of `online.since` to `online.until`, dealt out evenly to the epochs in time order.

    ``simulated`` gives the held-out users (and their queries, where it has any).  Left out, and
    counted in the world's notes: auctions of held-out users, those consumed before, those whose query
    says nothing or had no candidates, and those where the user saw other ads than the model placed.

    Raises:
        RunError: fewer than `online.least_auctions` are left.
        StoreError: the database is not there, or cannot be opened.
    """
    assert config.online.database is not None
    opened = open_store(config.online.database, must_exist=True, field="online.database")
    try:
        since = config.online.since or dt.datetime.min.replace(tzinfo=dt.UTC)
        until = config.online.until or dt.datetime.now(dt.UTC)
        held_out = {user.id for user in held_out_users(config, simulated)}
        notes: Counter[str] = Counter()
        kept = list(_usable(opened.auctions(since, until), held_out, consumed(config), notes))
    finally:
        opened.close()
    if len(kept) < config.online.least_auctions:
        raise RunError(
            f"online.database: {len(kept)} auctions to learn from, fewer than online.least_auctions="
            f"{config.online.least_auctions} (left out: {dict(notes) or 'none'}); serve more, widen "
            "online.since and online.until, or lower the bound"
        )
    return _converted(config, simulated, kept, notes)


def held_out_users(config: Config, simulated: World) -> list[Profile]:
    """The simulator's users that are tested on."""
    if simulated.queries:
        tested = {query.profile_id for query in simulated.of("test")}
    else:
        splits = build.split_users(simulated.profiles, config.world.test_share, config.seed)
        tested = {user for user, split in splits.items() if split == "test"}
    return [user for user in simulated.profiles if user.id in tested]


def consumed(config: Config) -> set[str]:
    """Ids of the served auctions behind the weights that ``config`` starts from."""
    ids: set[str] = set()
    while True:
        run = above(above(config.ad_llm.path))
        if not exists(within(run, "run.json")):
            return ids
        before = Run.open(run)
        if before.committed("world") is not None:
            ids |= _answered(before, store.load_world(before.part("world")))
        config = before.config


def _answered(run: Run, world: World) -> set[str]:
    """Ids of the served auctions of a run's sampled epochs."""
    epochs = range(1, run.config.irpo.epochs + 1)
    sampled = [epoch for epoch in epochs if run.committed(f"epoch-{epoch}/sample") is not None]
    return {
        auction.query_id
        for auction in world.auctions
        if any(auction.id == bids.auction_id(epoch, ANSWERED, auction.query_id) for epoch in sampled)
    }


def _usable(
    served: Iterable[Served], held_out: set[str], before: set[str], notes: Counter[str]
) -> Iterator[tuple[Served, Query]]:
    for kept in served:
        auction = kept.auction
        asked = build.query_from_text(_profile(auction), 0, auction.query, "train")
        parsed = parse(auction.raw_text, [candidate.listing.ad for candidate in auction.candidates])
        if auction.id in before:
            notes["consumed before"] += 1
        elif auction.user_id in held_out:
            notes["of held-out users"] += 1
        elif asked is None or not auction.candidates:
            notes["without query or candidates"] += 1
        elif not _readable(candidate.listing.ad for candidate in auction.candidates):
            notes["with ads that a prompt cannot hold"] += 1
        elif parsed.ad_ids != tuple(shown.ad_id for shown in auction.impressions):
            notes["shown otherwise than placed"] += 1
        else:
            about = (auction.category, auction.theme) if auction.category else (asked.category, asked.theme)
            yield (
                kept,
                replace(asked, id=auction.id, category=about[0], theme=about[1], turns=auction.turns),
            )


def _readable(ads: Iterable[Ad]) -> bool:
    """Whether a prompt may hold them: stores are older than some of its rules."""
    try:
        for ad in ads:
            check_ad(ad)
    except WorldError:
        return False
    return True


def _converted(
    config: Config, simulated: World, kept: list[tuple[Served, Query]], notes: Counter[str]
) -> OnlineData:
    users = {user.id: user for user in held_out_users(config, simulated)}
    tests = [query for query in simulated.of("test") if query.profile_id in users]
    ads: dict[str, Ad] = {}
    auctions: list[Auction] = []
    answers: list[Answer] = []
    clicks: list[Click] = []
    for place, (joined, query) in enumerate(kept):
        served = joined.auction
        users[query.profile_id] = _profile(served)  # what the user last said of himself
        ads |= {candidate.listing.ad.id: candidate.listing.ad for candidate in served.candidates}
        name = bids.auction_id(1 + place * config.irpo.epochs // len(kept), ANSWERED, query.id)
        auctions.append(_auction(name, query, served, config.serving.micros_per_unit))
        answers.append(_answer(name, served))
        clicks += [
            Click(answers[-1].sample_id, shown.ad_id, shown.id in joined.clicked)
            for shown in served.impressions
        ]
    world = World(
        "online",
        config.seed,
        tuple(users.values()),
        tuple(ads.values()),
        (*(query for _, query in kept), *tests),
        auctions=tuple(auctions),
        notes=dict(notes),
    )
    return OnlineData(world, tuple(answers), tuple(clicks))


def _profile(auction: ServedAuction) -> Profile:
    """The user, by the id that the application gave, else by what it said of the user."""
    said = json.dumps([auction.basics, auction.interests])
    id = auction.user_id or f"anonymous-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
    return Profile(id, _plain(auction.basics), tuple(_plain(interest) for interest in auction.interests))


def _plain(text: str) -> str:
    """``text`` as a world may hold it: printable, and no role of a prompt."""
    return "".join(character for character in neutral(text) if character.isprintable())


def _auction(name: str, query: Query, served: ServedAuction, micros_per_unit: int) -> Auction:
    """The auction with its bids in units, as the model read them."""
    micros_per_unit = served.micros_per_unit or micros_per_unit
    return Auction(
        name,
        query.id,
        tuple(candidate.listing.ad.id for candidate in served.candidates),
        tuple(money.to_units(candidate.bid_micros, micros_per_unit) for candidate in served.candidates),
    )


def _answer(name: str, served: ServedAuction) -> Answer:
    return Answer(
        bids.sample_id(name, 0),
        name,
        0,
        served.weight_version,
        served.raw_text,
        served.prompt_token_ids,
        served.token_ids,
    )
