"""What every rank of the policy trainer runs: wait for a job, align, write the new version, again.

One long-lived loop, because bringing workers up costs far more than an epoch of a small model. Each
job gets a fresh trainer: a DeepSpeed engine cannot be trained twice.
"""

from __future__ import annotations

import gc
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import ray
import torch
from accelerate.state import AcceleratorState, GradientState
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from raylla import precision
from raylla.config import Dpo, Lora
from raylla.engines.chat import prompt_ids
from raylla.engines.protocol import Probe
from raylla.errors import RunError
from raylla.models import local
from raylla.models.found import found
from raylla.models.quiet import quiet
from raylla.policy import adapters, saving, zero
from raylla.policy.attention import attention
from raylla.policy.groups import TokenGroup, token_group
from raylla.policy.jobs import AlignJob, AlignResult, Reference, Told, TuneJob, TuneResult
from raylla.policy.trainers import supervised
from raylla.policy.trainers.dpo import PackedDPOTrainer, dpo_arguments
from raylla.policy.trainers.grpo import PackedGRPOTrainer
from raylla.storage import making

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def take_jobs(dpo: Dpo, lora: Lora | None, hub: Any, fetched: Callable[[AlignJob], AlignJob]) -> None:
    """Take jobs from the ``hub`` actor (``actors.policy.Hub``) until it says stop; runs on every rank.

    ``fetched`` brings a job's parts here.
    """
    setup()
    rank, place = torch.distributed.get_rank(), (socket.gethostname(), os.getpid())
    done = -1
    while (turn := ray.get(hub.next.remote(done, rank, place))) is not None:
        number, jobs = turn
        if not jobs:
            continue
        job = ray.get(jobs[0])
        result: AlignResult | TuneResult | None
        if isinstance(job, TuneJob):
            result = tune_job(job, dpo, hub.tell.remote)
        else:
            result = align_job(fetched(job), dpo, lora, hub.tell.remote)
        done = number
        if result is not None:
            ray.get(hub.finish.remote(number, result))


def resolved(dpo: Dpo) -> Dpo:
    """``dpo`` with the precision that "auto" comes to on this machine."""
    return dpo.model_copy(update={"precision": precision.chosen(dpo.precision, torch.cuda.is_available())})


def _compute_with(threads: int) -> None:
    """Have torch use so many threads: `torch.set_num_threads`, where vLLM, whose CPU engine puts a function
    that does nothing in its place, has not been at work."""
    torch._C.set_num_threads(threads)


def setup() -> None:
    """Once per process: process group, threads, and libraries that keep off the console."""
    if not torch.cuda.is_available():
        _compute_with(int(os.environ.get("OMP_NUM_THREADS", "1")))
    quiet()
    datasets.disable_progress_bars()
    with clean_slate():
        zero.connect_ranks()


def align_job(
    job: AlignJob, dpo: Dpo, lora: Lora | None = None, told: Told = lambda *_: None
) -> AlignResult | None:
    """Run one job; every rank calls it. The result is rank 0's, None elsewhere.

    ``told`` hears of each step, on rank 0.

    Raises:
        RunError: no group holds a pair, or a group is malformed.
        StorageError: the new version cannot be written, or the old one not be brought here.
    """
    dpo = resolved(dpo)
    clock, started = time.time(), time.perf_counter()
    main = torch.distributed.get_rank() == 0
    kept = local if lora is None else found
    with kept(job.source) as source, making(job.target) if main else nullcontext(Path()) as staging:
        groups = _token_groups(job, source, dpo.max_length)
        with clean_slate(), tempfile.TemporaryDirectory(prefix="raylla-align-") as scratch:
            zero.name_ranks()
            trainer = _trainer(job, source, scratch, dpo, lora, groups, told)
            begun = time.perf_counter()
            trainer.train()
            trained = time.perf_counter() - begun
            curve, reference = trainer.curve, trainer.reference
            # An adapter is small, and what an epoch moves in it is smaller: it is kept in float32.
            kept_in = DTYPES[dpo.precision] if lora is None else torch.float32
            weights = saving.gather_trained(trainer.model, kept_in, keep=main)
            if main:
                saving.write_model(trainer.model, weights, source, staging)
            trainer.model_wrapped.destroy()
            del trainer, weights
        probe = saving.probe(staging, groups[0]) if main else None
    if probe is None:
        return None
    result = _result(job, dpo, groups, curve, reference, probe, trained, time.perf_counter() - started)
    return replace(result, began=clock)


def _token_groups(job: AlignJob, source: Path, max_length: int | None) -> list[TokenGroup]:
    prompts: list[tuple[int, ...] | None] = [None] * len(job.groups)
    if job.reference_messages:
        tokenizer = adapters.tokenizer(source)
        turns = job.reference_turns or (0,) * len(job.reference_messages)
        prompts = [
            tuple(prompt_ids(tokenizer, messages, count, job.room))
            for messages, count in zip(job.reference_messages, turns, strict=True)
        ]
    found = [
        token_group(group, prompt, max_length, job.parent)
        for group, prompt in zip(job.groups, prompts, strict=True)
        if group.losers
    ]
    if not found:
        raise RunError(f"weight version {job.version}: no preference pair to train on")
    return found


def _trainer(
    job: AlignJob,
    source: Path,
    scratch: str,
    dpo: Dpo,
    lora: Lora | None,
    groups: list[TokenGroup],
    told: Told,
) -> PackedDPOTrainer:
    args = dpo_arguments(dpo, scratch, job.seed, torch.distributed.get_world_size())
    model, tokenizer = _model(job.base, source, dpo, lora, job.seed), adapters.tokenizer(source)
    if job.grpo is not None:
        return PackedGRPOTrainer(model, tokenizer, args, dpo, groups, told, job.grpo, job.temperature)
    return PackedDPOTrainer(model, tokenizer, args, dpo, groups, told)


def _model(name: str, source: Path, dpo: Dpo, lora: Lora | None, seed: int) -> Any:
    """The model in ``source``, which ``name`` names, to be trained whole or by an adapter."""
    how = {"dtype": DTYPES[dpo.precision], "attn_implementation": attention(dpo)}
    return adapters.load_trainable(source, name, lora, seed, **how)


def tune_job(job: TuneJob, dpo: Dpo, told: Told) -> TuneResult | None:
    """Supervised training of one job; every rank calls it. The result is rank 0's, None elsewhere.

    ``told`` hears of each step, on rank 0.

    Raises:
        RunError: there are no lessons, or one without a token.
        StorageError: the new version cannot be written, or the old one not be brought here.
    """
    if not job.lessons:
        raise RunError(f"weight version {job.version}: no rows to train on")
    dpo = resolved(dpo)
    started = time.perf_counter()
    main = torch.distributed.get_rank() == 0
    if not torch.cuda.is_available():
        _compute_with(job.settings.threads)
    checkpoints = Path(job.checkpoints)
    checkpoints.mkdir(parents=True, exist_ok=True)
    kept = local if job.settings.lora is None else found
    with kept(job.source) as source, making(job.target) if main else nullcontext(Path()) as staging:
        with clean_slate(), tempfile.TemporaryDirectory(prefix="raylla-tune-") as scratch:
            zero.name_ranks()
            ranks = torch.distributed.get_world_size()
            args = supervised.sft_arguments(dpo, job.settings, scratch, job.seed, ranks)
            model = _model(job.base, source, dpo, job.settings.lora, job.seed)
            tokenizer = adapters.tokenizer(source)
            examples = [supervised.tokenize_lesson(lesson, tokenizer) for lesson in job.lessons]
            trainer = supervised.SupervisedTrainer(
                model, tokenizer, args, job.settings, examples, checkpoints, told
            )
            trainer.train()
            losses, resumed = tuple(trainer.losses), trainer.resumed
            # A beginning, from which nothing is to be told apart: half the size will do.
            weights = saving.gather_trained(trainer.model, torch.bfloat16, keep=main)
            if main:
                saving.write_model(trainer.model, weights, source, staging)
            trainer.model_wrapped.destroy()
            taken = trainer.plan[resumed:]
            del trainer, weights, model
        probe = saving.probe(staging, examples[0]) if main else None
    if probe is None:
        return None
    trained = (
        examples[place] for step in taken for rank in step.micros for micro in rank for place in micro
    )
    return TuneResult(
        version=job.version,
        path=job.target,
        steps=resumed + len(losses),
        losses=losses,
        probe=probe,
        tokens=sum(example.length for example in trained),
        seconds=time.perf_counter() - started,
        resumed=resumed,
    )


def _result(
    job: AlignJob,
    dpo: Dpo,
    groups: list[TokenGroup],
    curve: list[tuple[float, ...]],
    reference: Reference,
    probe: Probe,
    trained: float,
    seconds: float,
) -> AlignResult:
    losses, accuracies, margins, shifts, *more, rates, norms = zip(*curve, strict=True)
    clipped, divergences = more or ((), ())
    return AlignResult(
        version=job.version,
        path=job.target,
        steps=len(curve),
        pairs=sum(group.pairs for group in groups),
        losses=losses,
        accuracies=accuracies,
        margins=margins,
        probe=probe,
        seconds=seconds,
        tokens=dpo.passes * sum(group.length for group in groups),
        reference=reference,
        shifts=shifts,
        learning_rates=rates,
        grad_norms=norms,
        training_seconds=trained,
        clipped=clipped,
        divergences=divergences,
    )


@contextmanager
def clean_slate() -> Iterator[None]:
    """Undo what a trainer leaves in the process: accelerate's singletons, transformers' DeepSpeed config
    and the environment variables by which they talk to each other."""
    before = dict(os.environ)
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
        gc.collect()
