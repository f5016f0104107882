"""Ads of a table: cleaned, numbered, with their bids where the table has them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from raylla.errors import WorldError
from raylla.records import Ad
from raylla.world import build
from raylla.world.imports.tablefiles import Cells, Columns, Fault, read_rows
from raylla.world.texts import (
    MAX_CATEGORY,
    MAX_DESCRIPTION,
    MAX_ID,
    check_ad,
    clean_field,
    clean_title,
    cut,
    landing,
    one_line,
)

ADS: dict[str, tuple[str, ...]] = {
    "title": ("title", "ad_title", "product_title", "name", "product_name", "ad", "advertisement"),
    "id": ("id", "ad_id", "product_id", "item_id"),
    "category": ("category", "product_category", "cluster_category", "cluster", "product_type", "topic"),
    "description": ("description", "ad_description", "product_description", "desc", "qualities"),
    "url": ("url", "link", "landing_page", "final_url", "website", "site"),
    "bid": ("bid", "max_cpc", "cpc"),
}
"""Field of an ad -> names that its column has where it is not named."""
GENERAL = "general"
"""Category of ads that have none."""
MOST_UNUSABLE = 0.5
"""Share of a table's rows that may be passed over."""
_NAMED = 5
"""Rows that an error about many of them names."""


@dataclass
class Taken:
    """What was taken of a table's ads, and what not."""

    ads: list[Ad] = field(default_factory=list)
    bids: list[float | None] = field(default_factory=list)
    """In bid units per click, in the order of the ads; None where the table has none."""
    numbered: bool = True
    """Whether the ids are the table's."""
    faults: list[Fault] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


def take_ads(file: Path, named: Mapping[str, str], change: Callable[[Cells], Cells] = dict) -> Taken:
    """The ads of the table ``file``; ``named`` says which column a field has, `ADS` else.

    A title that the markup cannot hold is cleaned, and counted in the notes; so is a row that says what
    another has said.  Ids are the table's where all of them are digits, else given in steps.  A landing
    page without a scheme is taken as https.  ``change`` has the cells first, and may refuse them.

    Raises:
        WorldError: the file cannot be read, or more than half of its rows cannot be used.
    """
    taken = Taken(notes=Counter(titles_cleaned=0, rows_repeated=0))
    said: set[tuple[Ad, float | None]] = set()
    ids: dict[str, int] = {}
    rows = 0
    for line, cells in read_rows(file, columns(ADS, named, "title")):
        rows += 1
        if isinstance(cells, Fault):
            taken.faults.append(cells)
            continue
        try:
            cells = change(cells)
            ad, bid = _ad(cells), bid_of(cells.get("bid", ""))
            check_ad(replace(ad, id="0"))
        except WorldError as error:
            taken.faults.append(Fault(file, line, str(error).removeprefix("ads: 0: ")))
            continue
        if (ad, bid) in said:
            taken.notes["rows_repeated"] += 1
            continue
        said.add((ad, bid))
        if ad.id and ids.setdefault(ad.id, line) != line:
            why = f"id={cut(ad.id, 40)!r} is that of line {ids[ad.id]} too; give it another"
            taken.faults.append(Fault(file, line, why))
            continue
        taken.notes["titles_cleaned"] += ad.title != cells["title"]
        taken.ads.append(ad)
        taken.bids.append(bid)
    bound(file, rows, taken.faults)
    taken.notes["ads_unusable"] = len(taken.faults)
    if not all(_is_id(ad.id) for ad in taken.ads):
        taken.numbered = False
        taken.notes["ids_given"] = len(taken.ads)
        taken.ads = [replace(ad, id=build.scattered_id(index)) for index, ad in enumerate(taken.ads)]
    return taken


def columns(fields: Mapping[str, Sequence[str]], named: Mapping[str, str], needed: str) -> Columns:
    """The columns of ``fields``, those that are named under that name alone."""
    return Columns(
        {field: [named[field]] if field in named else names for field, names in fields.items()}, needed
    )


def bound(file: Path, rows: int, faults: Sequence[Fault]) -> None:
    """Refuse a table without rows, or of which more than `MOST_UNUSABLE` cannot be used.

    Raises:
        WorldError: names the first of them.
    """
    if not rows:
        raise WorldError(f"{file} holds no rows; fill it")
    if len(faults) > MOST_UNUSABLE * rows:
        first = "".join(f"\n  {fault}" for fault in faults[:_NAMED])
        raise WorldError(
            f"{file}: {len(faults)} of {rows} rows cannot be used; mend the table, or name its columns "
            f"with --map:{first}"
        )


def _ad(cells: Cells) -> Ad:
    """The ad of a row; its id is as the table has it.

    Raises:
        WorldError: its title is empty, or its landing page no URL.
    """
    title = clean_title(cells["title"])
    if not title:
        raise WorldError(f"title={cut(cells['title'], 40)!r} is empty; fill or drop the row")
    category = clean_field(cells.get("category", ""), MAX_CATEGORY) or GENERAL
    description = cut(one_line(cells.get("description", "")), MAX_DESCRIPTION)
    url = cells.get("url", "")
    if url:
        url = landing(url if "://" in url else f"https://{url}")
    return Ad(cells.get("id", ""), title, category, category, description, url)


def bid_of(text: str) -> float | None:
    """A cell's bid in bid units.

    Raises:
        WorldError: it is no number of at least 0.
    """
    if not text:
        return None
    try:
        bid = float(text)
    except ValueError:
        bid = math.nan
    if not math.isfinite(bid) or bid < 0:
        raise WorldError(f"bid={cut(text, 40)!r} is no bid: give a number of bid units, at least 0")
    return bid


def _is_id(id: str) -> bool:
    return id.isascii() and id.isdigit() and len(id) <= MAX_ID
