"""Brings the ads of a world, or of a table, into the store: an advertiser per domain or theme, a campaign
per category."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy.exc import IntegrityError

from raylla.config import Serving
from raylla.errors import ClashError, WorldError
from raylla.records import Ad
from raylla.serving.store import AdTerms, CampaignTerms, Store, names
from raylla.serving.store.parties import put_ads, put_advertiser, put_campaign
from raylla.storage import exists, here, within
from raylla.world import World, bids
from raylla.world.imports import catalogue
from raylla.world.imports.tablefiles import Cells
from raylla.world.store import load_world
from raylla.world.texts import landing

DAILY_BUDGET_UNITS = 100_000
"""Daily budget of an imported campaign, in units of a bid, unless another is given."""
LONGEST_SLUG = 60
_WORDS = re.compile(r"[a-z0-9]+([ &,/'-]+[a-z0-9]+)*")
"""Words that their slug tells from others."""


@dataclass(frozen=True, slots=True)
class ImportCounts:
    """How much came in."""

    advertisers: int
    campaigns: int
    ads: int


def read_world(source: str) -> World:
    """The world of a directory: a saved world, or a run's.

    Raises:
        WorldError: neither is there.
    """
    inside = within(source, "world")
    with here(inside if exists(inside) else source) as directory:
        return load_world(directory)


def read_table(file: Path, named: Mapping[str, str], max_bid: int) -> catalogue.Taken:
    """The ads of a table (see `catalogue.take_ads`); a row whose bid no auction could hold is passed over.

    Raises:
        WorldError: the table cannot be read, or more than half of its rows cannot be used.
    """
    for unknown in named.keys() - catalogue.ADS.keys():
        raise WorldError(f"--map {unknown}=: ads have no such field; those are {', '.join(catalogue.ADS)}")

    def on_the_grid(cells: Cells) -> Cells:
        bid = catalogue.bid_of(cells.get("bid", ""))
        if bid is not None and not (bid.is_integer() and 1 <= bid <= max_bid):
            raise WorldError(f"bid={cells['bid']}: bids are whole units from 1 to world.max_bid={max_bid}")
        return cells

    return catalogue.take_ads(file, named, on_the_grid)


def list_world(
    store: Store,
    world: World,
    serving: Serving,
    max_bid: int,
    seed: int,
    now: dt.datetime,
    daily_budget_micros: int | None = None,
) -> ImportCounts:
    """List all ads of ``world``, as `import_ads` does; it knows no bids."""
    unknown = [None] * len(world.ads)
    return import_ads(
        store, world.name, world.ads, unknown, serving, max_bid, seed, now, daily_budget_micros
    )


def import_ads(
    store: Store,
    name: str,
    ads: Sequence[Ad],
    offers: Sequence[float | None],
    serving: Serving,
    max_bid: int,
    seed: int,
    now: dt.datetime,
    daily_budget_micros: int | None = None,
) -> ImportCounts:
    """List ``ads`` in one transaction, with the bids ``offers`` (units); where one is None it is drawn
    from U{1..max_bid}, fixed by ``seed`` and ``name``.

    Each domain of landing pages becomes an advertiser, or each theme of ads that have none; each category
    is a campaign of it, paced `asap`; those that `names` compares as one are one, named as it comes first.
    Ads without a landing page get one under the reserved domain ``.example``.

    Raises:
        ClashError: one of its ads is listed already; nothing is imported.
        WorldError: a landing page is no URL; nothing is imported.
    """
    drawn = bids.draw(seed, f"import/{name}", len(ads), max_bid)
    budget = (
        DAILY_BUDGET_UNITS * serving.micros_per_unit if daily_budget_micros is None else daily_budget_micros
    )
    parts: dict[str, dict[str, list[AdTerms]]] = defaultdict(lambda: defaultdict(list))
    called: dict[str, str] = {}
    for ad, offer, other in zip(ads, offers, drawn, strict=True):
        who, domain, url = _seat(ad)
        called.setdefault(domain, who)
        units = other if offer is None else offer
        new = AdTerms(ad, url, round(units) * serving.micros_per_unit)
        parts[domain][names.name(ad.category)].append(new)
    try:
        with store.database.writing() as session:
            for domain, categories in parts.items():
                seat_id = put_advertiser(session, called[domain], domain, now).id
                for news in categories.values():
                    new_campaign = CampaignTerms(news[0].ad.category, budget, "asap")
                    campaign = put_campaign(session, seat_id, new_campaign, now)
                    put_ads(session, campaign.id, news, now)
    except IntegrityError:
        raise ClashError(
            f"world or table {name}: some of its ads are listed in {store.database} already"
        ) from None
    return ImportCounts(len(parts), sum(len(part) for part in parts.values()), len(ads))


def _seat(ad: Ad) -> tuple[str, str, str]:
    """Name and domain of an ad's advertiser, and the ad's landing page."""
    theme = ad.theme if names.name(ad.theme) else ad.category
    own = f"{_slug(theme)}.example"
    if not ad.url:
        return theme, own, f"https://{own}/ads/{ad.id or _slug(ad.title)}"
    url = landing(ad.url)
    try:
        domain = names.domain((urlsplit(url).hostname or "").removeprefix("www."))
    except ValueError:  # an address, or a host of this network
        return theme, own, url
    return domain, domain, url


def _slug(words: str) -> str:
    """``words`` as a part of a domain, the same for all that `names` compares as one; a digest tells what
    letters cannot."""
    name = names.name(words)
    plain = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    if _WORDS.fullmatch(name) and len(plain) <= LONGEST_SLUG:
        return plain
    digest = hashlib.sha256(name.encode()).hexdigest()[:10]
    return f"{plain[: LONGEST_SLUG - 11].strip('-') or 'ads'}-{digest}"
