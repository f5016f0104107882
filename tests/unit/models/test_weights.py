from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from raylla.errors import WeightError
from raylla.models import HEAD, read_weights, renamed, shapes, tied

from .conftest import Adapt


def same(found: dict[str, Any], merged: torch.nn.Module) -> None:
    """Equal to peft's within the rounding of one float32 product."""
    wanted = merged.state_dict()
    assert set(found) == set(wanted)
    for name, array in found.items():
        assert np.allclose(array, wanted[name].numpy(), rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 32}},
        {"target_modules": ["embed_tokens", "v_proj"]},
    ],
    ids=["plain", "rslora", "patterns", "embedding"],
)
def test_an_adapter_is_merged_as_peft_does(
    tiny_model: Path, tmp_path: Path, adapt: Adapt, settings: dict[str, Any]
) -> None:
    merged = adapt(tiny_model, tmp_path / "adapter", **settings)
    found = read_weights(tmp_path / "adapter")
    same(found, merged)
    base = read_weights(tiny_model)
    changed = {name for name in base if not np.array_equal(base[name], found[name])}
    assert changed == (
        {"model.embed_tokens.weight", HEAD} | {f"model.layers.{n}.self_attn.v_proj.weight" for n in (0, 1)}
        if "target_modules" in settings
        else {
            f"model.layers.{n}.{part}.weight"
            for n in (0, 1)
            for part in ("self_attn.q_proj", "mlp.down_proj")
        }
    )


def test_an_adapter_over_an_adapter(tiny_model: Path, tmp_path: Path, adapt: Adapt) -> None:
    adapt(tiny_model, tmp_path / "one").save_pretrained(tmp_path / "whole")
    merged = adapt(tmp_path / "whole", tmp_path / "other", str(tmp_path / "one"), r=2)
    same(read_weights(tmp_path / "other"), merged)


def test_whole_matrices_of_an_adapter_take_the_base_s_place(tmp_path: Path, adapt: Adapt) -> None:
    shape = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(shape).save_pretrained(tmp_path / "base")
    merged = adapt(tmp_path / "base", tmp_path / "adapter", modules_to_save=["lm_head"])
    same(read_weights(tmp_path / "adapter"), merged)
    assert not tied(tmp_path / "base")


def test_names_and_layouts_of_other_families(tmp_path: Path, adapt: Adapt) -> None:
    shape = GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2, n_inner=24)
    GPT2LMHeadModel(shape).save_pretrained(tmp_path / "base")
    found = read_weights(tmp_path / "base")
    assert found[HEAD] is found["transformer.wte.weight"]
    assert tied(tmp_path / "base")
    assert shapes(tmp_path / "base") == {name: array.shape for name, array in found.items()}
    targets = ["c_attn", "c_proj", "c_fc"]
    merged = adapt(tmp_path / "base", tmp_path / "adapter", target_modules=targets)
    same(read_weights(tmp_path / "adapter"), merged)
    # as old files of this family have them
    bare = {
        name.removeprefix("transformer."): torch.from_numpy(array.copy())
        for name, array in found.items()
        if name != HEAD
    }
    masks = {"h.0.attn.bias": torch.ones(1, 1, 32, 32, dtype=torch.uint8)}
    save_file(bare | masks, tmp_path / "base" / "model.safetensors")
    found = read_weights(tmp_path / "adapter")
    assert np.allclose(
        found["h.0.attn.c_attn.weight"], merged.transformer.h[0].attn.c_attn.weight.detach(), 1e-5
    )
    assert found[HEAD] is found["wte.weight"]
    # and back under the names that the trainer writes, as an engine on the old files gets them
    trained = {name: np.asarray(tensor) for name, tensor in merged.state_dict().items()}
    assert {name: array.shape for name, array in renamed(trained, found).items()} == shapes(
        tmp_path / "base"
    )
    assert renamed(found, trained).keys() == trained.keys()
    assert renamed(found, found) == found


def test_a_tied_head_that_cannot_be_told_names_the_architecture(tmp_path: Path) -> None:
    about = {"tie_word_embeddings": True, "vocab_size": 4, "architectures": ["OddForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(about))
    save_file({"a": torch.zeros(4, 4), "b": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(
        WeightError, match="OddForCausalLM ties its head to an embedding of 4 rows, and 2 of"
    ):
        read_weights(tmp_path)
    save_file({"a": torch.zeros(4, 3), "b": torch.ones(3, 3)}, tmp_path / "model.safetensors")
    assert read_weights(tmp_path)[HEAD].shape == (4, 3)


def test_the_index_says_which_files_count(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "model-1.safetensors")
    save_file({"v": torch.ones(3)}, tmp_path / "model-2.safetensors")
    save_file({"layers.0.w": torch.ones(2)}, tmp_path / "consolidated.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "model-1.safetensors", "v": "model-2.safetensors"}}))
    assert set(read_weights(tmp_path)) == {"w", "v"}
    assert shapes(tmp_path) == {"w": (2,), "v": (3,)}
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(WeightError, match=r"index\.json names model-2\.safetensors, which is not there"):
        read_weights(tmp_path)
    index.write_text("[]")
    with pytest.raises(WeightError, match="cannot be read as an index"):
        read_weights(tmp_path)
    index.unlink()
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert set(read_weights(tmp_path)) == {"w"}


def test_hub_names_are_read_like_directories(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: str(tiny_model))
    found, wanted = read_weights("tea/leaves"), read_weights(tiny_model)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)

    def refuse(name: str) -> str:
        raise OSError("no such repository")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(
        WeightError, match=r"tea/leaves.*the Hugging Face hub does not give it: no such rep"
    ):
        read_weights("tea/leaves")


def test_adapters_that_do_not_fit_are_refused(tiny_model: Path, tmp_path: Path, adapt: Adapt) -> None:
    adapt(tiny_model, tmp_path / "adapter")
    about = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())

    def settings(**changed: Any) -> None:
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(about | changed))

    settings(use_dora=True)
    with pytest.raises(WeightError, match="LORA use_dora cannot be merged here; merge it with peft's"):
        read_weights(tmp_path / "adapter")
    settings(peft_type="IA3")
    with pytest.raises(WeightError, match="peft_type=IA3"):
        read_weights(tmp_path / "adapter")
    other = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(other).save_pretrained(tmp_path / "other")
    settings(base_model_name_or_path=str(tmp_path / "other"))
    with pytest.raises(WeightError, match=r"has shape \(.*is .*other the base that it was trained on\?"):
        read_weights(tmp_path / "adapter")
    settings()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(WeightError, match=r"adapter_model\.safetensors cannot be read"):
        read_weights(tmp_path / "adapter")
