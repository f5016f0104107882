"""TRL's DPO trainer over packed preference groups (Rafailov et al. 2023).

The loss of an optimizer step is the mean of -log sigmoid(margin) over all pairs of its global batch,
however unevenly pairs fall on ranks and micro-batches: each micro-batch's sum is scaled by
ranks / pairs, for ranks average their gradients and micro-batches add theirs up.  ``dpo.winner_nll``
adds the winners' own negative log-likelihood, so that learning the order of answers does not unlearn
how to write them (Pang et al. 2024).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
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
from raylla.policy.attention import FLEX, FLEX_BLOCK
from raylla.policy.groups import FILLER, TokenGroup
from raylla.policy.jobs import Reference, Told


def warm_cosine(warmup: float, steps: int) -> Callable[[int], float]:
    """Share of the learning rate at each of ``steps`` steps: a linear rise over the share ``warmup`` of
    them, then half a cosine. Unlike transformers' own, no step has a rate of zero."""
    rising = math.ceil(warmup * steps)

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return share


def packed_arguments(
    dpo: Dpo, batch: int, micro: int, output: str, seed: int, ranks: int
) -> dict[str, Any]:
    """What every trainer over packed rows tells transformers: steps of ``batch`` rows on ``ranks``, of
    ``micro`` on a rank at a time, and nothing written or printed beside."""
    steps = schedule.micro_steps(batch, micro, ranks)
    return {
        "output_dir": output,
        "deepspeed": zero.deepspeed_settings(dpo, micro, steps, ranks),
        "use_cpu": not torch.cuda.is_available(),
        "bf16": dpo.precision == "bfloat16",
        "max_grad_norm": dpo.max_grad_norm,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": steps,
        "num_train_epochs": 1,
        "gradient_checkpointing": dpo.gradient_checkpointing,
        "seed": seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def dpo_arguments(dpo: Dpo, output: str, seed: int, ranks: int) -> trl.DPOConfig:
    """Training arguments; creating them is what tells transformers to load sharded under ZeRO-3."""
    return trl.DPOConfig(
        beta=dpo.beta,
        learning_rate=dpo.lr,
        # The reference is this policy before its first step: no second model is ever loaded.
        precompute_ref_log_probs=True,
        **packed_arguments(dpo, dpo.batch_groups, dpo.micro_groups, output, seed, ranks),
    )


class PackedDPOTrainer(trl.DPOTrainer):
    """DPO on groups that are token ids already, in packed rows; ``train()`` once.

    ``curve`` has one row per optimizer step after ``train()``: loss, accuracy, margin, shift (see
    ``AlignResult``), learning rate, gradient norm before clipping; ``reference`` says what they refer to.
    """

    loss_is_scaled_for_ga = True
    figures = 4
    """Columns of ``curve`` before the learning rate."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        args: trl.DPOConfig,
        dpo: Dpo,
        groups: Sequence[TokenGroup],
        told: Told = lambda *_: None,
    ) -> None:
        self._dpo = dpo
        self._groups = groups
        self._told = told
        self._ranks, self._rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        self.plan = schedule.plan_steps(
            groups, dpo.batch_groups, dpo.micro_groups, self._ranks, dpo.passes, args.seed
        )
        self._offsets = [0]
        for group in groups:
            self._offsets.append(self._offsets[-1] + len(group.answers))
        self._reference = torch.zeros(self._offsets[-1])
        self.reference = Reference("recomputed")
        self._sums = torch.zeros(len(self.plan), self.figures, dtype=torch.float64)
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
        return MicroBatches(self.plan, self.micro_batches)

    def _prepare_input(self, data: Any) -> Any:
        """Move ``data`` to the device, and leave its precision alone: transformers casts what DeepSpeed is
        given to the weights', in which a reference of -100 nats is off by a quarter."""
        if isinstance(data, Tensor):
            return data.to(self.args.device)
        return {name: self._prepare_input(value) for name, value in data.items()}

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Linear warm-up, then half a cosine. Unlike transformers' own, no step has a rate of zero."""
        scheduler: LambdaLR | None = self.lr_scheduler  # type: ignore[has-type]
        if scheduler is None:
            share = warm_cosine(self._dpo.warmup, num_training_steps)
            scheduler = LambdaLR(optimizer or self.optimizer, share)
            self.lr_scheduler, self._created_lr_scheduler = scheduler, True
        return scheduler

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        """This micro-batch's share of the global batch's mean loss, times the number of ranks."""
        tokens = model(**{name: inputs[name] for name in packing.MODEL_INPUTS})
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
        """Keep each step's rate and gradient norm, and say that it is done; nothing is printed."""
        if "learning_rate" in logs:
            self._rates.append((logs["learning_rate"], logs.get("grad_norm", math.nan)))
            if self._rank == 0:
                last = len(self._rates) - 1
                share = self._sums[last, 0].item() * self._ranks / self.plan[last].pairs
                self._told(len(self._rates), len(self.plan), share)

    def find_reference(self) -> None:
        """The reference's log-probability of every answer, from the rollout where that can be relied on.

        The weights as they are compute a sample of what came with the answers again; where the two differ
        by more than ``dpo.reference_tolerance`` on average, or not all answers came with one, they compute
        all. Every rank comes to the same decision.
        """
        members = range(len(self._groups))
        given = [value for group in self._groups for value in group.reference or ()]
        if len(given) == len(self._reference):
            known = torch.tensor(given)
            count = min(len(members), self._dpo.reference_check)
            sample = sorted(random.Random(f"{self.args.seed}:reference").sample(members, count))
            rows = self._answers(sample)
            differences = (self._measured(sample) - known)[rows].abs()
            mean, largest = differences.mean().item(), differences.max().item()
            agree = mean <= self._dpo.reference_tolerance
            self.reference = Reference("rollout" if agree else "recomputed", len(rows), mean, largest)
            if agree:
                self._reference = known
                return
        self._reference = self._measured(members)

    def _measured(self, members: Sequence[int]) -> Tensor:
        """Log-probability of the answers of ``members`` under the weights as they are, 0 of the others;
        each rank does its share."""
        found = torch.zeros_like(self._reference)
        for some, tokens, owner in self._read(members):
            rows = self._answers(some)
            sums = packing.sum_per_answer(tokens, owner, max(1, len(rows)))
            found[rows] = sums[: len(rows)].cpu()
        return self._everywhere(found)

    def _read(self, members: Sequence[int]) -> Iterator[tuple[schedule.Micro, Tensor, Tensor]]:
        """This rank's share of ``members``, a micro-batch at a time: which they are, the log-probabilities
        of their answers' tokens under the weights as they are, and the owner of each."""
        micro = self._dpo.micro_groups
        count = schedule.micro_steps(len(members), micro, self._ranks)
        dealt = schedule.deal(self._groups, members, micro, self._ranks, count)
        engine = self.model_wrapped
        engine.eval()
        with torch.no_grad():
            for some in dealt[self._rank]:
                read = [self._groups[member].for_reference() for member in some]
                inputs = self._prepare_inputs(self._packed(read))
                tokens = engine(**{name: inputs[name] for name in packing.MODEL_INPUTS})
                yield some, tokens, inputs["owner"]

    def _everywhere(self, values: Tensor) -> Tensor:
        """What the ranks found, each in its own places, on every rank."""
        everywhere = values.to(self.accelerator.device)
        torch.distributed.all_reduce(everywhere)
        return everywhere.cpu()

    def micro_batches(self) -> Iterator[dict[str, Tensor]]:
        """Packed tensors of this rank, micro-step by micro-step, with their reference log-probabilities."""
        for step in self.plan:
            for members in step.micros[self._rank]:
                reference = self._reference[self._answers(members)] if members else torch.zeros(1)
                packed = self._packed([self._groups[member] for member in members])
                yield packed | {"reference": reference}

    def _packed(self, groups: Sequence[TokenGroup]) -> dict[str, Tensor]:
        multiple = FLEX_BLOCK if self.model.config._attn_implementation == FLEX else 1
        return packing.pack(groups or [FILLER], self._dpo.row_tokens, multiple)

    def _answers(self, members: Sequence[int]) -> list[int]:
        return [row for m in members for row in range(self._offsets[m], self._offsets[m + 1])]


class MicroBatches:
    """What transformers' loop needs of a data loader: a length and an iterator."""

    def __init__(
        self, plan: Sequence[schedule.OptimizerStep], batches: Callable[[], Iterator[dict[str, Tensor]]]
    ) -> None:
        self._plan, self._batches = plan, batches

    def __len__(self) -> int:
        return sum(len(step.micros[0]) for step in self._plan)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self._batches()


class _ReferenceFirst(TrainerCallback):
    """Finds the reference once the engine exists and before its first step."""

    def __init__(self, trainer: PackedDPOTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._trainer.find_reference()
