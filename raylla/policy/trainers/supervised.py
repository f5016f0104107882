"""Supervised training over packed rows: placement (`raylla warmstart`) and judges (`raylla judge train`).

The loss of an optimizer step is the mean negative log-likelihood per answer token over its global batch,
each answer by its weight, however unevenly rows fall on ranks and micro-batches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from datasets.table import InMemoryTable
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, TrainerCallback

from raylla.config import Dpo, Tuning
from raylla.engines.chat import prompt_ids
from raylla.errors import RunError
from raylla.policy import packing, schedule
from raylla.policy.jobs import Example, Lesson, Told
from raylla.policy.trainers.dpo import MicroBatches, packed_arguments, warm_cosine
from raylla.strictjson import dumps

_FILLER = Example((0,), ((0,),), (0.0,))
"""An example without weight, there so that every rank takes the same steps."""


def sft_arguments(dpo: Dpo, settings: Tuning, output: str, seed: int, ranks: int) -> trl.SFTConfig:
    """Training arguments; precision, sharding and clipping are those of ``dpo``."""
    return trl.SFTConfig(
        learning_rate=settings.lr,
        dataset_kwargs={"skip_prepare_dataset": True},
        **packed_arguments(dpo, settings.batch, settings.micro, output, seed, ranks),
    )


def tokenize_lesson(lesson: Lesson, tokenizer: Any) -> Example:
    """The token ids of a lesson.

    Raises:
        RunError: an answer holds no token.
    """
    end = (tokenizer.eos_token_id,) if lesson.ends else ()
    answers = tuple(
        (*tokenizer(answer, add_special_tokens=False)["input_ids"], *end) for answer in lesson.answers
    )
    if not all(answers):
        raise RunError(f"the answers {lesson.answers} hold one without a token; leave the row out")
    return Example(tuple(prompt_ids(tokenizer, lesson.messages)), answers, lesson.weights)


def _plan(
    examples: Sequence[Example], settings: Tuning, ranks: int, seed: int
) -> tuple[schedule.OptimizerStep, ...]:
    """Which rank trains which examples in which step."""
    per_pass = -(-len(examples) // settings.batch)
    wanted = settings.steps or settings.passes * per_pass
    passes = -(-wanted // per_pass)
    return schedule.plan_steps(examples, settings.batch, settings.micro, ranks, passes, seed)[:wanted]


class SupervisedTrainer(trl.SFTTrainer):
    """Supervised training on examples that are token ids already, in packed rows; ``train()`` once.

    It goes on from the last checkpoint in ``checkpoints``. ``losses`` has one value per optimizer step
    that this process took, ``resumed`` counts those before. Rank 0 is ``told`` of each step.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        args: trl.SFTConfig,
        settings: Tuning,
        examples: Sequence[Example],
        checkpoints: Path,
        told: Told,
    ) -> None:
        self._settings, self._examples, self._told = settings, examples, told
        self._ranks, self._rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        self.checkpoints = checkpoints
        self.plan = _plan(examples, settings, self._ranks, args.seed)
        self.resumed = _last(checkpoints)
        self._sums = torch.zeros(len(self.plan), dtype=torch.float64)
        rows = Dataset(InMemoryTable.from_pydict({"input_ids": [[0]] * len(examples)}), fingerprint="rows")
        super().__init__(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
        self.model.forward = packing.PackedForward(self.model)
        self.remove_callback(PrinterCallback)
        self.add_callback(_Checkpoints(self))

    @property
    def losses(self) -> list[float]:
        """Nats per answer token of each step that was taken here."""
        sums = self._sums.to(self.accelerator.device)
        torch.distributed.all_reduce(sums)
        losses: list[float] = sums.tolist()[self.resumed :]
        return losses

    def get_train_dataloader(self) -> Any:
        """This rank's micro-batches of the steps that are left."""
        return MicroBatches(self.plan[self.resumed :], self.micro_batches)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Linear warm-up, then half a cosine, over all steps, those before a checkpoint included."""
        scheduler: LambdaLR | None = self.lr_scheduler  # type: ignore[has-type]
        if scheduler is None:
            share = warm_cosine(self._settings.warmup, len(self.plan))
            done = self.resumed
            scheduler = LambdaLR(optimizer or self.optimizer, lambda step: share(done + step))
            self.lr_scheduler, self._created_lr_scheduler = scheduler, True
        return scheduler

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        """This micro-batch's share of the global batch's mean loss, times the number of ranks."""
        tokens = model(**{name: inputs[name] for name in packing.MODEL_INPUTS})
        weights = inputs["weights"]
        answers = packing.sum_per_answer(tokens, inputs["owner"], len(weights))
        total = -(answers * weights).sum()
        step = self.resumed + self.state.global_step
        mass = sum(
            self._examples[place].mass for rank in self.plan[step].micros for m in rank for place in m
        )
        self._sums[step] += total.detach().cpu() / mass
        loss = total * (self._ranks / mass)
        return (loss, {}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Nothing is printed or sent: the losses are the job's result."""

    def micro_batches(self) -> Iterator[dict[str, Tensor]]:
        """Packed tensors of this rank, micro-step by micro-step, with the weight of each answer."""
        for step in self.plan[self.resumed :]:
            for members in step.micros[self._rank]:
                some = [self._examples[member] for member in members] or [_FILLER]
                weights = [weight for example in some for weight in example.weights]
                yield packing.pack(some) | {"weights": torch.tensor(weights)}

    def stepped(self, steps: int) -> None:
        """After ``steps`` steps of this process: say so, and write a checkpoint where one is due.

        All ranks have to call it. The last step needs none: its weights are the result.
        """
        done = self.resumed + steps
        if self._rank == 0:
            self._told(done, len(self.plan), self._sums[done - 1].item() * self._ranks)
        if done % self._settings.save_every or done == len(self.plan):
            return
        self.model_wrapped.save_checkpoint(
            str(self.checkpoints), tag=f"step-{done}", exclude_frozen_parameters=True
        )
        if self._rank == 0:
            note = self.checkpoints / "done.json"
            fresh = note.with_suffix(".new")
            fresh.write_text(dumps({"steps": done, "of": len(self.plan)}))
            fresh.replace(note)

    def restore(self) -> None:
        """Take over the last checkpoint, if there is one."""
        if self.resumed:
            self.model_wrapped.load_checkpoint(
                str(self.checkpoints), tag=f"step-{self.resumed}", load_module_strict=False
            )


class _Checkpoints(TrainerCallback):
    """Restores before the first step, saves after every few."""

    def __init__(self, trainer: SupervisedTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._trainer.restore()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.stepped(state.global_step)


def _last(checkpoints: Path) -> int:
    """Steps of the last checkpoint; none where a rank is on a machine that has not got it."""
    note = checkpoints / "done.json"
    steps = [0] * torch.distributed.get_world_size()
    mine = int(json.loads(note.read_text())["steps"]) if note.exists() else 0
    torch.distributed.all_gather_object(steps, mine)
    return min(steps)
