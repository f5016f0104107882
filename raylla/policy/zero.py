"""DeepSpeed ZeRO settings from ``config.Dpo``, and what has to hold before DeepSpeed is imported."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

from raylla.config import Dpo
from raylla.models.libraries import uncollected

QUIET = 1 << 30

BUCKET = 1 << 23
"""Gradients reduced at once. transformers' "auto" is the hidden size squared, which for a small model is a
collective for every matrix; this is about that of a 4 B model, and a small one in one piece."""


def deepspeed_settings(dpo: Dpo, micro: int, micro_steps: int, ranks: int) -> dict[str, Any]:
    """DeepSpeed's config for ``micro_steps`` forward passes of ``micro`` rows per optimizer step on each of
    ``ranks``.

    Sizes left to "auto" are derived by transformers from the model's hidden size.
    """
    on_gpu = torch.cuda.is_available()
    zero: dict[str, Any] = {
        "stage": dpo.zero_stage,
        "overlap_comm": on_gpu,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto" if dpo.zero_stage == 3 else BUCKET,
    }
    if dpo.zero_stage == 3:
        zero |= {"stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto"}
    if dpo.offload and on_gpu:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if dpo.zero_stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": micro_steps,
        "train_batch_size": micro * micro_steps * ranks,
        "gradient_clipping": dpo.max_grad_norm,
        "bf16": {"enabled": dpo.precision == "bfloat16"},
        "fp16": {"enabled": False},
        "zero_optimization": zero,
        # torch's AdamW may then work on offloaded state; DeepSpeed's own would have to be compiled first.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": QUIET,
        "wall_clock_breakdown": False,
    }


def name_ranks() -> None:
    """Set the launcher's variables: a group of one, made here or by vLLM in process, comes without."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        os.environ.setdefault(name, value)


def connect_ranks() -> None:
    """Make torch.distributed and DeepSpeed ready in this process.

    Joins the process group that Ray Train has set up, or makes one of a single process.
    """
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group(
            "nccl" if on_gpu else "gloo", store=store, rank=0, world_size=1
        )
    name_ranks()
    with uncollected():
        import deepspeed

    for name in list(logging.root.manager.loggerDict):
        if name.lower().startswith("deepspeed"):
            logging.getLogger(name).setLevel(logging.ERROR)
    # DeepSpeed's shared-memory all-reduce is compiled on first use, and spins for ever where a rank died.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", verbose=False)
