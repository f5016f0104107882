"""Adapters in the trainer: what is loaded, and what a saved one says of its base."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from raylla.config import Lora
from raylla.policy import adapters

LORA = Lora(rank=2, alpha=4, targets=("q_proj",))


def test_a_new_adapter_names_its_base_as_it_is_told_to(tiny_model: Path, tmp_path: Path) -> None:
    model = adapters.load_trainable(tiny_model, "package:smollm2-135m", LORA, 0, dtype=torch.float32)
    model.save_pretrained(tmp_path / "new")
    about = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == "package:smollm2-135m"
    assert (about["r"], about["lora_alpha"], about["target_modules"]) == (2, 4, ["q_proj"])


def test_an_adapter_that_is_trained_further_keeps_the_name_of_its_base(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "base").symlink_to(tiny_model)
    named = str(tmp_path / "base")
    adapters.load_trainable(tiny_model, named, LORA, 0).save_pretrained(tmp_path / "new")
    again = adapters.load_trainable(tmp_path / "new", "another", LORA, 0)
    again.save_pretrained(tmp_path / "again")
    about = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == named
