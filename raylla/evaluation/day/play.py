"""A mechanism's days: who enters an auction, what comes of it, what is charged and learnt.

All auctions of a period are one batch: they are held under the budgets, bids and caps that the period
begins with.  Who may compete is said by the endpoint's own `Eligibility`.  Clicks are expected ones: an
auction stands for its users, of whom each ad's share clicks.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from raylla.auction import ReadAnswer
from raylla.auction.checks import Array
from raylla.bidding.autobidders import Population, Won
from raylla.evaluation.backend import EvaluationBackend, by_ads
from raylla.evaluation.day.market import COHORTS, HALF_HOUR, MIDNIGHT, PERIODS, Books, Market, traffic
from raylla.mechanisms.protocol import Choice, Mechanism
from raylla.records import Planned
from raylla.serving.auction.eligibility import Eligibility
from raylla.serving.money.money import from_units, times, to_units
from raylla.serving.money.records import Filters
from raylla.world.clicks import expected_clicks

ClickChances = dict[tuple[int, str, tuple[str, ...]], Array]
"""A query's number, a text and the ads that it places, which depend on the candidates -> the value of the
clicks that one user's reading brings each ad [n]."""
_Entered = tuple[int, str, Planned]
"""A query's number, its users' name, and its auction among those that may compete."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the users of an auction get, its prices per click and the chances of clicks by ad."""

    read: ReadAnswer
    prices: Mapping[str, float]
    chances: Mapping[str, float]


@dataclass(slots=True)
class Played:
    """What came of the days of one mechanism and one market, in bid units.

    ``value`` of clicks and what was ``paid`` [days, q, n]; ``spent`` and the bidders' mean ``multiples``
    [days, periods, n]; ``unpaid`` [days] is what clicks beyond budgets would have cost.  Of the auctions'
    candidates ``entered`` competed; ``kept_out`` counts the others by the reason.
    """

    value: Array
    paid: Array
    spent: Array
    multiples: Array
    unpaid: Array
    answers: ClickChances = field(default_factory=dict)
    kept_out: Counter[str] = field(default_factory=Counter)
    entered: int = 0

    @classmethod
    def nothing(cls, market: Market) -> Played:
        """Before the first day."""
        days, _, queries = market.users.shape
        by_query, by_period = (days, queries, len(market.ads)), (days, PERIODS, len(market.ads))
        value, paid = np.zeros((2, *by_query))
        spent, multiples = np.zeros((2, *by_period))
        return cls(value, paid, spent, multiples, np.zeros(days))


def play(
    backend: EvaluationBackend,
    mechanism: Mechanism,
    choice: Choice,
    market: Market,
    populations: Sequence[Population],
    budgets: Array,
) -> list[Played]:
    """Hold the days' auctions of ``market`` under ``mechanism``, once for each of ``populations``, whose
    bids they are; side by side, so that models answer a period of all of them at once.

    Raises:
        BudgetError: more than ``irpo.max_drop_share`` of the auctions or judgements were lost.
    """
    played = [_Days(backend, market, bidders, budgets) for bidders in populations]
    for day in range(len(market.users)):
        for population in populations:
            population.begin()
        for period in range(PERIODS):
            entered = [days.enter(day, period) for days in played]
            asked = [planned for held, _ in entered for _, _, planned in held]
            offers = iter(_offers(backend, mechanism, choice, asked))
            for days, (held, active) in zip(played, entered, strict=True):
                days.settle(day, period, held, [next(offers) for _ in held], active)
    return [days.played for days in played]


def lone_answers(
    backend: EvaluationBackend, mechanism: Mechanism, market: Market
) -> tuple[Array, ClickChances]:
    """Chances of a click [q, n] on each candidate in an auction without rivals, and those answers."""
    choice = mechanism.choices(backend.config.irpo.epochs)[0]
    asked = [
        (query, place, _among(planned, [at], [planned.auction.bids[at]], f"/alone/{ad}"))
        for query, planned in enumerate(market.auctions)
        for at, (place, ad) in enumerate(zip(market.places[query], planned.auction.ad_ids, strict=True))
    ]
    offers = _offers(backend, mechanism, choice, [planned for _, _, planned in asked])
    rates, answers = np.zeros(market.values.shape), ClickChances()
    for (query, place, planned), answer in zip(asked, offers, strict=True):
        if answer is not None:
            rates[query, place] = answer.chances.get(planned.auction.ad_ids[0], 0.0)
            answers[query, answer.read.text, answer.read.parsed.ad_ids] = _worth(
                market, query, answer.chances
            )
    return rates, answers


def click_chances(
    backend: EvaluationBackend, answers: Sequence[ReadAnswer]
) -> list[Mapping[str, float] | None]:
    """Chance of a click on each ad placed in each answer: the judge's where it says how sure it is, else
    the click model's, as in the tables' expected figures; none where the judge could not be read.

    The judge reads an answer to a query once, as far as it places the same ads.
    """
    told: list[Mapping[str, float] | None] = [None] * len(answers)
    unread = [False] * len(answers)
    if backend.config.user_llm.reading == "token":
        named = [by_ads(answer, f"day/{answer.planned.query.id}") for answer in answers]
        once = {(answer.planned.auction.id, answer.text): answer for answer in named}
        judged = dict(zip(once, backend.judgements(list(once.values())), strict=True))
        chances = [judged[answer.planned.auction.id, answer.text] for answer in named]
        told = [judgement.probabilities for judgement in chances]
        unread = [judgement.clicks is None for judgement in chances]
    ads = backend.world.ad_by_id
    return [
        None if lost else expected_clicks(chances, answer, ads)
        for answer, chances, lost in zip(answers, told, unread, strict=True)
    ]


class _Days:
    """The state of the market while it is played: the books, the bidders, and what came of it."""

    def __init__(
        self, backend: EvaluationBackend, market: Market, population: Population, budgets: Array
    ) -> None:
        serving, day = backend.config.serving, backend.config.evaluation.day
        self._unit, self._most, self._draws = (
            serving.micros_per_unit,
            backend.config.world.max_bid,
            day.draws,
        )
        limits = list(zip(budgets.tolist(), population.pacings, strict=True))
        self._books = Books(market, limits, self._unit, day.cap)
        self._eligibility = Eligibility(self._books, serving, self._most)
        self._market, self._population, self._shares = market, population, traffic()
        self.played = Played.nothing(market)

    def enter(self, day: int, period: int) -> tuple[list[_Entered], NDArray[np.bool_]]:
        """The period's auctions among the candidates that may compete, and which ads are in one [n]."""
        now, market = _time(day, period), self._market
        self._eligibility.refresh(now)
        self.played.multiples[day, period] = self._population.means
        multiples, active = self._population.multiples, np.zeros(len(market.ads), np.bool_)
        entered: list[_Entered] = []
        for query, places in enumerate(map(list, market.places)):
            planned = market.drawn(query, period, self._draws)
            user = f"{planned.profile.id}/{period % COHORTS}"
            bids = np.clip(
                np.rint(multiples[places] * market.values[query, places]), 1, self._most
            ).tolist()
            kept = self._eligible(user, now, dict(zip(planned.auction.ad_ids, bids, strict=True)))
            active[[places[at] for at in kept]] = True
            if kept:
                entered.append((query, user, _among(planned, kept, [bids[at] for at in kept])))
        return entered, active

    def _eligible(self, user: str, now: dt.datetime, bids: Mapping[str, float]) -> list[int]:
        """Which of the candidates, by place, the endpoint lets compete at these bids."""
        micros = {ad: from_units(bid, self._unit) for ad, bid in bids.items()}
        selection = self._eligibility.select(Filters(user_id=user), now, micros)
        rows = [selection.catalogue.row_by_id[ad] for ad in bids]
        mask, gone = selection.without(selection.mask, [row for row in rows if selection.mask[row]])
        left_out = [
            excluded.reason
            for excluded in selection.filtered(len(self._market.ads))
            if excluded.ad_id in bids
        ]
        self.played.kept_out += Counter(reason.value for reason in left_out)
        self.played.kept_out += Counter({reason.value: count for reason, count in gone.items()})
        kept = [at for at, row in enumerate(rows) if mask[row]]
        self.played.entered += len(kept)
        return kept

    def settle(
        self,
        day: int,
        period: int,
        entered: Sequence[_Entered],
        offers: Sequence[_Answer | None],
        active: NDArray[np.bool_],
    ) -> None:
        """Book impressions and clicks, and tell the bidders."""
        market, now = self._market, _time(day, period)
        value, paid = np.zeros((2, *market.values.shape))
        for (query, user, _), answer in zip(entered, offers, strict=True):
            if answer is None:
                continue
            users = int(market.users[day, period, query])
            placed = answer.read.parsed.ad_ids
            self._books.show(user, placed, now)
            worth = _worth(market, query, answer.chances)
            self.played.answers[query, answer.read.text, placed] = worth
            value[query] = users * worth
            for ad, chance in answer.chances.items():
                price, clicks = from_units(answer.prices.get(ad, 0.0), self._unit), chance * users
                charged = self._books.charge(ad, price, clicks, now.date())
                paid[query, market.ads.index(ad)] = to_units(charged, self._unit)
                self.played.unpaid[day] += to_units(times(price, clicks) - charged, self._unit)
        self.played.value[day] += value
        self.played.paid[day] += paid
        self.played.spent[day, period] = paid.sum(axis=0)
        won = Won(float(self._shares[period]), value.sum(axis=0), paid.sum(axis=0), active)
        self._population.learn(won)


def _time(day: int, period: int) -> dt.datetime:
    return MIDNIGHT + (day * PERIODS + period) * HALF_HOUR


def _worth(market: Market, query: int, chances: Mapping[str, float]) -> Array:
    """The value of the clicks that one user's reading of an answer brings each ad [n]."""
    worth = np.zeros(len(market.ads))
    for ad, chance in chances.items():
        place = market.ads.index(ad)
        worth[place] = chance * market.values[query, place]
    return worth


def _among(planned: Planned, kept: Sequence[int], bids: Sequence[float], name: str = "") -> Planned:
    """The auction among some of its candidates, by their places in it, at these bids."""
    auction = planned.auction
    ids = tuple(auction.ad_ids[at] for at in kept)
    changed = replace(auction, id=f"{auction.id}{name}", ad_ids=ids, bids=tuple(bids))
    return replace(planned, auction=changed, ads=tuple(planned.ads[at] for at in kept))


def _offers(
    backend: EvaluationBackend, mechanism: Mechanism, choice: Choice, auctions: Sequence[Planned]
) -> list[_Answer | None]:
    """What came of each auction; none of those lost."""
    ran = mechanism.run(backend, auctions, choice) if auctions else []
    offers = [result.offers[0] if result.offers else None for result in ran]
    backend.bound(f"auctions of {mechanism.name}", sum(offer is None for offer in offers), len(offers))
    read = [
        None if offer is None else ReadAnswer.of(planned, offer.text)
        for planned, offer in zip(auctions, offers, strict=True)
    ]
    judged = click_chances(backend, [answer for answer in read if answer is not None])
    backend.bound(
        f"judgements of {mechanism.name}", sum(chances is None for chances in judged), len(judged)
    )
    left = iter(judged)
    answers: list[_Answer | None] = []
    for answer, offer in zip(read, offers, strict=True):
        chances = None if answer is None else next(left)
        if answer is None or offer is None or chances is None:
            answers.append(None)
        else:
            answers.append(_Answer(answer, offer.prices, chances))
    return answers
