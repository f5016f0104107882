"""Which rank trains which groups in which step: pure, and the same on every rank.

Every rank takes the same number of optimizer steps and of micro-steps by construction, with empty
micro-batches where groups run out, so that a sharded model can never wait for a rank that is done.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from raylla.policy.groups import Packable

Micro = tuple[int, ...]
"""Indices of the groups of one forward pass; empty where a rank has none."""


@dataclass(frozen=True, slots=True)
class OptimizerStep:
    """One optimizer step: ``micros[rank][m]``, and the pairs of all of them together."""

    pairs: int
    micros: tuple[tuple[Micro, ...], ...]


def plan_steps(
    groups: Sequence[Packable], batch: int, micro: int, ranks: int, passes: int, seed: int
) -> tuple[OptimizerStep, ...]:
    """Steps of ``passes`` shuffled passes, each in batches of ``batch`` groups over all ranks.

    The last batch of a pass holds what is left. All steps have ``micro_steps`` micro-batches per rank.
    """
    steps: list[OptimizerStep] = []
    for number in range(passes):
        order = list(range(len(groups)))
        random.Random(f"{seed}:{number}").shuffle(order)
        for start in range(0, len(order), batch):
            members = order[start : start + batch]
            micros = deal(groups, members, micro, ranks, micro_steps(batch, micro, ranks))
            steps.append(OptimizerStep(sum(groups[member].pairs for member in members), micros))
    return tuple(steps)


def micro_steps(batch: int, micro: int, ranks: int) -> int:
    """Forward passes of each rank for a batch of ``batch`` groups."""
    return ceil(batch / (ranks * micro))


def deal(
    groups: Sequence[Packable], members: Sequence[int], micro: int, ranks: int, count: int
) -> tuple[tuple[Micro, ...], ...]:
    """Deal ``members`` to ``ranks`` x ``count`` micro-batches of at most ``micro`` groups.

    Sorted by length, so that rows of one micro-batch need little padding and ranks get equal work.
    """
    ranked = sorted(members, key=lambda member: (-groups[member].length, member))
    share = ceil(len(ranked) / count) if ranked else 1
    waves = [ranked[start : start + share] for start in range(0, len(ranked), share)]
    waves += [[] for _ in range(count - len(waves))]
    return tuple(tuple(tuple(wave[rank::ranks]) for wave in waves) for rank in range(ranks))
