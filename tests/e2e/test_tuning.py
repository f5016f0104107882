"""Supervised training and adapters on real DeepSpeed, in this process, with a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raylla.actors.policy import PolicyTrainer
from raylla.config import Deadlines, Dpo, Lora, Tuning
from raylla.errors import RunError
from raylla.models import local, read_weights
from raylla.policy import AlignJob
from raylla.policy.jobs import Lesson, TuneJob
from tests.e2e.test_policy import make_groups

pytestmark = pytest.mark.e2e

LESSONS = tuple(
    Lesson([{"role": "user", "content": f"tea {number}"}], (f"Take cup {number}.",)) for number in range(8)
)
DPO = Dpo(workers=1, batch_groups=4, micro_groups=2, lr=1e-3)
LORA = Lora(rank=4, alpha=8, targets=("q_proj", "v_proj", "down_proj"))


def trainer(path: Path, lora: Lora | None = None) -> PolicyTrainer:
    return PolicyTrainer(DPO, 0, True, path / "trainer", Deadlines(), lora)


def job(source: Path, path: Path, lora: Lora | None, **settings: object) -> TuneJob:
    chosen = Tuning.model_validate({"lora": lora, "batch": 4, "micro": 2, "lr": 3e-3, **settings})
    target, kept = str(path / "weights"), str(path / "checkpoints")
    return TuneJob("v0", str(source), target, LESSONS, chosen, 0, kept, str(source))


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "adapter"])
def test_it_learns_and_goes_on_from_its_checkpoint(
    tiny_model: Path, tmp_path: Path, lora: Lora | None
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    told: list[tuple[int, int, float]] = []
    result = trainer(whole).tune(
        job(tiny_model, whole, lora, passes=4, save_every=3), lambda *step: told.append(step)
    )
    assert result.losses[-1] < result.losses[0]
    assert [step[:2] for step in told] == [(step, 8) for step in range(1, 9)]
    assert [step[2] for step in told] == pytest.approx(result.losses)
    assert (result.steps, result.resumed) == (8, 0)

    class KilledError(Exception):
        pass

    def die(done: int, of: int, loss: float) -> None:
        if done == 5:
            raise KilledError

    with pytest.raises(KilledError):
        trainer(cut).tune(job(tiny_model, cut, lora, passes=4, save_every=3), die)
    assert json.loads((cut / "checkpoints" / "done.json").read_text())["steps"] == 3
    assert not (cut / "weights" / "tokenizer.json").exists()
    resumed = trainer(cut).tune(job(tiny_model, cut, lora, passes=4, save_every=3), lambda *_: None)
    assert resumed.resumed == 3
    assert resumed.losses == pytest.approx(result.losses[3:], abs=1e-5)
    left, right = read_weights(result.path), read_weights(resumed.path)
    assert left.keys() == right.keys()
    # Equal but for the last bit of the bfloat16 that they are kept in.
    assert max(float(abs(left[name] - right[name]).max()) for name in left) < 1e-2


def test_it_computes_with_the_threads_that_were_asked_for(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though an engine of vLLM's has been in the process."""
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    try:
        trainer(tmp_path).tune(job(tiny_model, tmp_path, None, steps=1, threads=2), lambda *_: None)
        assert torch.get_num_threads() == 2
    finally:
        torch._C.set_num_threads(1)


def test_a_soft_answer_is_learned_as_a_probability(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from raylla.engines.chat import prompt_ids

    asked = [{"role": "user", "content": "would you"}]
    lesson = Lesson(asked, ("y", "n"), (0.8, 0.2), ends=False)
    wanted = replace(job(tiny_model, tmp_path, None, steps=60, lr=1e-2, batch=1), lessons=(lesson,))
    result = trainer(tmp_path).tune(wanted, lambda *_: None)
    assert result.losses[-1] == pytest.approx(0.5, abs=0.01)  # the entropy of (0.8, 0.2)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(result.path, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids(tokenizer, asked)])).logits[0, -1]
    yes = tokenizer("y", add_special_tokens=False)["input_ids"][0]
    assert float(logits.softmax(-1)[yes]) == pytest.approx(0.8, abs=0.03)


def test_alignment_trains_an_adapter_over_a_frozen_base(tiny_model: Path, tmp_path: Path) -> None:
    groups = make_groups((2, 1, 3, 2))
    first = AlignJob("v1", str(tiny_model), str(tmp_path / "v1"), groups, 0, base=str(tiny_model))
    steps: list[tuple[int, int, float]] = []
    told = trainer(tmp_path, LORA).begin(first).wait(lambda *step: steps.append(step))
    assert [step[:2] for step in steps] == [(at + 1, told.steps) for at in range(told.steps)]
    assert [step[2] for step in steps] == pytest.approx(told.losses, abs=1e-6)
    assert told.losses[0] == pytest.approx(0.6931, abs=1e-3)  # the reference is the policy itself
    about = json.loads((tmp_path / "v1" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == str(tiny_model)
    assert (about["r"], about["lora_alpha"]) == (4, 8)
    base, aligned = read_weights(tiny_model), read_weights(tmp_path / "v1")
    moved = {name for name in base if abs(base[name] - aligned[name]).max() > 0}
    assert moved
    assert all(any(target in name for target in LORA.targets) for name in moved)

    # The next epoch goes on with the adapter that is there, and its reference is that adapter.
    second = AlignJob("v2", str(tmp_path / "v1"), str(tmp_path / "v2"), groups, 1, base=str(tiny_model))
    again = trainer(tmp_path, LORA).align(second)
    assert again.losses[0] == pytest.approx(0.6931, abs=1e-3)
    with local(tmp_path / "v2") as merged:
        assert (merged / "config.json").exists()
    some = LORA.model_copy(update={"blocks": 1})
    third = replace(first, target=str(tmp_path / "some"))
    trainer(tmp_path, some).align(third)
    last = read_weights(third.target)
    assert all("layers.1." in name for name in base if abs(base[name] - last[name]).max() > 0)
    with pytest.raises(RunError, match="exceeds the model's 2 blocks"):
        trainer(tmp_path, LORA.model_copy(update={"blocks": 3})).align(replace(first, target="v3"))
    with pytest.raises(RunError, match="set lora to the adapter's"):
        trainer(tmp_path, LORA.model_copy(update={"rank": 8})).align(replace(second, target="v3"))
