"""Adapters on CPUs, computed slot by slot: what vLLM looks for in place of its own kernel there.

vLLM's kernel gathers a copy of an adapter's matrices for every token, and takes a token without an adapter
(slot -1) for one of the last slot.  Here the rows of a step that share a slot are multiplied together, and
rows without one are left as the base computed them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

KERNEL = f"{__name__}.GroupedLora"
"""As vLLM's platforms name it."""


class GroupedLora(PunicaWrapperCPU):
    """Products of low rank for the rows of each slot, and none for rows of no slot."""

    _parts: tuple[tuple[int, slice | Tensor], ...] = ()
    """Each slot that this step's tokens name, and their rows."""

    def update_metadata(self, *args: Any, **more: Any) -> None:
        """Which token is of which slot; vLLM tells it before each step."""
        super().update_metadata(*args, **more)
        slots = self.token_lora_indices
        self._parts = tuple((slot, _rows(slots == slot)) for slot in slots.unique().tolist() if slot >= 0)

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
        a slot's matrices are [1, rank, in] and [1, width, rank]."""
        columns, rows_in = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        for slot, rows in self._parts:
            own, first = rows_in[rows], 0
            for low, high, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                change = own @ low[slot, 0].T @ high[slot, 0].T
                columns[rows, first : first + width] += scale * change if scale != 1 else change
                first += width


def _rows(chosen: Tensor) -> slice | Tensor:
    """The places of ``chosen`` [tokens], as a slice where they are neighbours: a view then, and no copy."""
    places = torch.nonzero(chosen)[:, 0]
    first, last = int(places[0]), int(places[-1])
    return slice(first, last + 1) if last - first + 1 == len(places) else places
