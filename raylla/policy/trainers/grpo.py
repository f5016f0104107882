"""Group-relative policy optimization over the same packed rows (Shao et al. 2024, arXiv 2402.03300, Eq. 3).

An answer's advantage is its reward less the mean of its auction's, in standard deviations of these if
`grpo.scaled`.  Each token's ratio to the policy that wrote the answers, the epoch's first, is clipped as
in PPO; the KL divergence, by its unbiased and positive estimate (Eq. 4), is from the same policy.  Both
are of the model as it is sampled: at the temperature of the answers, before top-k and top-p.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raylla.config import Dpo, Grpo
from raylla.policy import packing
from raylla.policy.groups import TokenGroup
from raylla.policy.jobs import Reference, Told
from raylla.policy.trainers.dpo import PackedDPOTrainer

_EQUAL = 1e-6
"""Added to a deviation of rewards that is divided by."""


def advantages(rewards: Sequence[float], scaled: bool) -> list[float]:
    """Rewards of one auction's answers less their mean, in their (population's) standard deviations if
    ``scaled``."""
    values = torch.tensor(rewards, dtype=torch.float64)
    values = values - values.mean()
    if scaled:
        values = values / (values.square().mean().sqrt() + _EQUAL)
    return [float(value) for value in values]


def token_losses(
    policy: Tensor, reference: Tensor, advantage: Tensor, clip: float, kl: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each answer token [N], whether its ratio counts no further, its KL estimate.

    ``policy`` and ``reference`` [N] are log-probabilities (nats), ``advantage`` [N] that of the token's
    answer.
    """
    shift = policy - reference
    ratio = shift.exp()
    bounded = ratio.clamp(1 - clip, 1 + clip)
    gain = torch.minimum(ratio * advantage, bounded * advantage)
    divergence = (-shift).exp() + shift - 1
    return kl * divergence - gain, bounded * advantage < ratio * advantage, divergence


class PackedGRPOTrainer(PackedDPOTrainer):
    """GRPO on groups that hold all answers of their auctions with their rewards; ``train()`` once.

    The loss of an optimizer step is the mean over all answers of its global batch of the mean over an
    answer's tokens. ``curve`` has the share of clipped tokens and the KL divergence behind DPO's columns.
    """

    figures = 6

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        args: Any,
        dpo: Dpo,
        groups: Sequence[TokenGroup],
        told: Told,
        grpo: Grpo,
        temperature: float,
    ) -> None:
        self._grpo = grpo
        self._temperature = temperature
        self._starts = [0]
        for group in groups:
            self._starts.append(self._starts[-1] + sum(map(len, group.answers)))
        self._tokens = torch.zeros(self._starts[-1])
        super().__init__(model, tokenizer, args, dpo, groups, told)

    def find_reference(self) -> None:
        """The log-probability of every answer token under the weights as they are.

        Where the answers came with log-probabilities of the engine, those of a sample are held against the
        weights' own first, before any temperature.
        """
        given = [value for group in self._groups for value in group.reference or ()]
        if len(given) == self._offsets[-1]:
            members = range(len(self._groups))
            count = min(len(members), self._dpo.reference_check)
            sample = sorted(random.Random(f"{self.args.seed}:reference").sample(members, count))
            rows = self._answers(sample)
            differences = (self._measured(sample) - torch.tensor(given))[rows].abs()
            self.reference = Reference(
                "recomputed", len(rows), differences.mean().item(), differences.max().item()
            )
        forward: Any = self.model.forward
        forward.temperature = self._temperature
        for some, tokens, _ in self._read(range(len(self._groups))):
            places = self._places(some)
            self._tokens[places] = tokens[: len(places)].cpu()
        self._tokens = self._everywhere(self._tokens)

    def micro_batches(self) -> Iterator[dict[str, Tensor]]:
        """Packed tensors of this rank with the reference of each token, and each answer's advantage and
        weight: 0 in the row that only fills a rank's turn."""
        for step in self.plan:
            for members in step.micros[self._rank]:
                groups = [self._groups[member] for member in members]
                gains = [
                    advantage
                    for group in groups
                    for advantage in advantages(group.rewards, self._grpo.scaled)
                ]
                yield self._packed(groups) | {
                    "reference": self._tokens[self._places(members)] if groups else torch.zeros(1),
                    "advantage": torch.tensor(gains or [0.0]),
                    "weight": torch.full((max(1, len(gains)),), float(bool(groups))),
                }

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        """This micro-batch's share of the global batch's mean loss, times the number of ranks."""
        tokens = model(**{name: inputs[name] for name in packing.MODEL_INPUTS})
        owner, weight = inputs["owner"], inputs["weight"]
        # What only fills a turn is its own reference: any other may be too far off for an exponential.
        reference = torch.where(weight[owner] > 0, inputs["reference"], tokens.detach())
        losses, clipped, divergence = token_losses(
            tokens, reference, inputs["advantage"][owner], self._grpo.clip, self._grpo.kl
        )
        share = weight / torch.bincount(owner, minlength=len(weight))
        total = (losses * share[owner]).sum()
        step = self.state.global_step
        plan = self.plan[step]
        answers = plan.pairs + sum(len(micro) for rank in plan.micros for micro in rank)
        shifts = packing.sum_per_answer(tokens.detach() - reference, owner, len(weight))
        winner, loser = inputs["winner"], inputs["loser"]
        margins = self._dpo.beta * (shifts[winner] - shifts[loser])
        of_pairs = torch.stack([(margins > 0).sum(), margins.sum(), shifts[winner].sum()])
        of_answers = [(figure.detach() * share[owner]).sum() for figure in (clipped, divergence)]
        # `curve` divides all of a step by its pairs.
        scale = plan.pairs / answers
        sums = [total.detach() * scale, *of_pairs, *(answer * scale for answer in of_answers)]
        self._sums[step] += torch.stack(sums).cpu()
        loss = total * (self._ranks / answers)
        return (loss, {"margins": margins}) if return_outputs else loss

    def _places(self, members: Sequence[int]) -> list[int]:
        """Where the answer tokens of ``members`` are among all."""
        return [place for m in members for place in range(self._starts[m], self._starts[m + 1])]
