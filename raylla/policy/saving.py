"""A new version on disk: gathered, complete before it is visible, and probed as it was saved."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from raylla.engines.protocol import Probe
from raylla.policy import adapters
from raylla.policy.groups import TokenGroup
from raylla.policy.jobs import Example
from raylla.storage import writing

WEIGHTS = (".safetensors", ".bin", ".index.json", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")


def local_directory(source: str) -> Path:
    """``source`` itself, or where Hugging Face keeps it on this machine."""
    return Path(source) if Path(source).is_dir() else Path(snapshot_download(source))


def gather(model: nn.Module, dtype: torch.dtype, keep: bool) -> dict[str, Tensor]:
    """What was trained on the CPU, by name; empty where not ``keep``. All ranks have to call it.

    Under ZeRO-3 one parameter after another is whole, so no device ever holds two copies of the model.
    """
    import deepspeed

    found: dict[str, Tensor] = {}
    adapted = any(not parameter.requires_grad for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        if adapted and not parameter.requires_grad:
            continue
        shards = [parameter] if hasattr(parameter, "ds_id") else []
        with deepspeed.zero.GatheredParameters(shards, enabled=bool(shards)):
            if keep:
                found[name] = parameter.detach().to("cpu", dtype, copy=True).contiguous()
    return found


def write(model: Any, weights: dict[str, Tensor], source: Path, staging: Path) -> None:
    """Write tokenizer, config and weights, or the adapter's, into the empty directory ``staging``.

    Raises:
        StorageError: the disk is full or refuses.
    """
    with writing(staging):
        for file in source.iterdir():
            if file.is_file() and not file.name.endswith(WEIGHTS) and not _of_whole(file.name, model):
                shutil.copyfile(file, staging / file.name)
        model.save_pretrained(staging, state_dict=weights, max_shard_size="1TB")


def _of_whole(name: str, model: Any) -> bool:
    """Whether a file describes a whole model, which a directory of an adapter is not."""
    return bool(getattr(model, "peft_config", None)) and name in ("config.json", "generation_config.json")


def probe(directory: Path, group: TokenGroup | Example) -> Probe:
    """Log-probabilities of a group's first answer, from a float32 forward of the weights as saved."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = adapters.load(directory, "", None, 0, dtype=torch.float32).to(device).eval()
    prompt, answer = group.prompt, group.answers[0]
    tokens = torch.tensor([prompt + answer], device=device)
    with torch.no_grad():
        logits = model(tokens, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
    chosen = logits.log_softmax(-1).gather(1, tokens[0, len(prompt) :, None])[:, 0]
    return Probe(prompt, answer, tuple(chosen.tolist()))
