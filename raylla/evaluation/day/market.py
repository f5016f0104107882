"""The market of a day: who asks when, what a click is worth to whom, budgets, and the books that the
endpoint's own `Eligibility` reads."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raylla.auction.checks import Array
from raylla.config import Config
from raylla.errors import RunError
from raylla.irpo.schedule import plan_auctions, some
from raylla.records import Planned
from raylla.serving.money.money import Micros, from_units, times
from raylla.serving.store.snapshot import AdRow, CampaignRow, Changes
from raylla.world import World

PERIODS = 48
HALF_HOUR = dt.timedelta(minutes=30)
MIDNIGHT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
"""When the first day begins; budgets are those of a day, UTC."""
COHORTS = 8
"""Groups that the users of a profile come in, one after the other, so that each comes back."""
WAVE = 0.6
"""How far traffic rises above its mean in the evening, and falls below it before dawn."""
SPREAD = 4.0
"""Budgets lie between one in this many and this many times of what `evaluation.day.budget` says."""
SCANT = 0.1
"""Least budget, in means: of an ad that nobody clicks in an answer of its own."""


@dataclass(frozen=True, slots=True)
class Market:
    """Queries that are asked in every period, and the n ads that compete for them, each an advertiser's.

    ``auctions`` hold the queries with their candidates, whose bids are what a click is worth to them;
    ``places`` are those candidates' numbers among ``ads`` and ``values`` [q, n] the same as an array, 0
    elsewhere.  ``users`` [days, periods, q] ask each query in each period.
    """

    auctions: tuple[Planned, ...]
    ads: tuple[str, ...]
    places: tuple[tuple[int, ...], ...]
    values: Array
    users: NDArray[np.int64]

    def drawn(self, query: int, period: int, draws: int) -> Planned:
        """A query's auction in a period, named so that its chance repeats every ``draws`` periods."""
        planned = self.auctions[query]
        name = f"{planned.auction.id}/day/{period % draws}"
        return replace(planned, auction=replace(planned.auction, id=name))


def traffic() -> Array:
    """The share of a day's traffic that each period brings [periods]: one wave, highest at 20:00."""
    hours = np.arange(PERIODS) / PERIODS * 24
    wave = 1 + WAVE * np.cos((hours - 20) / 24 * 2 * np.pi)
    result: Array = wave / wave.sum()
    return result


def day_market(config: Config, world: World) -> Market:
    """The market of a run: test queries and users, values U{1..max_bid} as the run's test bids are, users
    Poisson by the traffic.

    Raises:
        RunError: fewer test queries than the day wants.
    """
    day = config.evaluation.day
    queries = some(world.of("test"), day.queries, f"{config.seed}/day")
    if len(queries) < day.queries:
        raise RunError(
            f"{len(queries)} test queries are fewer than evaluation.day.queries={day.queries}; lower it"
        )
    auctions = tuple(plan_auctions(config, world, 0, "test", queries, 1))
    ads = tuple(sorted({ad for planned in auctions for ad in planned.auction.ad_ids}))
    number = {ad: place for place, ad in enumerate(ads)}
    values = np.zeros((len(auctions), len(ads)))
    for row, auction in enumerate(auctions):
        for ad, bid in auction.bids.items():
            values[row, number[ad]] = bid
    rng = np.random.default_rng([config.seed, 48])
    wave = day.users * PERIODS * traffic()[:, None]
    users = rng.poisson(wave, (day.days, PERIODS, len(queries)))
    places = tuple(tuple(number[ad] for ad in planned.auction.ad_ids) for planned in auctions)
    return Market(auctions, ads, places, values, users)


def budgets_of(market: Market, rates: Array, config: Config) -> Array:
    """Daily budgets [n] in bid units.

    ``rates`` [q, n] are the chances of a click on an ad that competes alone.  What an ad could be worth in
    all auctions, times the part of all such worth that giving each auction to the ad that is worth most
    makes, is its share; budgets are that times ``evaluation.day.budget`` times a factor of 1 / `SPREAD` to
    `SPREAD`, even in its logarithm and drawn by the run's seed: some bind, some do not.

    Raises:
        RunError: nobody clicks on anything.
    """
    worth = market.users.sum(axis=1).mean(axis=0)[:, None] * market.values * rates
    if not worth.any():
        raise RunError(
            "no answer with one candidate alone is clicked, so that no budget can be set; "
            "train longer, or see the judge's output"
        )
    share = worth.max(axis=1).sum() / worth.sum()
    drawn = np.random.default_rng([config.seed, 4]).uniform(-1, 1, len(market.ads))
    budgets = config.evaluation.day.budget * share * worth.sum(axis=0) * SPREAD**drawn
    result: Array = np.maximum(budgets, SCANT * budgets.mean())
    return result


class Books:
    """Campaigns, a day's spend and what users have seen: what `Eligibility` asks of the endpoint's store.

    Each ad has a campaign of its own, of the ad's id.

    Args:
        limits: daily budget in bid units and pacing of each ad of ``market``, in their order.
        unit: micros of a bid unit.
        cap: impressions of a campaign per user in a day.
    """

    def __init__(
        self,
        market: Market,
        limits: Sequence[tuple[float, str]],
        unit: Micros,
        cap: int | None,
    ) -> None:
        known = {ad.id: ad for auction in market.auctions for ad in auction.ads}
        self._budgets = {
            ad: from_units(budget, unit) for ad, (budget, _) in zip(market.ads, limits, strict=True)
        }
        hours = 24 if cap else None
        self._campaigns = [
            CampaignRow(ad, ad, f"{ad}.example", self._budgets[ad], pacing, cap, hours, False)
            for ad, (_, pacing) in zip(market.ads, limits, strict=True)
        ]
        self._ads = [
            AdRow(row, ad.id, ad.title, ad.category, ad.theme, ad.id, "", (), unit, False, ad.description)
            for row, ad in enumerate(known[id] for id in market.ads)
        ]
        self._spent: defaultdict[dt.date, dict[str, Micros]] = defaultdict(dict)
        self._seen: defaultdict[str, list[tuple[str, dt.datetime]]] = defaultdict(list)

    def changes(self, since: int) -> Changes:
        """All of the catalogue once: it does not change."""
        return Changes(1, self._ads, self._campaigns, {}) if since < 1 else Changes(1, (), (), {})

    def spending(self, day: dt.date) -> dict[str, Micros]:
        """Campaign -> what it has spent on a day."""
        return self._spent[day]

    def seen(self, user_id: str, since: dt.datetime) -> list[tuple[str, dt.datetime]]:
        """Campaign and time of each impression that a user got since then."""
        return [(campaign, at) for campaign, at in self._seen[user_id] if at > since]

    def show(self, user_id: str, ads: Sequence[str], at: dt.datetime) -> None:
        """Note impressions."""
        self._seen[user_id] += [(ad, at) for ad in ads]

    def charge(self, ad: str, price: Micros, clicks: float, day: dt.date) -> Micros:
        """Book clicks at a price each, and return what they cost: as in the endpoint's store, a click that
        the day's budget does not hold is not charged."""
        spent = self._spent[day]
        left = self._budgets[ad] - spent.get(ad, 0)
        charged = times(price, min(clicks, left // price) if price else 0)
        spent[ad] = spent.get(ad, 0) + charged
        return charged
