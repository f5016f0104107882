"""What assistants do today: an answer that knows of no ads, and one labelled card below it.

The card goes to the ad of the highest bid x click rate among those that bid the reserve.  A click costs
the least bid at which the winner would have won: a second price, under which bidding one's value is a
dominant strategy (Vickrey 1961; weighted by click rates as in Varian 2007).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from raylla.auction import ReadAnswer, markup
from raylla.auction.checks import ending, numbers
from raylla.auction.prose import bare
from raylla.mechanisms.protocol import Backend, Choice, Offer, Ran, ran
from raylla.records import Ad, Planned
from raylla.world.texts import shown

LABEL = "Sponsored"
"""What a card begins with."""
DESCRIBED = 200
"""Characters of an ad's description that a card shows."""
RESERVES = (0.0, 25.0, 50.0, 75.0)


def second_price(bids: ArrayLike, rates: ArrayLike, reserve: float) -> tuple[int, float] | None:
    """The place of the winner and its price per click in [reserve, its bid]; none where nobody may win.

    ``bids`` [n] and ``reserve`` are in bid units, ``rates`` [n] are click probabilities.  An ad that is
    never clicked does not win; of equals the first does.

    Raises:
        ValueError: a bid, rate or the reserve is negative, a rate is above 1, or the shapes do not fit.
    """
    bids = numbers("bids", bids, 0)
    rates = ending("rates", numbers("rates", rates, 0, 1), *bids.shape)
    scores = np.where(bids >= numbers("reserve", reserve, 0), bids * rates, 0.0)
    if not scores.any():
        return None
    winner = int(scores.argmax())
    rival = np.delete(scores, winner).max(initial=0.0)
    return winner, min(max(float(reserve), float(rival / rates[winner])), float(bids[winner]))


class Card:
    """The untouched model's answer, and below it a card or none."""

    name = "card"

    def choices(self, epochs: int) -> Sequence[Choice]:
        """The reserve in bid units, and which of the run's pCTR models ranks."""
        return tuple(
            {"reserve": reserve, "pctr_epoch": epoch}
            for reserve in RESERVES
            for epoch in sorted({1, epochs})
        )

    def run(self, backend: Backend, auctions: Sequence[Planned], choice: Choice) -> list[Ran]:
        """One generation for each offer; each ad's rate is that of its card below this very answer."""
        written = backend.organic(auctions, self.name)
        texts = [
            [bare(draw.text, planned.ads) for draw in generated.completions]
            for planned, generated in zip(auctions, written, strict=True)
        ]
        carded = [
            ReadAnswer.of(planned, _carded(text, ad))
            for planned, some in zip(auctions, texts, strict=True)
            for text in some
            for ad in planned.ads
        ]
        predicted = iter(backend.predict(carded, int(choice["pctr_epoch"])))
        ran_all = []
        for planned, generated, some in zip(auctions, written, texts, strict=True):
            offers = []
            for text in some:
                rates = [next(predicted).get(ad.id, 0.0) for ad in planned.ads]
                won = second_price(planned.auction.bids, rates, float(choice["reserve"]))
                if won is None:
                    offers.append(Offer(text, {}))
                else:
                    ad = planned.ads[won[0]]
                    offers.append(Offer(_carded(text, ad), {ad.id: won[1]}))
            ran_all.append(ran(offers, [generated], len(offers)))
        return ran_all


def _carded(text: str, ad: Ad) -> str:
    described = shown(ad, DESCRIBED)
    return f"{text.rstrip()}\n\n{LABEL}: {markup(ad)}" + (f"\n{described}" if described else "")
