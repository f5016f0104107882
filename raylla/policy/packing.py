"""Preference groups in rows: each prompt once, each answer once, a mask that keeps answers apart.

A group's answers share their prompt, and its winner is in every one of its pairs. Written as one row the
group costs one prompt and each answer once, where pairs cost two prompts and two answers each; mask and
positions make every answer see exactly what it would see alone, so the gradients of all pairs are
unchanged. A row may hold several groups, which do not see each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raylla.errors import RunError
from raylla.policy.attention import PADDING, layout
from raylla.policy.groups import Packable
from raylla.policy.logprobs import token_logprobs

MODEL_INPUTS = ("input_ids", "position_ids", "segments", "prompts", "source", "labels")
"""What of a packed micro-batch the model reads."""


def pack(groups: Sequence[Packable], row_tokens: int | None = None, multiple: int = 1) -> dict[str, Tensor]:
    """A micro-batch in B rows of L tokens; N answer tokens, A answers, P pairs.

    A row holds one group, or as many as follow each other in ``row_tokens``; L is the longest row,
    rounded up to a ``multiple``.

    Returns int64 tensors: ``input_ids``, ``position_ids`` [B, L] (positions restart after the prompt for
    each answer); ``segments`` [B, L], numbers of the prompts and answers of a row (-1: padding);
    ``prompts`` [B, L], the segment of each token's prompt; ``source`` [N], where in the flattened [B * L]
    is the position that predicts each answer token; ``labels`` [N], these tokens; ``owner`` [N], the
    answer of each; ``winner``, ``loser`` [P], answers of each pair.  ``owner`` counts answers over the
    whole micro-batch, in order.  The first token of every answer of a group has the same source: the
    prompt's last position.
    """
    dealt = _deal(groups, row_tokens)
    width = max(sum(group.length for group in row) for row in dealt)
    width = -(-width // multiple) * multiple
    rows: dict[str, list[int]] = {name: [] for name in ("input_ids", "position_ids", "segments", "prompts")}
    flat: dict[str, list[int]] = {name: [] for name in ("source", "labels", "owner", "winner", "loser")}
    answers = 0
    for number, row in enumerate(dealt):
        segment = 0
        for group in row:
            size, start = len(group.prompt), len(rows["input_ids"])
            _append(rows, group.prompt, 0, segment, segment)
            flat["winner"] += [answers] * group.pairs
            flat["loser"] += range(answers + 1, answers + 1 + group.pairs)
            for place, answer in enumerate(group.answers, start=1):
                first = len(rows["input_ids"])
                _append(rows, answer, size, segment + place, segment)
                flat["source"] += [start + size - 1, *range(first, first + len(answer) - 1)]
                flat["labels"] += answer
                flat["owner"] += [answers] * len(answer)
                answers += 1
            segment += 1 + len(group.answers)
        padding = (number + 1) * width - len(rows["input_ids"])
        for name, value in (
            ("input_ids", 0),
            ("position_ids", 0),
            ("segments", PADDING),
            ("prompts", PADDING),
        ):
            rows[name] += [value] * padding
    packed = {name: torch.tensor(values).view(len(dealt), width) for name, values in rows.items()}
    return packed | {name: torch.tensor(values, dtype=torch.long) for name, values in flat.items()}


def _deal(groups: Sequence[Packable], row_tokens: int | None) -> list[list[Packable]]:
    """The groups of each row, in order."""
    rows: list[list[Packable]] = []
    left = 0
    for group in groups:
        if row_tokens is None or group.length > left:
            rows.append([])
            left = row_tokens or 0
        rows[-1].append(group)
        left -= group.length
    return rows


def _append(
    rows: dict[str, list[int]], tokens: Sequence[int], position: int, segment: int, prompt: int
) -> None:
    rows["input_ids"] += tokens
    rows["position_ids"] += range(position, position + len(tokens))
    rows["segments"] += [segment] * len(tokens)
    rows["prompts"] += [prompt] * len(tokens)


class PackedForward:
    """The forward of a causal language model over packed rows, put in place of the model's own.

    It has to be the model's ``forward``: an engine that shards weights gathers them by hooks on modules.
    """

    def __init__(self, model: nn.Module) -> None:
        head: Any = model.get_output_embeddings()  # type: ignore[operator]
        config: Any = model.config
        scaled = [
            name for name in ("final_logit_softcapping", "logit_scale") if getattr(config, name, None)
        ]
        if head.bias is not None or scaled:
            what = ", ".join(scaled) or "a biased output layer"
            raise RunError(
                f"{type(model).__name__} has {what}, which packed log-probabilities do not cover"
            )
        # One call of the head per forward, whatever the rows hold: ZeRO-3 ranks call modules in step.
        head.forward = self._logprobs
        self._head = head
        self._model = model
        self.temperature = 1.0
        """Log-probabilities are those of the model that is sampled at it."""

    def __call__(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        segments: Tensor,
        prompts: Tensor,
        source: Tensor,
        labels: Tensor,
    ) -> Tensor:
        """Log-probability [N] of each answer token, float32; arguments as ``pack`` returns them."""
        backbone: Any = self._model.base_model
        hidden = backbone(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=layout(segments, prompts, backbone.config._attn_implementation),
            use_cache=False,
        ).last_hidden_state
        logprobs: Tensor = self._head(hidden.flatten(0, 1)[source], labels)
        return logprobs

    def _logprobs(self, hidden: Tensor, labels: Tensor) -> Tensor:
        if self.temperature != 1:
            hidden = hidden / self.temperature
        return token_logprobs(hidden, self._head.weight, labels)


def sum_per_answer(logprobs: Tensor, owner: Tensor, answers: int) -> Tensor:
    """Token log-probabilities [N] summed into [A]."""
    return torch.zeros(answers, dtype=logprobs.dtype, device=logprobs.device).index_add(0, owner, logprobs)


def pair_margins(policy: Tensor, reference: Tensor, winner: Tensor, loser: Tensor, beta: float) -> Tensor:
    """beta * ((log pi - log pi_ref)(winner) - (log pi - log pi_ref)(loser)) [P] (Rafailov 2023, Eq. 7)."""
    ratio = policy - reference
    return beta * (ratio[winner] - ratio[loser])


def pair_loss(margins: Tensor) -> Tensor:
    """-log sigmoid(margin), summed over pairs."""
    return -nn.functional.logsigmoid(margins).sum()


def winner_nll(policy: Tensor, owner: Tensor, winner: Tensor) -> Tensor:
    """-log pi(winner) per token of the winner, summed over pairs (Pang et al. 2024, Eq. 2)."""
    lengths = torch.bincount(owner, minlength=len(policy))
    return -(policy / lengths.clamp(min=1))[winner].sum()
