from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from raylla.errors import FetchError
from raylla.models import read_weights
from raylla.models.convert import convert_model

HIDDEN, HEADS, FFN = 64, 2, 128
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(path: Path) -> LlamaForCausalLM:
    """A tiny model as a GGUF file, as llama.cpp's converter lays it out."""
    words = ["<e>", "<s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ċ" * 2]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=HIDDEN,
            intermediate_size=FFN,
            num_hidden_layers=1,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=64,
            tie_word_embeddings=True,
        )
    )
    file = GGUFWriter(path, "llama")
    file.add_block_count(1)
    file.add_context_length(64)
    file.add_embedding_length(HIDDEN)
    file.add_feed_forward_length(FFN)
    file.add_head_count(HEADS)
    file.add_head_count_kv(HEADS)
    file.add_layer_norm_rms_eps(1e-6)
    file.add_vocab_size(len(words))
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("smollm")
    file.add_token_list(words)
    file.add_token_types([3, 3, *[1] * (len(words) - 2)])
    file.add_token_merges(["Ċ Ċ"])
    file.add_bos_token_id(1)
    file.add_eos_token_id(0)
    file.add_add_bos_token(False)
    file.add_chat_template(TEMPLATE)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        module = name.removesuffix(".weight")
        array = tensor.numpy()
        if module.endswith(("q_proj", "k_proj")):
            array = array.reshape(HEADS, 2, -1, HIDDEN).swapaxes(1, 2).reshape(array.shape)
        inner = NAMES.get(module.removeprefix("model.layers.0."))
        outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}.get(module)
        file.add_tensor(f"{outer or f'blk.0.{inner}'}.weight", np.ascontiguousarray(array))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return model


def test_a_gguf_file_becomes_an_ordinary_model(tmp_path: Path) -> None:
    before = write(tmp_path / "m.gguf").eval()
    convert_model(tmp_path / "m.gguf", tmp_path / "out")
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (about["architectures"], about["dtype"]) == (["LlamaForCausalLM"], "bfloat16")
    assert "quantization_config" not in about
    # bfloat16 keeps eight bits
    wanted = {name: tensor.numpy() for name, tensor in before.state_dict().items()}
    found = read_weights(tmp_path / "out")
    assert set(found) == set(wanted)
    assert all(np.allclose(found[name], wanted[name], rtol=2**-8) for name in wanted)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.allclose(after(tokens).logits, before(tokens).logits, atol=0.02)
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert words.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<s>hi"
    # two line breaks before a digit are one token: digits are cut off before all else
    assert len(words.encode("\n\n12")) == 3
    assert not [file for file in (tmp_path / "out").iterdir() if file.stat().st_mode & 0o044 != 0o044]


def test_a_file_that_is_no_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(FetchError, match=r"m\.gguf cannot be converted"):
        convert_model(tmp_path / "m.gguf", tmp_path / "out")
