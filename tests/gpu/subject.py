"""What is trained: a Qwen3 with random weights, and groups of random tokens at the paper's shape."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from raylla.config import Lora
from raylla.plan.architecture import KNOWN, Architecture
from raylla.policy import adapters
from raylla.policy.groups import TokenGroup

BETA = 0.1
_TINY = {"0.6B": Architecture(2, 32, 4, 2, 16, 64, 300, True)}
_TINY["4B"] = Architecture(3, 64, 4, 2, 16, 96, 300, True)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model's shape, and that of a group: a prompt, its ``answers`` answers (the first is the winner),
    lengths in tokens."""

    shape: Architecture
    prompt: int
    answer: int
    device: str
    answers: int = 5
    seconds: float = 5.0
    """Of a device's time that one variant is measured for."""

    @property
    def row(self) -> int:
        """Tokens of a packed group."""
        return self.prompt + self.answers * self.answer

    def forward_flops(self) -> float:
        """Of a packed group: a token sees its prompt and its own answer, causally; answers have logits."""
        answers = self.answers * self.answer
        seen = (self.prompt**2 / 2 + answers * (self.prompt + self.answer / 2)) / self.row
        return self.shape.flops(self.row, seen, answers)

    def pair_flops(self) -> float:
        """Of a group's pairs: two whole rows for each."""
        whole = self.prompt + self.answer
        return 2 * (self.answers - 1) * self.shape.flops(whole, whole / 2, self.answer)


def subject(size: str, small: bool) -> Subject:
    """The paper's shape on a GPU, or a miniature of it on the CPU."""
    if small:
        return Subject(_TINY[size], prompt=40, answer=8, device="cpu", seconds=0.0)
    return Subject(KNOWN[f"Qwen3-{size}"], prompt=3900, answer=400, device="cuda")


def make_model(one: Subject, attention: str, dtype: torch.dtype, lora: bool = False) -> Any:
    """In training mode on the device; the weights are the same for every ``dtype``, bfloat16's. With
    ``lora`` they are frozen below new adapters, which change nothing yet."""
    shape = one.shape
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=8192,
        use_cache=False,
    )
    torch.manual_seed(0)
    with torch.device(one.device):
        made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    model: Any = made.to(dtype).train()
    if lora:
        model.add_adapter(adapters.peft_config(Lora(), "random", shape.layers), "default")
        model.to(one.device)
    return model


def make_groups(one: Subject, count: int, answer: int | None = None) -> list[TokenGroup]:
    """``count`` groups, with answers of ``answer`` tokens where that is not the subject's."""
    rng = random.Random(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(one.shape.vocabulary) for _ in range(length))

    return [
        TokenGroup(tokens(one.prompt), tuple(tokens(answer or one.answer) for _ in range(one.answers)))
        for _ in range(count)
    ]


def trained(model: Any) -> dict[str, Tensor]:
    """What of a model is trained, by name."""
    return {name: one for name, one in model.named_parameters() if one.requires_grad}
