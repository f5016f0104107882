"""Whether more is clicked when more is bid, and whether it comes without jumps (paper, section 5).

One ad's bid is changed, everything else of the auction stays.  Every bid has answers and judgements
of its own: nothing is shared along a curve that would make it look smoother than it is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from raylla.auction import parse
from raylla.auction.checks import Array
from raylla.evaluation import intervals
from raylla.evaluation.desk import EvaluationDesk
from raylla.mechanisms.protocol import TRAINED, Prompt
from raylla.records import Planned


def with_bid(planned: Planned, place: int, bid: float) -> Planned:
    """The auction with another bid of its ad at ``place``, and an id of its own."""
    auction = planned.auction
    bids = (*auction.bids[:place], float(bid), *auction.bids[place + 1 :])
    return replace(planned, auction=replace(auction, id=f"{auction.id}/{place}={bid:g}", bids=bids))


def random_places(desk: EvaluationDesk, auctions: Sequence[Planned]) -> list[int]:
    """One random ad of each auction, by its place; the same in every measurement of a run."""
    return [int(desk.generator(one, "monotonicity").integers(len(one.ads))) for one in auctions]


def monotonicity(
    desk: EvaluationDesk,
    auctions: Sequence[Planned],
    bids: Sequence[float],
    answers: int,
    names: Sequence[str],
) -> dict[str, Any]:
    """Click rate of one random ad per query at each of ``bids``, for the weight versions ``names``.

    ``trend`` is the rank correlation of the mean curve with the bids, its interval over queries;
    ``control`` the same where each query's bids were shuffled among its prompts.
    """
    settings = desk.config
    resamples = settings.evaluation.bootstrap
    started, asked = time.monotonic(), 0
    chosen = random_places(desk, auctions)
    versions: dict[str, Any] = {}
    for name in names:
        rates = _rates(desk, name, auctions, chosen, bids, answers)
        asked += len(auctions) * len(bids) * answers
        rng = np.random.default_rng(settings.seed)
        shuffled = rng.permuted(rates, axis=1)
        versions[name] = {
            "click_rate": [intervals.mean(column, resamples, rng) for column in rates.T],
            "trend": intervals.rank_trend(bids, rates, resamples, rng),
            "control": intervals.rank_trend(bids, shuffled, resamples, rng),
        }
    return {
        "examples": _examples(desk, auctions, chosen, (bids[0], bids[-1]), answers),
        "bids": list(bids),
        "queries": len(auctions),
        "answers": answers,
        "versions": versions,
        "auctions_per_second": asked / (time.monotonic() - started),
    }


def continuity(
    desk: EvaluationDesk,
    auctions: Sequence[Planned],
    bids: Sequence[float],
    answers: int,
    queries: int,
) -> dict[str, Any]:
    """Click rate along a fine grid of bids under the last weights: of one query's ad, and of many.

    The one is the most demanding of ``auctions``: the ad whose click rate rises most from the lowest
    bid to the highest.  ``jump`` holds the largest step between adjacent bids and the 99 % band of
    what noise alone would make it.
    """
    settings = desk.config
    rng = np.random.default_rng(settings.seed)
    some = list(auctions[:queries])
    chosen = random_places(desk, some)
    each = max(1, answers // len(some))
    many = _rates(desk, TRAINED, some, chosen, bids, each)
    ends = many[:, -len(bids) // 5 :].mean(axis=1) - many[:, : len(bids) // 5].mean(axis=1)
    steep = int(ends.argmax())
    one = _rates(desk, TRAINED, some[steep : steep + 1], chosen[steep : steep + 1], bids, answers)[0]
    jump = intervals.largest_jump(np.rint(one * answers), answers, 2000, rng)
    total = each * len(some)
    mean = many.mean(axis=0)
    return {
        "bids": list(bids),
        "one": {
            "query": some[steep].query.text,
            "ad": some[steep].ads[chosen[steep]].title,
            "answers": answers,
            "click_rate": one.tolist(),
            "jump": jump,
        },
        "many": {
            "queries": len(some),
            "answers": total,
            "click_rate": mean.tolist(),
            "jump": intervals.largest_jump(np.rint(mean * total), total, 2000, rng),
            "trend": intervals.rank_trend(bids, many, settings.evaluation.bootstrap, rng),
        },
    }


def _examples(
    desk: EvaluationDesk,
    auctions: Sequence[Planned],
    places: Sequence[int],
    bids: Sequence[float],
    answers: int,
    count: int = 3,
) -> list[dict[str, Any]]:
    """First answers of the last weights at two bids of one ad, where the ad comes and goes if it does."""
    found = []
    for planned, place in zip(auctions, places, strict=True):
        variants = [with_bid(planned, place, bid) for bid in bids]
        written = desk.write(TRAINED, [Prompt(one, one.ads, one.auction.bids, answers) for one in variants])
        texts = [generated.completions[0].text for generated in written if generated.completions]
        ad = planned.ads[place]
        shown = [ad.id in parse(text, planned.ads).ad_ids for text in texts]
        found.append(
            {
                "query": planned.query.text,
                "ad": ad.title,
                "answers": dict(zip([f"{bid:g}" for bid in bids], texts, strict=False)),
                "changed": len(set(shown)) > 1,
            }
        )
    return sorted(found, key=lambda one: not one["changed"])[:count]


def _rates(
    desk: EvaluationDesk,
    version: str,
    auctions: Sequence[Planned],
    places: Sequence[int],
    bids: Sequence[float],
    answers: int,
) -> Array:
    """Share of answers in which the ad is shown and clicked, [queries, bids].

    An answer that was lost, or whose judgement was, counts in no share.

    Raises:
        BudgetError: too many were lost.
    """
    shape = (len(auctions), len(bids))
    variants = [
        with_bid(planned, place, bid)
        for planned, place in zip(auctions, places, strict=True)
        for bid in bids
    ]
    prompts = [Prompt(one, one.ads, one.auction.bids, answers) for one in variants]
    written = desk.write(version, prompts)
    ids = [planned.ads[place].id for planned, place in zip(auctions, places, strict=True) for _ in bids]
    kept = np.zeros(len(variants))
    clicks = np.zeros(len(variants))
    shown: list[tuple[int, Planned, str]] = []
    for at, (variant, generated) in enumerate(zip(variants, written, strict=True)):
        for draw in generated.completions:
            kept[at] += 1
            if ids[at] in parse(draw.text, variant.ads).ad_ids:
                shown.append((at, variant, draw.text))
    for (at, _, _), clicked in zip(shown, desk.judge([(v, t) for _, v, t in shown]), strict=True):
        if clicked is None:
            kept[at] -= 1
        else:
            clicks[at] += clicked[ids[at]]
    desk.bound("answers of a sweep", int(answers * len(variants) - kept.sum()), answers * len(variants))
    rates: Array = (clicks / np.maximum(kept, 1)).reshape(shape)
    return rates
