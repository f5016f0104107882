"""Learned prices on questions that they were not learned from, by the model's own answers.

Every test question's auction is held under three rules (`HELD_RULES`): first price; Myerson's price on the
sheet's curve, without reserves; and that above the sheet's reserves.  Bidders' values are the auction's
bids.  They bid them, or settle (`raylla.pricing.bidders`) for their utility or their value.  What they know
of the allocation is not the sheet's curve but one fitted to the model's own answers to these very auctions,
so that an error of the sheet's is theirs to use.  The curves say where they settle and what a click costs;
what is placed and clicked at those bids is the model's and the judge's word, and what the sheet's curve
expected stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raylla.auction import ReadAnswer
from raylla.auction.checks import Array
from raylla.auction.incentives import Goal
from raylla.evaluation.backend import EvaluationBackend, by_ads
from raylla.evaluation.incentives import regret_table
from raylla.evaluation.prices.sources import of_answers
from raylla.evaluation.properties import random_places
from raylla.figures.intervals import Figure, means, quotients
from raylla.irpo.schedule import plan_auctions, some
from raylla.mechanisms.protocol import TRAINED, Prompt
from raylla.pricing.bidders import best_respond, shade
from raylla.pricing.curve import AllocationCurve, Contests, Flags, fit_curve, traits_of
from raylla.pricing.logs import LoggedAuction, as_log, by_question, rates_at
from raylla.pricing.rule import click_prices, quote
from raylla.pricing.sheet import PriceSheet
from raylla.records import Planned
from raylla.world import clicks

HELD_RULES = ("first_price", "myerson", "reserve")
KINDS = ("truthful", "utility", "value", "shading")
"""How bidders bid; `shading` only under first price, for the others make the truth the best share."""
_GOALS: tuple[Goal, ...] = ("utility", "value")
_COLUMNS = ("revenue", "welfare", "surplus", "clicks", "on_curve")


def test_markets(backend: EvaluationBackend, bidders: int | None, draws: int) -> list[Planned]:
    """``draws`` auctions of every test question, with bids of their own, and of their candidates
    ``bidders`` drawn (None: all)."""
    config, world = backend.config, backend.world
    queries = some(world.of("test"), config.evaluation.queries, f"{config.seed}/test")
    markets = []
    for draw in range(draws):
        planned = plan_auctions(config, world, draw, "validation", queries, config.evaluation.answers)
        markets += [_thinned(backend, auction, bidders) for auction in planned]
    return markets


def _thinned(backend: EvaluationBackend, planned: Planned, bidders: int | None) -> Planned:
    if bidders is None or bidders >= len(planned.ads):
        return planned
    drawn = backend.generator(planned, "bidders").permutation(len(planned.ads))[:bidders]
    kept = np.zeros(len(planned.ads), np.bool_)
    kept[drawn] = True
    return _among(planned, np.array(planned.auction.bids), kept)


def _among(planned: Planned, bids: Array, entered: Flags) -> Planned:
    """The auction with these bids, of those of its ads that ``entered``."""
    kept = [place for place in range(len(planned.ads)) if entered[place]]
    auction = replace(
        planned.auction,
        ad_ids=tuple(planned.auction.ad_ids[place] for place in kept),
        bids=tuple(float(bids[place]) for place in kept),
    )
    return replace(planned, auction=auction, ads=tuple(planned.ads[place] for place in kept))


def contests_of(auctions: Sequence[Planned]) -> Contests:
    """The auctions as arrays."""
    traits = [[traits_of(auction.query, auction.profile, ad) for ad in auction.ads] for auction in auctions]
    return Contests.of([planned.auction.bids for planned in auctions], traits)


def clicks_of(backend: EvaluationBackend, auctions: Sequence[Planned]) -> list[dict[str, float]]:
    """The mean clicks of each ad over the answers to each auction, as the judge expects them; where nobody
    bids there are none."""
    asked = [planned for planned in auctions if planned.ads]
    prompts = [Prompt(planned, planned.ads, planned.auction.bids, planned.n) for planned in asked]
    written = backend.write(TRAINED, prompts)
    answers = {
        (planned.auction.id, planned.ads, draw.text): ReadAnswer.of(planned, draw.text)
        for planned, wrote in zip(asked, written, strict=True)
        for draw in wrote.completions
    }
    judged = backend.judgements([by_ads(answer, answer.planned.auction.id) for answer in answers.values()])
    chances: dict[tuple[object, ...], Mapping[str, float] | None] = {}
    for (name, answer), judgement in zip(answers.items(), judged, strict=True):
        expected = clicks.expected_clicks(judgement.probabilities, answer, backend.world.ad_by_id)
        chances[name] = None if judgement.clicks is None else expected
    backend.bound("judgements of prices", sum(chance is None for chance in chances.values()), len(chances))
    known: dict[int, dict[str, float]] = {}
    for planned, wrote in zip(asked, written, strict=True):
        names = [(planned.auction.id, planned.ads, draw.text) for draw in wrote.completions]
        read = [each for each in map(chances.__getitem__, names) if each is not None]
        known[id(planned)] = {
            ad: sum(each.get(ad, 0.0) for each in read) / max(1, len(read)) for ad in planned.auction.ad_ids
        }
    return [known.get(id(auction), {}) for auction in auctions]


class ModelClicks:
    """The model's clicks at bid profiles of some auctions; the same auction and bids are asked for once."""

    def __init__(self, backend: EvaluationBackend, auctions: Sequence[Planned]) -> None:
        self._backend, self.auctions = backend, auctions
        self._known: dict[tuple[object, ...], dict[str, float]] = {}

    def clicks(self, profiles: Sequence[tuple[Array, Flags]]) -> list[Array]:
        """Mean clicks [a, n] at each profile: bids [a, n] and who entered [a, n]."""
        held = [
            [_among(planned, bids[row], entered[row]) for row, planned in enumerate(self.auctions)]
            for bids, entered in profiles
        ]
        wanted: dict[tuple[object, ...], Planned] = {}
        for planned in (each for profile in held for each in profile):
            if _key(planned) not in self._known:
                wanted.setdefault(_key(planned), planned)
        self._known |= zip(wanted, clicks_of(self._backend, list(wanted.values())), strict=True)
        width = profiles[0][0].shape[1] if profiles else 0
        tables = []
        for profile in held:
            table = np.zeros((len(profile), width))
            for row, (planned, whole) in enumerate(zip(profile, self.auctions, strict=True)):
                by_ad = self._known[_key(planned)]
                table[row, : len(whole.ads)] = [by_ad.get(ad, 0.0) for ad in whole.auction.ad_ids]
            tables.append(table)
        return tables


def _key(planned: Planned) -> tuple[object, ...]:
    return planned.auction.id, planned.auction.ad_ids, planned.auction.bids, planned.n


@dataclass(frozen=True, slots=True)
class HeldMarket:
    """What auctions of one number of bidders came to: `_COLUMNS` by rule and kind, [questions, columns], in
    bid units per auction; the share of auctions whose bids settled; responses for `regret_table`."""

    tables: Mapping[tuple[str, str], Array]
    settled: Mapping[tuple[str, str], float]
    shading: float
    responses: Mapping[str, tuple[Array, Array]]
    bids: Sequence[float]


def hold_market(
    backend: EvaluationBackend, sheet: PriceSheet, auctions: Sequence[Planned], seed: int
) -> HeldMarket:
    """Hold ``auctions`` under all rules, for all kinds of bidders."""
    values, answers = contests_of(auctions), ModelClicks(backend, auctions)
    table = np.ones_like(values.bids)
    for row, planned in enumerate(auctions):
        table[row, : len(planned.ads)] = [
            sheet.reserve(planned.query, planned.profile, ad) for ad in planned.ads
        ]
    reserves = {"first_price": None, "myerson": np.ones_like(table), "reserve": table}
    known = seen_curve(backend, auctions, values, table, sheet)
    rates = rates_at(dict(sheet.rates), values.traits)
    profiles: dict[tuple[str, str], Sequence[Array]] = {}
    settled: dict[tuple[str, str], float] = {}
    for rule, least in reserves.items():
        profiles[rule, "truthful"] = (values.bids,)
        for goal in _GOALS:
            rng = np.random.default_rng(seed)
            reached = best_respond(known, values, least, goal, rng, sheet.curve)
            profiles[rule, goal], settled[rule, goal] = reached.rounds, reached.settled
    bids, shading = shade(known, values, rates)
    profiles["first_price", "shading"] = (bids,)
    tables = _came_to(answers, sheet, values, reserves, profiles, rates)
    grid = [bid for bid in backend.config.evaluation.bids if bid <= sheet.curve.largest]
    responses = {
        rule: _responses(backend, answers, sheet, values, least, grid) for rule, least in reserves.items()
    }
    return HeldMarket(tables, settled, shading, responses, grid)


def seen_curve(
    backend: EvaluationBackend,
    auctions: Sequence[Planned],
    values: Contests,
    table: Array,
    sheet: PriceSheet,
) -> AllocationCurve:
    """What bidders know: the curve of the model's own answers to these auctions, reserves or none."""
    logged: list[LoggedAuction] = []
    for entered in (values.there, values.there & (values.bids >= table)):
        held = [_among(planned, values.bids[row], entered[row]) for row, planned in enumerate(auctions)]
        held = [planned for planned in held if planned.ads]
        written = backend.write(
            TRAINED, [Prompt(planned, planned.ads, planned.auction.bids, planned.n) for planned in held]
        )
        logged += [
            of_answers(planned, [draw.text for draw in wrote.completions], backend.world, TRAINED)
            for planned, wrote in zip(held, written, strict=True)
        ]
    log = as_log(logged, 1)
    return fit_curve(log.contests, log.placed, log.answers, sheet.curve.largest)


def _came_to(
    answers: ModelClicks,
    sheet: PriceSheet,
    values: Contests,
    reserves: Mapping[str, Array | None],
    profiles: Mapping[tuple[str, str], Sequence[Array]],
    rates: Array,
) -> dict[tuple[str, str], Array]:
    """`_COLUMNS` of each rule and kind, a row per question: means over its auctions and over the rounds."""
    flat = [(name, bids) for name, rounds in profiles.items() for bids in rounds]
    quoted = [quote(sheet.curve, values.at(bids), reserves[rule]) for (rule, _), bids in flat]
    clicked = answers.clicks([(bids, offer.entered) for (_, bids), offer in zip(flat, quoted, strict=True)])
    sums: dict[tuple[str, str], list[Array]] = {}
    for (name, _), offer, got in zip(flat, quoted, clicked, strict=True):
        revenue, welfare = (got * offer.prices).sum(axis=1), (got * values.bids).sum(axis=1)
        expected = (offer.shares * rates * offer.prices).sum(axis=1)
        columns = (revenue, welfare, welfare - revenue, got.sum(axis=1), expected)
        sums.setdefault(name, []).append(np.stack(columns, axis=1))
    numbers: dict[str, int] = {}
    asked = np.array([numbers.setdefault(auction.query.id, len(numbers)) for auction in answers.auctions])
    return {name: by_question(np.mean(rounds, axis=0), asked) for name, rounds in sums.items()}


def _responses(
    backend: EvaluationBackend,
    answers: ModelClicks,
    sheet: PriceSheet,
    values: Contests,
    reserves: Array | None,
    grid: Sequence[float],
) -> tuple[Array, Array]:
    """Clicks and payments [a, g] of one random ad of each of the first auctions at every bid of ``grid``,
    the others bidding their values."""
    count = min(len(answers.auctions), backend.config.evaluation.incentive_queries)
    some = np.arange(count)
    asked = [
        replace(auction, n=backend.config.evaluation.incentive_answers)
        for auction in answers.auctions[:count]
    ]
    few, held = values.rows(some), ModelClicks(backend, asked)
    places = np.array(random_places(backend, asked))
    least = None if reserves is None else reserves[:count]
    profiles = []
    for bid in grid:
        bids = few.bids.copy()
        bids[some, places] = max(bid, 1.0)
        entered = few.there & (bids >= (1.0 if least is None else least))
        entered[some, places] &= bid > 0
        profiles.append((bids, entered))
    clicked = np.stack([got[some, places] for got in held.clicks(profiles)], axis=1)
    prices = np.zeros_like(clicked)
    for column, (bids, entered) in enumerate(profiles):
        if least is None:
            prices[:, column] = grid[column]
            continue
        at = np.array([max(grid[column], 1.0)])
        whole = np.arange(1.0, max(at[0], 2.0) + 1)
        along = sheet.curve.along(few.at(bids), entered, whole)[some, places]
        own = np.minimum(least[some, places], whole[-1])
        charged = click_prices(along, whole, own)[:, int(at[0]) - 1]
        prices[:, column] = np.where(entered[some, places], np.nan_to_num(charged), 0.0)
    return clicked, clicked * prices


def market_figures(held: HeldMarket, resamples: int, seed: int) -> dict[str, Any]:
    """A market's figures with intervals over questions: each rule and kind, the gains of the others over
    first price on the same questions, and the regret of bidding the truth."""
    rng = np.random.default_rng(seed)
    figures: dict[str, Any] = {"shading": held.shading, "rules": {}, "gains": {}}
    for (rule, kind), table in held.tables.items():
        columns = dict(zip(_COLUMNS, means([table], resamples, rng), strict=True))
        settled = held.settled.get((rule, kind))
        figures["rules"].setdefault(rule, {})[kind] = columns | (
            {} if settled is None else {"settled": settled}
        )
    for rule in HELD_RULES[1:]:
        for kind in KINDS:
            base = held.tables["first_price", kind]
            table = held.tables[rule, "utility" if kind == "shading" else kind]
            figures["gains"].setdefault(rule, {})[kind] = _gains(table, base, resamples, rng)
    figures["regret"] = {
        rule: regret_table([responses], held.bids, resamples, seed)["rules"]["own"]
        for rule, responses in held.responses.items()
    }
    return figures


def _gains(table: Array, base: Array, resamples: int, rng: np.random.Generator) -> dict[str, Figure]:
    """Quotients less 1 of revenue and welfare, and by how much the surplus differs, in bid units: under
    first price the truth leaves none."""
    ratios = quotients([table[:, :2]], [base[:, :2]], resamples, rng)
    gains = {
        name: {end: value - 1 for end, value in ratio.items()}
        for name, ratio in zip(_COLUMNS[:2], ratios, strict=True)
    }
    (gains["surplus"],) = means([table[:, 2:3] - base[:, 2:3]], resamples, rng)
    return gains


def log_auctions(
    backend: EvaluationBackend, bidders: Iterable[int | None], queries: int | None, answers: int
) -> list[LoggedAuction]:
    """Auctions of ``queries`` training questions (None: all) under the run's last weights, with each number
    of ``bidders`` (None: all candidates) and bids of their own, judged: the log that an endpoint would
    have, ahead of it."""
    config, world, logs = backend.config, backend.world, []
    asked = some(world.of("train"), queries, f"{config.seed}/prices")
    for place, count in enumerate(bidders):
        epoch = config.irpo.epochs + 1 + place
        planned = plan_auctions(config, world, epoch, "validation", asked, answers)
        held = [_thinned(backend, auction, count) for auction in planned]
        for auction, clicked in zip(held, clicks_of(backend, held), strict=True):
            (wrote,) = backend.write(
                TRAINED, [Prompt(auction, auction.ads, auction.auction.bids, auction.n)]
            )
            texts = [draw.text for draw in wrote.completions]
            logged = of_answers(auction, texts, world, str(backend.aliases[TRAINED]))
            sums = tuple(clicked[ad] * len(texts) for ad in auction.auction.ad_ids)
            logs.append(replace(logged, judged=logged.placed, clicks=sums))
    return logs
