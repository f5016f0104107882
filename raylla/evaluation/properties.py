"""Whether more is clicked when more is bid, and whether it comes without jumps (paper, section 5).

One ad's bid is changed, everything else of the auction stays.  Every bid has answers and judgements
of its own: nothing is shared along a curve that would make it look smoother than it is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raylla.auction import ReadAnswer, parse
from raylla.auction.checks import Array
from raylla.evaluation.backend import EvaluationBackend
from raylla.figures import intervals
from raylla.mechanisms.protocol import TRAINED, Prompt
from raylla.records import Planned

EXAMPLES = 3


def with_bid(planned: Planned, place: int, bid: float) -> Planned:
    """The auction with another bid of its ad at ``place``, and an id of its own."""
    auction = planned.auction
    bids = (*auction.bids[:place], float(bid), *auction.bids[place + 1 :])
    return replace(planned, auction=replace(auction, id=f"{auction.id}/{place}={bid:g}", bids=bids))


def random_places(backend: EvaluationBackend, auctions: Sequence[Planned]) -> list[int]:
    """One random ad of each auction, by its place; the same in every measurement of a run."""
    return [
        int(backend.generator(auction, "monotonicity").integers(len(auction.ads))) for auction in auctions
    ]


@dataclass(frozen=True, slots=True)
class Sweep:
    """Click rates of one random ad per query of one run, [queries, bids] for each weight version."""

    rates: Mapping[str, Array]
    examples: list[dict[str, Any]]
    asked: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Fine:
    """Click rates of one run's last weights along a fine grid: of one ad [bids], and of the ads of many
    queries [queries, bids]."""

    about: dict[str, Any]
    one: Array
    many: Array
    answers: int
    each: int


def sweep(
    backend: EvaluationBackend,
    auctions: Sequence[Planned],
    bids: Sequence[float],
    answers: int,
    names: Sequence[str],
) -> Sweep:
    """Have one random ad per query bid each of ``bids``, under the weight versions ``names``; the rates are
    of expected clicks (`_rates`)."""
    started = time.monotonic()
    chosen = random_places(backend, auctions)
    rates = {name: _rates(backend, name, auctions, chosen, bids, answers, expected=True) for name in names}
    seconds = time.monotonic() - started
    examples = _examples(backend, auctions, chosen, (bids[0], bids[-1]), answers)
    return Sweep(rates, examples, len(names) * len(auctions) * len(bids) * answers, seconds)


def monotonicity(
    sweeps: Sequence[Sweep], bids: Sequence[float], resamples: int, seed: int
) -> dict[str, Any]:
    """What the sweeps of all training seeds show together, for every weight version that all have kept.

    ``trend`` is the rank correlation of the mean curve with the bids; ``control`` the same where each
    query's bids were shuffled among its prompts.
    """
    versions: dict[str, Any] = {}
    for name in (rate for rate in sweeps[0].rates if all(rate in sweep.rates for sweep in sweeps)):
        groups = [sweep.rates[name] for sweep in sweeps]
        rng = np.random.default_rng(seed)
        shuffled = [rng.permuted(group, axis=1) for group in groups]
        versions[name] = {
            "click_rate": [
                intervals.bounded(mean, 0, 1) for mean in intervals.means(groups, resamples, rng)
            ],
            "trend": intervals.rank_trend(bids, groups, resamples, rng),
            "control": intervals.rank_trend(bids, shuffled, resamples, rng),
        }
    return {
        "examples": [example for sweep in sweeps for example in sweep.examples][:EXAMPLES],
        "bids": list(bids),
        "seeds": len(sweeps),
        "queries": sum(len(next(iter(sweep.rates.values()))) for sweep in sweeps),
        "versions": versions,
        "auctions_per_second": sum(sweep.asked for sweep in sweeps)
        / sum(sweep.seconds for sweep in sweeps),
    }


def fine(
    backend: EvaluationBackend,
    auctions: Sequence[Planned],
    bids: Sequence[float],
    answers: int,
    each: int,
) -> Fine:
    """Click rates along a fine grid of bids: ``each`` answers of every auction's ad, and ``answers`` of
    the most demanding one, whose click rate rises most from the lowest bids to the highest."""
    chosen = random_places(backend, auctions)
    many = _rates(backend, TRAINED, auctions, chosen, bids, each)
    ends = many[:, -len(bids) // 5 :].mean(axis=1) - many[:, : len(bids) // 5].mean(axis=1)
    steep = int(ends.argmax())
    some = slice(steep, steep + 1)
    steepest = _rates(backend, TRAINED, auctions[some], chosen[some], bids, answers)[0]
    about = {"query": auctions[steep].query.text, "ad": auctions[steep].ads[chosen[steep]].title}
    return Fine(about, steepest, many, answers, each)


def continuity(curves: Sequence[Fine], bids: Sequence[float], resamples: int, seed: int) -> dict[str, Any]:
    """Whether the click rate leaps between neighbouring bids: ``one`` query of each training seed, and
    the mean of ``many`` of all seeds.

    ``jump`` holds the largest step between adjacent bids and the 99 % band of what noise alone would
    make it.
    """
    rng = np.random.default_rng(seed)
    groups = [curve.many for curve in curves]
    mean = intervals.averages(groups)
    queries = sum(map(len, groups))
    total = sum(curve.each * len(curve.many) for curve in curves)
    return {
        "bids": list(bids),
        "one": [
            {
                **curve.about,
                "answers": curve.answers,
                "click_rate": curve.one.tolist(),
                "jump": intervals.largest_jump(
                    np.rint(curve.one * curve.answers), curve.answers, 2000, rng
                ),
            }
            for curve in curves
        ],
        "many": {
            "queries": queries,
            "answers": total,
            "click_rate": mean.tolist(),
            "jump": intervals.largest_jump(np.rint(mean * total), total, 2000, rng),
            "trend": intervals.rank_trend(bids, groups, resamples, rng),
        },
    }


def _examples(
    backend: EvaluationBackend,
    auctions: Sequence[Planned],
    places: Sequence[int],
    bids: Sequence[float],
    answers: int,
) -> list[dict[str, Any]]:
    """First answers of the last weights at two bids of one ad, where the ad comes and goes if it does."""
    examples = []
    for planned, place in zip(auctions, places, strict=True):
        variants = [with_bid(planned, place, bid) for bid in bids]
        written = backend.write(
            TRAINED, [Prompt(variant, variant.ads, variant.auction.bids, answers) for variant in variants]
        )
        texts = [generated.completions[0].text for generated in written if generated.completions]
        ad = planned.ads[place]
        shown = [ad.id in parse(text, planned.ads).ad_ids for text in texts]
        examples.append(
            {
                "query": planned.query.text,
                "ad": ad.title,
                "answers": dict(zip([f"{bid:g}" for bid in bids], texts, strict=False)),
                "changed": len(set(shown)) > 1,
            }
        )
    return sorted(examples, key=lambda example: not example["changed"])[:EXAMPLES]


def _rates(
    backend: EvaluationBackend,
    version: str,
    auctions: Sequence[Planned],
    places: Sequence[int],
    bids: Sequence[float],
    answers: int,
    expected: bool = False,
) -> Array:
    """Share of answers in which the ad is shown and clicked, [queries, bids].

    An answer that was lost, or whose judgement was, counts in no share. ``expected``: a click counts as
    its probability, where the judge gives it.

    Raises:
        BudgetError: too many were lost.
    """
    shape = (len(auctions), len(bids))
    variants = [
        with_bid(planned, place, bid)
        for planned, place in zip(auctions, places, strict=True)
        for bid in bids
    ]
    prompts = [Prompt(variant, variant.ads, variant.auction.bids, answers) for variant in variants]
    written = backend.write(version, prompts)
    ids = [planned.ads[place].id for planned, place in zip(auctions, places, strict=True) for _ in bids]
    kept = np.zeros(len(variants))
    clicks = np.zeros(len(variants))
    shown: list[tuple[int, ReadAnswer]] = []
    for at, (variant, generated) in enumerate(zip(variants, written, strict=True)):
        for draw in generated.completions:
            kept[at] += 1
            answer = ReadAnswer.of(variant, draw.text)
            if ids[at] in answer.parsed.ad_ids:
                shown.append((at, answer))
    judged = backend.judgements([answer for _, answer in shown])
    for (at, _), judgement in zip(shown, judged, strict=True):
        if judgement.clicks is None:
            kept[at] -= 1
        else:
            clicks[at] += ((expected and judgement.probabilities) or judgement.clicks)[ids[at]]
    backend.bound("answers of a sweep", int(answers * len(variants) - kept.sum()), answers * len(variants))
    rates: Array = (clicks / np.maximum(kept, 1)).reshape(shape)
    return rates
