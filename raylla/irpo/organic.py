"""What the untouched model answers to a run's questions when it is told of no ads: written once a run,
where a reward term compares answers with it."""

from __future__ import annotations

from raylla.config import Config
from raylla.engines.protocol import Request
from raylla.errors import BudgetError
from raylla.irpo.crew import Crew
from raylla.irpo.dispatch import dealt
from raylla.irpo.schedule import chunks
from raylla.irpo.shards.parts import ORGANIC, ORGANIC_FILE
from raylla.records import Planned, Profile, Query
from raylla.runs.observe import Observer
from raylla.runs.state import Run, write_text
from raylla.runs.versions import untouched
from raylla.stop import heeded
from raylla.strictjson import dumps
from raylla.terms.protocol import ORGANIC_ANSWERS, needs_of, weighed_terms
from raylla.world import World, prompts
from raylla.world.bids import seed_of


def organic_request(config: Config, planned: Planned, what: str, n: int) -> Request:
    """The question of an auction alone, ``n`` times; for another ``what`` others are drawn."""
    return _asked(config, planned.query, planned.profile, what, n)


def _asked(config: Config, query: Query, profile: Profile, what: str, n: int) -> Request:
    messages = prompts.organic(config.ad_llm.prompt, query, profile)
    seed = seed_of(config.seed, f"{what}/{query.id}")
    return Request(query.id, messages, n, seed, turns=len(query.turns))


def write_organic(run: Run, crew: Crew, watch: Observer, world: World) -> None:
    """Have the untouched model answer every question that the run will ask, where a weighed term reads it,
    once; the engines hold the weights that they held when this returns.

    Raises:
        BudgetError: more than ``irpo.max_drop_share`` of the questions were lost.
    """
    config = run.config
    wanted = any("organic" in needs_of(term) for term in weighed_terms(config))
    if not wanted or run.committed(ORGANIC) is not None:
        return
    epochs = range(1, config.irpo.epochs + 2)
    every = (query for epoch in epochs for chunk in chunks(config, world, epoch) for query in chunk.queries)
    questions = [world.query_by_id[query] for query in dict.fromkeys(every)]
    asked = {
        question.id: _asked(
            config, question, world.profile_by_id[question.profile_id], ORGANIC, ORGANIC_ANSWERS
        )
        for question in questions
    }
    live, model = crew.version, untouched(run)
    texts: dict[str, list[str]] = {}
    total = 0
    with watch.stage("organic answers", organic=ORGANIC_ANSWERS * len(asked)), heeded(ORGANIC):
        if live != model:
            crew.refresh(model, None)
        args = (list(asked.values()), model.name)
        answered = dealt(crew.shards, "answer", *args, restart=crew.restart, deadline=crew.patience)
        for generated in answered:
            if generated.request_id not in texts:
                tokens = sum(len(completion.token_ids) for completion in generated.completions)
                watch.advance("organic", len(generated.completions), tokens)
                total += tokens + len(generated.prompt_token_ids)
            texts[generated.request_id] = [completion.text for completion in generated.completions]
        if live != model:
            crew.refresh(live, None)
    lost, share = sum(not some for some in texts.values()), config.irpo.max_drop_share
    if lost > share * len(asked):
        raise BudgetError(
            f"{lost} of {len(asked)} questions had no answer without ads, more than "
            f"irpo.max_drop_share={share} allows; see the engine's output"
        )
    directory = run.fresh(run.records(ORGANIC))
    write_text(directory / ORGANIC_FILE, dumps({id: texts[id] for id in asked}))
    report = {"wall_seconds": watch.wall["organic answers"], "weight_version": model.name, "tokens": total}
    run.commit(ORGANIC, [], report)
