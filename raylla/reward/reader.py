"""Which part of a transformers model reads text, and how much of it at once.

Families differ: in an encoder-decoder only the encoder reads; RoBERTa's first position is not number 0, so
that its table is longer than its texts; ALBERT's and ELECTRA's embeddings are narrower than their states.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from raylla.errors import ConfigError

_POSITIONS = re.compile(r"(^|_)pos(ition)?s?(_|$)|^wpe$")
_OTHERWISE = {
    "funnel": "it pools tokens away",
    "ibert": "its embeddings are quantized",
    "reformer": "it reads texts of certain lengths only",
}
"""Families whose states are not one for each token."""
UNREADABLE = (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError)
"""What transformers raises where it cannot make a model or tokenizer of a directory."""


def reader(model: Any) -> Any:
    """The part of ``model`` that maps token ids to a state for each: its encoder, where it has a decoder to
    write with, else all of it."""
    return model.encoder if hasattr(model, "encoder") and hasattr(model, "decoder") else model


def positions(model: Any) -> int | None:
    """Positions that ``model`` has learned a vector for; none where it tells them otherwise."""
    places: list[int] = []
    for name, table in model.named_modules():
        if isinstance(table, nn.Embedding) and _POSITIONS.search(name.rpartition(".")[2]):
            # Those before the first are for padding, or for nothing at all.
            first = getattr(table, "offset", 0) if table.padding_idx is None else table.padding_idx + 1
            places.append(table.num_embeddings - first)
    return min(places, default=None)


def longest(model: Any, most: int) -> int:
    """Tokens that ``model`` reads at once, ``most`` at most."""
    named = getattr(model.config, "max_position_embeddings", None)
    limits = (most, named if isinstance(named, int) and named > 0 else None, positions(model))
    return min(limit for limit in limits if limit is not None)


def check_encoder(path: str, field: str) -> None:
    """Refuse a directory that `Encoder` could not read texts with, by its small files alone.

    Raises:
        ConfigError: names ``field`` and what is wrong.
    """
    if not (Path(path) / "config.json").is_file():
        return  # a URL, a hub name or an adapter, which is brought here when the run starts
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModel.from_config(AutoConfig.from_pretrained(path, trust_remote_code=False))
    except UNREADABLE as error:
        raise unsuited(field, path, str(error)) from None
    if reason := unfit(tokenizer, model):
        raise unsuited(field, path, reason)
    if not any(Path(path).glob("*.safetensors")):
        raise unsuited(field, path, "it has no weights in safetensors")


def unfit(tokenizer: Any, model: Any) -> str | None:
    """Why texts cannot be read with these two, if they cannot."""
    if not tokenizer.is_fast:
        return "its tokenizer is not a fast one (tokenizer.json)"
    part = reader(model)
    if reason := _OTHERWISE.get(model.config.model_type):
        return f"a {type(part).__name__} gives no state for each token: {reason}"
    takes = inspect.signature(part.forward).parameters
    missing = [name for name in ("input_ids", "attention_mask") if name not in takes]
    if missing:
        return f"a {type(part).__name__} takes no {' and no '.join(missing)}"
    try:
        part.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return f"a {type(part).__name__} has no embeddings of words"
    return None


def unsuited(field: str, path: str, reason: str) -> ConfigError:
    """The error of an encoder that texts cannot be read with."""
    return ConfigError(
        f"{field}={path!r} cannot be used: {reason}; give a directory with config.json, safetensors and a "
        "fast tokenizer, of a model of transformers that reads text"
    )
