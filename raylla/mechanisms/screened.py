"""Screened VCG: an ad enters only if the answer is better off for it than without any.

After Mechanism Design for Quality-Preserving LLM Advertising (Han and Dai, arXiv 2605.10964): the organic
answer is the reference, each ad's answer is written by a model that is told of this ad alone, and an
endogenous reserve screens out ads whose marginal social welfare is not positive; VCG allocates among the
rest.  Of the paper we know the abstract.  Ours are the measure of what an ad costs the reader, and that
the marginal welfares of several ads add up:

    w_i = b_i pctr_i - loss_i,   loss_i = lambda s_resp(y_i) + quality (1 - cosine(y_i, organic answer))

so that the reserve of ad i is loss_i / pctr_i per click.  It does not depend on any bid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raylla.auction import ReadAnswer
from raylla.auction.checks import Array, ending, numbers
from raylla.auction.prose import bare, stripped
from raylla.engines.protocol import Generated
from raylla.mechanisms.protocol import BASE, Backend, Choice, Offer, Prompt, Ran, ran
from raylla.records import Planned

_QUALITIES = (10.0, 30.0, 100.0)
"""Bid units for an answer that has nothing in common with the organic one (cosine 0).  Tuned for the
reward, in which likeness has no part unless a reward term gives it one, none would be best: so 0 is not
among them."""


def screened_vcg(
    bids: ArrayLike, rates: ArrayLike, losses: ArrayLike, places: int
) -> tuple[NDArray[np.int64], Array]:
    """The winners, best first, at most ``places``; and each ad's price per click [n], 0 for who lost.

    ``bids`` [n] and ``losses`` [n] are in bid units, ``rates`` [n] click probabilities.  Winners are the
    ads of the highest positive b_i rate_i - loss_i, of equals the first.  Derivation: with additive
    marginal welfare the others lose the best ad left out, so that Clarke's price per click is (loss_i +
    max(0, w_next)) / rate_i: in [reserve, b_i], and no function of b_i.

    Raises:
        ValueError: a bid, rate or loss is negative, a rate is above 1, ``places`` is below 1, or the
            shapes do not fit.
    """
    bids = numbers("bids", bids, 0)
    rates = ending("rates", numbers("rates", rates, 0, 1), *bids.shape)
    losses = ending("losses", numbers("losses", losses, 0), *bids.shape)
    if places < 1:
        raise ValueError(f"places={places!r}: sell 1 or more")
    worth = bids * rates - losses
    order = np.argsort(-worth, kind="stable")
    winners = order[:places][worth[order[:places]] > 0]
    rival = max(worth[order[places]], 0.0) if len(order) > places else 0.0
    prices = np.zeros(len(bids))
    prices[winners] = np.minimum((losses[winners] + rival) / rates[winners], bids[winners])
    return winners, prices


class ScreenedVcg:
    """The untouched model's answer, or one that the base model writes about ads that pass the screen."""

    name = "screened-vcg"

    def choices(self, epochs: int) -> Sequence[Choice]:
        """How many ads at most, what likeness to the organic answer is worth, which pCTR model scores."""
        return tuple(
            {"ads": ads, "quality": quality, "pctr_epoch": epoch}
            for ads in (1, 2)
            for quality in _QUALITIES
            for epoch in sorted({1, epochs})
        )

    def run(self, backend: Backend, auctions: Sequence[Planned], choice: Choice) -> list[Ran]:
        """For each offer an organic answer and one about each ad, and one more where several are sold."""
        organic = backend.organic(auctions, self.name)
        prompts = [
            Prompt(auction, (ad,), (None,), auction.n, f"screened/{ad.id}")
            for auction in auctions
            for ad in auction.ads
        ]
        written = iter(backend.write(BASE, prompts))
        about = [[next(written) for _ in auction.ads] for auction in auctions]
        trials = [_trials(*parts) for parts in zip(auctions, organic, about, strict=True)]
        flat = [trial for some in trials for trial in some]
        sales = list(zip(flat, _sales(backend, flat, choice), strict=True))
        several = iter(
            backend.write(BASE, [trial.of(sale.places) for trial, sale in sales if sale.several])
        )
        ended, done = iter(sales), []
        for some, own, told in zip(trials, organic, about, strict=True):
            sold = [next(ended) for _ in some]
            more = [next(several) for _, sale in sold if sale.several]
            joint = iter(more)
            offers = [
                offer
                for trial, sale in sold
                for offer in (_joint(next(joint), sale) if sale.several else [_single(trial, sale)])
            ]
            notes = {"passed": float(np.mean([sale.passed for _, sale in sold]))} if sold else {}
            done.append(ran(offers, [own, *told, *more] if sold else [], len(offers), notes))
        return done


@dataclass(frozen=True, slots=True)
class _Trial:
    """What an offer is made from: the organic answer, and the one about each of the auction's ads."""

    planned: Planned
    draw: int
    organic: str
    about: tuple[str, ...]

    def of(self, places: Sequence[int]) -> Prompt:
        """The prompt for one answer about several ads."""
        ads = tuple(self.planned.ads[place] for place in places)
        return Prompt(self.planned, ads, (None,) * len(ads), 1, f"screened/{self.draw}")


@dataclass(frozen=True, slots=True)
class _Sale:
    """Places of the ads that are sold, prices per click by ad id, and the share that passed the screen."""

    places: tuple[int, ...]
    prices: dict[str, float]
    passed: float

    @property
    def several(self) -> bool:
        return len(self.places) > 1


def _trials(planned: Planned, organic: Generated, about: Sequence[Generated]) -> list[_Trial]:
    """The trials of an auction; none where a generation failed."""
    if not all(generated.completions for generated in (organic, *about)):
        return []
    return [
        _Trial(
            planned,
            draw,
            bare(organic.completions[draw].text, planned.ads),
            tuple(generated.completions[draw].text for generated in about),
        )
        for draw in range(planned.n)
    ]


def _sales(backend: Backend, trials: Sequence[_Trial], choice: Choice) -> list[_Sale]:
    answers = [ReadAnswer.of(trial.planned, text) for trial in trials for text in trial.about]
    read = [stripped(answer.text, answer.planned.ads) for answer in answers]
    texts = list(dict.fromkeys([*(trial.organic for trial in trials), *read]))
    vectors = backend.encode(texts).astype(np.float64) if texts else np.zeros((0, 1))
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    at = dict(zip(texts, vectors, strict=True))
    told = iter(
        zip(read, backend.predict(answers, int(choice["pctr_epoch"])), backend.costs(answers), strict=True)
    )
    quality, sales = float(choice["quality"]), []
    for trial in trials:
        auction, rates, losses = trial.planned.auction, [], []
        for ad in auction.ad_ids:
            text, rate, cost = next(told)
            rates.append(rate.get(ad, 0.0))
            losses.append(max(cost, 0.0) + quality * max(0.0, 1 - float(at[text] @ at[trial.organic])))
        winners, prices = screened_vcg(auction.bids, rates, losses, int(choice["ads"]))
        sold = {auction.ad_ids[place]: float(prices[place]) for place in winners}
        passed = float(np.mean(np.array(auction.bids) * rates > losses))
        sales.append(_Sale(tuple(sorted(winners.tolist())), sold, passed))
    return sales


def _single(trial: _Trial, sale: _Sale) -> Offer:
    return Offer(trial.about[sale.places[0]] if sale.places else trial.organic, sale.prices)


def _joint(generated: Generated, sale: _Sale) -> list[Offer]:
    return [Offer(completion.text, sale.prices) for completion in generated.completions]
