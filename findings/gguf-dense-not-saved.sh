#!/usr/bin/env bash
# transformers 5.19.0 (gguf 0.19.0): a GGUF file in which nothing is quantized is a quantized model.
#
# Expected: GGUF is a container; a file whose tensors are all float32 loads as an ordinary model of ordinary
# float32 layers, which can be trained and saved.
#
# What happens: the weights are equal to the bit and every layer is torch's own Linear, but the model counts
# as quantized. save_pretrained and Trainer refuse it. GgufConfig(dequantize=True), although there is nothing
# to dequantize, loads the same weights as a model that both accept.
#
# Output seen:
#     transformers 5.19.0, gguf 0.19.0
#     from_pretrained(..., gguf_file=...)
#         layers Linear, weights float32, equal to those written: True
#         save_pretrained: ValueError: The model is quantized with QuantizationMethod.GGUF and is not se...
#         Trainer:         ValueError: You cannot perform fine-tuning on purely quantized models. Please...
#     the same with GgufConfig(dequantize=True)
#         layers Linear, weights float32, equal to those written: True
#         save_pretrained: done
#         Trainer:         done
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --no-compile torch==2.13.0 transformers==5.19.0 accelerate==1.15.0 gguf==0.19.0 numpy==2.3.5
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/cache" CUDA_VISIBLE_DEVICES='' "$folder/venv/bin/python" - 2>errors <<'PYTHON' || { tail -n 20 errors; exit 1; }
from importlib.metadata import version

import gguf
import torch
from transformers import GgufConfig, Qwen2Config, Qwen2ForCausalLM, Trainer, TrainingArguments

torch.manual_seed(0)
written = Qwen2ForCausalLM(Qwen2Config(
    vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False))
names = {"model.layers.0": "blk.0", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
         "post_attention_layernorm": "ffn_norm", "model.embed_tokens": "token_embd",
         "model.norm": "output_norm", "lm_head": "output"}

writer = gguf.GGUFWriter("tiny.gguf", "qwen2")
writer.add_file_type(gguf.LlamaFileType.ALL_F32)
writer.add_context_length(64)
writer.add_embedding_length(32)
writer.add_block_count(1)
writer.add_feed_forward_length(64)
writer.add_head_count(2)
writer.add_head_count_kv(2)
writer.add_layer_norm_rms_eps(written.config.rms_norm_eps)
writer.add_vocab_size(32)
for name, weight in written.state_dict().items():
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    writer.add_tensor(name, weight.numpy())
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()


def outcome(act):
    try:
        act()
    except ValueError as error:
        return f"ValueError: {error}"
    return "done"


def tried(**options):
    """What saving and training say of the file's model."""
    model = Qwen2ForCausalLM.from_pretrained(".", gguf_file="tiny.gguf", **options)
    layers = {type(part).__name__ for part in model.modules() if "Linear" in type(part).__name__}
    types = {str(weight.dtype).removeprefix("torch.") for weight in model.parameters()}
    same = all(torch.equal(weight, model.state_dict()[name]) for name, weight in written.state_dict().items())
    print(f"    layers {', '.join(layers)}, weights {', '.join(types)}, equal to those written: {same}")
    assert layers == {"Linear"} and types == {"float32"} and same, "the model is not the one written"
    saved = outcome(lambda: model.save_pretrained("saved"))
    trained = outcome(lambda: Trainer(model, args=TrainingArguments("out", use_cpu=True, report_to=[])))
    for name, said in {"save_pretrained:": saved, "Trainer:": trained}.items():
        print(f"    {name:16} {said if len(said) < 80 else said[:77] + '...'}")
    return saved, trained


print(f"transformers {version('transformers')}, gguf {version('gguf')}")
print("from_pretrained(..., gguf_file=...)")
plain = tried()
print("the same with GgufConfig(dequantize=True)")
dequantized = tried(quantization_config=GgufConfig(dequantize=True))
assert all("quantized" in said for said in plain), "a dense file's model is accepted now"
assert dequantized == ("done", "done"), "dequantize=True no longer helps"
PYTHON
