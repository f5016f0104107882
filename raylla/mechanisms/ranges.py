"""The best of a range of answers that no bid changes, at VCG prices.

The trained generator is asked for each ad's answer under a canonical profile, in which that ad bids the
most and every other the least; with the organic answer these are the range.  It is the same whatever is
bid, so that the best of it at Clarke's prices is strategyproof by construction: each bidder's utility is
the welfare of what is returned less a term that its bid does not change (maximal in range, Nisan and
Ronen 2007), as far as the pCTR model is right.  With tau above 0 an answer is drawn in proportion to
exp(welfare / tau): maximal in distributional range, with `raylla.mechanisms.mosaic`'s payments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from raylla.auction import ReadAnswer, optimum
from raylla.auction.prose import bare
from raylla.engines.protocol import Generated
from raylla.mechanisms.mosaic import priced
from raylla.mechanisms.protocol import TRAINED, Backend, Choice, Offer, Prompt, Ran, ran
from raylla.records import Planned

_LOWEST = 1.0
"""What the other ads bid in a canonical profile; training's bids begin there."""
_TEMPERATURES = (0.0, 1.0, 10.0)


class RangeVcg:
    """One of the trained model's own answers, each written as if one ad had won, or the organic one."""

    name = "range-vcg"

    def choices(self, epochs: int) -> Sequence[Choice]:
        """Answers for each ad, the temperature, and which of the run's pCTR models scores."""
        return tuple(
            {"answers": answers, "tau": tau, "pctr_epoch": epoch}
            for answers in (1, 2)
            for tau in _TEMPERATURES
            for epoch in sorted({1, epochs})
        )

    def run(self, backend: Backend, auctions: Sequence[Planned], choice: Choice) -> list[Ran]:
        """The organic answer and ``answers`` generations for each ad; offers are draws among them."""
        profiles = [
            (auction, _canonical(place, len(auction.ads), backend.highest_bid), f"range/{ad.id}/{answer}")
            for auction in auctions
            for place, ad in enumerate(auction.ads)
            for answer in range(int(choice["answers"]))
        ]
        asked = [Prompt(auction, auction.ads, bids, 1, name) for auction, bids, name in profiles]
        written = iter(backend.write(TRAINED, asked))
        organic = backend.organic([replace(auction, n=1) for auction in auctions], self.name)
        ranges = [
            _range(auction, own, [next(written) for _ in range(len(auction.ads) * int(choice["answers"]))])
            for auction, own in zip(auctions, organic, strict=True)
        ]
        answers = [
            ReadAnswer.of(planned, text)
            for planned, (texts, _) in zip(auctions, ranges, strict=True)
            for text in texts
        ]
        predicted = iter(backend.predict(answers, int(choice["pctr_epoch"])))
        spent = iter(backend.costs(answers))
        done = []
        for planned, (texts, used) in zip(auctions, ranges, strict=True):
            shown = [next(predicted) for _ in texts]
            costs = [next(spent) for _ in texts]
            if not texts:
                done.append(ran((), [], 0))
                continue
            log_p, prices = priced(planned, shown, costs, np.zeros(len(texts)), float(choice["tau"]))
            drawn = backend.generator(planned, self.name).choice(len(texts), planned.n, p=np.exp(log_p))
            notes = {
                "effective_sample_size": float(optimum.effective_sample_size(log_p)),
                "organic": float(np.exp(log_p[0])),
            }
            done.append(ran([Offer(texts[j], prices) for j in drawn], used, 1, notes))
        return done


def _canonical(place: int, count: int, highest: float) -> tuple[float, ...]:
    """Bids of which the one at ``place`` is the highest and the others the lowest."""
    return tuple(highest if at == place else _LOWEST for at in range(count))


def _range(
    planned: Planned, organic: Generated, written: Sequence[Generated]
) -> tuple[list[str], list[Generated]]:
    """The organic answer and all that were written for an ad, and what they cost; none where the
    organic one failed."""
    if not organic.completions:
        return [], []
    every = [organic, *written]
    texts = [draw.text for generated in every for draw in generated.completions]
    return [bare(texts[0], planned.ads), *texts[1:]], every
