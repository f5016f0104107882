"""How the cost of answering grows with queries, candidates and samples: one engine in this process.

Costs are the seconds that this process computes (not those that it waits for a core), and prompt tokens
that the engine computed, which are those that its prefix cache did not hold.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raylla.bench.load import answer_requests
from raylla.bench.measure import Row, Spread
from raylla.bench.parts.dpo import make_model
from raylla.bench.run import Bench
from raylla.config import Config, Engine, Sampling, World
from raylla.engines.vllmparams import engine_arguments, sampling_params

_QUERIES = (32, 64, 128, 256)
"""The least of them fill the engine's batch: below, more work fills what is empty."""
_CANDIDATES = (8, 20, 50, 100)
SAMPLES = (5, 10, 20)
_BASE = {"queries": 32, "candidates": 8, "samples": 5}
ENGINE = Engine(max_model_len=4096, kv_cache_mib=512)
SAMPLING = Sampling(temperature=0.7, top_k=10, max_tokens=32)


@dataclass(frozen=True)
class Cost:
    """Of all auctions together."""

    seconds: float
    prompt_tokens: float


def rows(bench: Bench) -> list[Row]:
    """Exponents of the cost in each size, the others held, and prompt tokens per auction."""
    given = engine_arguments(str(make_model(bench.scratch / "model")), ENGINE, bench.config.seed)
    from vllm import LLM

    llm = LLM(**given | {"disable_log_stats": False})
    _answer(llm, 0, **_BASE)
    table = []
    for what, sizes, base in (
        ("queries", _QUERIES, _BASE),
        ("candidates", _CANDIDATES, _BASE),
        ("samples", SAMPLES, _BASE),
        ("samples", SAMPLES, _BASE | {"candidates": _CANDIDATES[-1]}),
    ):
        costs: dict[int, list[Cost]] = {size: [] for size in sizes}
        for repeat in range(bench.repeats):
            for size in sizes if repeat % 2 == 0 else reversed(sizes):
                costs[size].append(_answer(llm, repeat, **base | {what: size}))
        table += _rows(what, costs, base)
    return table


def _rows(what: str, costs: Mapping[int, Sequence[Cost]], base: Mapping[str, int]) -> list[Row]:
    repeats = range(len(next(iter(costs.values()))))
    seconds = [[costs[size][repeat].seconds for size in costs] for repeat in repeats]
    tokens = [[costs[size][repeat].prompt_tokens for size in costs] for repeat in repeats]
    auctions = [size if what == "queries" else base["queries"] for size in costs]
    notes = {
        f"{size} {what}": f"{spent[0].seconds / count:.3g} s, {spent[0].prompt_tokens / count:.0f} tokens"
        for (size, spent), count in zip(costs.items(), auctions, strict=True)
    }
    sizes = list(costs)
    held = ", ".join(f"{count} {name}" for name, count in base.items() if name != what)
    return [
        Row(
            f"seconds ~ {what}^x, {sizes[0]} to {sizes[-1]}; {held}",
            Spread(tuple(exponent(sizes, times) for times in seconds)),
            "",
            notes=notes | {"each line": "of one auction"},
        ),
        Row(
            f"prompt tokens computed ~ {what}^x; {held}",
            Spread(tuple(exponent(sizes, token) for token in tokens)),
            "",
        ),
    ]


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Least-squares slope of log cost over log size."""
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return slope / sum((a - mean_x) ** 2 for a in x)


def _answer(llm: Any, seed: int, queries: int, candidates: int, samples: int) -> Cost:
    """What it takes to answer ``queries`` auctions ``samples`` times each, from an empty cache."""
    from vllm.inputs import TokensPrompt

    llm.reset_prefix_cache()
    tokenizer = llm.get_tokenizer()
    config = Config(world=World(candidates=candidates))
    requests = answer_requests(config, seed, queries, samples)
    before, started = _computed(llm), time.process_time()
    inputs = [
        TokensPrompt(
            prompt_token_ids=tokenizer.apply_chat_template(
                request.messages, add_generation_prompt=True, return_dict=False
            )
        )
        for request in requests
    ]
    llm.generate(inputs, [sampling_params(request, SAMPLING) for request in requests], use_tqdm=False)
    return Cost(time.process_time() - started, _computed(llm) - before)


def _computed(llm: Any) -> float:
    """Prompt tokens that the engine computed so far."""
    counters = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    return float(counters["vllm:prefix_cache_queries"] - counters["vllm:prefix_cache_hits"])
