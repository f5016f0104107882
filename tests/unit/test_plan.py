"""The plan's arithmetic against figures worked out by hand and counted in files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raylla import config, precision
from raylla.cli import app
from raylla.config import Lora
from raylla.engines.protocol import AdapterRoom
from raylla.plan import AT_MOST, Lengths, Yields, budget
from raylla.plan.architecture import KNOWN, architecture
from raylla.plan.budget import ADAPTING, concurrency, step_times
from raylla.plan.console import more
from raylla.plan.hardware import GPUS, Shares, core, width
from raylla.plan.memory import (
    BATCHED,
    LOGITS,
    ROOM,
    endpoint_weights,
    trained,
)
from raylla.plan.work import PROMPTS, Counts
from raylla.terms.protocol import ORGANIC_ANSWERS

CONFIGS = Path(__file__).parents[2] / "configs"
ONE = config.load_config(CONFIGS / "qwen3-4b-1node.yaml")
H100 = GPUS["h100"]
ALL = Shares(1, 1, 1, 1, 1)
ALL_OF_IT = replace(H100, shares=ALL)
QWEN = KNOWN["Qwen3-4B"]


def test_a_decoding_step_is_bound_by_bandwidth() -> None:
    read, computed = step_times(QWEN, ALL_OF_IT, 2, 1, 256, 4100)
    assert read == pytest.approx((8.0449e9 + 256 * 4100 * 147_456) / 3.35e12, rel=1e-4)
    assert computed == pytest.approx(256 * (7.2666e9 + 4100 * 589_824 + 7.7791e8) / 989e12, rel=1e-4)
    assert read > 10 * computed
    halves = step_times(QWEN, ALL_OF_IT, 2, 2, 256, 4100)
    assert halves == (read / 2, computed / 2)
    thin = replace(H100, shares=Shares(thin=0.25, decode=0.5))
    assert step_times(QWEN, thin, 2, 1, 256, 4100) == (2 * read, 4 * computed)


def test_the_cache_bounds_what_is_in_progress() -> None:
    # 0.85 x 80 GB - 8.045 GB - 3 GB = 56.955 GB: 386 252 tokens, 48.9 requests of 3900 + 10 x 400.
    assert concurrency(ONE, QWEN, H100, 3900, 10, 400) == 256
    many = ONE.model_copy(update={"engine": ONE.engine.model_copy(update={"max_num_seqs": 10_000})})
    assert concurrency(many, QWEN, H100, 3900, 10, 400) == pytest.approx(10 * 386_252 / 7900, rel=1e-4)


def test_tokens_and_flops_of_the_paper_s_epoch() -> None:
    found = budget(ONE, H100, Lengths(3900, 400, 750, 40), ALL, counts=Counts.of(ONE, AT_MOST))
    # 12k queries twice and 3k test queries; 10 + 5 answers, and 4 of each test query.
    assert found.phase("rollout").tokens == 27_000 * 3900 + (12_000 * 15 + 3000 * 4) * 400
    assert found.phase("judge").tokens == 132_000 * 790
    align = found.phase("align")
    # A row of 3900 + 5 x 400; forward, forward again and backward (twice): 4 forward passes, and one of the
    # 16 groups whose reference is checked. A token of the prompt sees half of it, one of an answer all of
    # it and half of the answer.
    seen = 3900**2 / 2 + 5 * 400 * (3900 + 200)
    row = 5900 * 7_266_631_680 + 589_824 * seen + 2000 * 777_912_320
    assert align.flops == pytest.approx((12_000 * 4 + 16) * row)
    assert align.times["compute"] == pytest.approx(align.flops / (2 * 989e12))
    # 750 steps, in each half of 8.04 GB out and half in.
    assert align.times["link"] == pytest.approx(750 * 2 * 4_022_468_096 * 2 * 0.5 / 450e9)
    assert align.bound == "compute"
    assert found.gpus == 8


def test_what_alignment_saves() -> None:
    def flops(**changed: object) -> float:
        dpo = ONE.dpo.model_copy(update=changed)
        one, most = ONE.model_copy(update={"dpo": dpo}), Counts.of(ONE, AT_MOST)
        return budget(one, H100, Lengths.of(ONE), counts=most).phase("align").flops

    once = flops(reference_check=0) / 4
    assert flops() == pytest.approx(once * (4 + 16 / 12_000))
    assert flops(reference_logprobs="recomputed") == pytest.approx(once * 5)
    assert flops(reference="bid_masked") == flops(reference_logprobs="recomputed")
    assert flops(gradient_checkpointing=False, reference_check=0) == pytest.approx(once * 3)
    assert flops(attention="parts") == flops()


def test_an_epoch_is_the_longer_of_rollout_and_judge_and_the_rest() -> None:
    found = budget(ONE, H100, Lengths.of(ONE))
    rest = sum(found.phase(name).seconds for name in ("learn", "align", "deploy"))
    assert found.epoch_seconds == found.phase("rollout").seconds + rest
    slow = ONE.model_copy(update={"rollout": ONE.rollout.model_copy(update={"workers": 500})})
    assert budget(slow, H100, Lengths.of(slow)).epoch_seconds > found.phase("judge").seconds + rest - 30
    assert 0 < found.idle < 1


def test_memory_of_a_trainer_by_zero_stage() -> None:
    def parts(**changed: object) -> dict[str, float]:
        dpo = ONE.dpo.model_copy(update={"workers": 4, **changed})
        found = budget(ONE.model_copy(update={"dpo": dpo}), H100, Lengths(3900, 400, 750, 40))
        return dict(next(one for one in found.memory if one.group == "dpo").parts)

    size = 4_022_468_096
    for stage, weights, gradients in ((1, 2, 2), (2, 2, 0.5), (3, 0.5, 0.5)):
        found = parts(zero_stage=stage)
        assert (found["weights"], found["gradients"]) == (weights * size, gradients * size)
        assert found["optimizer"] == 16 * size / 4
    assert parts(offload=True)["optimizer"] == 0
    # Kept: the input of each of 36 layers, 5900 x 2560 in bfloat16, and one layer anew.
    layer = 5900 * 2 * (8 * 2560 + 2 * (32 + 16) * 128 + 4 * 9728)
    assert found["activations"] == 5900 * 2560 * 2 * 36 + layer
    assert parts(gradient_checkpointing=False)["activations"] == 36 * layer
    assert found["logits"] == 2 * 4 * 2**24  # 2000 x 151936 are more than are computed at once


def test_what_does_not_fit_is_said() -> None:
    small = replace(H100, memory=24e9)
    assert [one.fits for one in budget(ONE, small, Lengths.of(ONE)).memory] == [True, True, False]
    result = CliRunner().invoke(app, ["plan", str(CONFIGS / "qwen3-4b-1node.yaml"), "--gpu", "l40s"])
    assert "dpo does not fit" not in result.output
    wide = ["--set", "dpo.zero_stage=1", "--set", "dpo.gradient_checkpointing=false"]
    result = CliRunner().invoke(app, ["plan", str(CONFIGS / "qwen3-4b-1node.yaml"), "--gpu", "l40s", *wide])
    assert "dpo does not fit" in result.output


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_has_a_plan(path: Path) -> None:
    result = CliRunner().invoke(app, ["plan", str(path)])
    assert result.exit_code == 0, result.output
    for name in ("rollout", "judge", "learn", "align", "deploy"):
        assert name in result.output
    assert "not fit" not in result.output


def test_what_weight_versions_take() -> None:
    arguments = ["plan", str(CONFIGS / "qwen3-4b-1node.yaml"), "--set", "irpo.epochs=5"]
    every = CliRunner().invoke(app, arguments).output
    assert "storage: 8.04 GB a weight version, 5 kept" in every
    some = CliRunner().invoke(app, [*arguments, "--set", "storage.keep_versions=2"]).output
    assert "storage: 8.04 GB a weight version, 2 kept" in some


def test_one_more_node() -> None:
    two = config.load_config(CONFIGS / "qwen3-4b-multinode.yaml")
    assert [name for name, _ in more(two, 8)] == ["rollout (15 workers)", "dpo (16 workers)"]
    before = budget(two, H100, Lengths.of(two)).epoch_seconds
    for _, grown in more(two, 8):
        assert budget(grown, H100, Lengths.of(two)).epoch_seconds < before
    assert [name for name, _ in more(ONE, 8)] == ["rollout (13 workers)"]  # 10 ranks do not share 16 groups
    assert more(config.load_config(CONFIGS / "pocket.yaml"), 8) == []


def test_the_documented_figures_are_the_plan_s() -> None:
    text = (CONFIGS.parent / "docs" / "scaling.md").read_text()
    for name, gpus in (("qwen3-4b-1node", 8), ("qwen3-4b-multinode", 16)):
        chosen = config.load_config(CONFIGS / f"{name}.yaml")
        most = Counts.of(chosen, AT_MOST)
        found = budget(chosen, H100, Lengths.of(chosen), counts=most)
        whole = found.epochs * found.epoch_seconds / 3600
        assert f"{found.epoch_seconds / 3600:.1f} h" in text
        assert f"{whole:.1f} h, {whole * gpus:.0f} GPU hours" in text
        for phase in ("rollout", "align"):
            one = found.phase(phase)
            assert f"{one.seconds / 60:.0f} min on {one.workers}" in text
    for _, grown in more(chosen, 8):
        gain = found.epoch_seconds / budget(grown, H100, Lengths.of(chosen), counts=most).epoch_seconds
        assert f"{gain:.2f} times" in text


def test_a_judge_that_says_one_word_for_each_ad_is_cheap_to_read() -> None:
    scored = ONE.model_copy(
        update={"irpo": ONE.irpo.model_copy(update={"reward": "judge", "judgements": 4})}
    )
    word = scored.model_copy(update={"user_llm": scored.user_llm.model_copy(update={"reading": "token"})})
    assert (Lengths.of(word).judge_prompt, Lengths.of(word).judgement) == (117, 1)
    assert Lengths.of(word).answer == Lengths.of(scored).answer
    tokens = [budget(one, H100, Lengths.of(one)).phase("judge").tokens for one in (scored, word)]
    assert tokens[1] < tokens[0] / 5


def test_below_adapters_no_gradients_of_the_weights_are_made() -> None:
    lora = ONE.model_copy(update={"lora": config.parse_config({"lora": {}}, "here").lora})
    lengths = Lengths.of(ONE)
    most = Counts.of(ONE, AT_MOST)
    whole, adapted = (budget(one, H100, lengths, ALL, counts=most) for one in (ONE, lora))
    # Forward, backward and, as activations are not kept, forward again: 3 for 4. 16 groups are checked.
    expected = whole.phase("align").flops * (3 * 12_000 + 16) / (4 * 12_000 + 16)
    assert adapted.phase("align").flops == pytest.approx(expected)
    # Of each of 36 layers: 2560 -> 4096 twice, 1024 twice, 9728 three times.
    changed = 36 * 16 * (2 * 6656 + 2 * 3584 + 3 * 12_288)
    assert changed == 33_030_144
    parts = next(one for one in adapted.memory if one.group == "dpo").parts
    assert parts["weights"] == 2 * 4_022_468_096
    assert (parts["gradients"], parts["optimizer"]) == (2 * changed / 2, 16 * changed / 2)
    assert adapted.phase("align").times["link"] == pytest.approx(750 * 2 * 2 * changed * 0.5 / 450e9)
    assert adapted.phase("deploy").times["disk"] == pytest.approx(2 * 4 * changed / 2e9)


def test_elements_are_as_wide_as_the_machine_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "unit", lambda: None)
    assert (width("auto", True), width("auto", False), width("bfloat16", False)) == (2, 4, 2)
    monkeypatch.setattr(precision, "unit", lambda: "amx_bf16")
    assert width("auto", False) == 2


@pytest.mark.parametrize(
    ("form", "reading", "expected"),
    [
        ("plain", "token", (226, 77, 117, 1)),
        ("compact", "json", (105, 25, 53, 10)),
        ("paper", "json", (610, 120, 470, 40)),
    ],
)
def test_lengths_by_template(form: str, reading: str, expected: tuple[int, ...]) -> None:
    models = {
        "ad_llm": {"path": "pocket:ad-llm", "prompt": form},
        "user_llm": {"path": "pocket:user-llm", "prompt": form, "reading": reading},
    }
    found = Lengths.of(config.parse_config(models, "here"))
    assert (found.prompt, found.answer, found.judge_prompt, found.judgement) == expected


def test_adapters_that_share_a_base_are_counted_beside_it() -> None:
    tree = ["lora.rank=16", "engine.dtype=float32"]
    merged = config.load_config(CONFIGS / "pocket.yaml", tree)
    shared = config.load_config(
        CONFIGS / "pocket.yaml", [*tree, "rollout.adapters=shared", "serving.adapters=shared"]
    )
    lengths = Lengths.of(merged)
    plain, found = (budget(one, H100, lengths, ALL, cores=2) for one in (merged, shared))
    model = architecture(merged.ad_llm.path, "ad_llm.path")
    adapter = trained(merged, model)
    assert merged.lora is not None
    assert adapter == model.adapters(16, merged.lora.targets, None)
    parts = [{one.group: one.parts for one in each.memory} for each in (plain, found)]
    assert parts[1]["rollout"] == {**parts[0]["rollout"], "adapters": 2 * 4 * adapter}  # two slots, float32
    assert parts[1]["judge"] == parts[0]["judge"]
    versions = 2 + merged.rollout.workers
    assert parts[1]["driver"]["weight version"] == versions * 4 * adapter
    rollouts = [one.phase("rollout") for one in (plain, found)]
    assert rollouts[1].flops - rollouts[0].flops == pytest.approx(2 * adapter * rollouts[0].tokens)
    workers, draws = rollouts[0].workers, rollouts[0].notes["draws per engine"]
    steps = Counts.of(merged).answers * lengths.answer / draws / workers
    assert rollouts[1].times["adapter products"] == pytest.approx(
        2 * adapter * rollouts[0].tokens / (workers * core("float32").flops)
        + ADAPTING * steps * 7 * model.layers
    )
    assert "adapter products" not in rollouts[0].times
    sent = [one.phase("deploy").times["network"] for one in (plain, found)]
    assert sent[1] / sent[0] == pytest.approx(adapter / model.parameters)
    whole = 4.0 * model.parameters
    assert endpoint_weights(merged, model) == {"stable": whole, "canary, in an engine of its own": whole}
    slots = {"the base": whole, "adapters of stable and canary": 2 * 4.0 * adapter}
    assert endpoint_weights(shared, model) == slots
    on_gpus = config.changed(shared, None, ["rollout.gpus=1", "engine.dtype=bfloat16"])
    (rollout, *_) = budget(on_gpus, H100, lengths, ALL).memory
    assert rollout.parts["adapters"] == 3 * 2 * adapter  # and one that stays empty
    said = CliRunner().invoke(app, ["plan", "smollm2", "--set", "serving.adapters=shared"]).output
    assert "serving.adapters=shared): the base" in " ".join(said.split())


def test_the_constants_of_other_rooms_are_theirs() -> None:
    rooms = CONFIGS.parent / "raylla"
    assert LOGITS == 1 << 24
    assert AdapterRoom.of(Lora()).most == ROOM
    assert "\nCHUNK = 1 << 24\n" in (rooms / "policy" / "logprobs.py").read_text()
    assert f"\nBATCHED_TOKENS = {BATCHED}\n" in (rooms / "engines" / "vllmparams.py").read_text()


def test_the_untouched_model_s_answers_are_planned_once() -> None:
    tree = ["reward_terms=[{name: credibility, weight: 10}]", "irpo.epochs=2", "irpo.queries=5"]
    one = config.load_config(CONFIGS / "pocket.yaml", tree)
    lengths = Lengths.of(one)
    asked = Counts.of(one)
    found = budget(one, H100, lengths, cores=2)
    assert found.organic is not None
    questions = 2 * 5 + (asked.queries - 5)
    assert found.organic.tokens == questions * (PROMPTS["compact"][0] + ORGANIC_ANSWERS * lengths.answer)
    assert found.run_seconds == 2 * found.epoch_seconds + found.organic.seconds
    plain = budget(config.load_config(CONFIGS / "pocket.yaml", tree[1:]), H100, lengths, cores=2)
    assert plain.organic is None
    assert plain.epoch_seconds == found.epoch_seconds


def test_counts_are_shares_of_the_most_that_a_config_comes_to() -> None:
    most = Counts.of(ONE, AT_MOST)
    assert (most.groups, most.members, most.steps, most.uneven) == (12_000, 5, 750, 1)
    found = Counts.of(ONE, Yields(placing=0.5, groups=0.25, members=0.6, uneven=1.2))
    assert (found.readings, found.encoded) == (most.readings / 2, most.encoded / 2)
    assert (found.groups, found.members, found.uneven) == (3000, 3, 1.2)
    assert found.steps == math.ceil(3000 / 16)
    assert (found.requests, found.answers) == (most.requests, most.answers)
    # A pair at the least.
    assert Counts.of(ONE, Yields(members=0.1)).members == 2


def test_groups_of_grpo_hold_all_answers() -> None:
    grpo = ONE.model_copy(update={"irpo": ONE.irpo.model_copy(update={"align": "grpo"})})
    assert Yields.of(ONE) == Yields()
    assert (Yields.of(grpo).groups, Yields.of(grpo).members) == (1, 1)
    alone = ONE.model_copy(update={"dpo": ONE.dpo.model_copy(update={"workers": 1, "micro_groups": 1})})
    assert Yields.of(alone).uneven == 1


def test_ranks_wait_for_the_longest_row_in_training_alone() -> None:
    counts, lengths = Counts.of(ONE, AT_MOST), Lengths.of(ONE)
    even, uneven = (
        budget(ONE, H100, lengths, ALL, counts=replace(counts, uneven=by)).phase("align") for by in (1, 1.5)
    )
    assert even.flops == uneven.flops
    checked = 16 / (4 * 12_000 + 16)
    assert uneven.times["compute"] == pytest.approx(even.times["compute"] * (1.5 - 0.5 * checked))


@pytest.mark.parametrize(
    ("estimate", "said"),
    [
        ("luck=1", "--estimate luck=1: there is placing, groups, members, uneven, as NAME=VALUE"),
        ("placing", "--estimate placing: '' is no number"),
        ("groups=1.5", "--estimate groups=1.5: give more than 0, at most 1"),
        ("uneven=0.9", "--estimate uneven=0.9: give at least 1"),
    ],
)
def test_estimates_that_are_none(estimate: str, said: str) -> None:
    result = CliRunner().invoke(app, ["plan", "pocket", "--estimate", estimate])
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


def test_estimates_are_given_and_said() -> None:
    arguments = ["plan", "pocket", "--estimate", "placing=0.5", "--estimate", "uneven=1.3"]
    output = " ".join(CliRunner().invoke(app, arguments).output.split())
    assert "placing 0.5, groups 0.96, members 0.73, uneven 1.3 (--estimate)" in output
