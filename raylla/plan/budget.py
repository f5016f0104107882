"""Each phase of an epoch in tokens, FLOPs, bytes and seconds, and each group's memory, from counts.

Everything here is a product of a config's own numbers, a model's shape and a data sheet; the only
estimates are `Lengths` and `hardware.Shares`. docs/scaling.md works two configs out by the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from raylla.config import Config
from raylla.plan.architecture import Architecture, architecture
from raylla.plan.hardware import CORE, DISK, NETWORK, Device, Shares

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}
"""Bytes of an element."""

WORKSPACE = 3e9
"""Bytes that an engine keeps for activations and CUDA graphs, at 8192 batched tokens of a 4 B model."""


ONE_AD = 190
"""Tokens of a judge's prompt about one ad of an answer; an answer is taken to hold one."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean tokens of the texts: the Ad-LLM's prompt and answer, the judge's prompt and reply."""

    prompt: float
    answer: float
    judge_prompt: float
    judgement: float

    @classmethod
    def of(cls, config: Config, prompt: float | None = None, answer: float | None = None) -> Lengths:
        """Estimates by prompt template and number of candidate ads, where they are not given."""
        paper = config.ad_llm.prompt == "paper"
        listing, rest, usual = (35, 400, 400) if paper else (18, 30, 60)
        answer = min(config.ad_llm.sampling.max_tokens, answer or usual)
        prompt = prompt or rest + listing * config.world.candidates
        if config.user_llm.reading == "token":
            return cls(prompt, answer, ONE_AD, 1)
        paper_judge = config.user_llm.prompt == "paper"
        return cls(prompt, answer, answer + (350 if paper_judge else 40), 40 if paper_judge else 20)


@dataclass(frozen=True, slots=True)
class PhaseCost:
    """One phase of an epoch on ``workers`` devices; it is bound by the largest of its times.

    ``times`` in seconds, by what they are spent on; they add up.
    """

    name: str
    workers: int
    tokens: float
    flops: float
    times: Mapping[str, float]
    notes: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(self.times.values())

    @property
    def bound(self) -> str:
        """What most of the time is spent on."""
        return max(self.times, key=lambda name: self.times[name])


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device of a group, by what holds them, and what it has."""

    group: str
    parts: Mapping[str, float]
    limit: float

    @property
    def used(self) -> float:
        """All of it."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return self.used <= self.limit


@dataclass(frozen=True, slots=True)
class Budget:
    """A config's cost. Rollout and judge work side by side; the other phases follow one another."""

    phases: tuple[PhaseCost, ...]
    memory: tuple[Memory, ...]
    epochs: int
    gpus: float

    def phase(self, name: str) -> PhaseCost:
        """By name."""
        return next(one for one in self.phases if one.name == name)

    @property
    def epoch_seconds(self) -> float:
        """From the first request to the next weight version on every engine."""
        sample = max(self.phase("rollout").seconds, self.phase("judge").seconds)
        return sample + sum(one.seconds for one in self.phases if one.name not in ("rollout", "judge"))

    @property
    def idle(self) -> float:
        """Share of its GPU hours in which a disaggregated cluster waits: trainers while answers are
        sampled, engines while weights are trained."""
        workers = sum(self.phase(name).workers for name in ("rollout", "judge", "align"))
        busy = sum(
            one.workers * one.seconds for one in self.phases if one.name in ("rollout", "judge", "align")
        )
        return 1 - busy / (workers * self.epoch_seconds)


def budget(config: Config, device: Device, lengths: Lengths, shares: Shares = Shares()) -> Budget:  # noqa: B008
    """The budget of ``config`` with GPUs like ``device``; groups without GPUs get a CPU core.

    Raises:
        ConfigError: a model whose sizes are not known.
    """
    ad_llm = architecture(config.ad_llm.path, "ad_llm.path")
    user_llm = architecture(config.user_llm.path, "user_llm.path")
    encoder = architecture(config.pctr.encoder, "pctr.encoder")
    asked, tested = _queries(config)
    work = _Work(config, lengths, asked, tested)
    rollout = device if config.rollout.gpus else CORE
    judge = device if config.judge.gpus else CORE
    trainer = device if config.dpo.gpus else CORE
    phases = (
        _rollout(work, ad_llm, rollout, shares),
        _judge(work, user_llm, judge, shares),
        _learn(work, encoder, device if config.reward_trainer.gpus else CORE, shares),
        _align(work, ad_llm, trainer, shares),
        _deploy(work, ad_llm),
    )
    memory = (
        _engine_memory("rollout", config, ad_llm, rollout),
        _engine_memory("judge", config, user_llm, judge),
        _trainer_memory(work, ad_llm, trainer),
    )
    wide = config.engine.tensor_parallel
    gpus = (
        wide * (config.rollout.workers * config.rollout.gpus + config.judge.workers * config.judge.gpus)
        + config.reward_trainer.workers * config.reward_trainer.gpus
        + config.dpo.workers * config.dpo.gpus
    )
    return Budget(phases, memory, config.irpo.epochs, gpus)


@dataclass(frozen=True, slots=True)
class _Work:
    """What an epoch asks for: ``asked`` training queries, in each of two phases, and ``tested`` ones."""

    config: Config
    lengths: Lengths
    asked: int
    tested: int

    @property
    def answers(self) -> float:
        """Answers of the Ad-LLM."""
        irpo = self.config.irpo
        trained = self.asked * (irpo.reward_answers + irpo.preference_answers)
        return trained + self.tested * self.config.evaluation.answers

    @property
    def judgements(self) -> float:
        """Answers that the judge reads."""
        irpo = self.config.irpo
        clicks = self.asked * irpo.reward_answers + self.tested * self.config.evaluation.answers
        scored = (
            self.asked * irpo.preference_answers * self.config.readings if irpo.reward == "judge" else 0
        )
        return clicks + scored

    @property
    def row(self) -> float:
        """Tokens of a packed preference group: its prompt once, each answer once."""
        return self.lengths.prompt + self.config.irpo.preference_answers * self.lengths.answer

    @property
    def block_sparse(self) -> bool:
        """Whether the trainer's attention skips what its mask hides."""
        return self.config.dpo.attention == "auto" and self.config.dpo.gpus > 0

    @property
    def seen(self) -> float:
        """Others that a token of such a row is multiplied with in attention, on average: of the prompt
        and of its own answer those before it, or the whole row under a plain mask."""
        if not self.block_sparse:
            return self.row
        prompt, answer = self.lengths.prompt, self.lengths.answer
        answers = self.config.irpo.preference_answers * answer * (prompt + answer / 2)
        return (prompt**2 / 2 + answers) / self.row


def _queries(config: Config) -> tuple[int, int]:
    held_out = round(config.world.profiles * config.world.test_share)
    each = config.world.queries_per_profile
    trained, tested = (config.world.profiles - held_out) * each, held_out * each
    return min(config.irpo.queries or trained, trained), min(config.evaluation.queries or tested, tested)


def concurrency(
    config: Config, model: Architecture, device: Device, prompt: float, n: float, text: float
) -> float:
    """Draws in progress on one engine: what ``max_num_seqs`` allows and its KV cache holds, where a
    request's ``n`` draws share the cache of their prompt."""
    held = _cache(config, model, device) / model.kv_bytes(WIDTH[config.engine.dtype])
    requests = held / (prompt + n * text)
    return max(1.0, min(config.engine.max_num_seqs, n * requests))


def step_times(
    model: Architecture, device: Device, width: int, wide: int, draws: float, context: float, shares: Shares
) -> tuple[float, float]:
    """Seconds of one decoding step of ``draws`` sequences: to read the memory, and to compute.

    A step reads every weight once and each sequence's own KV cache; ``wide`` devices share both.
    """
    read = model.parameters * width + draws * context * model.kv_bytes(width)
    computed = model.flops(draws, context, draws)
    return read / (wide * device.bandwidth * shares.decode), computed / (
        wide * device.flops * shares.prefill
    )


def _generate(
    work: _Work,
    model: Architecture,
    device: Device,
    shares: Shares,
    name: str,
    workers: int,
    requests: float,
    draws_each: float,
    prompt: float,
    text: float,
) -> PhaseCost:
    """``requests`` prompts of ``draws_each`` texts each on ``workers`` engines."""
    config = work.config
    wide, width = config.engine.tensor_parallel, WIDTH[config.engine.dtype]
    prefilled, decoded = requests * prompt, requests * draws_each * text
    prefill_flops = model.flops(prefilled, prompt / 2, requests)
    decode_flops = model.flops(decoded, prompt + text / 2, decoded)
    draws = concurrency(config, model, device, prompt, draws_each, text)
    read, computed = step_times(model, device, width, wide, draws, prompt + text / 2, shares)
    steps = decoded / draws / workers
    times = {"prefill compute": prefill_flops / (workers * wide * device.flops * shares.prefill)}
    times["decode bandwidth" if read >= computed else "decode compute"] = steps * max(read, computed)
    notes = {"draws per engine": draws, "tokens/s per engine": draws / max(read, computed)}
    return PhaseCost(name, workers * wide, prefilled + decoded, prefill_flops + decode_flops, times, notes)


def _rollout(work: _Work, model: Architecture, device: Device, shares: Shares) -> PhaseCost:
    requests = 2 * work.asked + work.tested
    lengths, workers = work.lengths, work.config.rollout.workers
    each = work.answers / requests
    return _generate(
        work, model, device, shares, "rollout", workers, requests, each, lengths.prompt, lengths.answer
    )


def _judge(work: _Work, model: Architecture, device: Device, shares: Shares) -> PhaseCost:
    lengths, workers = work.lengths, work.config.judge.workers
    count = work.judgements
    return _generate(
        work, model, device, shares, "judge", workers, count, 1, lengths.judge_prompt, lengths.judgement
    )


def _learn(work: _Work, encoder: Architecture, device: Device, shares: Shares) -> PhaseCost:
    """Encoding of every judged and every scored answer; the MLP over it is a thousandth of that."""
    readings = 1 + sum(name in work.config.pctr.features for name in ("sentence", "ad_text"))
    texts = work.judgements + work.asked * work.config.irpo.preference_answers
    tokens = texts * readings * work.lengths.answer
    flops = encoder.flops(tokens, work.lengths.answer / 2, 0)
    workers = work.config.reward_trainer.workers
    return PhaseCost("learn", workers, tokens, flops, {"compute": flops / (device.flops * shares.prefill)})


def _align(work: _Work, model: Architecture, device: Device, shares: Shares) -> PhaseCost:
    """DPO with a preference group from every query: forward and backward (twice a forward), the forward
    again where activations are not kept, and one for the reference where the rollout did not give it."""
    dpo, row = work.config.dpo, work.row
    answers = work.config.irpo.preference_answers * work.lengths.answer
    forward = model.flops(row, work.seen, answers)
    given = dpo.reference == "policy" and dpo.reference_logprobs == "rollout"
    passes = dpo.passes * (4 if dpo.gradient_checkpointing else 3) + (0 if given else 1)
    flops = work.asked * forward * passes
    steps = math.ceil(work.asked / dpo.batch_groups) * dpo.passes
    micro = steps * dpo.batch_groups / dpo.workers / dpo.micro_groups
    width = WIDTH[dpo.precision]
    # Gradients are reduced once a step and weights gathered once; under ZeRO-3 they are gathered for each
    # forward and each backward pass.
    moved = 2 * steps if dpo.zero_stage < 3 else 3 * micro
    size = model.parameters * width * (dpo.workers - 1) / dpo.workers
    times = {"compute": flops / (dpo.workers * device.flops * shares.train)}
    if dpo.workers > 1:
        times["link"] = moved * size / (device.link * shares.link)
    notes = {"tokens per group": row, "steps": float(steps)}
    return PhaseCost("align", dpo.workers, work.asked * row * passes, flops, times, notes)


def _deploy(work: _Work, model: Architecture) -> PhaseCost:
    """The version written and read as it is stored, then sent in float32 to each engine in turn."""
    stored = model.parameters * WIDTH[work.config.dpo.precision]
    sent = model.parameters * 4 * work.config.rollout.workers
    times = {"disk": 2 * stored / DISK, "network": sent / NETWORK}
    return PhaseCost("deploy", work.config.rollout.workers, 0, 0, times)


def stored_bytes(config: Config) -> tuple[float, int]:
    """Bytes of a weight version as it is stored, and how many a finished run keeps."""
    size = architecture(config.ad_llm.path, "ad_llm.path").parameters * WIDTH[config.dpo.precision]
    return float(size), min(config.irpo.epochs, config.storage.keep_versions or config.irpo.epochs)


def _cache(config: Config, model: Architecture, device: Device) -> float:
    """Bytes of one engine's KV cache, over all its devices."""
    wide = config.engine.tensor_parallel
    if device is CORE:
        return float(config.engine.kv_cache_mib * 2**20)
    taken = wide * config.engine.gpu_memory_utilization * device.memory
    return taken - model.parameters * WIDTH[config.engine.dtype] - wide * WORKSPACE


def _engine_memory(group: str, config: Config, model: Architecture, device: Device) -> Memory:
    wide = config.engine.tensor_parallel
    parts = {"weights": model.parameters * WIDTH[config.engine.dtype] / wide}
    least = config.engine.max_model_len * model.kv_bytes(WIDTH[config.engine.dtype]) / wide
    parts["KV cache"] = max(_cache(config, model, device) / wide, least)
    if device is CORE:
        return Memory(group, parts, device.memory)
    parts["workspace"] = WORKSPACE
    return Memory(group, parts, device.memory * config.engine.gpu_memory_utilization)


def _trainer_memory(work: _Work, model: Architecture, device: Device) -> Memory:
    """DeepSpeed's shares (Rajbhandari et al. 2020, section 5), and the activations of a micro-batch."""
    dpo = work.config.dpo
    width, ranks = WIDTH[dpo.precision], dpo.workers
    mixed = dpo.precision != "float32"
    weights = model.parameters * width / (ranks if dpo.zero_stage == 3 else 1)
    gradients = model.parameters * width / (ranks if dpo.zero_stage >= 2 else 1)
    # Two moments in float32; beside bfloat16 weights also their float32 copy and the step's gradients.
    optimizer = model.parameters * (16 if mixed else 8) / ranks
    tokens = dpo.micro_groups * work.row
    heads = (model.heads + 2 * model.kv_heads) * model.head_dim
    layer = tokens * width * (8 * model.hidden + 2 * heads + 4 * model.ffn)
    kept = tokens * width * model.hidden * model.layers
    activations = kept + layer if dpo.gradient_checkpointing else layer * model.layers
    mask = 0 if work.block_sparse else dpo.micro_groups * work.row**2 * width
    parts = {
        "weights": weights,
        "gradients": gradients,
        "optimizer": 0.0 if dpo.offload and device is not CORE else optimizer,
        "activations": activations + mask,
    }
    return Memory("dpo", parts, device.memory)
