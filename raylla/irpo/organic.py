"""What the untouched model answers to a run's questions when it is told of no ads: written once a run,
where a reward term compares answers with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from raylla.config import Config
from raylla.engines.protocol import Request
from raylla.errors import BudgetError
from raylla.irpo.crew import Crew
from raylla.irpo.dispatch import dealt
from raylla.irpo.schedule import auctions
from raylla.records import Planned
from raylla.runs.observe import Observer
from raylla.runs.state import Run, write_text
from raylla.runs.versions import untouched
from raylla.stop import heeded
from raylla.strictjson import dumps
from raylla.terms.protocol import ORGANIC_ANSWERS, needs_of, weighed_terms
from raylla.world import World, prompts
from raylla.world.bids import seed_of

ORGANIC = "organic"
_FILE = "answers.json"


def organic_request(config: Config, planned: Planned, what: str, n: int) -> Request:
    """The question of an auction alone, ``n`` times; for another ``what`` others are drawn."""
    query = planned.query
    messages = prompts.organic(config.ad_llm.prompt, query, planned.profile)
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
    every = [one for epoch in range(1, config.irpo.epochs + 2) for one in auctions(config, world, epoch)]
    asked = {one.query.id: organic_request(config, one, ORGANIC, ORGANIC_ANSWERS) for one in every}
    live, model = crew.version, untouched(run)
    texts: dict[str, list[str]] = {}
    total = 0
    with watch.stage("organic answers", organic=ORGANIC_ANSWERS * len(asked)), heeded(ORGANIC):
        if live != model:
            crew.refresh(model, None)
        requests, deadline = list(asked.values()), config.deadlines.sample
        found = dealt(
            crew.rollouts, "generate", requests, model.name, restart=crew.restart, deadline=deadline
        )
        for one in found:
            if one.request_id not in texts:
                tokens = sum(len(completion.token_ids) for completion in one.completions)
                watch.advance("organic", len(one.completions), tokens)
                total += tokens + len(one.prompt_token_ids)
            texts[one.request_id] = [completion.text for completion in one.completions]
        if live != model:
            crew.refresh(live, None)
    lost, share = sum(not some for some in texts.values()), config.irpo.max_drop_share
    if lost > share * len(asked):
        raise BudgetError(
            f"{lost} of {len(asked)} questions had no answer without ads, more than "
            f"irpo.max_drop_share={share} allows; see the engine's output"
        )
    directory = run.fresh(run.records(ORGANIC))
    write_text(directory / _FILE, dumps({id: texts[id] for id in asked}))
    report = {"wall_seconds": watch.wall["organic answers"], "weight_version": model.name, "tokens": total}
    run.commit(ORGANIC, [], report)


class OrganicAnswers:
    """What `write_organic` kept, read when it is first asked for."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._texts: Mapping[str, Sequence[str]] | None = None

    def __call__(self, asked: Sequence[Planned]) -> list[tuple[str, ...]]:
        """The answers to each auction's question."""
        if self._texts is None:
            self._texts = json.loads((self._run.part(f"records/{ORGANIC}") / _FILE).read_text())
        return [tuple(self._texts[one.query.id]) for one in asked]
