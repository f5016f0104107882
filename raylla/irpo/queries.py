"""The world of a run: profiles and ads first, then the queries that the User-LLM asks, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raylla.config import Config
from raylla.engines.protocol import Generated, Request
from raylla.errors import WorldError
from raylla.irpo import served
from raylla.irpo.crew import Crew
from raylla.irpo.dispatch import dealt
from raylla.records import Profile, Split
from raylla.runs.observe import Observer
from raylla.runs.state import Run
from raylla.stop import heeded
from raylla.storage import durable, writing
from raylla.world import World, build, meaning, prompts, store
from raylla.world.bids import seed_of
from raylla.world.retrieval import Vectors


def draft_world(run: Run) -> World:
    """The run's world; before its queries are asked, the served, imported or synthetic one without
    (some of) them.

    Raises:
        WorldError: the world is unusable; names the file, the field and the value.
    """
    if run.committed("world") is not None:
        return store.load_world(run.part("world"))
    simulated = _simulated(run.config)
    return served.take_served(run, simulated) if run.config.online.database else simulated


def _simulated(config: Config) -> World:
    if config.world.path is not None:
        count = config.world.profiles * config.world.queries_per_profile
        world = build.sample_queries(store.load_world(config.world.path), count, config.seed)
        store.check_world(world)
        return replace(world, candidates={})  # another run's; this one finds its own
    return build.synthetic(config.world, config.seed)


def ask_queries(run: Run, crew: Crew, watch: Observer, draft: World) -> World:
    """Have the User-LLM ask every user's queries, and find their candidates where that is done by meaning,
    once; they are fixed from then on."""
    if run.committed("world") is not None:
        return draft
    world, wall = draft, 0.0
    askers = _askers(draft)
    if askers:
        total = run.config.world.queries_per_profile * len(askers)
        with watch.stage("ask queries", queries=total), heeded("the queries"):
            world = _asked(run, crew, watch, draft, askers)
        wall = watch.wall["ask queries"]
    if run.config.world.candidates_by == "meaning":
        with watch.stage("find candidates"), heeded("the candidates"):
            world = replace(world, candidates=_found(run.config, crew, world))
        wall += watch.wall["find candidates"]
    store.check_world(world)
    with writing(run.path / "world"):
        store.save_world(world, run.path / "world")
        durable(run.path / "world", run.path)
    run.commit(
        "world",
        [query.id for query in world.queries],
        {"wall_seconds": wall, "queries": len(world.queries), "notes": dict(world.notes)},
    )
    return world


def _found(config: Config, crew: Crew, world: World) -> dict[str, tuple[str, ...]]:
    """Candidates by meaning, with vectors of the encoder that the reward trainer holds."""

    def encode(texts: list[str]) -> Vectors:
        vectors: Vectors = crew.persistently(lambda: crew.ask_reward("encode", texts))
        return vectors

    sizes = config.world
    return meaning.nearest_candidates(world, sizes.candidates, sizes.near, config.seed, encode)


def _askers(draft: World) -> list[Profile]:
    """The users whose queries are still to be asked: all, or those to be tested on, or none."""
    if draft.of("test"):
        return []
    heard = {query.profile_id for query in draft.queries}
    return [user for user in draft.profiles if user.id not in heard]


def _asked(run: Run, crew: Crew, watch: Observer, draft: World, askers: Sequence[Profile]) -> World:
    config = run.config
    requests = [
        Request(
            user.id,
            prompts.ask(config.user_llm.prompt, user),
            config.world.queries_per_profile,
            seed_of(config.seed, f"ask/{user.id}"),
        )
        for user in askers
    ]
    texts: dict[str, Generated] = {}
    for item in dealt(crew.shards, "ask", requests, restart=crew.restart, deadline=crew.patience):
        if item.request_id not in texts:
            watch.advance("queries", len(item.completions), 0)
        texts[item.request_id] = item
    test: dict[str, Split] = dict.fromkeys((user.id for user in askers), "test")
    splits = test if draft.queries else build.split_users(askers, config.world.test_share, config.seed)
    queries = []
    for user in askers:
        for place, completion in enumerate(texts[user.id].completions):
            asked = build.query_from_text(user, place, completion.text, splits[user.id])
            if asked is not None and completion.finished:
                queries.append(asked)
    if not queries:
        raise WorldError("the User-LLM asked no usable query; check user_llm.path and user_llm.prompt")
    return replace(draft, queries=(*draft.queries, *queries))
