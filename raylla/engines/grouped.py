"""Adapters on CPUs, computed all at once: what vLLM looks for in place of its own kernel there.

vLLM's kernel gathers a copy of an adapter's matrices for every token, and takes a token without an adapter
(slot -1) for one of the last slot.  Here all tokens of a step are multiplied by all slots' narrow matrices,
and of each token only its own slot's part is kept, none of one without a slot.  So a step has two products
for a layer, whoever its tokens belong to, and no shapes but those of the base's own products: each new
shape would be compiled anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

KERNEL = f"{__name__}.GroupedLora"
"""As vLLM's platforms name it."""


class GroupedLora(PunicaWrapperCPU):
    """Products of low rank for each token of a slot, and none for those of no slot."""

    _slots = slice(0)
    """From the first slot that this step's tokens name to the last."""
    _own: Tensor
    """Whether a token, by row, is of one of these slots, by column."""

    def update_metadata(self, *args: Any, **more: Any) -> None:
        """Which token is of which slot; vLLM tells it before each step."""
        super().update_metadata(*args, **more)
        slots = self.token_lora_indices
        named = slots.unique().tolist()
        first = next((slot for slot in named if slot >= 0), 0)
        self._slots = slice(first, named[-1] + 1) if named and named[-1] >= 0 else slice(0)
        self._own = slots[:, None] == torch.arange(first, self._slots.stop)

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[Tensor, ...] | None = None,
        **_: Any,
    ) -> None:
        """Add to ``y`` [tokens, out] the change of ``x`` [tokens, in], in the columns of each packed layer;
        their matrices are [slots, 1, rank, in] and [slots, 1, width, rank]."""
        if not self._slots.stop:
            return
        columns, rows, first = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1]), 0
        for low, high, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            narrow, wide = low[self._slots, 0], high[self._slots, 0]
            kept = (rows @ narrow.flatten(0, 1).T).unflatten(1, narrow.shape[:2])
            kept.mul_(self._own[:, :, None])
            changed = columns[:, first : first + width]
            changed.addmm_(kept.flatten(1), torch.cat(wide.unbind(), 1).T, alpha=scale)
            first += width
