"""What bidders gain by not bidding the truth in each mechanism, and what it earns where they settle.

A mechanism is asked for its outcome at other bids, its random numbers held fixed: the response of
one ad is the mean over queries of its clicks and of what it pays, as an advertiser sees it that bids
the same for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from raylla.auction import incentives, optimum
from raylla.auction import truthful as truthful_rules
from raylla.auction.checks import Array
from raylla.evaluation.desk import EvaluationDesk
from raylla.evaluation.intervals import figure, mean
from raylla.evaluation.properties import random_places
from raylla.mechanisms.protocol import Choice, Mechanism
from raylla.records import Planned

TARGETS: dict[incentives.Goal, float] = {"utility": 1.0, "value": 1.0}
"""Goals, and the return on spend that a value maximizer asks for."""
BETAS = (1.0, 3.0, 10.0)
MU = 0.2


def table(
    desk: EvaluationDesk,
    mechanism: Mechanism,
    choice: Choice,
    auctions: Sequence[Planned],
    bids: Sequence[float],
) -> dict[str, Any]:
    """Per price rule: individual rationality and expected regret of truthful bidding, in bid units.

    The mechanism's own prices, and those of Myerson's rule on its measured curve, which would make
    any monotone allocation truthful. ``payment`` is the mean over the grid of what the ad pays at
    each bid; ``least_utility`` is below 0 where a truthful bidder can lose.
    """
    clicks, paid = responses(desk, mechanism, choice, auctions, bids)
    rng = np.random.default_rng(desk.config.seed)
    count = len(auctions)
    resamples = desk.config.evaluation.bootstrap
    shares = rng.multinomial(count, np.full(count, 1 / count), resamples) / count
    curve, drawn = clicks.mean(axis=0), shares @ clicks
    rules: dict[str, tuple[Array, Array]] = {"own": (paid.mean(axis=0), shares @ paid)}
    if bids[0] == 0:
        rules["myerson"] = (optimum.myerson(bids, curve), optimum.myerson(bids, drawn))
    return {
        "bids": list(bids),
        "queries": count,
        "click_rate": curve.tolist(),
        "rules": {
            rule: {
                "payment": figure(price.mean(), prices.mean(axis=-1)),
                "least_utility": figure(
                    incentives.least_utility(bids, curve, price),
                    incentives.least_utility(bids, drawn, prices),
                ),
                "regret": {
                    goal: figure(
                        incentives.regret(bids, curve, price, goal, target).mean(),
                        incentives.regret(bids, drawn, prices, goal, target).mean(axis=-1),
                    )
                    for goal, target in TARGETS.items()
                },
            }
            for rule, (price, prices) in rules.items()
        },
    }


def responses(
    desk: EvaluationDesk,
    mechanism: Mechanism,
    choice: Choice,
    auctions: Sequence[Planned],
    bids: Sequence[float],
) -> tuple[Array, Array]:
    """Clicks and payment of one random ad per query at each bid, both [queries, bids]."""
    variants = []
    places = random_places(desk, auctions)
    for planned, place in zip(auctions, places, strict=True):
        for bid in bids:
            profile = list(planned.auction.bids)
            profile[place] = float(bid)
            variants.append(_with_bids(planned, profile))
    clicks, paid = _outcomes(desk, mechanism, choice, variants)
    rows = np.arange(len(variants)).reshape(len(auctions), len(bids))
    columns = np.array(places)[:, None]
    return clicks[rows, columns], paid[rows, columns]


def equilibrium(
    desk: EvaluationDesk,
    mechanism: Mechanism,
    choice: Choice,
    auctions: Sequence[Planned],
    bids: Sequence[float],
) -> dict[str, Any]:
    """Revenue and welfare where best-response dynamics of the auctions' own bidders end, beside those
    under the truth; the bids of an auction are its bidders' values."""
    rng = np.random.default_rng(desk.config.seed)
    settled: dict[incentives.Goal, list[incentives.Settled]] = {goal: [] for goal in TARGETS}
    truth: list[tuple[float, float]] = []
    for planned in auctions:

        def respond(profiles: Array, planned: Planned = planned) -> tuple[Array, Array]:
            variants = [_with_bids(planned, profile) for profile in profiles.tolist()]
            return _outcomes(desk, mechanism, choice, variants)

        values = np.array(planned.auction.bids)
        clicks, paid = respond(values[None])
        truth.append((float(paid.sum()), float(clicks[0] @ values)))
        for goal, target in TARGETS.items():
            settled[goal].append(
                incentives.best_responses(respond, values, bids, rng, goal, target, max_rounds=6)
            )
    means = np.mean(truth, axis=0)
    return {
        "queries": len(auctions),
        "bids": list(bids),
        "truthful": {"revenue": float(means[0]), "welfare": float(means[1])},
        **{
            goal: {
                "revenue": float(np.mean([one.revenue for one in found])),
                "welfare": float(np.mean([one.welfare for one in found])),
                "converged": float(np.mean([one.converged for one in found])),
            }
            for goal, found in settled.items()
        },
    }


def truthful(
    desk: EvaluationDesk, mechanism: Mechanism, choice: Choice, auctions: Sequence[Planned]
) -> dict[str, Any]:
    """What an LLM-auction earns per query at truthful prices, in bid units, beside first price.

    ``closed_form`` is beta KL(pi_b, pi_{b_i=0}) of each ad, estimated from the auction's own answers and
    their predicted clicks, for several beta: at DPO's own it would hold for exact training.  It is too
    low where ``effective_sample_size`` is near 1, for then no answer shows what happens without the ad.
    ``self_resampling`` runs every auction once, with bids resampled with probability `MU`, and settles
    in aggregate.
    """
    settings = desk.config
    rng = np.random.default_rng(settings.seed)
    resamples, epoch = settings.evaluation.bootstrap, settings.irpo.epochs
    ran = mechanism.run(desk, auctions, choice)
    answers = [
        (planned, offer.text) for planned, one in zip(auctions, ran, strict=True) for offer in one.offers
    ]
    predicted = iter(desk.predict(answers, epoch))
    values: list[Array] = []
    for planned, one in zip(auctions, ran, strict=True):
        shown = [next(predicted) for _ in one.offers]
        rates = np.array([[rate.get(ad, 0.0) for rate in shown] for ad in planned.auction.ad_ids])
        if shown:
            values.append(np.array(planned.auction.bids)[:, None] * rates)
    closed = []
    for beta in sorted({settings.dpo.beta, *BETAS}):
        prices = [truthful_rules.sampled_prices(one, beta).sum() for one in values]
        sizes = [optimum.effective_sample_size(-one / beta).mean() for one in values]
        price = mean(np.array(prices), resamples, rng)
        closed.append({"beta": beta, "revenue": price, "effective_sample_size": float(np.mean(sizes))})
    bids = np.array([planned.auction.bids for planned in auctions])
    drawn, resampled = truthful_rules.resample(bids, MU, rng)
    variants = [_with_bids(one, row) for one, row in zip(auctions, drawn.tolist(), strict=True)]
    clicks, _ = _outcomes(desk, mechanism, choice, variants)
    charges = truthful_rules.charges(bids, clicks, resampled, MU).sum(axis=1)
    total, error = truthful_rules.settle(charges)
    return {
        "first_price": mean(np.array([one.sum(axis=0).mean() for one in values]), resamples, rng),
        "closed_form": closed,
        "self_resampling": {
            "mu": MU,
            "revenue": mean(charges, resamples, rng),
            "settled": float(total),
            "standard_error": float(error),
            "auctions": len(auctions),
        },
    }


def _with_bids(planned: Planned, bids: Sequence[float]) -> Planned:
    return replace(planned, auction=replace(planned.auction, bids=tuple(bids)))


def _outcomes(
    desk: EvaluationDesk, mechanism: Mechanism, choice: Choice, variants: Sequence[Planned]
) -> tuple[Array, Array]:
    """Mean clicks and payments of each ad of each auction, both [auctions, ads]."""
    ran = mechanism.run(desk, variants, choice)
    offers = [
        (row, planned, offer)
        for row, (planned, one) in enumerate(zip(variants, ran, strict=True))
        for offer in one.offers
    ]
    shape = (len(variants), len(variants[0].ads))
    clicks, paid, kept = np.zeros(shape), np.zeros(shape), np.zeros((len(variants), 1))
    judged = desk.judge([(planned, offer.text) for _, planned, offer in offers])
    for (row, planned, offer), clicked in zip(offers, judged, strict=True):
        if clicked is None:
            continue
        kept[row] += 1
        for place, ad in enumerate(planned.auction.ad_ids):
            if clicked.get(ad):
                clicks[row, place] += 1
                paid[row, place] += offer.prices.get(ad, 0.0)
    wanted = sum(planned.n for planned in variants)
    desk.bound(f"offers of {mechanism.name}", int(wanted - kept.sum()), wanted)
    return clicks / np.maximum(kept, 1), paid / np.maximum(kept, 1)
