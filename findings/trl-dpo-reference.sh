#!/usr/bin/env bash
# TRL 1.16.0 (transformers 5.19.0, torch 2.13.0): whose weights are the reference of DPO?
#
# Expected, and what TRL's documentation says: DPOTrainer, given a model and no ref_model, measures against
# the model as it was handed over, before training.
# At the first step policy and reference are then the same, and the loss is ln 2 = 0.693147 exactly.
#
# What happens: the reference is read again from the folder that the model was loaded from. Whatever was
# done to the weights in memory since (merging an adapter, averaging, repairing) is not in it, and nothing
# says so. With precompute_ref_log_probs=True, which reads like a way to save memory, the reference is the
# model in memory: the switch changes the loss.
#
# Output seen:
#     trl 1.16.0, transformers 5.19.0, torch 2.13.0+cpu
#     log-probability of the chosen answer: in memory -8.044, in the folder -3.483
#     weights as loaded:                     first loss 0.693147, reference -3.483
#     weights changed in memory:             first loss 0.739063, reference -3.483
#     the same, precompute_ref_log_probs:    first loss 0.693147, reference -8.044
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --no-compile torch==2.13.0 transformers==5.19.0 trl==1.16.0 accelerate==1.15.0 \
    datasets==5.2.0 tokenizers==0.23.3 numpy==2.3.5
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/cache" CUDA_VISIBLE_DEVICES='' "$folder/venv/bin/python" - 2>errors <<'PYTHON' || { tail -n 20 errors; exit 1; }
import math

import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer

words = ["<pad>", "<eos>", "a", "b", "c", "d"]
words_only = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words_only, pad_token="<pad>", eos_token="<eos>")
pairs = Dataset.from_list([{"prompt": "a b", "chosen": " c", "rejected": " d"}] * 2)

torch.manual_seed(0)
sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
LlamaForCausalLM(LlamaConfig(vocab_size=6, num_key_value_heads=2, **sizes)).save_pretrained("model")
new_head = torch.randn(6, 16)


def load(changed):
    model = LlamaForCausalLM.from_pretrained("model")
    if changed:
        model.lm_head.weight.data.copy_(new_head)
    return model


@torch.no_grad()
def chosen(model):
    """log p("c <eos>" | "a b")"""
    logprobs = model(torch.tensor([[2, 3, 4, 1]])).logits[0].log_softmax(-1)
    return (logprobs[1, 4] + logprobs[2, 1]).item()


def first_step(changed, precompute=False):
    """Loss before any update, and the reference's log-probability that follows from the logged reward."""
    args = DPOConfig("out", use_cpu=True, report_to=[], max_steps=1, logging_steps=1, save_strategy="no", beta=0.1,
                     bf16=False, per_device_train_batch_size=2, precompute_ref_log_probs=precompute,
                     disable_tqdm=True)
    trainer = DPOTrainer(load(changed), args=args, train_dataset=pairs, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    log = trainer.state.log_history[0]
    return log["loss"], log["logps/chosen"] - log["rewards/chosen"] / 0.1


memory, stored = chosen(load(True)), chosen(load(False))
print(f"trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
print(f"log-probability of the chosen answer: in memory {memory:.3f}, in the folder {stored:.3f}")
loaded, changed, precomputed = first_step(False), first_step(True), first_step(True, precompute=True)
for name, (loss, reference) in {"weights as loaded:": loaded, "weights changed in memory:": changed,
                                "the same, precompute_ref_log_probs:": precomputed}.items():
    print(f"{name:38} first loss {loss:.6f}, reference {reference:.3f}")
near = lambda x, y: math.isclose(x, y, abs_tol=1e-3)
assert near(loaded[0], math.log(2)) and near(loaded[1], stored), "the untouched model is not its own reference"
assert not near(changed[0], math.log(2)) and near(changed[1], stored), "the reference is not the folder's"
assert near(precomputed[0], math.log(2)) and near(precomputed[1], memory), "precomputing no longer differs"
PYTHON
