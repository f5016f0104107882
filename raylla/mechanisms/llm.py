"""The language model is the mechanism: one generation, first price (arXiv 2512.10551, Eq. 7)."""

from __future__ import annotations

from collections.abc import Sequence

from raylla.mechanisms.protocol import BASE, TRAINED, Backend, Choice, Offer, Prompt, Ran, ran
from raylla.records import Planned


class Pretrained:
    """The base Ad-LLM, which sees the bids and was never aligned."""

    name = "pretrained"
    version = BASE

    def choices(self, epochs: int) -> Sequence[Choice]:
        """Nothing to tune."""
        return ({},)

    def run(self, backend: Backend, auctions: Sequence[Planned], choice: Choice) -> list[Ran]:
        """One generation for each offer."""
        prompts = [Prompt(planned, planned.ads, planned.auction.bids, planned.n) for planned in auctions]
        done = []
        for planned, generated in zip(auctions, backend.write(self.version, prompts), strict=True):
            offers = tuple(Offer(draw.text, planned.bids) for draw in generated.completions)
            done.append(ran(offers, [generated], len(offers)))
        return done


class LlmAuction(Pretrained):
    """The Ad-LLM after the last epoch of IRPO."""

    name = "llm-auction"
    version = TRAINED
