"""What engines are asked in benchmarks: answer prompts as in training."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path

from raylla.config import Config
from raylla.engines import Request
from raylla.records import Ad, Profile, Query
from raylla.world import World, build, prompts, store
from raylla.world.synthetic import grammar

_Asked = tuple[Query, Profile, list[Ad]]


def answer_requests(
    config: Config, seed: int, count: int, draws: int, logprobs: bool = False
) -> list[Request]:
    """``count`` auctions of other users and ads each, to be answered ``draws`` times.

    They are the config's: its world's queries and ads, or the pocket grammar's where it names none, in its
    prompt's form.

    Raises:
        WorldError: the config's world cannot be read.
    """
    rng = random.Random(seed)
    path, model = config.world.path, config.ad_llm
    drawn = _drawn(rng, config.world.candidates) if path is None else _found(rng, config, path)
    requests = []
    for index, (query, user, ads) in enumerate(islice(drawn, count)):
        bids = [float(rng.randint(1, config.world.max_bid)) for _ in ads]
        messages = prompts.of(model, query, user, ads, bids)
        requests.append(
            Request(f"q{index}", messages, draws, 1000 * index, logprobs, turns=len(query.turns))
        )
    return requests


def _drawn(rng: random.Random, candidates: int) -> Iterator[_Asked]:
    while True:
        user = grammar.profile(rng)
        query = grammar.query(rng, user)
        yield query, user, grammar.ads(rng, query.category, candidates)


def _found(rng: random.Random, config: Config, path: Path) -> Iterator[_Asked]:
    world = _world(path)
    while True:
        query = rng.choice(world.queries)
        ads = build.candidates(world, query, config.world.candidates, config.seed)
        yield query, world.profile_by_id[query.profile_id], list(ads)


@lru_cache(maxsize=1)
def _world(path: Path) -> World:
    return store.load_world(path)
