"""Which auctions an epoch holds, and in which chunks: a pure function of config, world and epoch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from raylla.config import Config
from raylla.records import Auction, Phase, Planned, Query
from raylla.world import World, bids, build

CHUNK_AUCTIONS = 16
"""Auctions that are dealt, written and scored together, at least."""

MOST_CHUNKS = 64
"""Chunks that a phase's auctions make, at most: each is a few messages, however large it is."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some auctions of one phase of an epoch, by their queries' ids: what a shard is dealt, what one part
    of the records holds, and what the reward trainer is asked about at once.

    Everyone can make its auctions from it (`plan_chunk`), so that nothing else is sent or kept.
    """

    number: int
    epoch: int
    phase: Phase
    queries: tuple[str, ...]
    n: int

    @property
    def part(self) -> str:
        """The directory of its records in its stage's."""
        return f"part-{self.number:05}"

    @property
    def stage(self) -> str:
        """The stage that its answers are records of."""
        return f"epoch-{self.epoch}/{'test' if self.phase == 'test' else 'sample'}"

    @property
    def answers(self) -> int:
        """Answers that are asked for."""
        return self.n * len(self.queries)

    @property
    def auction_ids(self) -> list[str]:
        """Ids of its auctions, in order. Test auctions are the same in every epoch."""
        epoch = 0 if self.phase == "test" else self.epoch
        return [bids.auction_id(epoch, self.phase, query) for query in self.queries]


def chunks(config: Config, world: World, epoch: int) -> list[Chunk]:
    """The auctions of one epoch, in the order in which they are needed. After the last epoch only
    the test is left.  In a world of served auctions these are phase 1, already answered (n = 0)."""
    irpo, dealt = config.irpo, list[Chunk]()

    def add(phase: Phase, queries: Sequence[str], n: int) -> None:
        size = max(CHUNK_AUCTIONS, -(-len(queries) // MOST_CHUNKS))
        for start in range(0, len(queries), size):
            dealt.append(Chunk(len(dealt), epoch, phase, tuple(queries[start : start + size]), n))

    if epoch <= irpo.epochs:
        if world.auctions:
            trained, n = _served_queries(world, epoch), 0
        else:
            asked = some(world.of("train"), irpo.queries, f"{config.seed}/train/{epoch}")
            trained, n = [query.id for query in asked], irpo.reward_answers
        add("reward", trained, n)
        add("preference", trained, irpo.preference_answers)
    tested = some(world.of("test"), config.evaluation.queries, f"{config.seed}/test")
    add("test", [query.id for query in tested], config.evaluation.answers)
    return dealt


def plan_chunk(config: Config, world: World, chunk: Chunk) -> list[Planned]:
    """The auctions of a chunk."""
    if chunk.phase != "test" and world.auctions:
        return _served(config, world, chunk)
    queries = [world.query_by_id[query] for query in chunk.queries]
    return plan_auctions(config, world, chunk.epoch, chunk.phase, queries, chunk.n)


def auctions(config: Config, world: World, epoch: int) -> list[Planned]:
    """The auctions of all chunks of an epoch."""
    return [
        planned for chunk in chunks(config, world, epoch) for planned in plan_chunk(config, world, chunk)
    ]


def _served_queries(world: World, epoch: int) -> list[str]:
    """Queries whose served auctions are an epoch's, in their order."""
    return [
        auction.query_id
        for auction in world.auctions
        if bids.auction_id(epoch, "reward", auction.query_id) == auction.id
    ]


def _served(config: Config, world: World, chunk: Chunk) -> list[Planned]:
    """ServedAnswers auctions, or the same queries and candidates again with fresh bids."""
    auctions = []
    for query_id, name in zip(chunk.queries, chunk.auction_ids, strict=True):
        auction = world.auction_by_id[bids.auction_id(chunk.epoch, "reward", query_id)]
        query = world.query_by_id[query_id]
        profile = world.profile_by_id[query.profile_id]
        ads = tuple(world.ad_by_id[ad] for ad in auction.ad_ids)
        if chunk.phase != "reward":
            drawn = bids.draw(config.seed, name, len(ads), config.world.max_bid)
            auction = Auction(name, query.id, auction.ad_ids, drawn)
        auctions.append(Planned(chunk.phase, auction, query, profile, ads, chunk.n))
    return auctions


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
