"""RAG-Auction (Hajiaghayi et al., arXiv 2406.09459): the auction chooses, then the model writes.

Relevance is q_i = exp(cosine / temperature) of the text encoder.  The chosen ads, and no others, are
listed in the prompt of one generation, without bids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raylla.mechanisms import segment
from raylla.mechanisms.protocol import BASE, Backend, Choice, Offer, Prompt, Ran, ran
from raylla.records import Planned

TEMPERATURES = (0.02, 0.05, 0.1, 0.3)
RULES = ("without replacement", "with replacement", "set")


class RagAuction:
    """The segment auction with its own prices."""

    name = "rag-auction"

    def choices(self, epochs: int) -> Sequence[Choice]:
        """How many ads, by which rule, at which temperature of relevance."""
        return tuple(
            {"ads": ads, "rule": rule, "temperature": temperature}
            for ads in (1, 2)
            for rule in (RULES if ads > 1 else RULES[:1])
            for temperature in TEMPERATURES
        )

    def run(self, backend: Backend, auctions: Sequence[Planned], choice: Choice) -> list[Ran]:
        """One auction and one generation for each offer."""
        prompts, prices = [], []
        for planned, cosines in zip(auctions, backend.relevance(auctions), strict=True):
            quality = np.exp((cosines - cosines.max()) / float(choice["temperature"]))
            rng = backend.generator(planned, f"{self.name}/{sorted(choice.items())}")
            for draw, sold in enumerate(_sold(quality, planned, rng, choice)):
                ads = tuple(ad for ad in planned.ads if ad.id in sold)
                prompts.append(Prompt(planned, ads, (None,) * len(ads), 1, f"{draw}"))
                prices.append(sold)
        written = iter(zip(backend.write(BASE, prompts), prices, strict=True))
        done = []
        for planned in auctions:
            made = [next(written) for _ in range(planned.n)]
            offers = tuple(
                Offer(draw.text, sold) for generated, sold in made for draw in generated.completions
            )
            done.append(ran(offers, [generated for generated, _ in made], len(offers)))
        return done


def _sold(
    quality: NDArray[np.float64], planned: Planned, rng: np.random.Generator, choice: Choice
) -> list[dict[str, float]]:
    """For each offer the chosen ads and their prices per click; an ad that won twice pays the mean."""
    bids = np.array(planned.auction.bids)
    count = min(int(choice["ads"]), len(bids))
    ids = planned.auction.ad_ids
    if choice["rule"] == "set":
        members = segment.subsets(len(bids), count)
        noise = rng.gumbel(size=(planned.n, len(members)))
        chosen, paid = segment.set_auction(members * quality, bids, noise)
        return [
            {ids[i]: float(paid[draw, i]) for i in np.flatnonzero(members[chosen[draw]])}
            for draw in range(planned.n)
        ]
    noise = rng.gumbel(size=(planned.n, count, len(bids)))
    winners, paid = segment.segment_auction(
        quality, bids, noise, replace=choice["rule"] == "with replacement"
    )
    return [
        {
            ids[i]: float(paid[draw][winners[draw] == i].mean())
            for i in dict.fromkeys(winners[draw])
            if i >= 0
        }
        for draw in range(planned.n)
    ]
