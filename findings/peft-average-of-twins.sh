#!/usr/bin/env bash
# peft 0.21.2 (torch 2.13.0): the average of two adapters that do the same thing.
#
# Expected: add_weighted_adapter(["one", "two"], [0.5, 0.5], combination_type="linear") adds half of what
# each adapter adds to the weights. Where both add the same, so does the result.
#
# What happens: "linear" averages the factors A and B of LoRA, not the products B A that are added to the
# weights. With the square roots of the weights, two copies of one adapter give twice that adapter. If one
# copy has the sign of both its factors turned, which leaves its product as it was to the bit, the result is
# nothing at all. "magnitude_prune" that prunes nothing does the same; "cat" and "svd" are right. An average
# along a training run is thus too strong, and one of unrelated runs has products of one's A with the
# other's B in it. (peft's documentation calls "linear" a rough approximation; the weights' sum of one
# leads one to think that at least equal adapters keep their size.)
#
# Output seen (what is added to the weights, as a multiple of what either adapter adds):
#     peft 0.21.2, torch 2.13.0+cpu
#     two copies:                     cat 1.000  svd 1.000  linear 2.000  magnitude_prune 2.000
#     signs of A and B turned in one: cat 1.000  svd 1.000  linear 0.000  magnitude_prune 0.000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --no-compile torch==2.13.0 peft==0.21.2 transformers==5.19.0 accelerate==1.15.0 numpy==2.3.5
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/cache" CUDA_VISIBLE_DEVICES='' "$folder/venv/bin/python" - 2>errors <<'PYTHON' || { tail -n 20 errors; exit 1; }
import peft
import torch
from peft import LoraConfig, get_peft_model

KINDS = {"cat": {}, "svd": {}, "linear": {}, "magnitude_prune": {"density": 1.0}}


def averages(sign):
    """Size of the mean of an adapter and its twin, relative to the adapter, by way of combining."""
    torch.manual_seed(0)
    settings = dict(r=2, lora_alpha=2, target_modules=["0"], init_lora_weights=False)
    net = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
    model = get_peft_model(net, LoraConfig(**settings), adapter_name="one")
    model.add_adapter("two", LoraConfig(**settings))
    layer = model.base_model.model[0]
    for factor in (layer.lora_A, layer.lora_B):
        factor["two"].weight.data.copy_(sign * factor["one"].weight.data)
    added = layer.get_delta_weight("one")
    assert torch.equal(added, layer.get_delta_weight("two")), "the twins do not do the same"
    sizes = {}
    for kind, options in KINDS.items():
        model.add_weighted_adapter(["one", "two"], [0.5, 0.5], f"mean-{kind}", combination_type=kind, **options)
        mean = layer.get_delta_weight(f"mean-{kind}")
        sizes[kind] = (mean.norm() / added.norm()).item()
        assert torch.allclose(mean, sizes[kind] * added, atol=1e-5), "not a multiple of the adapter"
    return sizes


print(f"peft {peft.__version__}, torch {torch.__version__}")
copies, turned = averages(1), averages(-1)
for name, sizes in {"two copies:": copies, "signs of A and B turned in one:": turned}.items():
    print(f"{name:32}" + "  ".join(f"{kind} {size:.3f}" for kind, size in sizes.items()))
near = lambda size, wanted: abs(size - wanted) < 1e-3
assert all(near(sizes[kind], 1) for sizes in (copies, turned) for kind in ("cat", "svd")), "the exact ways are off"
assert all(near(copies[kind], 2) and near(turned[kind], 0) for kind in ("linear", "magnitude_prune")), "changed"
PYTHON
