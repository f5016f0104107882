"""Which auctions an epoch holds: a pure function of config, world and epoch."""

from __future__ import annotations

import random
from collections.abc import Sequence

from raylla.config import Config
from raylla.records import Auction, Phase, Planned, Query
from raylla.world import World, bids, build


def auctions(config: Config, world: World, epoch: int) -> list[Planned]:
    """The auctions of one epoch, in the order in which they are needed. After the last epoch only
    the test is left."""
    test = some(world.of("test"), config.evaluation.queries, f"{config.seed}/test")
    tested = plan(config, world, epoch, "test", test, config.evaluation.answers)
    if epoch > config.irpo.epochs:
        return tested
    queries = some(world.of("train"), config.irpo.queries, f"{config.seed}/train/{epoch}")
    return [
        *plan(config, world, epoch, "reward", queries, config.irpo.reward_answers),
        *plan(config, world, epoch, "preference", queries, config.irpo.preference_answers),
        *tested,
    ]


def some(queries: Sequence[Query], limit: int | None, seed: str) -> list[Query]:
    """All queries, or ``limit`` of them drawn by ``seed``, in their own order."""
    if limit is None or limit >= len(queries):
        return list(queries)
    chosen = set(random.Random(seed).sample(range(len(queries)), limit))
    return [query for place, query in enumerate(queries) if place in chosen]


def plan(
    config: Config, world: World, epoch: int, phase: Phase, queries: Sequence[Query], n: int
) -> list[Planned]:
    """One auction per query with fresh bids. Test bids do not depend on the epoch, so that every
    weight version is tested on the same auctions."""
    planned = []
    for query in queries:
        ads = build.candidates(world, query, config.world.candidates, config.seed)
        name = bids.auction_id(0 if phase == "test" else epoch, phase, query.id)
        drawn = bids.draw(config.seed, name, len(ads), config.world.max_bid)
        auction = Auction(name, query.id, tuple(ad.id for ad in ads), drawn)
        planned.append(Planned(phase, auction, query, world.profile_by_id[query.profile_id], ads, n))
    return planned
