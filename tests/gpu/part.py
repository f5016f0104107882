"""One part in a process of its own: `python -m tests.gpu.part NAME FILE [--small]`.

Its file is written anew after each figure, so that what it has measured outlives it.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from raylla.policy.attention import FLEX, PACKED_PARTS
from tests.gpu import agreement, steps
from tests.gpu.schedule import PARTS, Part
from tests.gpu.subject import Subject, make_groups, make_model, subject

Figure = tuple[str, str, Any]
"""Section, name, value."""


def main(name: str, file: Path, small: bool) -> None:
    """Measure the part of that name."""
    [part] = [one for one in PARTS if one.name == name]
    one = subject(part.size, small)
    written: dict[str, Any] = {"machine": _machine(one.device), "figures": {}}
    # On the CPU there is no kernel to compile FlexAttention to that a model could be trained with.
    with torch.compiler.set_stance("force_eager" if small else "default"):
        for section, key, value in figures(part, one):
            written["figures"].setdefault(section, {})[key] = value
            whole = file.with_suffix(".new")
            whole.write_text(json.dumps(written))
            whole.replace(file)


def figures(part: Part, one: Subject) -> Iterator[Figure]:
    """What the part measures, as it is measured."""
    if part.kind == "gradients":
        for name, value in agreement.gradients(one):
            yield "gradients", name, value
    elif part.kind == "kernels":
        for name, kernel in agreement.kernels(one):
            yield "kernels", name, kernel
    elif part.kind == "pairs":
        yield from _pairs(part, one)
    else:
        yield from _packed(part, one)


def _packed(part: Part, one: Subject) -> Iterator[Figure]:
    """By groups in a forward pass, and with activations computed again; rows of other lengths, which may
    compile again; the optimizer's step."""
    attention = PACKED_PARTS if part.kind == "parts" else FLEX
    model = make_model(one, attention, torch.bfloat16, part.lora)
    if part.kind == "compiled":
        for layer in model.base_model.layers:
            layer.compile()
    passes = 2 if part.lora else 3

    def measured(count: int, answer: int | None = None) -> dict[str, Any]:
        groups = make_groups(one, count, answer)
        flops = count * passes * one.forward_flops()
        return steps.timed(
            lambda: steps.packed_step(model, groups, attention, one.device),
            one,
            count,
            sum(group.length for group in groups),
            flops,
        )

    # What is of the first shape comes first: another may compile again, and that may fail.
    yield "variants", "1 groups", measured(1)
    model.gradient_checkpointing_enable()
    yield "variants", "1 groups, activations computed again", measured(1)
    model.gradient_checkpointing_disable()
    if part.kind == "flex":
        for key, value in steps.optimizer_step(model, one.device).items():
            yield "optimizer", key, value
    several = 4 if part.size == "0.6B" else 2
    yield "variants", f"{several} groups", measured(several)
    if part.kind == "flex" and not part.lora:
        for answer in (one.answer - 1, one.answer // 2):
            found = measured(1, answer)
            yield "other lengths", f"answers of {answer}", found.get("first_step_seconds")


def _pairs(part: Part, one: Subject) -> Iterator[Figure]:
    model = make_model(one, "sdpa", torch.bfloat16, part.lora)
    reference = None if part.lora else make_model(one, "sdpa", torch.bfloat16).requires_grad_(False)
    groups = make_groups(one, 1)
    executed = one.pair_flops() * ((2 if part.lora else 3) + 1)
    tokens = 2 * (one.answers - 1) * (one.prompt + one.answer)
    for at_once in (1, 2, 4) if part.size == "0.6B" else (1, 2):
        found = steps.timed(
            lambda at_once=at_once: steps.pairs_step(model, reference, groups, at_once, one.device),  # type: ignore[misc]
            one,
            1,
            tokens,
            executed,
        )
        yield "variants", f"{at_once} pairs", found


def _machine(device: str) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), "--small" in sys.argv)
