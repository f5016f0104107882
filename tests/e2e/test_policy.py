"""The policy trainer on real DeepSpeed and Ray Train, on the CPU, with a tiny model."""

from __future__ import annotations

import math
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raylla.config import Deadlines, Dpo, Grpo
from raylla.engines.chat import prompt_ids
from raylla.errors import DeadlineError, RunError
from raylla.policy import AlignJob, AlignResult, schedule
from raylla.policy.groups import TokenGroup, token_group
from raylla.policy.jobs import Reference
from raylla.records import Answer, PreferenceGroup

pytestmark = pytest.mark.e2e

LOSERS = (4, 1, 2, 4, 1, 3, 2)
DPO = Dpo(batch_groups=4, micro_groups=1, lr=1e-3, workers=2, cpus=0.5)


def make_groups(losers: tuple[int, ...], seed: int = 0) -> tuple[PreferenceGroup, ...]:
    """Groups of random tokens, of uneven size, whose winners start with one certain token."""
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(500) for _ in range(rng.randint(low, high)))

    groups = []
    for number, count in enumerate(losers):
        name, prompt = f"a{number}", tokens(5, 20)
        answers = [
            Answer(f"{name}/{i}", name, i, "v0", "", prompt, (7 + i, *tokens(2, 12)))
            for i in range(1 + count)
        ]
        groups.append(PreferenceGroup(name, answers[0], tuple(answers[1:]), 1.0))
    return tuple(groups)


def weights(path: str | Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(path) / "model.safetensors")


def distance(path: str | Path, other: str | Path) -> float:
    """Largest difference of any weight."""
    left, right = weights(path), weights(other)
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def logprob(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
    tokens = torch.tensor([prompt + answer])
    chosen = model(tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    return chosen[len(prompt) - 1 :].sum()


def with_logprobs(
    model: Path, groups: tuple[PreferenceGroup, ...], shift: float
) -> tuple[PreferenceGroup, ...]:
    """``groups`` as an engine would return them, every log-probability ``shift`` off."""
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    def known(answer: Answer) -> Answer:
        with torch.no_grad():
            found = float(logprob(policy, answer.prompt_token_ids, answer.token_ids))
        return replace(answer, logprob=found + shift)

    return tuple(
        replace(one, winner=known(one.winner), losers=tuple(map(known, one.losers))) for one in groups
    )


def by_hand(source: Path, target: Path, groups: list[TokenGroup], dpo: Dpo, seed: int) -> list[float]:
    """The same training in plain PyTorch on one process: pair by pair, AdamW, clipping, schedule."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=dpo.lr, weight_decay=0.0)
    with torch.no_grad():
        base = [[float(logprob(model, g.for_reference().prompt, a)) for a in g.answers] for g in groups]
    steps = schedule.plan_steps(groups, dpo.batch_groups, dpo.micro_groups, dpo.workers, dpo.passes, seed)
    warmup, losses = math.ceil(dpo.warmup * len(steps)), []
    for number, step in enumerate(steps):
        after = (number - warmup) / (len(steps) - warmup)
        share = (number + 1) / (warmup + 1) if number < warmup else 0.5 * (1 + math.cos(math.pi * after))
        optimizer.param_groups[0]["lr"] = dpo.lr * share
        total, nll = torch.zeros(()), torch.zeros(())
        for member in (m for rank in step.micros for micro in rank for m in micro):
            group = groups[member]
            policy = [logprob(model, group.prompt, a) for a in group.answers]
            ratio = [found - known for found, known in zip(policy, base[member], strict=True)]
            for loser in ratio[1:]:
                nll = nll - policy[0] / len(group.answers[0])
                total = total - torch.nn.functional.logsigmoid(dpo.beta * (ratio[0] - loser))
        loss = total / step.pairs
        optimizer.zero_grad()
        (loss + dpo.winner_nll * nll / step.pairs).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), dpo.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    model.save_pretrained(target)
    return losses


def run_rank(rank: int, port: int, jobs: list[tuple[Dpo, AlignJob]], folder: Path) -> None:
    """One of two ranks without Ray: every job under its config, results into ``folder``."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo")
    from raylla.policy import worker

    worker.setup()
    for number, (dpo, job) in enumerate(jobs):
        result = worker.align_job(replace(job, target=str(folder / f"v{number}")), dpo)
        if result is not None:
            torch.save(result, folder / f"result{number}")


def run_ranks(jobs: list[tuple[Dpo, AlignJob]], folder: Path) -> None:
    """`run_rank` as each of two processes, which have loaded their libraries already."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    torch.multiprocessing.start_processes(run_rank, (port, jobs, folder), nprocs=2, start_method="spawn")


def test_every_zero_stage_is_plain_training(tiny_model: Path, tmp_path: Path) -> None:
    """Uneven groups per rank, two accumulated micro-batches, two passes, ZeRO 1, 2 and 3, bfloat16, and a
    reference with prompts of its own."""
    from transformers import AutoTokenizer

    groups = make_groups(LOSERS)
    job = AlignJob("v1", str(tiny_model), "", groups, seed=5)
    dpos = [
        DPO.model_copy(update={"zero_stage": stage, "passes": 2, "winner_nll": 0.2}) for stage in (1, 2, 3)
    ]
    dpos.append(dpos[1].model_copy(update={"precision": "bfloat16", "gradient_checkpointing": True}))
    read = tuple([{"role": "user", "content": f"which tea {number}?"}] for number in range(len(groups)))
    jobs = [(dpo, job) for dpo in dpos] + [(dpos[1], replace(job, reference_messages=read))]
    # Log-probabilities that came with the answers: right ones, in shared rows, and wrong ones.
    shared = dpos[2].model_copy(update={"micro_groups": 2, "row_tokens": 120, "reference_check": 3})
    for shift in (0.0, 5.0):
        given = with_logprobs(tiny_model, groups, shift)
        jobs.append((shared, replace(job, groups=given, parent="v0")))
    run_ranks(jobs, tmp_path)
    expected = by_hand(tiny_model, tmp_path / "by-hand", [token_group(g) for g in groups], dpos[0], seed=5)
    results: list[AlignResult] = [torch.load(tmp_path / f"result{n}", weights_only=False) for n in range(7)]
    for number, result in enumerate(results[:3]):
        assert result.losses[0] == pytest.approx(math.log(2), abs=1e-6)
        assert result.losses == pytest.approx(expected, abs=1e-4)
        assert result.losses[-1] < result.losses[0]
        assert distance(tmp_path / f"v{number}", tmp_path / "by-hand") < 1e-4
        assert (result.steps, result.pairs) == (4, sum(LOSERS))
        assert set(os.listdir(tmp_path / f"v{number}")) >= {
            "config.json",
            "tokenizer.json",
            "model.safetensors",
        }
    assert distance(tmp_path / "by-hand", tiny_model) > 1e-3
    assert {w.dtype for w in weights(tmp_path / "v3").values()} == {torch.bfloat16}
    assert results[3].losses[0] == pytest.approx(math.log(2), abs=1e-6)  # nor is its reference rounded
    assert results[3].losses[-1] < results[3].losses[0]

    assert results[0].reference == Reference("recomputed")
    for number, used in ((5, "rollout"), (6, "recomputed")):
        assert results[number].reference.used == used
        assert results[number].losses == pytest.approx(expected, abs=1e-4)
        assert distance(tmp_path / f"v{number}", tmp_path / "by-hand") < 1e-4
    assert 0 < results[5].reference.largest < 1e-3
    assert results[6].reference.difference == pytest.approx(5.0, abs=1e-3)
    assert "rollout's differs by 5 nats" in str(results[6].reference)

    # A reference that reads another prompt is another reference.
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    apart = [token_group(g, tuple(prompt_ids(tokenizer, one))) for g, one in zip(groups, read, strict=True)]
    expected = by_hand(tiny_model, tmp_path / "apart", apart, dpos[1], seed=5)
    assert abs(expected[0] - math.log(2)) > 1e-3
    assert results[4].losses == pytest.approx(expected, abs=1e-4)
    assert distance(tmp_path / "v4", tmp_path / "apart") < 1e-4


def grpo_by_hand(
    source: Path, target: Path, groups: list[TokenGroup], dpo: Dpo, job: AlignJob
) -> list[float]:
    """Shao et al. 2024, Eq. 3, answer by answer in plain PyTorch on one process."""
    from transformers import AutoModelForCausalLM

    grpo, seed = job.grpo, job.seed
    assert grpo is not None

    def tokens(model: Any, group: TokenGroup, answer: tuple[int, ...]) -> torch.Tensor:
        ids = torch.tensor([group.prompt + answer])
        scaled = model(ids).logits[0, :-1] / job.temperature
        chosen = scaled.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        return chosen[len(group.prompt) - 1 :]

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=dpo.lr, weight_decay=0.0)
    with torch.no_grad():
        base = [[tokens(model, group, one) for one in group.answers] for group in groups]
    steps = schedule.plan_steps(groups, dpo.batch_groups, dpo.micro_groups, dpo.workers, dpo.passes, seed)
    warmup, losses = math.ceil(dpo.warmup * len(steps)), []
    for number, step in enumerate(steps):
        after = (number - warmup) / (len(steps) - warmup)
        share = (number + 1) / (warmup + 1) if number < warmup else 0.5 * (1 + math.cos(math.pi * after))
        optimizer.param_groups[0]["lr"] = dpo.lr * share
        answers = []
        for member in (m for rank in step.micros for micro in rank for m in micro):
            group = groups[member]
            rewards = torch.tensor(group.rewards)
            gains = rewards - rewards.mean()
            if grpo.scaled:
                gains = gains / rewards.std(correction=0)
            for answer, known, gain in zip(group.answers, base[member], gains, strict=True):
                shift = tokens(model, group, answer) - known
                ratio = shift.exp()
                least = torch.minimum(ratio * gain, ratio.clip(1 - grpo.clip, 1 + grpo.clip) * gain)
                answers.append((grpo.kl * ((-shift).exp() + shift - 1) - least).mean())
        loss = torch.stack(answers).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), dpo.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    model.save_pretrained(target)
    return losses


def test_grpo_is_its_equation(tiny_model: Path, tmp_path: Path) -> None:
    """Two ranks with uneven shares, shared rows, two passes, so that ratios leave 1 and are clipped."""
    rng = random.Random(3)
    groups = tuple(
        replace(one, loser_rewards=tuple(rng.uniform(-9, 1) for _ in one.losers))
        for one in with_logprobs(tiny_model, make_groups(LOSERS), 0.25)
    )
    dpo = DPO.model_copy(update={"passes": 2, "zero_stage": 3, "micro_groups": 2, "row_tokens": 120})
    grpo = Grpo(clip=0.02, kl=0.3)
    job = AlignJob("v1", str(tiny_model), "", groups, 5, parent="v0", grpo=grpo, temperature=0.7)
    half = dpo.model_copy(update={"precision": "bfloat16"})
    cold = replace(job, temperature=0.02)  # tokens of rows that only fill a turn are hundreds of nats off
    run_ranks([(dpo, job), (half, job), (dpo, cold)], tmp_path)
    hand = tmp_path / "by-hand"
    expected = grpo_by_hand(tiny_model, hand, [token_group(g) for g in groups], dpo, job)
    result: AlignResult = torch.load(tmp_path / "result0", weights_only=False)
    assert result.losses[0] == pytest.approx(0, abs=1e-5)
    assert result.losses == pytest.approx(expected, abs=1e-4)
    assert distance(tmp_path / "v0", hand) < 1e-4
    assert distance(hand, tiny_model) > 1e-3
    assert result.divergences[0] == pytest.approx(0, abs=1e-6)
    assert result.divergences[-1] > 1e-6
    assert result.clipped[0] == 0
    assert 0 < result.clipped[-1] < 1
    assert result.shifts[-1] > 0
    # The engine's word on the answers is held against the trainer's, and never used.
    assert result.reference.used == "recomputed"
    assert result.reference.difference == pytest.approx(0.25, abs=1e-3)
    # bfloat16 weights: the reference they are compared with is not rounded, so that nothing differs yet.
    rounded: AlignResult = torch.load(tmp_path / "result1", weights_only=False)
    assert rounded.divergences[0] == pytest.approx(0, abs=1e-6)
    assert rounded.losses[0] == pytest.approx(0, abs=1e-5)
    filled: AlignResult = torch.load(tmp_path / "result2", weights_only=False)
    assert all(math.isfinite(one) for one in (*filled.losses, *filled.grad_norms))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init("local", num_cpus=4, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_two_jobs_in_one_fit_and_a_killed_worker(tiny_model: Path, tmp_path: Path) -> None:
    import ray

    from raylla.actors.policy import PolicyTrainer

    trainer = PolicyTrainer(DPO, 0, False, tmp_path / "ray", Deadlines(start=120, align=180))
    trainer.start()
    first = trainer.align(AlignJob("v1", str(tiny_model), str(tmp_path / "v1"), make_groups(LOSERS), 1))
    assert first.losses[0] == pytest.approx(math.log(2), abs=1e-6)
    # The second job starts where the first ended: its reference is the first one's result.
    second = trainer.align(AlignJob("v2", first.path, str(tmp_path / "v2"), make_groups(LOSERS, 2), 2))
    assert second.losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert second.seconds - second.training_seconds < 5
    places = ray.get(trainer._hub.ready.remote())
    assert len(places) == DPO.workers

    many = make_groups(LOSERS * 60, 3)
    killer = threading.Timer(1.0, os.kill, (places[1][1], signal.SIGKILL))
    killer.start()
    third = trainer.align(AlignJob("v3", second.path, str(tmp_path / "v3"), many, 3))
    killer.join()
    assert ray.get(trainer._hub.ready.remote())[1] != places[1]
    assert third.steps == math.ceil(len(many) / DPO.batch_groups)
    assert third.losses[0] == pytest.approx(math.log(2), abs=1e-6)
    check_probe(third)
    assert not list(tmp_path.glob(".*"))
    began = time.monotonic()
    trainer.stop()
    assert time.monotonic() - began < 30


@pytest.mark.usefixtures("cluster")
def test_workers_that_cannot_be_placed_are_a_deadline_error(tiny_model: Path, tmp_path: Path) -> None:
    from raylla.actors.policy import PolicyTrainer

    greedy = DPO.model_copy(update={"cpus": 64.0})
    trainer = PolicyTrainer(greedy, 0, False, tmp_path / "ray", Deadlines(start=3, align=60, sync=5))
    trainer.start()
    with pytest.raises(DeadlineError, match=r"0 of 2 workers .*deadlines.start=3"):
        trainer.align(AlignJob("v1", str(tiny_model), str(tmp_path / "v1"), make_groups((1,)), 1))
    trainer.stop()


@pytest.mark.usefixtures("cluster")
def test_a_crash_is_an_error_with_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raylla.actors import policy

    monkeypatch.setattr(policy, "MAX_FAILURES", 0)
    (tmp_path / "empty").mkdir()
    alone = DPO.model_copy(update={"workers": 1})
    trainer = policy.PolicyTrainer(alone, 0, False, tmp_path / "ray", Deadlines(start=120, align=180))
    trainer.start()
    with pytest.raises(RunError, match=r"(?s)v1: the policy trainer failed.*empty"):
        trainer.align(AlignJob("v1", str(tmp_path / "empty"), str(tmp_path / "v1"), make_groups((1,)), 1))
    trainer.stop()
    assert not (tmp_path / "v1").exists()


def check_probe(result: AlignResult) -> None:
    """The probe is what the saved weights say."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(result.path, dtype=torch.float32)
    with torch.no_grad():
        found = float(logprob(model, result.probe.prompt_token_ids, result.probe.token_ids))
    assert sum(result.probe.logprobs) == pytest.approx(found, abs=1e-3)


def test_in_process_without_ray(tiny_model: Path, tmp_path: Path) -> None:
    from raylla.actors.policy import PolicyTrainer

    trainer = PolicyTrainer(DPO, 0, True, tmp_path, Deadlines())
    trainer.start()
    groups = make_groups(LOSERS)
    result = trainer.align(AlignJob("v1", str(tiny_model), str(tmp_path / "v1"), groups, 1))
    check_probe(result)
    assert result.probe.token_ids == groups[0].winner.token_ids
    again = trainer.align(AlignJob("v1", str(tiny_model), str(tmp_path / "v1"), groups, 1))
    assert again.losses == result.losses
    with pytest.raises(RunError, match="no preference pair"):
        trainer.align(AlignJob("v2", str(tiny_model), str(tmp_path / "v2"), (), 1))
    trainer.stop()
