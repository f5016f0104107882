#!/usr/bin/env bash
# DeepSpeed 0.19.8 under TRL 1.16.0 (transformers 5.19.0, torch 2.13.0): how exact is DPO's reference in bfloat16?
#
# Expected: with bf16=True the forward passes compute in bfloat16; log-probabilities are sums in float32, and
# those of the reference that precompute_ref_log_probs=True stored stay what they are. Policy and reference
# are the same weights at the first step, so that the loss is ln 2 = 0.693147. Without DeepSpeed it is.
#
# What happens: as soon as a DeepSpeed config is given, transformers' Trainer casts every floating tensor of a
# batch to the weights' precision, whatever it is for. The reference of an answer of 60 tokens is some -380
# nats; bfloat16 knows -378, -380 and -382. The loss starts at another value, every pair's margin is off by
# up to beta times 2 nats, and nothing says so. It holds for all float columns: advantages, weights, rewards.
#
# Output seen:
#     trl 1.16.0, transformers 5.19.0, torch 2.13.0+cpu, deepspeed 0.19.8
#     without DeepSpeed  stored     torch.float32   -382.10 -381.22 -380.46 -379.73
#     without DeepSpeed  reference  torch.float32   -382.10 -381.22 -380.46 -379.73
#     without DeepSpeed  first loss 0.693147
#     with DeepSpeed     stored     torch.float32   -382.11 -381.22 -380.45 -379.72
#     with DeepSpeed     reference  torch.bfloat16  -382.00 -382.00 -380.00 -380.00
#     with DeepSpeed     first loss 0.697924
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install -qq --no-compile)
"${pip[@]}" torch==2.13.0 transformers==5.19.0 trl==1.16.0 accelerate==1.15.0 datasets==5.2.0 \
    tokenizers==0.23.3 numpy==2.3.5 setuptools wheel ninja packaging py-cpuinfo
DS_BUILD_OPS=0 "${pip[@]}" --no-build-isolation deepspeed==0.19.8 2>"$folder/built" || { cat "$folder/built"; exit 1; }
cd "$folder"
cat > first.py <<'PYTHON'
import json
import os
import random
import sys

import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_callback import PrinterCallback

words = [f"w{i}" for i in range(500)]
listed = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<pad>", "<eos>", *words])}, unk_token="<pad>"))
listed.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=listed, pad_token="<pad>", eos_token="<eos>")
rng = random.Random(0)


def say(count):
    return " ".join(rng.choices(words, k=count))


pairs = Dataset.from_list([{"prompt": say(5), "chosen": " " + say(60), "rejected": " " + say(60)} for _ in range(4)])
torch.manual_seed(0)
sizes = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
model = LlamaForCausalLM(LlamaConfig(vocab_size=502, num_key_value_heads=2, **sizes))
settings = {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1, "bf16": {"enabled": True},
            "zero_optimization": {"stage": 1}}
found = {}


class Seen(trl.DPOTrainer):
    def compute_loss(self, model, inputs, *args, **named):
        found["dtype"] = str(inputs["ref_chosen_logps"].dtype)
        found["reference"] = sorted(inputs["ref_chosen_logps"].flatten().tolist())
        return super().compute_loss(model, inputs, *args, **named)


args = trl.DPOConfig("out", use_cpu=True, report_to=[], max_steps=1, logging_steps=1, save_strategy="no", beta=0.1,
                     bf16=True, per_device_train_batch_size=4, precompute_ref_log_probs=True, disable_tqdm=True,
                     gradient_checkpointing=False, deepspeed=settings if sys.argv[1] == "deepspeed" else None)
trainer = Seen(model=model, args=args, train_dataset=pairs, processing_class=tokenizer)
found["stored"] = sorted(trainer.train_dataset["ref_chosen_logps"])
trainer.remove_callback(PrinterCallback)
trainer.train()
found["loss"] = trainer.state.log_history[0]["loss"]
found["versions"] = {one.__name__: one.__version__ for one in (trl, transformers, torch)}
with open(sys.argv[1] + ".json", "w") as file:
    json.dump(found, file)
PYTHON
export HF_HUB_OFFLINE=1 HF_HOME="$folder/cache" CUDA_VISIBLE_DEVICES='' DS_ACCELERATOR=cpu
export RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1
free='import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])'
MASTER_PORT=$("$folder/venv/bin/python" -c "$free")
export MASTER_PORT
for how in plain deepspeed; do
    "$folder/venv/bin/python" first.py "$how" >said 2>&1 || { tail -n 20 said; exit 1; }
done
"$folder/venv/bin/python" - <<'PYTHON'
import json
import math
from importlib.metadata import version

plain, deepspeed = (json.load(open(f"{how}.json")) for how in ("plain", "deepspeed"))
said = [f"{name} {number}" for name, number in plain["versions"].items()]
print(", ".join([*said, f"deepspeed {version('deepspeed')}"]))
for how, found in (("without DeepSpeed", plain), ("with DeepSpeed", deepspeed)):
    for what, kind in (("stored", "torch.float32"), ("reference", found["dtype"])):
        values = " ".join(f"{value:.2f}" for value in found[what])
        print(f"{how:18} {what:10} {kind:15} {values}")
    print(f"{how:18} first loss {found['loss']:.6f}")
assert plain["dtype"] == "torch.float32" and deepspeed["dtype"] == "torch.bfloat16", "the reference's precision"
assert abs(plain["loss"] - math.log(2)) < 1e-4, "the policy is not its own reference without DeepSpeed"
assert abs(deepspeed["loss"] - math.log(2)) > 1e-3, "the loss is not off with DeepSpeed"
assert all(value % 2 == 0 for value in deepspeed["reference"]), "the reference is not rounded to two nats"
PYTHON
