"""What bidders gain by not bidding the truth in each mechanism, and what it earns where they settle.

A mechanism is asked for its outcome at other bids, its random numbers held fixed: the response of
one ad is the mean over queries of its clicks and of what it pays, as an advertiser sees it that bids
the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raylla.auction import ReadAnswer, incentives, optimum
from raylla.auction import truthful as truthful_rules
from raylla.auction.checks import Array
from raylla.evaluation.backend import EvaluationBackend
from raylla.evaluation.properties import random_places
from raylla.figures.intervals import Figure, averages, bounded, made, means
from raylla.mechanisms.protocol import Choice, Mechanism
from raylla.records import Planned

TARGETS: dict[incentives.Goal, float] = {"utility": 1.0, "value": 1.0}
"""Goals, and the return on spend that a value maximizer asks for."""
SettledRound = tuple[float, float, float]
"""Revenue, welfare, and 1 where the bids settled."""
BETAS = (1.0, 3.0, 10.0)
MU = 0.2


def regret_table(
    groups: Sequence[tuple[Array, Array]], bids: Sequence[float], resamples: int, seed: int
) -> dict[str, Any]:
    """Per price rule: individual rationality and expected regret of truthful bidding, in bid units.

    ``groups`` are the `responses` of each training seed.  The rules are the mechanism's own prices, and
    those of Myerson's on its measured curve, which would make any monotone allocation truthful.
    ``payment`` is the mean over the grid of what the ad pays at each bid; ``least_utility`` is below 0
    where a truthful bidder can lose.
    """
    both = [np.hstack(group) for group in groups]
    count = len(bids)
    prices: dict[str, Callable[[Array], Array]] = {"own": lambda mean: mean[..., count:]}
    if bids[0] == 0:
        prices["myerson"] = lambda mean: optimum.myerson(bids, mean[..., :count])
    return {
        "bids": list(bids),
        "queries": sum(map(len, both)),
        "click_rate": averages(both)[:count].tolist(),
        "rules": {name: _rule(both, bids, price, resamples, seed) for name, price in prices.items()},
    }


def regret_difference(
    first: tuple[Array, Array],
    second: tuple[Array, Array],
    bids: Sequence[float],
    resamples: int,
    seed: int,
) -> dict[str, Figure]:
    """How much the regret of the responses ``first`` is above that of ``second``, of the same queries in
    pairs, by goal."""

    def regrets(clicks: Array, paid: Array) -> Array:
        by_goal = [incentives.regret(bids, clicks, paid, *aim).mean(axis=-1) for aim in TARGETS.items()]
        return np.stack(by_goal, axis=-1)

    def of(mean: Array) -> Array:
        parts = np.split(mean, 4, axis=-1)
        return regrets(parts[0], parts[1]) - regrets(parts[2], parts[3])

    table = np.hstack([*first, *second])
    return dict(zip(TARGETS, made([table], of, resamples, np.random.default_rng(seed)), strict=True))


def _rule(
    groups: Sequence[Array],
    bids: Sequence[float],
    price: Callable[[Array], Array],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Payment, least utility and regret where ``price`` makes prices [..., bids] of the mean clicks and
    payments [..., 2 bids]."""

    def of(mean: Array) -> Array:
        curve, paid = mean[..., : len(bids)], price(mean)
        regrets = [incentives.regret(bids, curve, paid, *aim).mean(axis=-1) for aim in TARGETS.items()]
        return np.stack(
            [paid.mean(axis=-1), incentives.least_utility(bids, curve, paid), *regrets], axis=-1
        )

    payment, least, *regret = made(groups, of, resamples, np.random.default_rng(seed))
    return {
        "payment": payment,
        "least_utility": least,
        "regret": {goal: bounded(figure, 0) for goal, figure in zip(TARGETS, regret, strict=True)},
    }


def responses(
    backend: EvaluationBackend,
    mechanism: Mechanism,
    choice: Choice,
    auctions: Sequence[Planned],
    bids: Sequence[float],
    places: Sequence[int] | None = None,
) -> tuple[Array, Array]:
    """Clicks and payment of one ad per query at each bid, both [queries, bids]: of the ads at ``places``,
    or of random ones."""
    variants = []
    places = random_places(backend, auctions) if places is None else places
    for planned, place in zip(auctions, places, strict=True):
        for bid in bids:
            profile = list(planned.auction.bids)
            profile[place] = float(bid)
            variants.append(_with_bids(planned, profile))
    clicks, paid = _outcomes(backend, mechanism, choice, variants)
    rows = np.arange(len(variants)).reshape(len(auctions), len(bids))
    columns = np.array(places)[:, None]
    return clicks[rows, columns], paid[rows, columns]


def settle_bids(
    backend: EvaluationBackend,
    mechanism: Mechanism,
    choice: Choice,
    auctions: Sequence[Planned],
    bids: Sequence[float],
) -> dict[str, list[SettledRound]]:
    """Revenue, welfare and whether they settled, of each auction: under the truth, and where the
    best responses of its own bidders end; its bids are their values."""
    rng = np.random.default_rng(backend.config.seed)
    rounds: dict[str, list[SettledRound]] = {"truthful": [], **{goal: [] for goal in TARGETS}}
    for planned in auctions:

        def respond(profiles: Array, planned: Planned = planned) -> tuple[Array, Array]:
            variants = [_with_bids(planned, profile) for profile in profiles.tolist()]
            return _outcomes(backend, mechanism, choice, variants)

        values = np.array(planned.auction.bids)
        clicks, paid = respond(values[None])
        rounds["truthful"].append((float(paid.sum()), float(clicks[0] @ values), 1.0))
        for goal, target in TARGETS.items():
            settled = incentives.best_responses(respond, values, bids, rng, goal, target, max_rounds=6)
            rounds[goal].append((settled.revenue, settled.welfare, float(settled.converged)))
    return rounds


def equilibrium(
    groups: Sequence[Mapping[str, Sequence[SettledRound]]], bids: Sequence[float]
) -> dict[str, Any]:
    """Means over the auctions of all training seeds of what `settle_bids` found."""
    figures: dict[str, Any] = {
        "queries": sum(len(group["truthful"]) for group in groups),
        "bids": list(bids),
    }
    for kind in groups[0]:
        mean = np.mean([outcome for group in groups for outcome in group[kind]], axis=0).tolist()
        figures[kind] = dict(zip(("revenue", "welfare", "converged"), mean, strict=True))
    return figures


@dataclass(frozen=True, slots=True)
class Charged:
    """What the auctions of one run would pay: at first price, by the closed form for several beta, and
    what one self-resampled pass charges, [auctions] each; and the samples' effective sizes."""

    first_price: Array
    closed: Mapping[float, Array]
    sizes: Mapping[float, Array]
    resampled: Array


def charge(
    backend: EvaluationBackend, mechanism: Mechanism, choice: Choice, auctions: Sequence[Planned]
) -> Charged:
    """Hold the auctions and price them at what would make the truth a best response."""
    settings = backend.config
    rng = np.random.default_rng(settings.seed)
    ran = mechanism.run(backend, auctions, choice)
    answers = [
        ReadAnswer.of(planned, offer.text)
        for planned, result in zip(auctions, ran, strict=True)
        for offer in result.offers
    ]
    predicted = iter(backend.predict(answers, settings.irpo.epochs))
    values: list[Array] = []
    for planned, result in zip(auctions, ran, strict=True):
        shown = [next(predicted) for _ in result.offers]
        rates = np.array([[rate.get(ad, 0.0) for rate in shown] for ad in planned.auction.ad_ids])
        if shown:
            values.append(np.array(planned.auction.bids)[:, None] * rates)
    betas = sorted({settings.dpo.beta, *BETAS})
    bids = np.array([planned.auction.bids for planned in auctions])
    drawn, resampled = truthful_rules.resample(bids, MU, rng)
    variants = [_with_bids(planned, row) for planned, row in zip(auctions, drawn.tolist(), strict=True)]
    clicks, _ = _outcomes(backend, mechanism, choice, variants)
    return Charged(
        np.array([value.sum(axis=0).mean() for value in values]),
        {
            beta: np.array([truthful_rules.sampled_prices(value, beta).sum() for value in values])
            for beta in betas
        },
        {
            beta: np.array([optimum.effective_sample_size(-value / beta).mean() for value in values])
            for beta in betas
        },
        truthful_rules.charges(bids, clicks, resampled, MU).sum(axis=1),
    )


def truthful(groups: Sequence[Charged], resamples: int, seed: int) -> dict[str, Any]:
    """What an LLM-auction earns per query at truthful prices, in bid units, beside first price.

    ``closed_form`` is beta KL(pi_b, pi_{b_i=0}) of each ad, estimated from the auction's own answers and
    their predicted clicks, for several beta: at DPO's own it would hold for exact training.  It is too
    low where ``effective_sample_size`` is near 1, for then no answer shows what happens without the ad.
    ``self_resampling`` runs every auction once, with bids resampled with probability `MU`, and settles
    in aggregate.
    """
    rng = np.random.default_rng(seed)

    def mean(charged: Sequence[Array]) -> Figure:
        return means([values[:, None] for values in charged], resamples, rng)[0]

    charges = np.concatenate([group.resampled for group in groups])
    total, error = truthful_rules.summed_charges(charges)
    return {
        "first_price": mean([group.first_price for group in groups]),
        "closed_form": [
            {
                "beta": beta,
                "revenue": mean([group.closed[beta] for group in groups]),
                "effective_sample_size": float(np.mean([group.sizes[beta].mean() for group in groups])),
            }
            for beta in groups[0].closed
        ],
        "self_resampling": {
            "mu": MU,
            "revenue": mean([group.resampled for group in groups]),
            "settled": float(total),
            "standard_error": float(error),
            "auctions": len(charges),
        },
    }


def _with_bids(planned: Planned, bids: Sequence[float]) -> Planned:
    return replace(planned, auction=replace(planned.auction, bids=tuple(bids)))


def _outcomes(
    backend: EvaluationBackend, mechanism: Mechanism, choice: Choice, variants: Sequence[Planned]
) -> tuple[Array, Array]:
    """Mean clicks and payments of each ad of each auction, both [auctions, ads]."""
    ran = mechanism.run(backend, variants, choice)
    offers = [
        (row, planned, offer)
        for row, (planned, result) in enumerate(zip(variants, ran, strict=True))
        for offer in result.offers
    ]
    shape = (len(variants), len(variants[0].ads))
    clicks, paid, kept = np.zeros(shape), np.zeros(shape), np.zeros((len(variants), 1))
    judged = backend.judge([ReadAnswer.of(planned, offer.text) for _, planned, offer in offers])
    for (row, planned, offer), clicked in zip(offers, judged, strict=True):
        if clicked is None:
            continue
        kept[row] += 1
        for place, ad in enumerate(planned.auction.ad_ids):
            if clicked.get(ad):
                clicks[row, place] += 1
                paid[row, place] += offer.prices.get(ad, 0.0)
    wanted = sum(planned.n for planned in variants)
    backend.bound(f"offers of {mechanism.name}", int(wanted - kept.sum()), wanted)
    return clicks / np.maximum(kept, 1), paid / np.maximum(kept, 1)
