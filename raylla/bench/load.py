"""What engines are asked in benchmarks: answer prompts in the compact form, as in training."""

from __future__ import annotations

import random

from raylla.engines import Request
from raylla.pocket import grammar
from raylla.world import prompts


def answer_requests(
    seed: int, count: int, draws: int, candidates: int = 6, logprobs: bool = False
) -> list[Request]:
    """``count`` auctions of other users and ads each, to be answered ``draws`` times."""
    rng = random.Random(seed)
    found = []
    for index in range(count):
        user = grammar.profile(rng)
        query = grammar.query(rng, user)
        ads = grammar.ads(rng, query.category, candidates)
        bids = [float(rng.randint(1, 100)) for _ in ads]
        messages = prompts.answer("compact", query, user, ads, bids)
        found.append(Request(f"q{index}", messages, draws, 1000 * index, logprobs))
    return found
