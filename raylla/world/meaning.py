"""Candidates by meaning: the ads nearest to a query, found as the endpoint finds them, and some others."""

from __future__ import annotations

import random

from raylla.world.retrieval import Encode, Retrieval, encoded, questions
from raylla.world.turns import in_context
from raylla.world.world import World


def nearest_candidates(
    world: World, count: int, near: int, seed: int, encode: Encode
) -> dict[str, tuple[str, ...]]:
    """The ads that compete for each query that was not served: query id -> ad ids, shuffled.

    ``near`` of the ``count`` are the most relevant of the catalogue, the others come from anywhere:
    a model that only ever met ads that suit would not learn what relevance is.  Fixed by ``encode``
    and (``seed``, query id).
    """
    served = {auction.query_id for auction in world.auctions}
    queries = [query for query in world.queries if query.id not in served]
    said = encode(questions(world))
    retrieval = Retrieval(said)
    retrieval.refresh(world.ads, encode)
    vectors = encoded([in_context(query) for query in queries], encode, said.shape[1])
    candidates = {}
    for query, vector in zip(queries, vectors, strict=True):
        rng = random.Random(f"{seed}/candidates/{query.id}")
        rows = retrieval.search(vector, None, min(near, count))
        # as many again as could be near are drawn, so that enough are left without those
        drawn = rng.sample(range(len(world.ads)), min(count + len(rows), len(world.ads)))
        rows += [row for row in drawn if row not in rows][: count - len(rows)]
        rng.shuffle(rows)
        candidates[query.id] = tuple(world.ads[row].id for row in rows)
    return candidates
