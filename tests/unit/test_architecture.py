"""The sizes of models: parameters, bytes and FLOPs of a token, worked out by hand and counted in files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from safetensors import safe_open

from raylla.errors import ConfigError
from raylla.models import POCKET
from raylla.plan.architecture import KNOWN, Architecture, architecture
from raylla.plan.hardware import gpu

QWEN = KNOWN["Qwen3-4B"]
SMOLLM2 = Architecture(30, 576, 9, 3, 64, 1536, 49152, True)
LAYER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen3-0.6B", 596_049_920),
        ("Qwen3-1.7B", 1_720_574_976),
        ("Qwen3-4B", 4_022_468_096),
        ("Qwen3-8B", 8_190_735_360),
        ("Qwen3-32B", 32_762_123_264),
    ],
)
def test_parameters_of_published_models(name: str, parameters: int) -> None:
    assert KNOWN[name].parameters == parameters


def test_parameters_of_a_local_model_are_those_in_its_file() -> None:
    with safe_open(POCKET / "ad-llm" / "model.safetensors", framework="numpy") as file:
        counted = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    assert architecture("pocket:ad-llm", "ad_llm.path").parameters == counted


def test_names_of_the_hub() -> None:
    assert architecture("Qwen/Qwen3-4B-Instruct-2507", "ad_llm.path") == QWEN
    with pytest.raises(ConfigError, match=r"user_llm\.path='a/b': its sizes are not known"):
        architecture("a/b", "user_llm.path")
    with pytest.raises(ConfigError, match="--gpu z80: there is a100, h100"):
        gpu("z80")


def test_a_file_that_describes_no_decoder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(ConfigError, match=r"ad_llm\.path: .* does not describe a decoder"):
        architecture(str(tmp_path), "ad_llm.path")


def test_bytes_and_flops_of_a_token() -> None:
    assert QWEN.kv_bytes(2) == 2 * 36 * 8 * 128 * 2 == 147_456
    # 36 layers of 2 x 2560 x 4096 + 2 x 2560 x 1024 in attention and 3 x 2560 x 9728 in the MLP.
    assert QWEN.matrices == 36 * (26_214_400 + 74_711_040) == 3_633_315_840
    assert QWEN.flops(1, 0, 0) == 7_266_631_680
    assert QWEN.flops(1, 1000, 0) - QWEN.flops(1, 0, 0) == 4 * 36 * 32 * 128 * 1000
    assert QWEN.flops(0, 0, 1) == 2 * 151_936 * 2560


def test_parameters_of_adapters() -> None:
    # 576 -> 576, 192, 192 and back from 576; 576 -> 1536 twice and back: in + out of each, at rank 16.
    assert SMOLLM2.adapters(16, LAYER, None) == 30 * 16 * (1152 + 768 + 768 + 1152 + 3 * 2112) == 4_884_480
    assert SMOLLM2.adapters(8, ("q_proj",), 10) == 10 * 8 * 1152
    with pytest.raises(
        ConfigError, match=r"lora\.targets: no sizes are known of c_attn; a plan has q_proj"
    ):
        SMOLLM2.adapters(8, ("c_attn",), None)


def test_an_encoder_s_mlp_has_two_matrices(tmp_path: Path) -> None:
    shape = (
        '"num_attention_heads": 12, "num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536, '
        '"vocab_size": 30522'
    )
    (tmp_path / "config.json").write_text(f'{{"model_type": "bert", "hidden_act": "gelu", {shape}}}')
    assert architecture(str(tmp_path), "pctr.encoder").matrices == 6 * (4 * 384**2 + 2 * 384 * 1536)
    # A gated MLP may be of GELU too.
    (tmp_path / "config.json").write_text(f'{{"model_type": "gemma3_text", "hidden_act": "gelu", {shape}}}')
    assert architecture(str(tmp_path), "pctr.encoder").matrices == 6 * (4 * 384**2 + 3 * 384 * 1536)
