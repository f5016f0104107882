"""Packed preference groups: what a row holds, and that its gradients are those of all its pairs."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raylla.errors import RunError
from raylla.policy import logprobs, packing, schedule
from raylla.policy.attention import FLEX, FLEX_BLOCK, PACKED_PARTS, by_parts, layout
from raylla.policy.groups import FILLER, TokenGroup, token_group
from raylla.policy.packing import pack
from raylla.records import Answer, PreferenceGroup

BETA = 0.1


def ragged(seed: int, losers: tuple[int, ...], vocabulary: int = 500) -> list[TokenGroup]:
    """Groups of random tokens with prompts of 3..20 and answers of 1..12 tokens."""
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary) for _ in range(rng.randint(low, high)))

    return [TokenGroup(tokens(3, 20), tuple(tokens(1, 12) for _ in range(1 + count))) for count in losers]


@pytest.fixture
def models(tiny_model: Path) -> tuple[Any, Any]:
    """A policy and a reference near it, float32."""
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(
        tiny_model, dtype=torch.float32, attn_implementation="sdpa"
    )
    reference = copy.deepcopy(policy)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return policy, reference


def plain(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> Tensor:
    """Log-probability of one answer, alone with its prompt."""
    tokens = torch.tensor([prompt + answer])
    chosen = model(tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    return chosen[len(prompt) - 1 :].sum()


def packed(
    model: Any, groups: list[TokenGroup], row_tokens: int | None = None, multiple: int = 1
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probability of every answer of one packed micro-batch."""
    rows = pack(groups, row_tokens, multiple)
    model.set_attn_implementation(PACKED_PARTS)
    tokens = packing.PackedForward(model)(**{name: rows[name] for name in packing.MODEL_INPUTS})
    return packing.sum_per_answer(tokens, rows["owner"], sum(len(g.answers) for g in groups)), rows


def packed_gradients(
    policy: Any, reference: Any, groups: list[TokenGroup], *shape: int | None
) -> dict[str, Tensor]:
    """Gradients of the mean pair loss by packed rows; the models are left as they were."""
    policy, reference = copy.deepcopy(policy), copy.deepcopy(reference)
    with torch.no_grad():
        base, _ = packed(reference, groups, *shape)
    found, rows = packed(policy, groups, *shape)
    margins = packing.pair_margins(found, base, rows["winner"], rows["loser"], BETA)
    (packing.pair_loss(margins) / len(margins)).backward()
    return gradients(policy)


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    difference = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    return (difference / sum(float(g.square().sum()) for g in expected.values())) ** 0.5


@pytest.mark.parametrize("row_tokens", [None, 90])
@pytest.mark.parametrize("losers", [(1,), (4,), (1, 2, 3, 4), (4, 1, 4)])
def test_gradients_are_those_of_all_pairs(
    models: tuple[Any, Any], losers: tuple[int, ...], row_tokens: int | None
) -> None:
    policy, reference = models
    groups = ragged(len(losers), losers)
    found = packed_gradients(policy, reference, groups, row_tokens)
    total = torch.zeros(())
    for group in groups:
        for loser in group.answers[1:]:
            ratio = [plain(policy, group.prompt, a) for a in (group.answers[0], loser)]
            with torch.no_grad():
                base = [plain(reference, group.prompt, a) for a in (group.answers[0], loser)]
            margin = BETA * ((ratio[0] - base[0]) - (ratio[1] - base[1]))
            total = total - torch.nn.functional.logsigmoid(margin)
    (total / sum(losers)).backward()
    assert relative(found, gradients(policy)) < 1e-5


@pytest.mark.usefixtures("accelerate_reset")
@pytest.mark.parametrize("max_length", [None, 24])
def test_gradients_are_those_of_trl(
    models: tuple[Any, Any], tiny_model: Path, tmp_path: Path, max_length: int | None
) -> None:
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer

    policy, reference = models
    groups = ragged(7, (3, 1, 4, 2))
    cut = [token_group(record(group), max_length=max_length) for group in groups]
    assert (max_length is None) == (cut == groups)
    found = packed_gradients(policy, reference, cut, 90)
    pairs = [
        {"prompt_ids": list(g.prompt), "chosen_ids": list(g.answers[0]), "rejected_ids": list(loser)}
        for g in groups
        for loser in g.answers[1:]
    ]

    class Tokenized(trl.DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    trainer = Tokenized(
        policy,
        reference,
        trl.DPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            beta=BETA,
            gradient_checkpointing=False,
            max_length=max_length,
            report_to="none",
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    trainer.compute_loss(trainer.model, trainer.data_collator(pairs)).backward()
    assert relative(found, gradients(trainer.model)) < 1e-5


def test_an_answer_sees_its_prompt_and_itself_only() -> None:
    rows = pack([TokenGroup((5, 6), ((7, 8), (9,)))])
    assert rows["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert rows["position_ids"].tolist() == [[0, 1, 2, 3, 2]]
    assert seen(rows) == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert rows["source"].tolist() == [1, 2, 1]
    assert rows["labels"].tolist() == [7, 8, 9]
    assert (rows["winner"].tolist(), rows["loser"].tolist()) == ([0], [1])


def seen(rows: dict[str, Tensor]) -> list[list[int]]:
    """Which keys each query of the first row sees: where attention over one-hot values looks."""
    length = rows["segments"].shape[1]
    query = torch.zeros(len(rows["segments"]), 1, length, 4)
    value = torch.eye(length).expand(len(query), 1, length, length)
    given = layout(rows["segments"], rows["prompts"], PACKED_PARTS)
    assert isinstance(given, Tensor)
    found, _ = by_parts(torch.nn.Identity(), query, query, value, given)
    looked: list[list[int]] = (found[0, :, 0] > 0).int().tolist()
    return looked


def test_heads_may_share_keys() -> None:
    torch.manual_seed(0)
    rows = pack(ragged(2, (3, 1)), 90)
    query = torch.randn(len(rows["segments"]), 4, rows["segments"].shape[1], 8)
    key, value = torch.randn(2, len(query), 2, query.shape[2], 8)
    given = layout(rows["segments"], rows["prompts"], PACKED_PARTS)
    found, _ = by_parts(torch.nn.Identity(), query, key, value, given, scaling=0.3)  # type: ignore[arg-type]
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    segments, prompts = rows["segments"], rows["prompts"]
    mine = (segments[:, None] == segments[..., None]) | (segments[:, None] == prompts[..., None])
    weights = 0.3 * query @ key.transpose(2, 3)
    weights = weights.masked_fill(~(mine.tril())[:, None], float("-inf")).softmax(-1)
    there = (segments >= 0)[..., None, None]
    torch.testing.assert_close(found, (weights @ value).transpose(1, 2) * there)


def test_groups_share_a_row_up_to_the_budget_and_do_not_see_each_other() -> None:
    groups = [
        TokenGroup((5,), ((7,), (8,))),
        TokenGroup((1, 2), ((3,),)),
        TokenGroup((4,), ((6, 6), (9, 9))),
    ]
    rows = pack(groups, row_tokens=6, multiple=4)
    assert rows["input_ids"].tolist() == [[5, 7, 8, 1, 2, 3, 0, 0], [4, 6, 6, 9, 9, 0, 0, 0]]
    assert rows["position_ids"].tolist() == [[0, 1, 1, 0, 1, 2, 0, 0], [0, 1, 2, 1, 2, 0, 0, 0]]
    assert [row[:6] for row in seen(rows)[:6]] == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1, 1],
    ]
    assert rows["source"].tolist() == [0, 0, 4, 8, 9, 8, 11]
    assert rows["owner"].tolist() == [0, 1, 2, 3, 3, 4, 4]
    assert (rows["winner"].tolist(), rows["loser"].tolist()) == ([0, 3], [1, 4])
    assert pack(groups)["input_ids"].shape == (3, 5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_block_sparse_attention_is_that_by_parts(tiny_model: Path, device: str) -> None:
    """On the CPU uncompiled and forward only, for want of a kernel: the mask and the model's path to it."""
    from transformers import AutoModelForCausalLM

    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    groups = ragged(5, (2, 4, 1))
    rows = {name: one.to(device) for name, one in pack(groups, 200, FLEX_BLOCK).items()}
    assert rows["input_ids"].shape[1] % FLEX_BLOCK == 0
    found = []
    with torch.compiler.set_stance("force_eager" if device == "cpu" else "default"):
        for kind in (PACKED_PARTS, FLEX):
            model = AutoModelForCausalLM.from_pretrained(
                tiny_model, dtype=torch.float32, attn_implementation=kind
            ).to(device)
            with torch.set_grad_enabled(device == "cuda"):
                logprobs = packing.PackedForward(model)(
                    **{name: rows[name] for name in packing.MODEL_INPUTS}
                )
            if device == "cuda":
                logprobs.sum().backward()
            found.append((logprobs.detach(), gradients(model)))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-4)
    assert device == "cpu" or relative(found[1][1], found[0][1]) < 1e-3


def test_padding_and_company_change_nothing(models: tuple[Any, Any]) -> None:
    policy, _ = models
    groups = [*ragged(3, (1, 4)), FILLER]
    with torch.no_grad():
        expected = [plain(policy, g.prompt, a) for g in groups for a in g.answers]
        found, _ = packed(copy.deepcopy(policy), groups)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("keep", [0, 1 << 24])
def test_token_logprobs_are_exact_in_chunks(monkeypatch: pytest.MonkeyPatch, keep: int) -> None:
    monkeypatch.setattr(logprobs, "CHUNK", 64)
    monkeypatch.setattr(logprobs, "KEEP", keep)
    torch.manual_seed(0)
    hidden = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(30, 8, dtype=torch.float64, requires_grad=True)
    labels, slope = torch.randint(30, (11,)), torch.randn(11)
    results = []
    for form in (
        logprobs.token_logprobs(hidden, weight, labels),
        (hidden @ weight.T).log_softmax(-1).gather(1, labels[:, None])[:, 0].float(),
    ):
        results.append((form, *torch.autograd.grad((form * slope).sum(), (hidden, weight))))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "ranks", "batch", "micro"), [(7, 2, 4, 1), (33, 2, 16, 3), (5, 4, 16, 8)])
def test_every_rank_takes_the_same_steps(size: int, ranks: int, batch: int, micro: int) -> None:
    groups = ragged(1, tuple(1 + i % 4 for i in range(size)))
    steps = schedule.plan_steps(groups, batch, micro, ranks, passes=2, seed=3)
    assert steps == schedule.plan_steps(groups, batch, micro, ranks, passes=2, seed=3)
    count = schedule.micro_steps(batch, micro, ranks)
    members = []
    for step in steps:
        assert len(step.micros) == ranks
        assert all(len(micros) == count for micros in step.micros)
        dealt = [m for micros in step.micros for one in micros for m in one]
        assert all(len(one) <= micro for micros in step.micros for one in micros)
        assert step.pairs == sum(groups[m].pairs for m in dealt)
        members += dealt
    half = len(members) // 2
    assert sorted(members[:half]) == sorted(members[half:]) == list(range(size))
    assert size <= batch or members[:half] != members[half:]


def answer(
    prompt: tuple[int, ...], tokens: tuple[int, ...], name: str = "s", logprob: float | None = None
) -> Answer:
    return Answer(name, "a", 0, "v0", "", prompt, tokens, logprob)


def record(group: TokenGroup) -> PreferenceGroup:
    winner, *losers = [answer(group.prompt, tokens) for tokens in group.answers]
    return PreferenceGroup("a", winner, tuple(losers), 0.0)


def test_log_probabilities_are_the_reference_s_only_where_it_read_the_same() -> None:
    known = [answer((1, 2), (3, 4), logprob=-1.5), answer((1, 2), (5,), logprob=-2.5)]
    group = PreferenceGroup("a", known[0], (known[1],), 0.0)
    assert token_group(group, reference_version="v0").reference == (-1.5, -2.5)
    assert token_group(group, max_length=4, reference_version="v0").reference == (-1.5, -2.5)
    assert token_group(group, max_length=3, reference_version="v0").reference is None
    assert token_group(group, reference_version="v1").reference is None
    assert token_group(group, (9,), reference_version="v0").reference is None
    unknown = PreferenceGroup("a", known[0], (answer((1, 2), (5,)),), 0.0)
    assert token_group(unknown, reference_version="v0").reference is None


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (PreferenceGroup("a1", answer((), (1,)), (), 0.0), "a1: its prompt"),
        (
            PreferenceGroup("a2", answer((1,), (2,)), (answer((3,), (4,), "odd"),), 0.0),
            "odd has another prompt",
        ),
        (PreferenceGroup("a3", answer((1,), ()), (), 0.0), "answer s holds no token"),
        (PreferenceGroup("a4", answer((1,) * 9, (1,)), (), 0.0), "prompt of 9 tokens .* dpo.max_length=9"),
    ],
)
def test_malformed_groups_are_named(group: PreferenceGroup, message: str) -> None:
    with pytest.raises(RunError, match=message):
        token_group(group, max_length=9)
