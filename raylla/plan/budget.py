"""Each phase of an epoch in tokens, FLOPs, bytes and seconds, and each group's memory, from counts.

Everything here is a product of a config's own numbers, a model's shape and a data sheet; the only
estimates are `Lengths`, `Counts` and `hardware.Shares`. docs/scaling.md works two configs out by the
same steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from raylla.config import Config
from raylla.plan.architecture import Architecture, architecture
from raylla.plan.hardware import DISK, NETWORK, Device, Shares, core, width
from raylla.plan.memory import (
    Memory,
    cache_bytes,
    changed_products,
    group_memory,
    shares_base,
    trained,
)
from raylla.plan.work import AD_TEXT, PROMPTS, QUERY, Counts, Lengths, Work, organic_questions
from raylla.precision import Precision
from raylla.terms.protocol import ORGANIC_ANSWERS

HANDLING = 0.2e-3
"""Seconds of a core that an engine's Python takes for each token of an answer: scheduling, sampling, its
log-probability, its text. An estimate, from one run of the pocket models: what it took beside their
products. On GPUs it is taken to hide behind the step."""

ROW = 1.2e-3
"""Seconds of a core that the pCTR model takes for each encoded answer beside the encoder: the networks over
the encodings, and Python. An estimate, from a run of the pocket models and two of SmolLM2."""

ADAPTING = 60e-6
"""Seconds of a core that each product with an adapter takes of a decoding step beside its arithmetic. An
estimate, from an engine of SmolLM2 on a busy machine: 16 rows decoded at 384 tokens/s with an adapter of
rank 16, at 563 without; prompts of 300 tokens were read at 1,372 and 1,393."""

LOADING, PROBING = 0.6e9, 0.06
"""Bytes of float32 a second that an engine on a core merges and loads of a version, and seconds of its
probe. An estimate, from the same runs."""


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
class Budget:
    """A config's cost. Rollout and judge work side by side; the other phases follow one another.

    On ``cores`` that all groups share (none: each has its own devices), what samples is learned from
    meanwhile, and lasts as long as the cores have work.  ``organic``, where a reward term reads the
    untouched model's answers, comes once, before the first epoch.
    """

    phases: tuple[PhaseCost, ...]
    memory: tuple[Memory, ...]
    epochs: int
    gpus: float
    cores: int | None = None
    organic: PhaseCost | None = None

    def phase(self, name: str) -> PhaseCost:
        """By name."""
        return next(phase for phase in self.phases if phase.name == name)

    @property
    def epoch_seconds(self) -> float:
        """From the first request to the next weight version on every engine."""
        together = ("rollout", "judge") if self.cores is None else ("rollout", "judge", "learn")
        sampling = [self.phase(name) for name in together]
        sample = max(phase.seconds for phase in sampling)
        if self.cores is not None:
            sample = max(sample, sum(phase.workers * phase.seconds for phase in sampling) / self.cores)
        return sample + sum(phase.seconds for phase in self.phases if phase.name not in together)

    @property
    def run_seconds(self) -> float:
        """All epochs, and what comes once."""
        return self.epochs * self.epoch_seconds + (self.organic.seconds if self.organic else 0.0)

    @property
    def idle(self) -> float:
        """Share of its GPU hours in which a disaggregated cluster waits: trainers while answers are
        sampled, engines while weights are trained. Of shared cores, what no phase has work for."""
        if self.cores is not None:
            busy = sum(phase.workers * phase.seconds for phase in self.phases if phase.flops)
            return 1 - busy / (self.cores * self.epoch_seconds)
        workers = sum(self.phase(name).workers for name in ("rollout", "judge", "align"))
        busy = sum(
            phase.workers * phase.seconds
            for phase in self.phases
            if phase.name in ("rollout", "judge", "align")
        )
        return 1 - busy / (workers * self.epoch_seconds)

    @property
    def host_bytes(self) -> float:
        """Memory of all processes together, where no group has a GPU."""
        return sum(group.workers * group.used for group in self.memory)


def budget(
    config: Config,
    device: Device,
    lengths: Lengths,
    shares: Shares | None = None,
    cores: int | None = None,
    counts: Counts | None = None,
) -> Budget:
    """The budget of ``config`` with GPUs like ``device``; groups without GPUs get a CPU core a worker.

    ``shares`` stand in for those of each device. Where no group has a GPU they share ``cores`` of one
    machine (none: each worker has its own). ``counts`` are the epoch's texts, where they are known better
    than from the config.

    Raises:
        ConfigError: a model whose sizes are not known.
    """
    ad_llm = architecture(config.ad_llm.path, "ad_llm.path")
    user_llm = architecture(config.user_llm.path, "user_llm.path")
    encoder = architecture(config.pctr.encoder, "pctr.encoder")
    wide = config.engine.tensor_parallel
    gpus = (
        wide * (config.rollout.workers * config.rollout.gpus + config.judge.workers * config.judge.gpus)
        + config.reward_trainer.workers * config.reward_trainer.gpus
        + config.dpo.workers * config.dpo.gpus
    )
    work = Work(config, lengths, counts or Counts.of(config), None if gpus else cores)

    def of(gpus: float, precision: Precision | Literal["auto"]) -> Device:
        planned = device if gpus else core(precision)
        return planned if shares is None else replace(planned, shares=shares)

    engines = of(config.rollout.gpus, config.engine.dtype)
    phases = (
        _rollout(work, ad_llm, engines),
        _judge(work, user_llm, of(config.judge.gpus, config.engine.dtype)),
        _learn(work, encoder, of(config.reward_trainer.gpus, "float32")),
        _align(work, ad_llm, of(config.dpo.gpus, config.dpo.precision)),
        _deploy(work, ad_llm, engines),
    )
    return Budget(
        phases,
        group_memory(work, device, ad_llm, user_llm, encoder),
        config.irpo.epochs,
        gpus,
        work.cores,
        _organic(work, ad_llm, engines),
    )


def concurrency(
    config: Config, model: Architecture, device: Device, prompt: float, n: float, text: float
) -> float:
    """Draws in progress on one engine: what ``max_num_seqs`` allows and its KV cache holds, where a
    request's ``n`` draws share the cache of their prompt."""
    size = model.kv_bytes(width(config.engine.dtype, device.gpu))
    held = cache_bytes(config, model, device) / size
    requests = held / (prompt + n * text)
    return max(1.0, min(config.engine.max_num_seqs, n * requests))


def step_times(
    model: Architecture, device: Device, size: int, wide: int, draws: float, context: float
) -> tuple[float, float]:
    """Seconds of one decoding step of ``draws`` sequences: to read the memory, and to compute.

    A step reads every weight once, of ``size`` bytes, and each sequence's own KV cache; ``wide`` devices
    share both.
    """
    read = model.parameters * size + draws * context * model.kv_bytes(size)
    computed = model.flops(draws, context, draws)
    shares = device.shares
    return read / (wide * device.bandwidth * shares.decode), computed / (wide * device.flops * shares.thin)


def _generate(
    work: Work,
    model: Architecture,
    device: Device,
    name: str,
    workers: int,
    requests: float,
    draws_each: float,
    prompt: float,
    text: float,
    adapters: int = 0,
) -> PhaseCost:
    """``requests`` prompts of ``draws_each`` texts each on ``workers`` engines, whose rows pay the products
    of so many parameters of ``adapters``, too."""
    config = work.config
    wide, size = config.engine.tensor_parallel, width(config.engine.dtype, device.gpu)
    workers = work.devices(workers)
    prefilled, decoded = requests * prompt, requests * draws_each * text
    prefill_flops = model.flops(prefilled, prompt / 2, requests)
    decode_flops = model.flops(decoded, prompt + text / 2, decoded)
    draws = concurrency(config, model, device, prompt, draws_each, text)
    read, computed = step_times(model, device, size, wide, draws, prompt + text / 2)
    steps = decoded / draws / workers
    times = {"prefill compute": prefill_flops / (workers * wide * device.flops * device.shares.prefill)}
    times["decode bandwidth" if read >= computed else "decode compute"] = steps * max(read, computed)
    adapted = 2.0 * adapters * (prefilled + decoded)
    if adapters:
        whole = prefilled / device.shares.prefill + decoded / device.shares.thin
        times["adapter products"] = 2 * adapters * whole / (workers * wide * device.flops)
        if not device.gpu:
            times["adapter products"] += ADAPTING * steps * changed_products(config, model)
    if not device.gpu:
        times["handling"] = HANDLING * decoded / workers
    notes = {"draws per engine": draws, "tokens/s per engine": draws / max(read, computed)}
    flops = prefill_flops + decode_flops + adapted
    return PhaseCost(name, workers * wide, prefilled + decoded, flops, times, notes)


def _rollout(work: Work, model: Architecture, device: Device) -> PhaseCost:
    requests = work.counts.requests
    lengths, workers = work.lengths, work.config.rollout.workers
    each = work.counts.answers / requests
    config = work.config
    adapters = trained(config, model) if shares_base(config, config.rollout.adapters) else 0
    return _generate(
        work, model, device, "rollout", workers, requests, each, lengths.prompt, lengths.answer, adapters
    )


def _organic(work: Work, model: Architecture, device: Device) -> PhaseCost | None:
    count, config = organic_questions(work.config), work.config
    if not count:
        return None
    prompt, answer, workers = PROMPTS[config.ad_llm.prompt][0], work.lengths.answer, config.rollout.workers
    return _generate(work, model, device, "organic, once", workers, count, ORGANIC_ANSWERS, prompt, answer)


def _judge(work: Work, model: Architecture, device: Device) -> PhaseCost:
    lengths, workers = work.lengths, work.config.judge.workers
    count = work.counts.readings
    return _generate(
        work, model, device, "judge", workers, count, 1, lengths.judge_prompt, lengths.judgement
    )


def _learn(work: Work, encoder: Architecture, device: Device) -> PhaseCost:
    """Encoding of every judged and every scored answer; of the networks over it, which are a thousandth of
    that, what they and Python take of a core."""
    counts = work.counts
    answers = counts.encoded * work.lengths.answer
    short = counts.queries * QUERY + counts.ads * AD_TEXT
    flops = encoder.flops(answers, work.lengths.answer, 0) + encoder.flops(short, QUERY, 0)
    workers = work.devices(work.config.reward_trainer.workers)
    times = {"compute": flops / (workers * device.flops * device.shares.prefill)}
    if not device.gpu:
        times["handling"] = ROW * counts.encoded / workers
    return PhaseCost("learn", workers, answers + short, flops, times)


def _align(work: Work, model: Architecture, device: Device) -> PhaseCost:
    """DPO or GRPO: forward and backward (twice a forward; once below adapters, which need no gradients of
    the weights), the forward again where activations are not kept, one for the reference where the
    rollout did not give it, which for GRPO it never does, and one to check it by a sample where the rollout
    did. What adapters themselves compute, a twentieth at rank 16, is left out."""
    dpo, counts, row = work.config.dpo, work.counts, work.row
    forward = model.flops(row, work.seen, counts.members * work.lengths.answer)
    each = (3 if work.config.lora is None else 2) + dpo.gradient_checkpointing
    learned = counts.groups * dpo.passes * each
    told = dpo.reference == "policy" and dpo.reference_logprobs == "rollout"
    checked = min(counts.groups, dpo.reference_check) if told else 0.0
    read = checked + (0 if told and work.config.irpo.align == "dpo" else counts.groups)
    micro = counts.steps * dpo.batch_groups / dpo.workers / dpo.micro_groups
    # Gradients are reduced once a step and weights gathered once; under ZeRO-3 they are gathered for each
    # forward and each backward pass.
    moved = 2 * counts.steps if dpo.zero_stage < 3 else 3 * micro
    size = trained(work.config, model) * width(dpo.precision, device.gpu)
    workers = work.devices(dpo.workers)
    shares, best = device.shares, workers * device.flops
    rows = learned * counts.uneven / shares.train + read / shares.prefill
    times = {"compute": forward * rows / best}
    if dpo.workers > 1:
        times["link"] = moved * size * (dpo.workers - 1) / dpo.workers / (device.link * shares.link)
    notes = {"tokens per group": row, "steps": float(counts.steps)}
    return PhaseCost("align", workers, row * (learned + read), forward * (learned + read), times, notes)


def _deploy(work: Work, model: Architecture, device: Device) -> PhaseCost:
    """The version written and read as it is stored, then sent in float32 to each engine in turn, whole or
    as an adapter; an engine on a core takes its time to load and to probe it."""
    stored, _ = stored_bytes(work.config)
    workers = work.config.rollout.workers
    shared = shares_base(work.config, work.config.rollout.adapters)
    sent = 4 * (trained(work.config, model) if shared else model.parameters)
    times = {"disk": 2 * stored / DISK, "network": sent * workers / NETWORK}
    if not device.gpu:
        times["handling"] = sent / LOADING + PROBING
    return PhaseCost("deploy", work.devices(workers), 0, 0, times)


def stored_bytes(config: Config) -> tuple[float, int]:
    """Bytes of a weight version as it is stored, adapters in float32, and how many a finished run keeps."""
    size = trained(config, architecture(config.ad_llm.path, "ad_llm.path"))
    each = width(config.dpo.precision, config.dpo.gpus > 0) if config.lora is None else 4
    return float(size * each), min(config.irpo.epochs, config.storage.keep_versions or config.irpo.epochs)
