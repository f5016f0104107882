"""Which auctions an epoch holds."""

from __future__ import annotations

from dataclasses import replace

from raylla.config import Config, parse_config
from raylla.irpo.schedule import CHUNK_AUCTIONS, MOST_CHUNKS, auctions, chunks
from raylla.records import Query
from raylla.world import World, build

CONFIG = parse_config({"world": {"profiles": 10}, "irpo": {"queries": 6, "epochs": 2}}, "test")


def _world(config: Config = CONFIG) -> World:
    draft = build.synthetic(config.world, config.seed)
    splits = build.split_users(draft.profiles, 0.2, config.seed)
    queries = [
        Query(f"{user.id}-{place}", user.id, "best tea", "tea", "food", splits[user.id])
        for user in draft.profiles
        for place in range(2)
    ]
    return replace(draft, queries=tuple(queries))


def test_test_queries_are_never_trained_on() -> None:
    world = _world()
    for epoch in (1, 2):
        for planned in auctions(CONFIG, world, epoch):
            assert (planned.phase == "test") == (planned.query.split == "test")
    assert {planned.phase for planned in auctions(CONFIG, world, 3)} == {"test"}


def test_same_config_and_seed_give_the_same_auctions() -> None:
    first = [item.auction for item in auctions(CONFIG, _world(), 1)]
    assert first == [item.auction for item in auctions(CONFIG, _world(), 1)]
    assert len({auction.id for auction in first}) == len(first)


def test_bids_are_fresh_for_training_and_fixed_for_testing() -> None:
    world = _world()
    by_id = [{item.auction.id: item.auction.bids for item in auctions(CONFIG, world, e)} for e in (1, 2)]
    shared = by_id[0].keys() & by_id[1].keys()
    assert shared == {item.auction.id for item in auctions(CONFIG, world, 3)}
    assert all(by_id[0][name] == by_id[1][name] for name in shared)
    drawn = [bid for bids in by_id[0].values() for bid in bids]
    assert all(1 <= bid <= 100 and bid == int(bid) for bid in drawn)
    assert len(set(drawn)) > 20


def test_a_large_epoch_has_larger_chunks_and_not_more_of_them() -> None:
    few, many = CHUNK_AUCTIONS * 3 + 1, CHUNK_AUCTIONS * MOST_CHUNKS * 2 + 1
    made = {}
    for count in (few, many):
        world = replace(
            _world(), queries=tuple(Query(f"q-{place}", "u", "", "", "", "train") for place in range(count))
        )
        config = parse_config({"irpo": {"epochs": 1}}, "test")
        dealt = [chunk for chunk in chunks(config, world, 1) if chunk.phase == "reward"]
        assert [name for chunk in dealt for name in chunk.queries] == [query.id for query in world.queries]
        made[count] = [len(chunk.queries) for chunk in dealt]
    assert made[few] == [CHUNK_AUCTIONS] * 3 + [1]
    assert len(made[many]) <= MOST_CHUNKS
    assert max(made[many]) == 2 * CHUNK_AUCTIONS + 1
