"""What each group holds in memory, from counts.

On GPUs a device's memory; on cores that of a worker's process, and beside the groups what the machine
holds for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from raylla.config import Config
from raylla.plan.architecture import Architecture
from raylla.plan.hardware import CORE, Device, width
from raylla.plan.work import Work

WORKSPACE = 3e9
"""Bytes that an engine keeps for activations and CUDA graphs, at 8192 batched tokens of a 4 B model."""

LOGITS = 1 << 24
"""Logits that the trainer computes at once (`raylla.policy.logprobs.CHUNK`)."""

BATCHED = 8192
"""Tokens that an engine computes at once, at most (`raylla.engines.vllmparams.BATCHED_TOKENS`)."""

ROOM = 2
"""Adapters that an engine has room for (`raylla.engines.protocol.AdapterRoom.of`)."""

ENGINE_PROCESS, TRAINER_PROCESS, REWARD_PROCESS = 1.0e9, 0.75e9, 0.45e9
"""Bytes of a worker's process without what it holds: Python with vLLM; with torch, DeepSpeed and TRL; with
torch alone. What was left of proportional set sizes, shared pages split among their users, in one run of
SmolLM2 on two cores beside what is counted here; see docs/scaling.md."""

ENGINE_KERNELS, TRAINER_KERNELS = 0.5e9, 0.95e9
"""Bytes that oneDNN, by which a core multiplies in bfloat16, keeps for a worker's products: it compiles one
for each shape, about 1 MB, and keeps the last 1024. Measured with SmolLM2's products alone, over as many
numbers of rows as a run has."""

DRIVER = 1.8e9
"""Bytes of the processes that a run has once: the driver 0.4 GB, Ray 0.5, Ray Train 0.9. Seen likewise."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device of a group of ``workers``, by what holds them, and what it has."""

    group: str
    parts: Mapping[str, float]
    limit: float
    workers: int = 1

    @property
    def used(self) -> float:
        """All of it."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return self.used <= self.limit


def group_memory(
    work: Work, device: Device, ad_llm: Architecture, user_llm: Architecture, encoder: Architecture
) -> tuple[Memory, ...]:
    """Of each group on GPUs like ``device``; where no group has one, of all processes of the machine."""
    config = work.config
    rollout = _engine(
        "rollout", config, ad_llm, device if config.rollout.gpus else CORE, config.rollout.workers
    )
    if shares_base(config, config.rollout.adapters):
        size = width(config.engine.dtype, config.rollout.gpus > 0)
        slots = slots_bytes(config, ad_llm, size, config.rollout.gpus > 0) / config.engine.tensor_parallel
        rollout = replace(rollout, parts={**rollout.parts, "adapters": slots})
    groups = (
        rollout,
        _engine("judge", config, user_llm, device if config.judge.gpus else CORE, config.judge.workers),
        _trainer(work, ad_llm, device if config.dpo.gpus else CORE),
    )
    if config.rollout.gpus or config.judge.gpus or config.dpo.gpus or config.reward_trainer.gpus:
        return groups
    reward = {"weights": 4.0 * encoder.parameters, "process": REWARD_PROCESS}
    # The store reads the newest version and sends it; each engine holds it while it loads.
    version = (2 + config.rollout.workers) * version_bytes(config, ad_llm)
    return (
        *groups,
        Memory("reward", reward, CORE.memory, config.reward_trainer.workers),
        Memory("driver", {"processes": DRIVER, "weight version": version}, CORE.memory),
    )


def trained(config: Config, model: Architecture) -> int:
    """Parameters that alignment changes: all, or those of the adapters."""
    lora = config.lora
    return model.parameters if lora is None else model.adapters(lora.rank, lora.targets, lora.blocks)


def shares_base(config: Config, way: Literal["merged", "shared"]) -> bool:
    """Whether engines that take versions this way keep the base, and an adapter for each version."""
    return way == "shared" and config.lora is not None


def slots_bytes(config: Config, model: Architecture, size: int, gpu: bool) -> float:
    """Bytes of the adapters in an engine that shares its base, held or not, in elements of ``size`` bytes;
    on GPUs one slot stays empty (`raylla.engines.vllmparams.adapter_arguments`)."""
    return float((ROOM + gpu) * trained(config, model) * size)


def version_bytes(config: Config, model: Architecture) -> float:
    """Bytes of a weight version as rollout engines get it, in float32: the adapter, or all of the model,
    the head too where it is tied."""
    if shares_base(config, config.rollout.adapters):
        return 4.0 * trained(config, model)
    return 4.0 * (model.parameters + (model.embedding if model.tied else 0))


def endpoint_weights(config: Config, model: Architecture) -> dict[str, float]:
    """Bytes of weights in the endpoint, by what holds them: an engine that serves alone, and what a canary
    takes beside it."""
    gpu = config.serving.engine.gpus > 0
    size = width(config.engine.dtype, gpu)
    whole = float(model.parameters * size)
    if shares_base(config, config.serving.adapters):
        return {"the base": whole, "adapters of stable and canary": slots_bytes(config, model, size, gpu)}
    return {"stable": whole, "canary, in an engine of its own": whole}


def changed_products(config: Config, model: Architecture) -> int:
    """Products of the model that adapters change."""
    lora = config.lora
    return 0 if lora is None else len(lora.targets) * min(lora.blocks or model.layers, model.layers)


def cache_bytes(config: Config, model: Architecture, device: Device) -> float:
    """Bytes of one engine's KV cache, over all its devices."""
    wide = config.engine.tensor_parallel
    if not device.gpu:
        return float(config.engine.kv_cache_mib * 2**20)
    taken = wide * config.engine.gpu_memory_utilization * device.memory
    return taken - model.parameters * width(config.engine.dtype, True) - wide * WORKSPACE


def _engine(group: str, config: Config, model: Architecture, device: Device, workers: int) -> Memory:
    wide, size = config.engine.tensor_parallel, width(config.engine.dtype, device.gpu)
    parts = {"weights": model.parameters * size / wide}
    least = config.engine.max_model_len * model.kv_bytes(size) / wide
    parts["KV cache"] = max(cache_bytes(config, model, device) / wide, least)
    if not device.gpu:
        batch = max(BATCHED, config.engine.max_model_len)
        parts["workspace"] = batch * size * (4 * model.hidden + 3 * model.ffn)
        parts |= {"kernels": ENGINE_KERNELS} if size == 2 else {}
        return Memory(group, parts | {"process": ENGINE_PROCESS}, device.memory, workers)
    parts["workspace"] = WORKSPACE
    return Memory(group, parts, device.memory * config.engine.gpu_memory_utilization, workers)


def _trainer(work: Work, model: Architecture, device: Device) -> Memory:
    """DeepSpeed's shares (Rajbhandari et al. 2020, section 5), and the activations of a micro-batch.

    Beside adapters the whole weights are held, and gradients and optimizer state of the adapters alone.
    """
    dpo = work.config.dpo
    size, ranks = width(dpo.precision, device.gpu), dpo.workers
    moved = trained(work.config, model)
    # Two moments in float32; beside bfloat16 weights also their float32 copy and the step's gradients.
    optimizer = moved * (8 if size == 4 else 16) / ranks
    longest = work.lengths.prompt + work.config.irpo.preference_answers * work.lengths.answer
    tokens = dpo.micro_groups * (work.counts.longest or longest)
    heads = (model.heads + 2 * model.kv_heads) * model.head_dim
    layer = tokens * size * (8 * model.hidden + 2 * heads + 4 * model.ffn)
    kept = tokens * size * model.hidden * model.layers
    answers = tokens - dpo.micro_groups * work.lengths.prompt
    parts = {
        "weights": model.parameters * size / (ranks if dpo.zero_stage == 3 else 1),
        "gradients": moved * size / (ranks if dpo.zero_stage >= 2 else 1),
        "optimizer": 0.0 if dpo.offload and device.gpu else optimizer,
        "activations": kept + layer if dpo.gradient_checkpointing else layer * model.layers,
        # Logits and their slopes, in float32.
        "logits": 2 * 4 * min(answers * model.vocabulary, LOGITS),
    }
    if not device.gpu:
        parts |= {"kernels": TRAINER_KERNELS} if size == 2 else {}
        parts["process"] = TRAINER_PROCESS
    return Memory("dpo", parts, device.memory, ranks)
