"""TRL's DPO trainer over packed preference groups (Rafailov et al. 2023; MECHANISMS, fact 7).

The loss of an optimizer step is the mean of -log sigmoid(margin) over all pairs of its global batch,
however unevenly pairs fall on ranks and micro-batches: each micro-batch's sum is scaled by
ranks / pairs, for ranks average their gradients and micro-batches add theirs up.  ``dpo.winner_nll``
adds the winners' own negative log-likelihood, so that learning the order of answers does not unlearn
how to write them (Pang et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import trl
from datasets import Dataset
from datasets.table import InMemoryTable
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, TrainerCallback

from raylla.config import Dpo
from raylla.policy import packing, schedule, zero
from raylla.policy.groups import FILLER, TokenGroup

MODEL_INPUTS = ("input_ids", "position_ids", "segments", "source", "labels")


def arguments(dpo: Dpo, output: str, seed: int, ranks: int) -> trl.DPOConfig:
    """Training arguments; creating them is what tells transformers to load sharded under ZeRO-3."""
    steps = schedule.micro_steps(dpo.batch_groups, dpo.micro_groups, ranks)
    return trl.DPOConfig(
        output_dir=output,
        deepspeed=zero.settings(dpo, steps, ranks),
        use_cpu=not torch.cuda.is_available(),
        bf16=dpo.precision == "bfloat16",
        beta=dpo.beta,
        learning_rate=dpo.lr,
        max_grad_norm=dpo.max_grad_norm,
        per_device_train_batch_size=dpo.micro_groups,
        gradient_accumulation_steps=steps,
        num_train_epochs=1,
        gradient_checkpointing=dpo.gradient_checkpointing,
        # The reference is this policy before its first step: no second model is ever loaded.
        precompute_ref_log_probs=True,
        seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


class PackedDPOTrainer(trl.DPOTrainer):
    """DPO on groups that are token ids already, one packed row each; ``train()`` once.

    ``curve`` has one row per optimizer step after ``train()``: loss, accuracy, margin, shift (see
    ``AlignResult``), learning rate, gradient norm before clipping.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self, model: nn.Module, tokenizer: Any, args: trl.DPOConfig, dpo: Dpo, groups: Sequence[TokenGroup]
    ) -> None:
        self._dpo = dpo
        self._groups = groups
        self._ranks, self._rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        self.plan = schedule.plan(
            groups, dpo.batch_groups, dpo.micro_groups, self._ranks, dpo.passes, args.seed
        )
        self._offsets = [0]
        for group in groups:
            self._offsets.append(self._offsets[-1] + len(group.answers))
        self._reference = torch.zeros(self._offsets[-1])
        self._sums = torch.zeros(len(self.plan), 4, dtype=torch.float64)
        self._rates: list[tuple[float, float]] = []
        # TRL insists on a Dataset of its own columns; the rows that are trained come from the plan.
        rows = Dataset(InMemoryTable.from_pydict({"group": list(range(len(groups)))}), fingerprint="groups")
        super().__init__(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
        self.model.forward = packing.PackedForward(self.model)
        self.remove_callback(PrinterCallback)
        self.add_callback(_ReferenceFirst(self))

    @property
    def curve(self) -> list[tuple[float, ...]]:
        """One row per optimizer step taken, over the pairs of all ranks."""
        sums = self._sums.to(self.accelerator.device)
        torch.distributed.all_reduce(sums)
        pairs = torch.tensor([step.pairs for step in self.plan], dtype=sums.dtype)
        means = (sums.cpu() / pairs[:, None]).tolist()
        return [(*row, *rate) for row, rate in zip(means, self._rates, strict=True)]

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def get_train_dataloader(self) -> Any:
        """This rank's micro-batches, in order: no sampler, nothing tokenized, nothing sharded again."""
        return _MicroBatches(self)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Linear warm-up, then half a cosine. Unlike transformers' own, no step has a rate of zero."""
        warmup = math.ceil(self._dpo.warmup * num_training_steps)

        def share(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_training_steps - warmup)))

        scheduler: LambdaLR | None = self.lr_scheduler  # type: ignore[has-type]
        if scheduler is None:
            scheduler = LambdaLR(optimizer or self.optimizer, share)
            self.lr_scheduler, self._created_lr_scheduler = scheduler, True
        return scheduler

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        """This micro-batch's share of the global batch's mean loss, times the number of ranks."""
        tokens = model(**{name: inputs[name] for name in MODEL_INPUTS})
        reference = inputs["reference"]
        policy = packing.sum_per_answer(tokens, inputs["owner"], len(reference))
        winner, loser = inputs["winner"], inputs["loser"]
        margins = packing.pair_margins(policy, reference, winner, loser, self._dpo.beta)
        total = packing.pair_loss(margins)
        seen = margins.detach()
        shift = (policy.detach() - reference)[winner]
        sums = torch.stack([total.detach(), (seen > 0).sum(), seen.sum(), shift.sum()])
        step = self.state.global_step
        self._sums[step] += sums.cpu()
        if self._dpo.winner_nll:
            total = total + self._dpo.winner_nll * packing.winner_nll(policy, inputs["owner"], winner)
        loss = total * (self._ranks / self.plan[step].pairs)
        return (loss, {"margins": seen}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep each step's rate and gradient norm; nothing is printed or sent."""
        if "learning_rate" in logs:
            self._rates.append((logs["learning_rate"], logs.get("grad_norm", math.nan)))

    def measure_reference(self) -> None:
        """Log-probability of every answer under the weights as they are; each rank does its share."""
        size, micro = len(self._groups), self._dpo.micro_groups
        count = schedule.micro_steps(size, micro, self._ranks)
        dealt = schedule.deal(self._groups, range(size), micro, self._ranks, count)
        engine = self.model_wrapped
        engine.eval()
        found = torch.zeros_like(self._reference)
        with torch.no_grad():
            for members in dealt[self._rank]:
                read = [self._groups[member].for_reference() for member in members]
                inputs = self._prepare_inputs(packing.pack(read or [FILLER]))
                tokens = engine(**{name: inputs[name] for name in MODEL_INPUTS})
                rows = self._answers(members)
                sums = packing.sum_per_answer(tokens, inputs["owner"], max(1, len(rows)))
                found[rows] = sums[: len(rows)].cpu()
        device = self.accelerator.device
        everywhere = found.to(device)
        torch.distributed.all_reduce(everywhere)
        self._reference = everywhere.cpu()

    def micro_batches(self) -> Iterator[dict[str, Tensor]]:
        """Packed tensors of this rank, micro-step by micro-step, with their reference log-probabilities."""
        for step in self.plan:
            for members in step.micros[self._rank]:
                reference = self._reference[self._answers(members)] if members else torch.zeros(1)
                yield self._packed(members) | {"reference": reference}

    def _packed(self, members: schedule.Micro) -> dict[str, Tensor]:
        return packing.pack([self._groups[member] for member in members] or [FILLER])

    def _answers(self, members: schedule.Micro) -> list[int]:
        return [row for m in members for row in range(self._offsets[m], self._offsets[m + 1])]


class _MicroBatches:
    """What transformers' loop needs of a data loader: a length and an iterator."""

    def __init__(self, trainer: PackedDPOTrainer) -> None:
        self._trainer = trainer

    def __len__(self) -> int:
        return sum(len(step.micros[0]) for step in self._trainer.plan)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self._trainer.micro_batches()


class _ReferenceFirst(TrainerCallback):
    """Measures the reference once the engine exists and before its first step."""

    def __init__(self, trainer: PackedDPOTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._trainer.measure_reference()
