"""Auction and sample ids, and the seeds and bids that follow from them.

Everything here is a pure function of names, so that lost work is re-done anywhere with the same
ids and the same bids, and never counted twice.
"""

from __future__ import annotations

import hashlib
import random

from raylla.config import Config
from raylla.records import Phase
from raylla.world.prompts import LARGEST_COMPACT_BID


def auction_id(epoch: int, phase: Phase, query_id: str) -> str:
    """Name of one auction, for instance ``e1/reward/p12-3``."""
    return f"e{epoch}/{phase}/{query_id}"


def sample_id(auction: str, draw: int) -> str:
    """Name of one sampled answer of an auction, for instance ``e1/reward/p12-3/0``."""
    return f"{auction}/{draw}"


def seed_of(seed: int, name: str) -> int:
    """A 31-bit sampling seed that depends on the run's seed and the sample's name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big") >> 1


def draw(seed: int, auction: str, count: int, max_bid: int) -> tuple[float, ...]:
    """``count`` bids of U{1..max_bid}, in bid units per click, fixed by (seed, auction id)."""
    rng = random.Random(f"{seed}/bids/{auction}")
    return tuple(float(rng.randint(1, max_bid)) for _ in range(count))


def highest_bid(config: Config) -> float:
    """The most that a run's model is trained on and its prompt can say, in bid units per click."""
    most = config.world.max_bid
    return float(min(most, LARGEST_COMPACT_BID) if config.ad_llm.prompt == "compact" else most)
