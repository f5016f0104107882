"""What the tests of models share: a cache folder of their own, and adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Adapt = Callable[..., Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    place = tmp_path / "cache"
    monkeypatch.setenv("RAYLLA_CACHE", str(place))
    return place


@pytest.fixture
def adapt() -> Adapt:
    """Write a random adapter over the model in a directory; peft's own merged model."""

    def write(base: Path | str, target: Path, name: str | None = None, **settings: Any) -> Any:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(len(target.name))
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        given = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]} | settings
        adapted = get_peft_model(model, LoraConfig(init_lora_weights=False, **given))
        adapted.peft_config["default"].base_model_name_or_path = name or str(base)
        adapted.save_pretrained(target)
        return adapted.merge_and_unload().eval()

    return write
