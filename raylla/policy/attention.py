"""Attention over packed rows: a token sees its group's prompt and its own answer, causally.

On the CPU a row is computed part by part with SDPA, the prompt causally and each answer over prompt
and itself, under a mask of that answer alone: no part that nobody sees is computed, and no mask is as
large as the row squared.  On a GPU, where many small calls cost more than they save, FlexAttention does the
same by blocks in one kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from raylla.config import Dpo

PADDING = -1
FLEX_BLOCK = 128
"""Rows are padded to a multiple of this where attention is block-sparse: the kernel's block."""
PACKED_PARTS, FLEX = "packed_parts", "flex_attention"
"""transformers' names of the two."""


def attention(dpo: Dpo) -> str:
    """The attention that ``dpo.attention`` asks for on this machine."""
    return FLEX if dpo.attention == "auto" and torch.cuda.is_available() else PACKED_PARTS


def layout(segments: Tensor, prompts: Tensor, kind: str) -> Tensor | BlockMask:
    """What a model is given as its attention mask for rows of these segments and prompts [B, L] each."""
    if kind == FLEX:
        return block_mask(segments, prompts)
    # Of four dimensions: models hand such a mask to the attention function as it is.
    return torch.stack([segments, prompts], dim=1)[:, None]


def block_mask(segments: Tensor, prompts: Tensor) -> BlockMask:
    """The rule for FlexAttention; padding sees padding, for a softmax over nothing is no number."""

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        of_key = segments[row, key]
        mine = (of_key == segments[row, query]) | (of_key == prompts[row, query])
        return mine & (key <= query)

    count, length = segments.shape
    return create_block_mask(seen, count, None, length, length, str(segments.device), FLEX_BLOCK)


def by_parts(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: query, key, value [B, heads, L, d] -> [B, L, heads, d].

    ``attention_mask`` is a `layout` [B, 1, 2, L].  Nothing attends where a row is padded: zeros.
    """
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    rows = []
    for row, (segments, prompts) in enumerate(attention_mask[:, 0].tolist()):
        q, k, v = (tensor[row : row + 1] for tensor in (query, key, value))
        rows.append(torch.cat(list(_parts(q, k, v, segments, prompts, scaling)), dim=2))
    return torch.cat(rows).transpose(1, 2).contiguous(), None


def _parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: list[int],
    prompts: list[int],
    scaling: float | None,
) -> Iterator[Tensor]:
    """One row's outputs, segment by segment."""
    start, prompt = 0, slice(0)
    for (segment, of), run in groupby(zip(segments, prompts, strict=True)):
        own = slice(start, start := start + sum(1 for _ in run))
        if segment == PADDING:
            yield torch.zeros_like(value[:, :, own])
        elif segment == of:
            prompt = own
            q, k, v = (tensor[:, :, own] for tensor in (query, key, value))
            yield scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        else:
            k, v = (torch.cat([tensor[:, :, prompt], tensor[:, :, own]], dim=2) for tensor in (key, value))
            mask = query.new_full((own.stop - own.start, k.shape[2]), float("-inf"))
            mask.triu_(1 + prompt.stop - prompt.start)
            yield scaled_dot_product_attention(query[:, :, own], k, v, attn_mask=mask, scale=scaling)


AttentionInterface.register(PACKED_PARTS, by_parts)
