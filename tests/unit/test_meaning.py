"""Candidates by meaning: some that are near, some from anywhere, fixed and kept with the world."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from raylla import config
from raylla.errors import WorldError
from raylla.irpo import queries, schedule
from raylla.irpo.crew import Crew
from raylla.models import POCKET
from raylla.records import Ad, Auction, Profile, Query, Turn
from raylla.reward.encoder import Encoder
from raylla.runs.observe import Observer
from raylla.runs.state import Run
from raylla.world import World, build, meaning, store
from raylla.world.retrieval import Retrieval, Vectors
from raylla.world.synthetic import grammar
from raylla.world.turns import in_context

TOPICS = 10


def _encode(texts: list[str]) -> Vectors:
    """The sum of a fixed random vector for each word, and what all texts share."""
    return np.stack([_vector(text) for text in texts])


def _vector(text: str) -> Vectors:
    words = [np.random.default_rng(list(word.encode())).standard_normal(64) for word in text.split()]
    return (3 + np.sum(words, axis=0)).astype(np.float32)


@pytest.fixture(scope="module")
def world() -> World:
    """Ads whose labels say nothing, and whose words do."""
    ads = tuple(Ad(f"{1000 + i}", f"brand{i}", f"topic{i % TOPICS}", "") for i in range(200))
    users = tuple(Profile(f"p{i}", "30", ()) for i in range(2))
    queries = tuple(
        Query(f"p{i % 2}-{i}", f"p{i % 2}", f"topic{i % TOPICS} please", "", "", ("train", "test")[i % 2])
        for i in range(40)
    )
    return World("w", 0, users, ads, queries)


def test_the_nearest_and_some_others_in_no_order(world: World) -> None:
    found = meaning.nearest_candidates(world, 6, 4, 0, _encode)
    assert list(found) == [query.id for query in world.queries]
    places = []
    for query in world.queries:
        own = [world.ad_by_id[id].category == query.text.split()[0] for id in found[query.id]]
        assert len(set(found[query.id])) == 6
        assert sum(own) >= 4
        places += [place for place, one in enumerate(own) if not one]
    assert len(places) > 40  # most of the others are of other topics
    assert set(places) == set(range(6))
    assert found == meaning.nearest_candidates(world, 6, 4, 0, _encode)
    assert found != meaning.nearest_candidates(world, 6, 4, 1, _encode)


@pytest.mark.parametrize(("count", "near", "expected"), [(3, 8, 3), (6, 1, 6), (300, 4, 200), (1, 1, 1)])
def test_as_many_as_there_can_be(world: World, count: int, near: int, expected: int) -> None:
    found = meaning.nearest_candidates(world, count, near, 0, _encode)
    assert {len(set(ads)) for ads in found.values()} == {expected}


def test_served_queries_have_theirs_already(world: World) -> None:
    served = world.queries[0]
    auction = Auction(f"e1/reward/{served.id}", served.id, ("1000",), (5.0,))
    found = meaning.nearest_candidates(replace(world, auctions=(auction,)), 6, 4, 0, _encode)
    assert set(found) == {query.id for query in world.queries[1:]}


def test_they_are_kept_with_the_world_and_are_what_auctions_have(world: World, tmp_path: Path) -> None:
    whole = replace(world, candidates=meaning.nearest_candidates(world, 6, 4, 0, _encode))
    store.save_world(whole, tmp_path / "world")
    loaded = store.load_world(tmp_path / "world")
    assert loaded == whole
    planned = schedule.auctions(config.Config(seed=7), loaded, 1)
    assert {one.phase for one in planned} == {"reward", "preference", "test"}
    assert all(one.auction.ad_ids == whole.candidates[one.query.id] for one in planned)
    small = build.sample_queries(whole, 10, 0)
    assert set(small.candidates) == {query.id for query in small.queries}


def test_a_world_from_before_has_none(world: World, tmp_path: Path) -> None:
    path = tmp_path / "world"
    store.save_world(world, path)
    for file, columns in (("ads", ["description", "url"]), ("queries", ["candidates"])):
        table = pq.read_table(path / f"{file}.parquet")
        pq.write_table(table.drop_columns(columns), path / f"{file}.parquet")
    assert store.load_world(path) == world


def test_unknown_candidates_are_refused(world: World) -> None:
    with pytest.raises(WorldError, match="candidates='1'"):
        store.check_world(replace(world, candidates={world.queries[0].id: ("1000", "1")}))


def test_a_follow_up_finds_what_the_turn_before_was_about() -> None:
    """With the encoder that is served, over a catalogue of all categories."""
    encode = Encoder(str(POCKET / "ad-llm")).encode
    rng = random.Random(0)
    asked = [grammar.query(rng, grammar.profile(rng)) for _ in range(60)]
    retrieval = Retrieval(encode([query.text for query in asked]))
    ads = build.catalogue(config.World(ads=200), 0)
    retrieval.refresh(ads, encode)

    def suit(queries: list[Query]) -> float:
        """Share of the six ads found that are of the query's category; by chance it is 0.02."""
        vectors = encode([in_context(query) for query in queries])
        found = [[ads[row] for row in retrieval.search(vector, None, 6)] for vector in vectors]
        pairs = [(ad, query) for row, query in zip(found, queries, strict=True) for ad in row]
        return sum(ad.category == query.category for ad, query in pairs) / len(pairs)

    bare = [replace(query, text="and a cheaper one?") for query in asked]
    answer = Turn("assistant", "One of steel.")
    followed = [
        replace(query, turns=(Turn("user", before.text), answer))
        for query, before in zip(bare, asked, strict=True)
    ]
    alone, in_its_context, first = suit(bare), suit(followed), suit(asked)
    assert alone < 0.05
    assert first > 0.15
    assert in_its_context > 0.5 * first


class _Crew:
    """The reward trainer's encoder, without a cluster; counts what it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def persistently(self, work: Callable[[], Any]) -> Any:
        return work()

    def ask_reward(self, method: str, texts: list[str]) -> Vectors:
        assert method == "encode"
        self.asked += 1
        return _encode(texts)


def test_a_run_finds_them_once(world: World, tmp_path: Path) -> None:
    others = {query.id: ("1000",) for query in world.queries}
    store.save_world(replace(world, candidates=others), tmp_path / "world")
    settings = {
        "path": str(tmp_path / "world"),
        "candidates_by": "meaning",
        "candidates": 5,
        "near": 2,
        "profiles": 2,
        "queries_per_profile": 10,
    }
    tree = {"world": settings, "wandb": {"mode": "disabled"}}
    run = Run.create(tmp_path / "run", config.parse_config(tree, "test"))
    crew = _Crew()
    with closing(Observer(run.config, run.path, Console(quiet=True))) as watch:
        draft = queries.draft_world(run)
        assert draft.candidates == {}
        asked = queries.ask_queries(run, cast(Crew, crew), watch, draft)
        assert len(asked.queries) == 20
        assert asked.candidates == meaning.nearest_candidates(draft, 5, 2, 0, _encode)
        before = crew.asked
        again = Run.open(tmp_path / "run")
        assert queries.ask_queries(again, cast(Crew, crew), watch, queries.draft_world(again)) == asked
        assert crew.asked == before
