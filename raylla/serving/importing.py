"""Brings a world's catalogue into the store: an advertiser per theme, a campaign per category."""

from __future__ import annotations

import datetime as dt
import re
from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy.exc import IntegrityError

from raylla.config import Config, Serving
from raylla.errors import ClashError
from raylla.irpo.state import Run
from raylla.serving.store import NewAd, NewCampaign, Store
from raylla.serving.store.parties import put_ads, put_advertiser, put_campaign
from raylla.storage import exists, here, within
from raylla.world import World, bids
from raylla.world.store import load

DAILY_BUDGET_UNITS = 100_000
"""Daily budget of an imported campaign, in units of a bid, unless another is given."""


@dataclass(frozen=True, slots=True)
class Imported:
    """How much came in."""

    advertisers: int
    campaigns: int
    ads: int


def read(source: str) -> World:
    """The world of a directory: a saved world, or a run's.

    Raises:
        WorldError: neither is there.
    """
    inside = within(source, "world")
    with here(inside if exists(inside) else source) as directory:
        return load(directory)


def settings_of(source: str) -> Config:
    """The settings of the run that ``source`` is; the defaults where it is only a world.

    Raises:
        RunError: the run cannot be read.
    """
    if exists(within(source, "run.json")):
        return Run.open(source).config
    return Config()


def import_world(
    store: Store,
    world: World,
    serving: Serving,
    max_bid: int,
    seed: int,
    now: dt.datetime,
    daily_budget_micros: int | None = None,
) -> Imported:
    """List all ads of ``world`` in one transaction, with bids of U{1..max_bid} units fixed by ``seed``.

    The world knows no advertisers: each theme becomes one, each category a campaign of it, paced `asap`.
    Landing pages are under the reserved domain ``.example``.

    Raises:
        ClashError: one of its ads is listed already; nothing is imported.
    """
    drawn = bids.draw(seed, f"import/{world.name}", len(world.ads), max_bid)
    budget = (
        DAILY_BUDGET_UNITS * serving.micros_per_unit if daily_budget_micros is None else daily_budget_micros
    )
    parts: dict[str, dict[str, list[NewAd]]] = defaultdict(lambda: defaultdict(list))
    for ad, bid in zip(world.ads, drawn, strict=True):
        theme = ad.theme or ad.category
        new = NewAd(ad, f"https://{_domain(theme)}/ads/{ad.id}", round(bid) * serving.micros_per_unit)
        parts[theme][ad.category].append(new)
    try:
        with store.database.writing() as session:
            for theme, categories in parts.items():
                seat = put_advertiser(session, theme, _domain(theme), now)
                for category, news in categories.items():
                    campaign = put_campaign(session, seat.id, NewCampaign(category, budget, "asap"), now)
                    put_ads(session, campaign.id, news, now)
    except IntegrityError:
        raise ClashError(
            f"world {world.name}: some of its ads are listed in {store.database} already"
        ) from None
    return Imported(len(parts), sum(len(one) for one in parts.values()), len(world.ads))


def _domain(theme: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", theme.lower()).strip("-")[:60].strip("-")
    return f"{words or 'ads'}.example"
