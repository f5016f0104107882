"""Answers per second: a rollout actor ÷ vLLM in one process with the same engine arguments."""

from __future__ import annotations

import itertools
import time

from raylla.actors import DONE, Pool, RolloutWorker, next_item
from raylla.actors.placement import connect, disconnect
from raylla.bench.load import answer_requests
from raylla.bench.measure import Note, Row, Side, compare
from raylla.bench.run import Bench
from raylla.config import Actors
from raylla.engines import Request
from raylla.engines.chat import prompt_ids
from raylla.engines.vllmparams import engine_arguments, sampling_params
from raylla.errors import ConfigError
from raylla.models import local, resolve

_REQUESTS, _DRAWS = 120, 8


def rows(bench: Bench) -> list[Row]:
    """Generated tokens per second; prompts are other ones each time, and the same on both sides."""
    config, auctions = bench.config, bench.share(_REQUESTS)
    path = resolve(config.ad_llm.path, "ad_llm.path")
    with local(path) as directory:
        given = engine_arguments(str(directory), config.engine, config.seed)
        from vllm import LLM
        from vllm.inputs import TokensPrompt

        llm = LLM(**given)
    tokenizer = llm.get_tokenizer()
    connect(config)
    try:
        args = (path, config.ad_llm.sampling, config.engine, config.seed, "v0")
        pool = Pool("rollout", RolloutWorker, args, Actors(workers=1, cpus=config.rollout.cpus))
        pool.start(config.deadlines.start)
        turns = {"actor": itertools.count(), "vLLM": itertools.count()}

        def asked(side: str) -> list[Request]:
            return answer_requests(config, next(turns[side]), auctions, _DRAWS)

        def actor() -> float:
            requests = asked("actor")
            started, tokens = time.perf_counter(), 0
            call = pool.call(0, "generate", requests, "v0")
            while True:
                item = next_item([call], config.deadlines.sample, "the next answer")[1]
                if item is DONE:
                    return tokens / (time.perf_counter() - started)
                if item.error is not None:
                    raise ConfigError(f"request {item.request_id}: {item.error}")
                tokens += sum(len(completion.token_ids) for completion in item.completions)

        def raw() -> float:
            requests = asked("vLLM")
            started = time.perf_counter()
            inputs = [
                TokensPrompt(prompt_token_ids=prompt_ids(tokenizer, request.messages))
                for request in requests
            ]
            params = [sampling_params(request, config.ad_llm.sampling) for request in requests]
            generated = llm.generate(inputs, params, use_tqdm=False)
            for output in generated:
                for draw in output.outputs:
                    tokenizer.decode(draw.token_ids, skip_special_tokens=True)
            tokens = sum(len(draw.token_ids) for output in generated for draw in output.outputs)
            return tokens / (time.perf_counter() - started)

        sides = Side("rollout actor", actor), Side("vLLM in process", raw)
        notes: dict[str, Note] = {
            "model": config.ad_llm.path,
            "precision": given["dtype"],
            "auctions": auctions,
            "answers each": _DRAWS,
        }
        return [compare("rollout actor ÷ raw vLLM", *sides, bench.repeats, "tokens/s", notes)]
    finally:
        disconnect(config)
