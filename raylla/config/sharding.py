"""The section of those who sample."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raylla.config.sections import Actors, Positive, Seconds


class Shards(Actors):
    """Who samples: each shard owns a slice of the rollout and judge workers and of an epoch's auctions, and
    writes their records. One is a part of the driver and reserves nothing; several are actors."""

    cpus: Annotated[float, Field(ge=0)] = Field(0.5, description="CPUs that each of several reserves")
    news: Seconds = Field(
        0.25, description="seconds between two messages of a shard that is an actor to the driver"
    )
    auctions: Positive = Field(
        4096, description="auctions that one has in hand: asked for, and not yet whole and written"
    )
