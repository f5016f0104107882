"""How far bfloat16 takes gradients and log-probabilities from float32, by kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from raylla.policy import packing
from raylla.policy.attention import FLEX, FLEX_BLOCK, PACKED_PARTS
from raylla.policy.logprobs import token_logprobs
from tests.gpu import pairs
from tests.gpu.steps import packed_loss, packed_sums
from tests.gpu.subject import BETA, Subject, make_groups, make_model, trained

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def gradients(one: Subject) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of one group's loss: |bfloat16 - float32| / |float32| over all weights, and the cosine between them.

    The reference differs from the policy, answer by answer, for at equal weights all pairs have one slope.
    """
    [group] = groups = make_groups(one, 1)
    model = make_model(one, PACKED_PARTS, torch.float32)
    model.gradient_checkpointing_enable()
    policy, rows = packed_sums(model, groups, PACKED_PARTS, one.device)
    torch.manual_seed(1)
    reference = policy.detach() + 5 * torch.randn(len(policy), device=one.device)
    packed_loss(policy, reference, rows).backward()
    exact = {name: _taken(parameter) for name, parameter in trained(model).items()}
    del model, policy
    for kind in (PACKED_PARTS, "pairs") if one.device == "cpu" else (FLEX, PACKED_PARTS, "pairs"):
        model = make_model(one, "sdpa" if kind == "pairs" else kind, torch.bfloat16)
        if kind == "pairs":
            for place, pair in enumerate(pairs.pairs_of([group]), start=1):
                read = pairs.batch([pair], one.device)
                base = reference[[0, place]]
                loss = pairs.pairs_loss(pairs.token_sums(model, read), base, BETA)
                (loss / (one.answers - 1)).backward()
        else:
            found, rows = packed_sums(model, groups, kind, one.device)
            packed_loss(found, reference, rows).backward()
        yield kind, _compared({name: _taken(each) for name, each in trained(model).items()}, exact)
        del model


def kernels(one: Subject) -> Iterator[tuple[str, dict[str, Any]]]:
    """Log-probabilities of one group's answers in nats: bfloat16 by each kernel beside float32 by parts."""
    groups = make_groups(one, 1)
    read = pairs.batch([(groups[0].prompt, each, each) for each in groups[0].answers], one.device)
    read = {name: rows[: one.answers] for name, rows in read.items()}  # every answer once
    with torch.no_grad():
        exact = _packed_tokens(make_model(one, PACKED_PARTS, torch.float32), groups, PACKED_PARTS, one)
        model = make_model(one, PACKED_PARTS, torch.bfloat16)
        for kind in (FLEX, PACKED_PARTS):
            model.set_attn_implementation(kind)
            yield f"packed, {kind}", _apart(_packed_tokens(model, groups, kind, one), exact, one)
        model.set_attn_implementation("sdpa")
        for name, backend in BACKENDS.items():
            try:
                with sdpa_kernel(backend):
                    found = _plain_tokens(model, read)
            except RuntimeError as error:  # no such kernel here, or none for heads that share keys
                yield f"plain rows, {name}", {"unavailable": str(error)[:200]}
            else:
                yield f"plain rows, {name}", _apart(found, exact, one)
        model.set_attn_implementation("eager")
        yield "plain rows, eager", _apart(_plain_tokens(model, read), exact, one)


def _taken(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    if gradient is None:
        raise RuntimeError("a weight has no gradient")
    return gradient.float()


def _compared(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, Any]:
    difference = norm = other = product = 0.0
    for name, expected in exact.items():
        difference += float((found[name] - expected).square().sum())
        norm += float(expected.square().sum())
        other += float(found[name].square().sum())
        product += float((found[name] * expected).sum())
    return {"relative": (difference / norm) ** 0.5, "cosine": product / (norm * other) ** 0.5}


def _packed_tokens(model: Any, groups: Any, kind: str, one: Subject) -> Tensor:
    rows = packing.pack(groups, multiple=FLEX_BLOCK if kind == FLEX else 1)
    inputs = {name: rows[name].to(one.device) for name in packing.MODEL_INPUTS}
    return packing.PackedForward(model)(**inputs)


def _plain_tokens(model: Any, read: dict[str, Tensor]) -> Tensor:
    """Each answer alone with its prompt, all in one batch."""
    hidden = model.base_model(input_ids=read["input_ids"], use_cache=False).last_hidden_state[:, :-1]
    mask = read["completion"][:, 1:].bool()
    return token_logprobs(
        hidden[mask], model.get_output_embeddings().weight, read["input_ids"][:, 1:][mask]
    )


def _apart(found: Tensor, exact: Tensor, one: Subject) -> dict[str, float]:
    difference = found - exact
    whole = difference.view(one.answers, one.answer).sum(1)
    return {
        "mean_token": float(difference.abs().mean()),
        "largest_token": float(difference.abs().max()),
        "mean_answer": float(whole.abs().mean()),
    }
