"""What `bash tests/gpu/run.sh` does on a GPU, tried on the CPU: its arithmetic, its parts, its deadlines,
and that it needs no more than what `tests/gpu/carry.sh` carries."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import validate

from raylla.config import load_config
from raylla.plan import AT_MOST, Counts, Lengths, budget
from raylla.plan.hardware import GPUS, Shares
from raylla.policy.attention import FLEX, PACKED_PARTS, layout
from raylla.policy.groups import TokenGroup
from raylla.policy.packing import pack
from tests.gpu import __main__ as command
from tests.gpu import pairs, part, steps, subject
from tests.gpu.schedule import LEAST, PARTS, Part, allowed, summary

ROOT = Path(__file__).parents[2]
TORCH = {"torch", "numpy", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "setuptools", "triton"}
"""Distributions that a machine with torch has."""
NUMBER = {"type": "number", "exclusiveMinimum": 0}
SCHEMA = {
    "type": "object",
    "required": ["small", "aims", "machine", "parts", "seconds", "ratios"],
    "additionalProperties": False,
    "properties": {
        "small": {"type": "boolean"},
        "aims": {"type": "object", "additionalProperties": NUMBER},
        "seconds": NUMBER,
        "ratios": {"type": "object", "additionalProperties": NUMBER},
        "machine": {
            "type": "object",
            "required": ["device", "torch", "cuda", "transformers", "python"],
            "additionalProperties": {"type": ["string", "null"]},
        },
        "parts": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["status", "seconds", "error", "figures"],
                "additionalProperties": False,
                "properties": {
                    "status": {"enum": ["done", "failed", "late", "left out"]},
                    "seconds": {"type": "number"},
                    "error": {"type": ["string", "null"]},
                    "figures": {"type": "object", "additionalProperties": {"type": "object"}},
                },
            },
        },
    },
}
RAGGED = [
    TokenGroup(tuple(range(5, 25)), ((3, 4, 5, 6), (7, 8), (9, 10, 11, 12, 13), (14,))),
    TokenGroup(tuple(range(40, 49)), ((1, 2), (60, 61, 62))),
]


def tiny(attention: str, lora: bool = False) -> Any:
    return subject.make_model(subject.subject("4B", small=True), attention, torch.float32, lora)


def moved(model: Any, by: float = 0.02) -> Any:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return model


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: one.grad.clone() for name, one in subject.trained(model).items()}


def relative(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    difference = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    return (difference / sum(float(one.square().sum()) for one in expected.values())) ** 0.5


@pytest.mark.usefixtures("accelerate_reset")
def test_padded_pairs_are_trl_s(tmp_path: Path, tiny_model: Path) -> None:
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer

    every = pairs.pairs_of(RAGGED)
    model, reference = tiny("sdpa"), moved(tiny("sdpa")).requires_grad_(False)
    rows = pairs.batch(every, "cpu")
    base = pairs.reference_sums(model, reference, rows)
    loss = pairs.pairs_loss(pairs.token_sums(model, rows), base, subject.BETA) / len(every)
    loss.backward()
    given = [
        {"prompt_ids": list(prompt), "chosen_ids": list(winner), "rejected_ids": list(loser)}
        for prompt, winner, loser in every
    ]

    class Tokenized(trl.DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    trainer = Tokenized(
        tiny("sdpa"),
        reference,
        trl.DPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            beta=subject.BETA,
            gradient_checkpointing=False,
            max_length=None,
            report_to="none",
        ),
        train_dataset=Dataset.from_list(given),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    collated = trainer.data_collator(given)
    for ours, theirs in (("input_ids",) * 2, ("attention_mask",) * 2, ("completion", "completion_mask")):
        shown = rows["attention_mask"] if ours == "input_ids" else 1
        assert torch.equal(rows[ours] * shown, collated[theirs] * shown)
    expected = trainer.compute_loss(trainer.model, collated)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert relative(gradients(model), gradients(trainer.model)) < 1e-5


def test_packed_gradients_are_those_of_padded_pairs() -> None:
    packed, padded, reference = tiny(PACKED_PARTS), tiny("sdpa"), moved(tiny("sdpa"))
    every = pairs.pairs_of(RAGGED)
    for pair in every:  # one at a time, as a step has it
        rows = pairs.batch([pair], "cpu")
        base = pairs.reference_sums(padded, reference, rows)
        (pairs.pairs_loss(pairs.token_sums(padded, rows), base, subject.BETA) / len(every)).backward()
    with torch.no_grad():
        reference.set_attn_implementation(PACKED_PARTS)
        base, _ = steps.packed_sums(reference, RAGGED, PACKED_PARTS, "cpu")
    sums, read = steps.packed_sums(packed, RAGGED, PACKED_PARTS, "cpu")
    steps.packed_loss(sums, base, read).backward()
    assert relative(gradients(packed), gradients(padded)) < 1e-5


def test_an_adapter_s_reference_is_the_model_without_it() -> None:
    rows = pairs.batch(pairs.pairs_of(RAGGED), "cpu")
    model = moved(tiny("sdpa", lora=True), 0.0)
    with torch.no_grad():
        for name, parameter in subject.trained(model).items():
            assert "lora" in name
            parameter.add_(0.1)
    with torch.no_grad():
        found, base = pairs.token_sums(model, rows), pairs.token_sums(tiny("sdpa"), rows)
    torch.testing.assert_close(pairs.reference_sums(model, None, rows), base)
    assert (found - base).abs().max() > 0.01
    assert pairs.token_sums(model, rows).requires_grad


def test_weights_are_the_same_in_every_precision() -> None:
    one = subject.subject("0.6B", small=True)
    exact, coarse = (subject.make_model(one, "sdpa", dtype) for dtype in (torch.float32, torch.bfloat16))
    for name, parameter in exact.named_parameters():
        assert torch.equal(parameter, coarse.get_parameter(name).float())


def test_flops_are_the_plan_s() -> None:
    config = load_config(ROOT / "configs" / "qwen3-4b-1node.yaml")
    most = Counts.of(config, AT_MOST)
    found = budget(config, GPUS["h200"], Lengths(3900, 400, 750, 40), Shares(1, 1, 1, 1, 1), counts=most)
    one = subject.subject("4B", small=False)
    assert (one.row, one.answers) == (5900, 5)
    # Four passes over 12,000 groups, and one of the 16 whose reference is checked.
    assert one.forward_flops() * (4 * 12_000 + 16) == pytest.approx(found.phase("align").flops)
    # Two rows a pair, of 4300 tokens that see half of them; four pairs.
    assert one.pair_flops() == 8 * one.shape.flops(4300, 2150, 400)


def test_the_mask_of_the_paper_s_shape_skips_what_nobody_sees() -> None:
    one = subject.subject("4B", small=False)
    rows = pack(subject.make_groups(one, 1), multiple=128)
    mask: Any = layout(rows["segments"], rows["prompts"], FLEX)
    assert mask.shape == (1, 1, 6016, 6016)
    # 30.5 blocks of prompt, causally, and 3.1 of each answer over it and itself: under half of the 47 x 47.
    kept = int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
    assert 31 * 32 / 2 + 15 * 31 < kept < 0.5 * 47 * 47


@pytest.mark.parametrize("one", PARTS, ids=lambda one: one.name)
def test_every_part_in_miniature(one: Part, tmp_path: Path) -> None:
    part.main(one.name, tmp_path / "part.json", small=True)
    found = json.loads((tmp_path / "part.json").read_text())
    assert found["machine"]["device"] == "cpu"
    figures = found["figures"]
    if one.kind == "gradients":
        assert set(figures["gradients"]) == {PACKED_PARTS, "pairs"}
        assert all(value["relative"] < 0.05 for value in figures["gradients"].values())
        assert all(value["cosine"] > 0.99 for value in figures["gradients"].values())
    elif one.kind == "kernels":
        assert {f"packed, {FLEX}", f"packed, {PACKED_PARTS}", "plain rows, eager"} < set(figures["kernels"])
        assert all(value.get("mean_token", 0) < 0.01 for value in figures["kernels"].values())
        assert figures["kernels"]["plain rows, math"]["mean_token"] > 0
    else:
        assert len(figures["variants"]) >= 2
        for value in figures["variants"].values():
            assert value["groups_per_second"] > 0
            assert value["mfu"] > 0
            assert value["steps"] >= 1
        optimizer = figures.get("optimizer")
        assert (optimizer is not None) == (one.kind == "flex")
        if optimizer:
            model = subject.make_model(subject.subject(one.size, True), FLEX, torch.bfloat16, one.lora)
            changed = sum(each.numel() for each in subject.trained(model).values())
            assert optimizer["state_bytes"] == 16 * changed
            assert optimizer["seconds"] > 0
        assert ("other lengths" in figures) == (one.kind == "flex" and not one.lora)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"PYTHON": "/none"}, "PYTHON=/none is no interpreter"),
        ({}, "its folder does not exist; make it first"),
    ],
)
def test_what_is_not_there_is_named_before_a_part_runs(
    told: dict[str, str], words: str, tmp_path: Path
) -> None:
    command = ["bash", str(ROOT / "tests" / "gpu" / "run.sh"), str(tmp_path / "none" / "a.json")]
    known = {**os.environ, "PYTHON": sys.executable} | told
    done = subprocess.run(command, env=known, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert words in done.stderr


def test_parts_that_no_time_is_left_for_are_left_out() -> None:
    one = Part("pairs", "4B", 60)
    assert [allowed(one, left) for left in (480, 59, LEAST, LEAST - 1)] == [60, 59, LEAST, None]
    assert len({each.name for each in PARTS}) == len(PARTS)


def test_ratios_are_those_of_the_fastest_variants() -> None:
    def variants(*rates: float) -> dict[str, Any]:
        made = {str(rate): {"groups_per_second": rate, "mfu": rate / 10} for rate in rates}
        return {"figures": {"variants": made | {"last": {"out_of_memory": True}}}}

    parts = {
        "4B/full/flex": variants(4.0, 3.0),
        "4B/full/pairs": variants(0.25, 0.5),
        "4B/lora/flex": variants(6.0),
    }
    parts["4B/full/flex"]["figures"]["optimizer"] = {"seconds": 1.0}
    assert summary(parts) == {
        "4B/full/flex: mfu": 0.4,
        "4B/full: packed flex ÷ padded pairs, groups/s": 8.0,
        # 16 groups: 4 s and 32 s, and a second for the step.
        "4B/full: the same with the optimizer's step of 16 groups": pytest.approx(33 / 5),
        "4B/lora/flex: mfu": pytest.approx(0.6),
        "4B: lora ÷ full, groups/s": 1.5,
    }
    parts["4B/full/flex"]["figures"]["optimizer"] = {"out_of_memory": True}
    assert len(summary(parts)) == 4


MACHINE = {"device": "d", "torch": "t", "cuda": None, "transformers": "u", "python": "p"}
PRETENDED = """#!/bin/sh
case $3 in
    0.6B/full/flex) echo '{"machine": MACHINE, "figures": {"variants": {}}}' > "$4" ;;
    0.6B/full/pairs)
        echo '{"machine": {}, "figures": {"variants": {"1": {"groups_per_second": 2, "mfu": 1}}}}' > "$4"
        echo 'no memory' >&2
        exit 1 ;;
    *) sleep 60 ;;
esac
"""


def test_what_fails_or_is_late_is_named_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(PRETENDED.replace("MACHINE", json.dumps(MACHINE)))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(command, "PARTS", (PARTS[1], Part("pairs", "4B", 0.5), PARTS[0]))
    file = tmp_path / "gpu.json"
    assert command.main([str(file)]) == 1
    found = json.loads(file.read_text())
    validate(found, SCHEMA)
    parts = found["parts"]
    assert {name: one["status"] for name, one in parts.items()} == {
        "0.6B/full/pairs": "failed",
        "4B/full/pairs": "late",
        "0.6B/full/flex": "done",
    }
    assert parts["0.6B/full/pairs"]["error"] == "no memory\n"
    assert parts["0.6B/full/pairs"]["figures"]["variants"]["1"]["groups_per_second"] == 2
    assert parts["0.6B/full/flex"]["error"] is None
    assert found["machine"] == MACHINE
    # Nothing begins that cannot end in time.
    assert command.main([str(file), "--spent", "470"]) == 1
    assert {one["status"] for one in json.loads(file.read_text())["parts"].values()} == {"left out"}


BARE = """
import sys
from importlib.machinery import PathFinder

ALLOWED = {allowed!r}


class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        there = name.startswith("_") or name in ALLOWED or name in sys.stdlib_module_names
        return super().find_spec(name, path, target) if path is not None or there else None


sys.meta_path[:] = [Bare if one is PathFinder else one for one in sys.meta_path]
"""


def carried() -> set[str]:
    text = (ROOT / "tests" / "gpu" / "carry.sh").read_text()
    names = re.search(r'^names="([^"]+)"', text, re.MULTILINE)
    assert names
    return {plain(name) for name in names[1].split()}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_carried_is_pinned() -> None:
    lines = (ROOT / "requirements" / "cpu.txt").read_text().splitlines()
    pinned = {plain(line.partition("==")[0]) for line in lines if "==" in line}
    assert carried() <= pinned


@pytest.mark.slow
def test_the_command_on_a_machine_with_nothing_but_torch_and_what_is_carried(tmp_path: Path) -> None:
    there = carried() | TORCH
    modules = {name for name, of in packages_distributions().items() if {plain(one) for one in of} & there}
    assert not modules & {"vllm", "ray", "deepspeed", "trl", "datasets", "pyarrow", "pandas"}
    (tmp_path / "sitecustomize.py").write_text(BARE.format(allowed=modules | {"raylla", "tests"}))
    file = tmp_path / "gpu.json"
    environment = os.environ | {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(tmp_path),
        "WHEELS": str(tmp_path / "none"),
    }
    asked = ["0.6B/full/flex", "0.6B/lora/pairs"]
    done = subprocess.run(
        ["bash", "tests/gpu/run.sh", str(file), "--small", "--only", *asked],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr + (file.read_text() if file.exists() else "")
    found = json.loads(file.read_text())
    validate(found, SCHEMA)
    assert found["small"] is True
    assert list(found["parts"]) == asked
