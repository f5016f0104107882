"""The world of a run: profiles and ads first, then the queries that the User-LLM asks, once."""

from __future__ import annotations

from dataclasses import replace

from raylla.actors.pool import DONE, next_item
from raylla.engines.protocol import Generated, Request
from raylla.errors import WorldError
from raylla.irpo.crew import Crew
from raylla.irpo.sampling import seed_of
from raylla.irpo.state import Run
from raylla.observe import Observer
from raylla.stop import heeded
from raylla.world import World, build, prompts, store


def draft_world(run: Run) -> World:
    """The run's world; before its queries are asked, the imported or synthetic one without them.

    Raises:
        WorldError: the world is unusable; names the file, the field and the value.
    """
    config, directory = run.config, run.path / "world"
    if run.committed("world") is not None:
        return store.load(directory)
    if config.world.path is not None:
        count = config.world.profiles * config.world.queries_per_profile
        world = build.sample(store.load(config.world.path), count, config.seed)
        store.check(world)
        return world
    return build.synthetic(config.world, config.seed)


def ask_queries(run: Run, crew: Crew, watch: Observer, draft: World) -> World:
    """Have the User-LLM ask every user's queries, once; they are fixed from then on."""
    if run.committed("world") is not None:
        return draft
    world, wall = draft, 0.0
    if not draft.queries:
        total = run.config.world.queries_per_profile * len(draft.profiles)
        with watch.stage("ask queries", queries=total), heeded("the queries"):
            world = crew.persistently(lambda: _asked(run, crew, watch, draft))
        wall = watch.wall["ask queries"]
    store.check(world)
    store.save(world, run.path / "world")
    run.commit(
        "world",
        [query.id for query in world.queries],
        {"wall_seconds": wall, "queries": len(world.queries)},
    )
    return world


def _asked(run: Run, crew: Crew, watch: Observer, draft: World) -> World:
    config = run.config
    requests = [
        Request(
            user.id,
            prompts.ask(config.user_llm.prompt, user),
            config.world.queries_per_profile,
            seed_of(config.seed, f"ask/{user.id}"),
        )
        for user in draft.profiles
    ]
    size = crew.judges.size
    calls = [crew.judges.call(worker, "ask", requests[worker::size]) for worker in range(size)]
    texts: dict[str, Generated] = {}
    while calls:
        call, item = next_item(calls, config.deadlines.sample, "the next query of the User-LLM")
        if item is DONE:
            calls.remove(call)
        else:
            texts[item.request_id] = item
            watch.advance("queries", len(item.completions), 0)
    splits = build.split(draft.profiles, config.world.test_share, config.seed)
    queries = []
    for user in draft.profiles:
        for place, completion in enumerate(texts[user.id].completions):
            asked = build.query_from_text(user, place, completion.text, splits[user.id])
            if asked is not None and completion.finished:
                queries.append(asked)
    if not queries:
        raise WorldError("the User-LLM asked no usable query; check user_llm.path and user_llm.prompt")
    return replace(draft, queries=tuple(queries))
