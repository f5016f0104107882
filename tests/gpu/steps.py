"""Seconds and memory of a training step: forward and backward of some groups, and the optimizer's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from raylla.plan.hardware import GPUS
from raylla.policy import packing
from raylla.policy.attention import FLEX, FLEX_BLOCK
from raylla.policy.groups import TokenGroup
from tests.gpu import pairs
from tests.gpu.subject import BETA, Subject, trained

PEAK = GPUS["h200"].flops
ENOUGH = 10
"""Steps of a variant that are measured at most."""


def packed_sums(
    model: Any, groups: Sequence[TokenGroup], attention: str, device: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probability of every answer [A] by the policy trainer's own forward, and the rows."""
    rows = packing.pack(groups, multiple=FLEX_BLOCK if attention == FLEX else 1)
    rows = {name: one.to(device) for name, one in rows.items()}
    tokens = packing.PackedForward(model)(**{name: rows[name] for name in packing.MODEL_INPUTS})
    answers = sum(len(one.answers) for one in groups)
    return packing.sum_per_answer(tokens, rows["owner"], answers), rows


def packed_loss(policy: Tensor, reference: Tensor, rows: dict[str, Tensor]) -> Tensor:
    """The mean over pairs."""
    margins = packing.pair_margins(policy, reference, rows["winner"], rows["loser"], BETA)
    return packing.pair_loss(margins) / len(margins)


def packed_step(model: Any, groups: Sequence[TokenGroup], attention: str, device: str) -> None:
    """Forward and backward, packing included; the reference's log-probabilities came with the answers.

    FlexAttention has no backward on the CPU: there it is the forward alone.
    """
    forward_only = attention == FLEX and device == "cpu"
    with torch.set_grad_enabled(not forward_only):
        policy, rows = packed_sums(model, groups, attention, device)
        loss = packed_loss(policy, policy.detach() - 1.0, rows)
    if not forward_only:
        loss.backward()


def pairs_step(model: Any, reference: Any, groups: Sequence[TokenGroup], at_once: int, device: str) -> None:
    """The same of all pairs of ``groups``, ``at_once`` in a forward pass, the reference's included."""
    every = pairs.pairs_of(groups)
    for start in range(0, len(every), at_once):
        rows = pairs.batch(every[start : start + at_once], device)
        base = pairs.reference_sums(model, reference, rows)
        loss = pairs.pairs_loss(pairs.token_sums(model, rows), base, BETA) / len(every)
        loss.backward()


def timed(step: Callable[[], None], one: Subject, groups: int, tokens: int, flops: float) -> dict[str, Any]:
    """A variant's figures. The first step, which compiles, is counted apart; ``tokens`` and ``flops`` are
    those of a step over ``groups``, forward and backward without what is computed again."""
    if one.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        first, second = _seconds(step, one.device), _seconds(step, one.device)
        taken: list[float] = []
        while not taken or (sum(taken) + second <= one.seconds and len(taken) < ENOUGH):
            taken.append(_seconds(step, one.device))
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    middle = median(taken)
    return {
        "first_step_seconds": first,
        "step_seconds": middle,
        "step_seconds_range": [min(taken), max(taken)],
        "steps": len(taken),
        "groups_per_second": groups / middle,
        "tokens_per_second": tokens / middle,
        "mfu": flops / middle / PEAK,
        "peak_bytes": torch.cuda.max_memory_allocated() if one.device == "cuda" else 0,
    }


def optimizer_step(model: Any, device: str) -> dict[str, Any]:
    """AdamW as DeepSpeed has it beside bfloat16: weights, gradients and both moments in float32, and the
    weights written back. Without sharding: one device holds all of it."""
    held = list(trained(model).values())
    master = [one.detach().float() for one in held]
    update = torch.optim.AdamW(master, lr=1e-6, fused=device == "cuda")

    def step() -> None:
        for one, exact in zip(held, master, strict=True):
            exact.grad = torch.zeros_like(exact) if one.grad is None else one.grad.float()
        torch.nn.utils.clip_grad_norm_(master, 1.0)
        update.step()
        with torch.no_grad():
            for one, exact in zip(held, master, strict=True):
                one.copy_(exact)

    try:
        _seconds(step, device)
        taken = [_seconds(step, device) for _ in range(3)]
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    return {"seconds": median(taken), "state_bytes": 16 * sum(one.numel() for one in master)}


def _seconds(step: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
