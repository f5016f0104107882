"""Versions that share an engine: weights in memory ÷ one model's; a version live ÷ the engine started anew.

The base is a published model (`MODELS`); the adapters are new ones of the config's ``lora``, or the
defaults, with probes of a plain prompt's and answer's length.  Live means as at the endpoint: read, loaded,
and computed in one batch with the base and the stable version, over the pipe to the engine's process.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raylla import precision
from raylla.bench.measure import Row, Side, Spread, compare
from raylla.bench.run import MODELS, Bench
from raylla.config import Engine, Lora, Sampling
from raylla.engines.chat import prompt_ids
from raylla.engines.live import LiveVllm
from raylla.engines.protocol import AdapterRoom, Probe
from raylla.models import HEAD, local, resolve, shapes, tied
from raylla.records import WeightVersion
from raylla.serving.engine.engine import start_engine
from raylla.world.synthetic import grammar

_PROMPT, _ANSWER = 300, 70
_WRITTEN, _ROUNDS = 32, 4
"""Tokens of an answer whose speed is measured, and answers of each policy."""
_NAMES = ("stable", "canary")


@dataclass(frozen=True, slots=True)
class _Group:
    """What a probe is taken of."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    length: int = 0
    pairs: int = 0


def rows(bench: Bench) -> list[Row]:
    """Memory and speed of canary, stable and organic in one batch; seconds until the canary is live."""
    config = bench.config
    settings = config.engine.model_copy(
        update={"dtype": precision.chosen(config.engine.dtype, gpu=False), "max_model_len": 768}
    )
    room = AdapterRoom.of(config.lora or Lora())
    base = resolve(MODELS["adapters"], "model")
    versions = {name: _version(bench, name, config.lora or Lora()) for name in _NAMES}
    engine = LiveVllm(base, settings, config.seed, room)
    for name, (version, probe) in versions.items():
        engine.hold(name, Path(version.path), probe)
    return [
        _memory(engine, base, settings),
        _speed(bench, engine),
        _live(bench, base, settings, room, versions),
    ]


def _version(bench: Bench, name: str, lora: Lora) -> tuple[WeightVersion, Probe]:
    """An adapter with a change of its own, and its probe."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from raylla.policy.adapters import peft_config
    from raylla.policy.saving import probe

    place = bench.scratch / name
    torch.manual_seed(_NAMES.index(name))
    with local(MODELS["adapters"]) as whole:
        model = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(whole)
    blocks = int(model.config.num_hidden_layers)
    made = peft_config(lora, MODELS["adapters"], blocks)
    adapted = get_peft_model(model, made)
    for parameter_name, parameter in adapted.named_parameters():
        if "lora_B" in parameter_name:  # as made they are 0, and change nothing
            torch.nn.init.normal_(parameter, std=0.01)
    adapted.save_pretrained(place)
    prompt = _prompt(tokenizer)
    with torch.no_grad():  # its own answer, as a trainer's probe is: likely tokens, in which numbers agree
        told = adapted.generate(
            input_ids=torch.tensor([prompt]), do_sample=False, max_new_tokens=_ANSWER, eos_token_id=None
        )
    group = _Group(prompt, (tuple(told[0, len(prompt) :].tolist()),))
    return WeightVersion(name, 1, str(place)), probe(place, group)


def _prompt(tokenizer: Any) -> tuple[int, ...]:
    """A question of about `_PROMPT` tokens, as a chat."""
    rng = random.Random(0)
    ids: list[int] = []
    text = ""
    while len(ids) < _PROMPT:
        text += grammar.answer_sample(rng).messages[0]["content"] + "\n"
        ids = prompt_ids(tokenizer, [{"role": "user", "content": text}])
    return tuple(ids)


def _memory(engine: LiveVllm, base: str, settings: Engine) -> Row:
    whole, more = _bytes(Path(base), settings), engine.adapter_bytes()
    notes = {"one model (MiB)": whole / 2**20, "adapters (MiB)": more / 2**20}
    ratio = Spread(((whole + more) / whole,))
    return Row("weights of canary, stable and organic ÷ one", ratio, notes=notes)


def _speed(bench: Bench, engine: LiveVllm) -> Row:
    """Tokens read and written, of prompts that are not in the cache."""
    rng = np.random.default_rng(0)
    names = itertools.count()
    sampling = Sampling(temperature=0, max_tokens=_WRITTEN)

    def speed(policies: Sequence[str]) -> float:
        tokens = 0
        began = time.perf_counter()
        for _ in range(bench.share(_ROUNDS)):
            for policy in policies:
                prompt = rng.integers(100, 10_000, _PROMPT).tolist()
                engine.submit(str(next(names)), prompt, sampling, False, policy)
                tokens += _PROMPT
        running = len(policies) * bench.share(_ROUNDS)
        while running:
            for step in engine.step():
                tokens += len(step.token_ids)
                running -= step.finish is not None
        return tokens / (time.perf_counter() - began)

    mixed = Side("mixed", lambda: speed(("", *_NAMES)))
    alone = Side("base", lambda: speed(("",) * (1 + len(_NAMES))))
    return compare("tokens of a mixed batch ÷ the base alone", mixed, alone, bench.repeats, "tokens/s")


def _bytes(directory: Path, settings: Engine) -> int:
    """Of a whole model's weights, a tied head once, as the engine computes with them."""
    width = 4 if settings.dtype == "float32" else 2
    counted = {name: math.prod(size) for name, size in shapes(directory).items()}
    if tied(directory):
        del counted[HEAD]
    return width * sum(counted.values())


def _live(
    bench: Bench,
    base: str,
    settings: Engine,
    room: AdapterRoom,
    versions: dict[str, tuple[WeightVersion, Probe]],
) -> Row:
    start = bench.config.deadlines.start
    first = WeightVersion("v0", 0, base)
    (stable, stable_probe), (canary, canary_probe) = (versions[name] for name in _NAMES)
    with asyncio.Runner() as runner:
        engine = start_engine(base, settings, 0, first, start, room)
        runner.run(engine.hold(stable, stable_probe))

        async def held() -> float:
            began = time.perf_counter()
            await engine.hold(canary, canary_probe)
            seconds = time.perf_counter() - began
            engine.drop(canary)
            return seconds

        def restart() -> float:
            began = time.perf_counter()
            another = start_engine(base, settings, 0, first, start)
            seconds = time.perf_counter() - began
            another.close()
            return seconds

        sides = Side("adapter live", lambda: runner.run(held())), Side("restart", restart)
        row = compare("adapter live ÷ engine restart", *sides, bench.repeats, "s")
        engine.close()
        return row


__all__ = ["rows"]
