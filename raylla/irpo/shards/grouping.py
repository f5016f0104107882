"""Preference groups as they go from a shard to the trainer's workers, and how lost ones are made anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from raylla.config import Config
from raylla.irpo.sampling import Sampled
from raylla.irpo.schedule import Chunk, plan_chunk
from raylla.irpo.shards import parts
from raylla.policy.jobs import GroupPart
from raylla.records import Planned, PreferenceGroup
from raylla.world import World, prompts


@dataclass(frozen=True, slots=True)
class KeptGroups:
    """Groups of chunks that were scored before, from the records of the run at ``place``. Whoever holds it
    needs no shard for them.

    Args:
        world: a `World`, or a reference to one.
        chunks: whose groups; each is asked for by its place among them.
    """

    config: Config
    world: Any
    place: str
    chunks: tuple[Chunk, ...]

    def __call__(self, wanted: Sequence[int]) -> list[GroupPart]:
        """The groups of each chunk wanted."""
        world: World = ray.get(self.world) if isinstance(self.world, ray.ObjectRef) else self.world
        return [self._of(world, self.chunks[place]) for place in wanted]

    def _of(self, world: World, chunk: Chunk) -> GroupPart:
        sampled = parts.read_chunk(self.place, chunk, plan_chunk(self.config, world, chunk))
        return group_part(self.config, parts.read_groups(self.place, chunk, sampled), sampled)


def group_part(config: Config, groups: Sequence[PreferenceGroup], sampled: Sampled) -> GroupPart:
    """The groups, with their prompts with the bids hidden, where the reference is not to read them."""
    if config.dpo.reference == "policy":
        return GroupPart(tuple(groups))

    def masked(planned: Planned) -> prompts.Messages:
        hidden = [None] * len(planned.ads)
        return prompts.of(config.ad_llm, planned.query, planned.profile, planned.ads, hidden)

    asked = [sampled.plan[group.auction_id] for group in groups]
    return GroupPart(
        tuple(groups),
        tuple(masked(planned) for planned in asked),
        tuple(len(planned.query.turns) for planned in asked),
    )
