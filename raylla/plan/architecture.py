"""A model's parameters, FLOPs and bytes, counted from its shape (Qwen3: grouped queries, SwiGLU)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raylla.errors import ConfigError
from raylla.models.places import adapter_settings, is_adapter, resolve
from raylla.storage import exists, read_text, within


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of a decoder, or of an encoder; widths in elements. ``gated``: its MLP has three matrices
    (SwiGLU), else two (BERT)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    tied: bool
    gated: bool = True

    @property
    def embedding(self) -> int:
        """Parameters of the token embedding, and of the head where that is tied to it."""
        return self.vocabulary * self.hidden

    @property
    def matrices(self) -> int:
        """Parameters that every token is multiplied with, the head left out."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * self.hidden * queries + 2 * self.hidden * keys
        return self.layers * (attention + (3 if self.gated else 2) * self.hidden * self.ffn)

    @property
    def parameters(self) -> int:
        """All parameters: matrices, norms (two of a layer, two of its heads, the last), embeddings."""
        norms = self.layers * (2 * self.hidden + 2 * self.head_dim) + self.hidden
        return self.matrices + norms + self.embedding * (1 if self.tied else 2)

    def flops(self, tokens: float, context: float, heads: float) -> float:
        """Of a forward pass: ``tokens`` that each see ``context`` others, ``heads`` of them with logits.

        Two for each parameter of a product and token; in attention two products over the context.
        """
        attention = 4 * self.layers * self.heads * self.head_dim * context
        return tokens * (2 * self.matrices + attention) + heads * 2 * self.embedding

    def adapters(self, rank: int, targets: Sequence[str], blocks: int | None) -> int:
        """Parameters of low-rank adapters: rank x (in + out) of each of the ``targets``, as Llama and
        Qwen name a layer's products, in the last ``blocks`` layers (none: in all).

        Raises:
            ConfigError: a target that is no such product.
        """
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sides = {
            "q_proj": self.hidden + queries,
            "k_proj": self.hidden + keys,
            "v_proj": self.hidden + keys,
            "o_proj": queries + self.hidden,
            "gate_proj": self.hidden + self.ffn,
            "up_proj": self.hidden + self.ffn,
            "down_proj": self.ffn + self.hidden,
        }
        unknown = [name for name in targets if name not in sides]
        if unknown:
            names = ", ".join(unknown)
            raise ConfigError(f"lora.targets: no sizes are known of {names}; a plan has {', '.join(sides)}")
        return rank * sum(sides[name] for name in targets) * min(blocks or self.layers, self.layers)

    def kv_bytes(self, width: int) -> int:
        """KV cache of one token, for elements of ``width`` bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * width


def _qwen3(layers: int, hidden: int, heads: int, ffn: int, tied: bool, words: int = 151936) -> Architecture:
    return Architecture(layers, hidden, heads, 8, 128, ffn, words, tied)


ENCODERS = ("bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
"""Types of models whose MLP has two matrices, and that have no head."""

KNOWN = {
    "Qwen3-0.6B": _qwen3(28, 1024, 16, 3072, True),
    "Qwen3-1.7B": _qwen3(28, 2048, 16, 6144, True),
    "Qwen3-4B": _qwen3(36, 2560, 32, 9728, True),
    "Qwen3-8B": _qwen3(36, 4096, 32, 12288, False),
    "Qwen3-14B": _qwen3(40, 5120, 40, 17408, False),
    "Qwen3-32B": _qwen3(64, 5120, 64, 25600, False),
    "Qwen3-Embedding-0.6B": _qwen3(28, 1024, 16, 3072, True, 151669),
}
"""Shapes of models that a plan is asked about before they are downloaded (their published config.json)."""


def architecture(path: str, field: str) -> Architecture:
    """The shape of the model at ``path``: from its config.json, or by its name on the hub.

    Raises:
        ConfigError: no such directory, a config.json without the needed sizes, or an unknown name.
    """
    found = resolve(path, field)
    if is_adapter(found):
        return architecture(adapter_settings(found)["base_model_name_or_path"], field)
    place = within(found, "config.json")
    if exists(place):
        return _read(json.loads(read_text(place)), f"{field}: {place}")
    name = path.rpartition("/")[2].removesuffix("-2507").removesuffix("-Instruct")
    if name not in KNOWN:
        raise ConfigError(
            f"{field}={path!r}: its sizes are not known; give a directory with its config.json, or one of "
            f"{', '.join(KNOWN)}"
        )
    return KNOWN[name]


def _read(shape: dict[str, Any], what: str) -> Architecture:
    try:
        heads = int(shape["num_attention_heads"])
        encoder = shape.get("model_type") in ENCODERS
        return Architecture(
            layers=int(shape["num_hidden_layers"]),
            hidden=int(shape["hidden_size"]),
            heads=heads,
            kv_heads=int(shape.get("num_key_value_heads", heads)),
            head_dim=int(shape.get("head_dim") or shape["hidden_size"] // heads),
            ffn=int(shape["intermediate_size"]),
            vocabulary=int(shape["vocab_size"]),
            tied=encoder or bool(shape.get("tie_word_embeddings", False)),
            gated=not encoder,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{what} does not describe a decoder: {error}") from None
