"""The reference of DPO: log-probabilities that came with the answers ÷ computed by the trainer.

Both ends are measured: what the trainer saves, its check of a sample included, and what the engine pays
for returning them, on the same answers.
"""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from raylla.bench.dpo import Shape, make_model, train_packed
from raylla.bench.load import answer_requests
from raylla.bench.measure import Row, Side, compare
from raylla.bench.run import Bench
from raylla.engines import open_engine
from raylla.models import resolve

SHAPE = Shape("pocket", prompt=140, answer=60, answers=5, groups=64)
REQUESTS, DRAWS = 60, 8


def rows(bench: Bench) -> list[Row]:
    """Groups per second of one pass over 64 groups, and tokens per second of the engine."""
    config = bench.config
    model = make_model(bench.scratch / "model")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:

        def train(given: bool) -> float:
            return SHAPE.groups / apart.submit(train_packed, model, SHAPE, given, 16).result().seconds

        sides = Side("rollout's", lambda: train(True)), Side("recomputed", lambda: train(False))
        trained = compare("DPO, reference from the rollout ÷ recomputed", *sides, bench.repeats, "groups/s")
    engine = open_engine(resolve(config.ad_llm.path, "ad_llm.path"), config.engine, config.seed)
    turns = {True: itertools.count(), False: itertools.count()}

    def sample(logprobs: bool) -> float:
        asked = answer_requests(next(turns[logprobs]), REQUESTS, DRAWS, logprobs=logprobs)
        started = time.process_time()
        found = list(engine.generate(asked, config.ad_llm.sampling))
        tokens = sum(len(draw.token_ids) for one in found for draw in one.completions)
        return tokens / (time.process_time() - started)

    sides = Side("with", lambda: sample(True)), Side("without", lambda: sample(False))
    return [
        trained,
        compare("rollout with log-probabilities ÷ without", *sides, bench.repeats, "tokens/s"),
    ]
