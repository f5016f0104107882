"""Log-probabilities of given tokens under a linear head, without keeping their logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 1 << 24
"""Logits computed at once: 64 MiB in float32."""

KEEP = 1 << 24
"""Up to this many logits their probabilities are kept for the backward pass; beyond, they are computed
again, which costs a third matrix product and saves memory that grows with the vocabulary."""


def token_logprobs(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """log softmax(hidden @ weight.T)[labels]: hidden [N, d], weight [V, d], labels [N] -> [N] float32."""
    result: Tensor = _TokenLogprobs.apply(hidden, weight, labels)
    return result


class _TokenLogprobs(torch.autograd.Function):
    """d logp(y) / d logits = onehot(y) - softmax: both gradients are one product with it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        rows = max(1, CHUNK // weight.shape[0])
        keep = hidden.shape[0] * weight.shape[0] <= KEEP and any(ctx.needs_input_grad)
        result = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        kept: list[Tensor] = []
        for part in _parts(hidden.shape[0], rows):
            logits = (hidden[part] @ weight.T).float()
            top = logits.amax(-1, keepdim=True)
            chosen = logits.gather(1, labels[part, None]) - top
            shares = logits.sub_(top).exp_()
            total = shares.sum(-1, keepdim=True)
            result[part] = (chosen - total.log())[:, 0]
            if keep:
                kept += [shares, total]
        ctx.save_for_backward(hidden, weight, labels, *kept)
        ctx.rows = rows
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden, weight, labels, *kept = ctx.saved_tensors
        gradient = gradients[0]
        to_hidden = torch.empty_like(hidden)
        # A frozen head, as beside adapters, needs none.
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for number, part in enumerate(_parts(hidden.shape[0], ctx.rows)):
            given = gradient[part, None]
            if kept:
                slope = kept[2 * number] * (-given / kept[2 * number + 1])
            else:
                slope = (hidden[part] @ weight.T).float().softmax(-1).mul_(-given)
            slope.scatter_add_(1, labels[part, None], given)
            slope = slope.to(hidden.dtype)
            to_hidden[part] = slope @ weight
            if to_weight is not None:
                to_weight.addmm_(slope.T, hidden[part])
        return to_hidden, to_weight, None


def _parts(size: int, rows: int) -> list[slice]:
    return [slice(start, min(start + rows, size)) for start in range(0, size, rows)]
