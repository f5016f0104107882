"""The reference of DPO: log-probabilities that came with the answers ÷ computed by the trainer.

Both ends are measured, on a model of the config's size: what the trainer saves, its check of a sample
included, and what the engine pays for returning them, on the same answers.
"""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

from raylla import precision
from raylla.bench.load import answer_requests
from raylla.bench.measure import Row, Side, compare
from raylla.bench.parts.dpo import Shape, Subject, make_model, train_packed
from raylla.bench.run import Bench
from raylla.engines import open_engine
from raylla.errors import ConfigError
from raylla.models import resolve

_SHAPE = Shape("pocket", prompt=140, answer=60, answers=5, groups=64)
CHECKED = 16
_REQUESTS, _DRAWS = 60, 8


def rows(bench: Bench) -> list[Row]:
    """Groups per second of one pass over 64 groups, and tokens per second of the engine."""
    return [_trained(bench), _sampled(bench)]


def _trained(bench: Bench) -> Row:
    config = bench.config
    model = make_model(bench.scratch / "model", config.ad_llm.path)
    subject = Subject(model, config.lora, precision.chosen(config.dpo.precision, gpu=False))
    shape = replace(_SHAPE, groups=bench.share(_SHAPE.groups))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:

        def train(given: bool) -> float:
            call = apart.submit(train_packed, subject, shape, given, bench.share(CHECKED))
            return shape.groups / call.result().seconds

        sides = Side("rollout's", lambda: train(True)), Side("recomputed", lambda: train(False))
        return compare("DPO, reference from the rollout ÷ recomputed", *sides, bench.repeats, "groups/s")


def _sampled(bench: Bench) -> Row:
    config = bench.config
    engine = open_engine(resolve(config.ad_llm.path, "ad_llm.path"), config.engine, config.seed)
    turns = {True: itertools.count(), False: itertools.count()}

    def sample(logprobs: bool) -> float:
        asked = answer_requests(config, next(turns[logprobs]), bench.share(_REQUESTS), _DRAWS, logprobs)
        started = time.process_time()
        tokens = 0
        for generated in engine.generate(asked, config.ad_llm.sampling):
            if generated.error is not None:
                raise ConfigError(f"request {generated.request_id}: {generated.error}")
            tokens += sum(len(draw.token_ids) for draw in generated.completions)
        return tokens / (time.process_time() - started)

    sides = Side("with", lambda: sample(True)), Side("without", lambda: sample(False))
    return compare("rollout with log-probabilities ÷ without", *sides, bench.repeats, "tokens/s")
