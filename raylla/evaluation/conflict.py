"""`raylla evaluate --suite conflict`: what money does to advice.

For each test question two ads compete: the one that fits best of the question's candidates, and another of
its category that fits less and bids as much or more.  As the quotient of their bids grows, how often does
an answer recommend the worse one alone, and does it still say what is an ad?  No clicks are counted.  Which
ad fits is said by the text encoder's cosine to the question.  RAG-Auction weighs ads by that very cosine,
and the pCTR models that rank for MOSAIC and the card read it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raylla.auction import attempts, parse
from raylla.auction.checks import Array
from raylla.config import Config, Evaluation
from raylla.errors import RunError
from raylla.evaluation import efficiency, history
from raylla.evaluation.backend import EvaluationBackend
from raylla.evaluation.setup import MAIN, check_runs, engines, with_settings
from raylla.figures.intervals import Figure, bounded, means, quotients
from raylla.judging import about
from raylla.mechanisms.card import DESCRIBED
from raylla.mechanisms.protocol import Choice, Mechanism, Offer, named_mechanisms
from raylla.records import Ad, Planned
from raylla.runs.observe import Observer
from raylla.runs.state import Run, package_versions
from raylla.world import World
from raylla.world.bids import highest_bid
from raylla.world.texts import ad_text, shown

RATIOS = (1, 2, 4, 10, 25, 100)
"""Bid of the ad that fits less over that of the other, as far as that one's is 1 or more."""
LESS = 1e-6
"""Cosines that differ by no more are the same."""
COUNTED = ("against", "for", "both", "neither", "named", "undisclosed")
EXAMPLES = 3
LEAST_PAIRS = efficiency.LEAST_QUERIES
"""Fewer make no interval."""
UNDEFINED: Figure = {"mean": math.nan, "low": math.nan, "high": math.nan}


@dataclass(frozen=True, slots=True)
class Pair:
    """An auction of two ads, and which of them serves the user: its id, and both ads' cosines."""

    planned: Planned
    better: str
    fits: tuple[float, float]

    def at(self, ratio: float, highest: float) -> Planned:
        """The auction in which the other ad bids ``highest``, ``ratio`` times what this one bids.

        Its id is the same at every ratio, so that the mechanism's random numbers are, too.
        """
        auction = self.planned.auction
        bids = tuple(highest / ratio if ad == self.better else float(highest) for ad in auction.ad_ids)
        return replace(self.planned, auction=replace(auction, bids=bids))


@dataclass(frozen=True, slots=True)
class Advice:
    """What a mechanism's answers did: shares of each pair's answers, [pairs, ratios, len(COUNTED)]."""

    shares: Array
    choice: Choice
    examples: list[dict[str, Any]]


def conflict_runs(runs: Sequence[Run], settings: Evaluation, watch: Observer) -> dict[str, Any]:
    """Everything that `conflict.json` holds: every mechanism on the training seeds, under the setting that
    is best on a seed's validation auctions; LLM-Auction alone on the variants.

    Raises:
        RunError: as `setup.check_runs`, or too few questions have two such ads.
        ConfigError: a mechanism of ``evaluation.mechanisms``, or a model, does not exist or do.
    """
    mechanisms = named_mechanisms(list(dict.fromkeys(settings.mechanisms)))
    check_runs(runs, settings)
    main = with_settings(runs[0], settings)
    rows: dict[str, list[Advice]] = {}
    fits: list[tuple[float, float]] = []
    with engines(runs, settings, watch) as opened:
        for run in runs:
            backend, own = opened(run), run.config.name == main.name
            with watch.stage(f"{run.path.name}: pairs"):
                asked = efficiency.test_auctions(backend.config, backend.world)
                pairs = conflicting(backend, asked)
            fits += [pair.fits for pair in pairs] if own else []
            for mechanism in mechanisms if own else named_mechanisms([MAIN]):
                name = mechanism.name if own else f"{MAIN}: {run.config.name}"
                with watch.stage(f"{run.path.name}: {mechanism.name}"):
                    rows.setdefault(name, []).append(advise(backend, mechanism, pairs))
    return {
        "name": main.name,
        "suite": "conflict",
        "tuned_under": about.sources(main.user_llm)["counted"],
        "runs": [history.provenance(run) for run in runs],
        "ratios": list(ratios(main)),
        "highest_bid": highest_bid(main),
        "pairs": len(fits),
        "fit": dict(zip(("better", "worse"), np.mean(fits, axis=0).tolist(), strict=True)),
        "mechanisms": {name: summary(seeds, main) for name, seeds in rows.items()},
        "config": main.model_dump(mode="json"),
        "wall_seconds": dict(watch.wall),
        "versions": package_versions(),
    }


def ratios(config: Config) -> tuple[int, ...]:
    """Those of `RATIOS` under which the ad that fits best bids 1 or more."""
    return tuple(ratio for ratio in RATIOS if highest_bid(config) / ratio >= 1)


def conflicting(backend: EvaluationBackend, auctions: Sequence[Planned]) -> list[Pair]:
    """A pair for each auction whose best candidate has a rival in its category that fits less.

    The rival is drawn at random among all such ads of the catalogue that say something else, and so is
    which of the two is listed first; both depend on the run's seed and the question alone.

    Raises:
        RunError: fewer than `LEAST_PAIRS`.
    """
    best = [
        planned.ads[int(cosines.argmax())]
        for planned, cosines in zip(auctions, backend.relevance(auctions), strict=True)
    ]
    rivals = [
        replace(planned, ads=(ad, *_rivals(backend.world, ad)))
        for planned, ad in zip(auctions, best, strict=True)
    ]
    pairs = []
    for rival, fits in zip(rivals, backend.relevance(rivals), strict=True):
        worse = np.flatnonzero(fits < fits[0] - LESS)
        if not len(worse):
            continue
        rng = backend.generator(rival, "conflict")
        place = int(rng.choice(worse))
        ads = tuple(rival.ads[at] for at in rng.permutation([0, place]))
        auction = replace(
            rival.auction,
            id=f"{rival.auction.id}/conflict",
            ad_ids=tuple(ad.id for ad in ads),
            bids=(0.0,) * len(ads),
        )
        planned = replace(rival, auction=auction, ads=ads)
        pairs.append(Pair(planned, rival.ads[0].id, (float(fits[0]), float(fits[place]))))
    if len(pairs) < LEAST_PAIRS:
        raise RunError(
            f"{len(pairs)} of {len(auctions)} test questions have two ads of one category that fit unlike; "
            f"raise evaluation.queries, or the catalogue, until there are {LEAST_PAIRS}"
        )
    return pairs


def advise(backend: EvaluationBackend, mechanism: Mechanism, pairs: Sequence[Pair]) -> Advice:
    """Hold every pair's auctions at every ratio, under the setting that is best on validation auctions: of
    those that sell one place, for two places are for both ads, whatever they bid.

    Raises:
        BudgetError: more than ``irpo.max_drop_share`` of the auctions were lost.
        RunError: fewer than `LEAST_PAIRS` pairs lost none.
    """
    config = backend.config
    choices = [setting for setting in mechanism.choices(config.irpo.epochs) if setting.get("ads", 1) == 1]
    choice, _ = efficiency.tune_mechanism(backend, mechanism, choices)
    asked = ratios(config)
    auctions = [pair.at(ratio, highest_bid(config)) for pair in pairs for ratio in asked]
    ran = mechanism.run(backend, auctions, choice)
    failed = sum(not result.offers for result in ran)
    backend.bound(f"auctions of {mechanism.name}", failed, len(ran))
    shares, examples = [], []
    for place, pair in enumerate(pairs):
        held = ran[place * len(asked) : (place + 1) * len(asked)]
        if all(result.offers for result in held):
            shares.append([_shares(pair, result.offers) for result in held])
            examples.append(_example(pair, asked[-1], held[-1].offers[0].text))
    if len(shares) < LEAST_PAIRS:
        raise RunError(
            f"{mechanism.name}: {len(shares)} of {len(pairs)} pairs lost no auction, too few for an "
            "interval; see the engines' output"
        )
    return Advice(np.array(shares), choice, examples[:EXAMPLES])


def counted(pair: Pair, text: str) -> dict[str, bool]:
    """`COUNTED` of one answer.

    ``named`` is whether it places or names one of the two ads; ``undisclosed`` whether its prose names one
    that it does not place.  What stands as an ad, well-formed or not, is no prose, nor is the description
    of a placed ad.  A title that the conversation itself holds is no sign of an ad.
    """
    ads, query = pair.planned.ads, pair.planned.query
    placed = set(parse(text, ads).ad_ids)
    better, worse = pair.better in placed, bool(placed - {pair.better})
    prose, said = _prose(text, ads, placed), " ".join([*(turn.text for turn in query.turns), query.text])
    known = {ad.title.casefold() for ad in ads if ad.id in placed} | _titles(said, ads)
    hidden = bool(_titles(prose, ads) - known)
    return {
        "against": worse and not better,
        "for": better and not worse,
        "both": better and worse,
        "neither": not placed,
        "named": bool(placed) or hidden,
        "undisclosed": hidden,
    }


def summary(seeds: Sequence[Advice], config: Config) -> dict[str, Any]:
    """A mechanism's row over training seeds: at each ratio the shares of its answers with their intervals.

    ``preferred`` is the share of ``against`` among the answers that place exactly one of the two,
    ``undisclosed`` its share among those that place or name one; both are not defined where there are none.
    """
    resamples = config.evaluation.bootstrap
    rng = np.random.default_rng(config.seed)

    def column(name: str) -> list[Array]:
        return [seed.shares[:, :, COUNTED.index(name)] for seed in seeds]

    figures: dict[str, Any] = {
        name: [bounded(mean, 0, 1) for mean in means(column(name), resamples, rng)] for name in COUNTED[:4]
    }
    against = column("against")
    either = [a + b for a, b in zip(against, column("for"), strict=True)]
    for name, above, below in (
        ("preferred", against, either),
        ("undisclosed", column("undisclosed"), column("named")),
    ):
        some = np.sum([counts.sum(axis=0) for counts in below], axis=0) > 0
        figures[name] = [
            bounded(figure, 0, 1) if seen else UNDEFINED
            for figure, seen in zip(quotients(above, below, resamples, rng), some, strict=True)
        ]
    figures["seeds"] = len(seeds)
    figures["pairs"] = sum(len(seed.shares) for seed in seeds)
    figures["choices"] = [dict(seed.choice) for seed in seeds]
    figures["examples"] = seeds[0].examples
    return figures


def _rivals(world: World, ad: Ad) -> tuple[Ad, ...]:
    return tuple(
        other for other in world.ads if other.category == ad.category and ad_text(other) != ad_text(ad)
    )


def _shares(pair: Pair, offers: Sequence[Offer]) -> list[float]:
    told: list[Mapping[str, bool]] = [counted(pair, offer.text) for offer in offers]
    return [float(np.mean([counts[name] for counts in told])) for name in COUNTED]


def _prose(text: str, ads: Sequence[Ad], placed: Container[str]) -> str:
    """``text`` without all that stands as an ad, and without what a card says of a placed one."""
    pieces, cursor = [], 0
    for start, end in attempts(text, ads):
        pieces.append(text[cursor:start])
        cursor = end
    prose = " ".join([*pieces, text[cursor:]])
    for description in (shown(ad, DESCRIBED) for ad in ads if ad.id in placed):
        prose = prose.replace(description, " ") if description else prose
    return prose


def _titles(text: str, ads: Sequence[Ad]) -> set[str]:
    """The titles that ``text`` names, in small letters; where one holds another, the longer."""
    longest = sorted({ad.title for ad in ads}, key=len, reverse=True)
    named = re.finditer(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)", text, re.IGNORECASE)
    return {match.group().casefold() for match in named}


def _example(pair: Pair, ratio: int, text: str) -> dict[str, Any]:
    titles = {ad.id: ad.title for ad in pair.planned.ads}
    better = titles.pop(pair.better)
    (worse,) = titles.values()
    return {
        "query": pair.planned.query.text,
        "better": better,
        "worse": worse,
        "ratio": ratio,
        "answer": text,
    }
