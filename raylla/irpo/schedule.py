"""Which auctions an epoch holds: a pure function of config, world and epoch."""

from __future__ import annotations

import random
from collections.abc import Sequence

from raylla.config import Config
from raylla.records import Auction, Phase, Planned, Query
from raylla.world import World, bids, build


def auctions(config: Config, world: World, epoch: int) -> list[Planned]:
    """The auctions of one epoch, in the order in which they are needed. After the last epoch only
    the test is left.  In a world of served auctions these are phase 1, already answered (n = 0)."""
    test = some(world.of("test"), config.evaluation.queries, f"{config.seed}/test")
    tested = plan_auctions(config, world, epoch, "test", test, config.evaluation.answers)
    if epoch > config.irpo.epochs:
        return tested
    if world.auctions:
        return [*_served(config, world, epoch), *tested]
    queries = some(world.of("train"), config.irpo.queries, f"{config.seed}/train/{epoch}")
    return [
        *plan_auctions(config, world, epoch, "reward", queries, config.irpo.reward_answers),
        *plan_auctions(config, world, epoch, "preference", queries, config.irpo.preference_answers),
        *tested,
    ]


def _served(config: Config, world: World, epoch: int) -> list[Planned]:
    """The served auctions of one epoch, and the same queries and candidates again with fresh bids."""
    judged, asked = [], []
    for auction in world.auctions:
        if bids.auction_id(epoch, "reward", auction.query_id) != auction.id:
            continue
        query = world.query_by_id[auction.query_id]
        profile, ads = (
            world.profile_by_id[query.profile_id],
            tuple(world.ad_by_id[ad] for ad in auction.ad_ids),
        )
        judged.append(Planned("reward", auction, query, profile, ads, 0))
        name = bids.auction_id(epoch, "preference", query.id)
        drawn = bids.draw(config.seed, name, len(ads), config.world.max_bid)
        again = Auction(name, query.id, auction.ad_ids, drawn)
        asked.append(Planned("preference", again, query, profile, ads, config.irpo.preference_answers))
    return [*judged, *asked]


def some(queries: Sequence[Query], limit: int | None, seed: str) -> list[Query]:
    """All queries, or ``limit`` of them drawn by ``seed``, in their own order."""
    if limit is None or limit >= len(queries):
        return list(queries)
    chosen = set(random.Random(seed).sample(range(len(queries)), limit))
    return [query for place, query in enumerate(queries) if place in chosen]


def plan_auctions(
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
