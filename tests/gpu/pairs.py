"""DPO over padded pairs, by the arithmetic of TRL's DPOTrainer as it is on a GPU.

A pair is two whole rows, the winner's and the loser's; all winners of a forward pass come before all losers
(TRL's DataCollatorForPreference). The reference, a second model or the same without its adapter, reads the
same rows. Log-probabilities are computed of the answers' tokens alone, in pieces of the vocabulary
(TRL's fused head where Triton is at hand). `tests/unit/test_gpu.py` holds loss and gradients to TRL's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from raylla.policy.groups import TokenGroup
from raylla.policy.logprobs import token_logprobs

PAD = 0
Pair = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Prompt, winner, loser."""


def pairs_of(groups: Sequence[TokenGroup]) -> list[Pair]:
    """Every group's winner with each of its losers."""
    return [(one.prompt, one.answers[0], loser) for one in groups for loser in one.answers[1:]]


def batch(pairs: Sequence[Pair], device: str) -> dict[str, Tensor]:
    """Rows [2 P, L], padded on the right: ``input_ids``, ``attention_mask``, and ``completion``, which is 1
    at the tokens of answers."""
    rows = [(prompt, winner) for prompt, winner, _ in pairs] + [
        (prompt, loser) for prompt, _, loser in pairs
    ]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    made: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "completion": []}
    for prompt, answer in rows:
        left = [PAD] * (width - len(prompt) - len(answer))
        made["input_ids"].append([*prompt, *answer, *left])
        made["attention_mask"].append([1] * (len(prompt) + len(answer)) + left)
        made["completion"].append([0] * len(prompt) + [1] * len(answer) + left)
    return {name: torch.tensor(values, device=device) for name, values in made.items()}


def token_sums(model: Any, rows: dict[str, Tensor]) -> Tensor:
    """Log-probability of each row's answer [2 P], float32."""
    hidden = model.base_model(
        input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], use_cache=False
    ).last_hidden_state[:, :-1]
    mask = rows["completion"][:, 1:].bool()
    found = token_logprobs(
        hidden[mask], model.get_output_embeddings().weight, rows["input_ids"][:, 1:][mask]
    )
    return found.new_zeros(mask.shape).masked_scatter(mask, found).sum(1)


def pairs_loss(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta * (the winner's ratio - the loser's)), summed over pairs; both are [2 P]."""
    winner, loser = (policy - reference).chunk(2)
    return -torch.nn.functional.logsigmoid(beta * (winner - loser)).sum()


def reference_sums(model: Any, other: Any, rows: dict[str, Tensor]) -> Tensor:
    """What the reference makes of ``rows``: ``other``, or where there is none ``model`` without its
    adapter."""
    with torch.no_grad():
        if other is not None:
            return token_sums(other, rows)
        model.disable_adapters()
        found = token_sums(model, rows)
        model.enable_adapters()
        return found
