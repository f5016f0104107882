"""One preference group, one row: the prompt once, each answer once, a mask that keeps them apart.

A group's answers share their prompt, and its winner is in every one of its pairs. Written as one row
(MECHANISMS, fact 7) the group costs one prompt and each answer once, where pairs cost two prompts
and two answers each; mask and positions make every answer see exactly what it would see alone, so
the gradients of all pairs are unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raylla.errors import RunError
from raylla.policy.groups import TokenGroup
from raylla.policy.logprobs import token_logprobs

PROMPT, PADDING = 0, -1


def pack(groups: Sequence[TokenGroup]) -> dict[str, Tensor]:
    """A micro-batch of B groups in rows of L = the longest group; N answer tokens, A answers, P pairs.

    Returns int64 tensors: ``input_ids``, ``position_ids`` [B, L] (positions restart after the prompt for
    each answer); ``segments`` [B, L] (0 prompt, 1.. the answers, -1 padding); ``source`` [N], where in the
    flattened [B * L] is the position that predicts each answer token; ``labels`` [N], these tokens;
    ``owner`` [N], the answer of each; ``winner``, ``loser`` [P], answers of each pair.  ``owner`` counts
    answers over the whole micro-batch, in order.  The first token of every answer of a group has the same
    source: the prompt's last position.
    """
    width = max(group.length for group in groups)
    rows: dict[str, list[int]] = {name: [] for name in ("input_ids", "position_ids", "segments")}
    flat: dict[str, list[int]] = {name: [] for name in ("source", "labels", "owner", "winner", "loser")}
    answers = 0
    for row, group in enumerate(groups):
        size = len(group.prompt)
        tokens, positions, segments = list(group.prompt), list(range(size)), [PROMPT] * size
        flat["winner"] += [answers] * group.pairs
        flat["loser"] += range(answers + 1, answers + 1 + group.pairs)
        for segment, answer in enumerate(group.answers, start=1):
            start = row * width + len(tokens)
            flat["source"] += [row * width + size - 1, *range(start, start + len(answer) - 1)]
            flat["labels"] += answer
            flat["owner"] += [answers] * len(answer)
            tokens += answer
            positions += range(size, size + len(answer))
            segments += [segment] * len(answer)
            answers += 1
        padding = width - len(tokens)
        rows["input_ids"] += tokens + [0] * padding
        rows["position_ids"] += positions + [0] * padding
        rows["segments"] += segments + [PADDING] * padding
    packed = {name: torch.tensor(values).view(len(groups), width) for name, values in rows.items()}
    return packed | {name: torch.tensor(values, dtype=torch.long) for name, values in flat.items()}


def attention_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, L, L] for SDPA: 0 where a query may look at a key, -inf elsewhere.

    A token sees the prompt and its own answer, causally. Padding sees itself, for a softmax over
    nothing is not a number.
    """
    length = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=segments.device)
    seen = (((key == PROMPT) | ((key == query) & (key != PADDING))) & causal) | itself
    mask = torch.zeros(seen.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~seen, float("-inf"))[:, None]


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
        head.forward = lambda hidden, labels: token_logprobs(hidden, head.weight, labels)
        self._head = head
        self._model = model

    def __call__(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        segments: Tensor,
        source: Tensor,
        labels: Tensor,
    ) -> Tensor:
        """Log-probability [N] of each answer token, float32; arguments as ``pack`` returns them."""
        backbone: Any = self._model.base_model
        hidden = backbone(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask(segments, self._dtype()),
            use_cache=False,
        ).last_hidden_state
        logprobs: Tensor = self._head(hidden.flatten(0, 1)[source], labels)
        return logprobs

    def _dtype(self) -> torch.dtype:
        return next(
            parameter.dtype for parameter in self._model.parameters() if parameter.is_floating_point()
        )


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
