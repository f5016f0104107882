"""Low-rank adapters in the trainer (Hu et al. 2021): what is trained in place of all weights.

A weight version is then a directory in peft's form, `adapter_config.json` and `adapter_model.safetensors`,
that names its base model; everybody else reads it merged (`raylla.models`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from raylla.config import Lora
from raylla.errors import RunError
from raylla.models import local
from raylla.models.found import found
from raylla.models.places import adapter_settings, is_adapter

_NAME = "default"


def load_trainable(directory: Path, base: str, lora: Lora | None, seed: int, **how: Any) -> Any:
    """The model in ``directory`` in float32, ready to be trained; ``how`` goes to `from_pretrained`.

    With ``lora``, its base is frozen and an adapter is trained: the one in ``directory``, or where a whole
    model is there a new one, which changes nothing yet. ``base`` is how a new one names that model.

    Raises:
        RunError: ``lora`` asks for an adapter of another shape than the one that is there.
    """
    if not is_adapter(directory):
        model = AutoModelForCausalLM.from_pretrained(directory, **how)
        if lora is not None:
            torch.manual_seed(seed)
            model.add_adapter(peft_config(lora, base, model.config.num_hidden_layers), _NAME)
            # `add_adapter` puts the folder that the base was read from in place of its name.
            model.peft_config[_NAME].base_model_name_or_path = base
        return model
    about = adapter_settings(directory)
    if lora is not None:
        _agree(directory, about, lora)
    with local(about["base_model_name_or_path"]) as whole:
        model = AutoModelForCausalLM.from_pretrained(whole, **how)
    model.load_adapter(str(directory), _NAME, is_trainable=lora is not None)
    for parameter in model.parameters():
        if parameter.requires_grad:  # in the numbers that it was saved in, which may be coarser
            parameter.data = parameter.data.float()
    return model


def tokenizer(directory: Path) -> Any:
    """The tokenizer of the model in ``directory``; that of an adapter's base."""
    if not is_adapter(directory):
        return AutoTokenizer.from_pretrained(directory)
    with found(adapter_settings(directory)["base_model_name_or_path"]) as base:
        return tokenizer(base)


def peft_config(lora: Lora, base: str, blocks: int) -> LoraConfig:
    """peft's form of ``lora`` for a model of so many ``blocks``.

    Raises:
        RunError: it asks for more blocks than there are.
    """
    if lora.blocks is not None and lora.blocks > blocks:
        raise RunError(f"lora.blocks={lora.blocks} exceeds the model's {blocks} blocks; lower it")
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets),
        layers_to_transform=_layers(lora, blocks),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )


def _layers(lora: Lora, blocks: int) -> list[int] | None:
    return None if lora.blocks is None else list(range(blocks - lora.blocks, blocks))


def _agree(directory: Path, about: dict[str, Any], lora: Lora) -> None:
    """Refuse to go on with an adapter of another shape than ``lora`` asks for."""
    layers = about.get("layers_to_transform")
    shape = about["r"], about["lora_alpha"], sorted(about["target_modules"]), layers and len(layers)
    wanted = lora.rank, lora.alpha, sorted(lora.targets), lora.blocks
    if shape != wanted:
        raise RunError(
            f"the adapter at {directory} has rank, alpha, targets and blocks {shape}, lora asks for "
            f"{wanted}; set lora to the adapter's, or start from another model"
        )
