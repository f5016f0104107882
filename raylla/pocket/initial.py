"""Initial weights that already copy, and bids that are read by their size.

An induction head (attend to what followed the last token where it stood before, and repeat it)
needs two layers to find each other; from random weights that took our small models 2,000 steps.
Here the first layer starts with heads that look one, two and three tokens back and write a
projection of what they see beside it; the second with heads that match the last token against
that projection and write what they find to the output.  All other paths start at zero, and
training moves every weight.  The idea of starting attention from structure is that of mimetic
initialization (Trockman and Kolter 2023, arXiv 2305.09828).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

STEEP = 2.0
"""Query and key norms of the two layers: scores up to 4 x sqrt(head size)."""
LOOKING_BACK, LOOK_PAIRS = 3, 6
"""Heads that look back, and how many of the fastest rotations they use."""
MATCH_PAIRS = 7
"""How many of the slowest rotations, which hardly turn over a prompt, are used to match content."""
ASIDE, COPIED = 0.2, 0.3
"""How strongly heads write: what they look back at, and what they copy."""

BID_WAVES = 6
"""Cosines of the bid, the longest a half wave over all of them, that its embedding is made of."""
BID_SCALE = 0.15
"""Size of the longest of them; the others fall with their number."""


class Bids:
    """Embeddings of bids that are, and under `keep` remain, smooth functions of the bid.

    Learned one by one, each of a hundred bids is read a little too high or too low, and an answer
    leaps from one bid to the next.  Here the rows of all bids are a few cosines of the bid; the
    training moves these, for whatever else it does to a row is projected away.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        """``rows``: token ids of the bids, evenly spaced, from the lowest to the highest."""
        self._rows = torch.tensor(rows)
        place = (torch.arange(len(rows), dtype=torch.float64) + 0.5) / len(rows)
        waves = torch.cos(math.pi * place[:, None] * torch.arange(BID_WAVES + 1))
        self._basis = torch.linalg.qr(waves)[0].float()
        self._waves = waves.float()

    @torch.no_grad()
    def start(self, embeddings: Tensor, seed: int) -> None:
        """Overwrite the bids' rows of ``embeddings`` [vocabulary, width] in place."""
        random = torch.Generator().manual_seed(seed)
        sizes = BID_SCALE / torch.arange(1, BID_WAVES + 1)
        drawn = torch.randn(BID_WAVES, embeddings.shape[1], generator=random) * sizes[:, None]
        mean = embeddings[self._rows].mean(0)
        embeddings[self._rows] = mean + self._waves[:, 1:] @ drawn

    @torch.no_grad()
    def keep(self, embeddings: Tensor) -> None:
        """Put the bids' rows of ``embeddings`` [vocabulary, width] back on the cosines, in place."""
        embeddings[self._rows] = self._basis @ (self._basis.T @ embeddings[self._rows])


@torch.no_grad()
def copying(model: Qwen3ForCausalLM, seed: int) -> None:
    """Start ``model``'s first two layers as induction heads, and its other outputs at zero.

    Raises:
        ValueError: fewer than two layers, or heads too few or small for it.
    """
    config = model.config
    width, size = config.hidden_size, config.head_dim
    pairs, content = size // 2, 2 * MATCH_PAIRS
    if config.num_hidden_layers < 2 or config.num_attention_heads < LOOKING_BACK or pairs < LOOK_PAIRS:
        raise ValueError(f"no room for copying heads: {config.num_hidden_layers} layers, heads of {size}")
    if config.num_key_value_heads != config.num_attention_heads:
        raise ValueError("copying heads need a key-value head for each head")
    random = torch.Generator().manual_seed(seed)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.zero_()
        layer.self_attn.o_proj.weight.zero_()
    # A component that all embeddings share lets a head score by distance alone.
    shared = torch.randn(width, generator=random).sign()
    model.model.embed_tokens.weight.add_(config.initializer_range * shared)
    basis = _orthonormal(width, random, first=shared)
    read = basis[1 : 1 + content]
    speeds = model.model.rotary_emb.inv_freq
    slow = [*range(pairs - MATCH_PAIRS, pairs), *range(size - MATCH_PAIRS, size)]
    back, match = (model.model.layers[index].self_attn for index in (0, 1))
    for attention in (back, match):
        attention.q_norm.weight.fill_(STEEP)
        attention.k_norm.weight.fill_(STEEP)
    directions = _orthonormal(width, random)
    for head in range(LOOKING_BACK):
        rows = slice(head * size, (head + 1) * size)
        query, key = torch.zeros(size), torch.zeros(size)
        turn = speeds[:LOOK_PAIRS] * (head + 1)
        key[:LOOK_PAIRS] = 1
        query[:LOOK_PAIRS], query[pairs : pairs + LOOK_PAIRS] = turn.cos(), -turn.sin()
        back.q_proj.weight[rows] = torch.outer(query, basis[0])
        back.k_proj.weight[rows] = torch.outer(key, basis[0])
        aside = basis[width // 2 + content * head :][:content]
        back.v_proj.weight[rows] = 0
        back.v_proj.weight[rows][:content] = read
        back.o_proj.weight[:, rows][:, :content] = ASIDE * aside.T
        noise = torch.randn(2, size, width, generator=random) * 0.005
        match.q_proj.weight[rows], match.k_proj.weight[rows] = noise
        match.q_proj.weight[rows][slow] = read
        match.k_proj.weight[rows][slow] = basis[width // 2 :][:content]
        copied = directions[rows]
        match.v_proj.weight[rows] = copied
        match.o_proj.weight[:, rows] = COPIED * copied.T


def _orthonormal(width: int, random: torch.Generator, first: torch.Tensor | None = None) -> torch.Tensor:
    """Orthonormal rows [width, width]; the first along ``first``, if given."""
    drawn = torch.randn(width, width, generator=random)
    if first is not None:
        drawn[:, 0] = first / math.sqrt(width)
    rows = torch.linalg.qr(drawn)[0].T
    if first is not None:
        rows[0] *= (rows[0] @ first).sign()
    return rows
