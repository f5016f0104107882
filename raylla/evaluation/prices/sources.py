"""Logs to learn prices from: a run's own records, or the auctions of an endpoint's store."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from raylla.auction import parse
from raylla.errors import DataError, RunError
from raylla.irpo.schedule import auctions
from raylla.irpo.stages import read_sampled
from raylla.pricing.curve import traits_of
from raylla.pricing.logs import LoggedAuction
from raylla.records import Ad, Planned, Profile, Query
from raylla.runs.state import Run
from raylla.serving.money import money
from raylla.serving.money.records import PriceRule, Served, question_of
from raylla.serving.store import open_store
from raylla.world import clicks, store
from raylla.world.world import World

_Read = tuple[tuple[str, ...], Mapping[str, float] | None]
"""The ads that an answer placed, and their clicks or probabilities where it was judged."""


def of_run(run: Run) -> tuple[list[LoggedAuction], float]:
    """The training auctions of a finished run's last epoch, whose weights are the nearest to its last ones
    that answered training questions; and the largest bid.

    Raises:
        RunError: the run is not finished.
    """
    if run.committed("conclude") is None:
        raise RunError(f"run {run.place} is not finished; `raylla resume` it first")
    world, epoch = store.load_world(run.part("world")), run.config.irpo.epochs
    stage = f"epoch-{epoch}/sample"
    planned = [auction for auction in auctions(run.config, world, epoch) if auction.phase != "test"]
    sampled = read_sampled(run, stage, planned)
    answered: dict[str, list[_Read]] = defaultdict(list)
    for answer in sampled.answers:
        read, judged = sampled.read(answer), None
        if answer.sample_id in sampled.clicks:
            told = sampled.probabilities.get(answer.sample_id)
            judged = clicks.expected_clicks(told, read, world.ad_by_id)
        answered[answer.auction_id].append((read.parsed.ad_ids, judged))
    logged = [
        _logged(asked.query, asked.profile, asked.ads, asked.auction.bids, answered[name], sampled.version)
        for name, asked in sampled.plan.items()
        if answered[name]
    ]
    return logged, float(run.config.world.max_bid)


def of_store(database: str, version: str | None, unit: int) -> list[LoggedAuction]:
    """What an endpoint served under one weight ``version`` (None: the last one that it served).

    Canaries and tests are left out, and auctions under `reserve`, whose records lack the bids below
    it.  ``unit`` is what a bid unit was worth where an auction does not say.

    Raises:
        StoreError: the database is not there, or cannot be opened.
        DataError: it has no such auction.
    """
    opened = open_store(database, must_exist=True, field="SOURCE")
    try:
        always = dt.datetime.min.replace(tzinfo=dt.UTC), dt.datetime.now(dt.UTC)
        served = [auction for auction in opened.auctions(*always) if _counts(auction)]
    finally:
        opened.close()
    wanted = version or (served[-1].auction.weight_version if served else None)
    logged = [_served(auction, unit) for auction in served if auction.auction.weight_version == wanted]
    logged = [auction for auction in logged if auction.bids]
    if not logged:
        raise DataError(
            f"{opened.database}: no auction with candidates under weight version {wanted!r}; give "
            "--version, or serve some first"
        )
    return logged


def _counts(served: Served) -> bool:
    return not served.auction.canary and served.auction.price_rule is not PriceRule.RESERVE


def _served(served: Served, unit: int) -> LoggedAuction:
    auction = served.auction
    query, profile = question_of(auction)
    worth = auction.micros_per_unit or unit
    bids = [money.to_units(candidate.bid_micros, worth) for candidate in auction.candidates]
    shown = {each.ad_id: float(each.id in served.clicked) for each in auction.impressions}
    ads = [candidate.listing.ad for candidate in auction.candidates]
    return _logged(query, profile, ads, bids, [(tuple(shown), shown)], auction.weight_version)


def _logged(
    query: Query,
    profile: Profile,
    ads: Sequence[Ad],
    bids: Sequence[float],
    answers: Iterable[_Read],
    version: str,
) -> LoggedAuction:
    at = {ad.id: place for place, ad in enumerate(ads)}
    placed, judged, clicked = ([0.0] * len(ads) for _ in range(3))
    count = 0
    for shown, rates in answers:
        count += 1
        for ad in shown:
            placed[at[ad]] += 1 / len(shown)
            if rates is not None:
                judged[at[ad]] += 1 / len(shown)
                clicked[at[ad]] += rates.get(ad, 0.0)
    return LoggedAuction(
        query.text,
        tuple(bids),
        tuple(traits_of(query, profile, ad) for ad in ads),
        tuple((ad.category, ad.theme) for ad in ads),
        count,
        tuple(placed),
        tuple(judged),
        tuple(clicked),
        version,
    )


def of_answers(planned: Planned, texts: Sequence[str], world: World, version: str) -> LoggedAuction:
    """An auction with these answers, not judged."""
    read: list[_Read] = [(parse(text, planned.ads, world.ad_ids).ad_ids, None) for text in texts]
    return _logged(planned.query, planned.profile, planned.ads, planned.auction.bids, read, version)
