"""The price sheet: a curve and its reserves in one file, which the endpoint charges by and the audit reads.

The file is JSON.  Its digest is the SHA-256 of its bytes, so that what charged is what was learned; prices
are a pure function of the sheet and of who competes in which order.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from raylla.errors import ConfigError
from raylla.pricing.curve import (
    MOST_COEFFICIENT,
    MOST_UNITS,
    RANK_GAINS,
    TRAITS,
    AllocationCurve,
    Contests,
    traits_of,
)
from raylla.pricing.logs import code
from raylla.pricing.reserves import Reserves
from raylla.pricing.rule import quote
from raylla.records import Ad, Profile, Query
from raylla.strictjson import dumps

FORM = "raylla-prices-1"


@dataclass(frozen=True)
class PriceSheet:
    """What `raylla prices learn` found. ``rates`` are clicks of a placed ad by its traits, "" all;
    ``text`` is the file, ``report`` what was found on the way."""

    curve: AllocationCurve
    reserves: Reserves
    rates: Mapping[str, float]
    report: Mapping[str, Any]
    text: str

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def covers(self, max_bid: int, where: str) -> None:
        """Refuse a sheet, named ``where``, that knows no bids as large as ``max_bid``.

        Raises:
            ConfigError: it was learned from lower ones.
        """
        if self.curve.largest < max_bid:
            raise ConfigError(
                f"{where} was learned from bids up to {self.curve.largest:g}, and world.max_bid is "
                f"{max_bid}; learn one from auctions of this model"
            )

    def reserve(self, query: Query, profile: Profile, ad: Ad) -> int:
        """The least bid, in whole units, with which an ad may enter an auction."""
        return round(self.reserves.of(ad.category, ad.theme, code(traits_of(query, profile, ad))))

    def prices(
        self,
        query: Query,
        profile: Profile,
        ads: Sequence[Ad],
        bids: Sequence[int],
        reserves: Sequence[int],
    ) -> list[float]:
        """What a click on each of ``ads`` costs, in bid units, where these and no others compete, listed
        in this order; each bids at least its one of ``reserves``, and never pays more than it bids.

        A floor above `reserve` is a reserve: only a price from the least bid that enters makes the truth
        the best one.
        """
        traits = [traits_of(query, profile, ad) for ad in ads]
        contests = Contests.of([bids], [traits])
        least = np.array([[float(reserve) for reserve in reserves]])
        prices: list[float] = quote(self.curve, contests, least).prices[0].tolist()
        return prices


def written(
    curve: AllocationCurve, reserves: Reserves, rates: Mapping[str, float], report: Mapping[str, Any]
) -> PriceSheet:
    """A sheet with its text."""
    tree = {
        "form": FORM,
        "traits": list(TRAITS),
        "curve": asdict(curve),
        "reserves": asdict(reserves),
        "rates": dict(rates),
        "report": dict(report),
    }
    return parse_sheet(dumps(tree, indent=1) + "\n", "the sheet")


def read_sheet(path: Path, digest: str | None = None, where: str = "serving.prices") -> PriceSheet:
    """The sheet in a file; with a ``digest``, that very one.

    Raises:
        ConfigError: there is no such file, it is no price sheet, or another one.
    """
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{where}={str(path)!r} cannot be read ({error}); write it with `raylla prices learn`"
        ) from None
    sheet = parse_sheet(text, f"{where}={str(path)!r}")
    if digest is not None and sheet.digest != digest:
        raise ConfigError(
            f"{where}={str(path)!r} has the digest {sheet.digest[:12]}, and serving.prices_digest is "
            f"{digest[:12]}: the file was changed; restore it, or name the new one's digest"
        )
    return sheet


def parse_sheet(text: str, where: str) -> PriceSheet:
    """The sheet that a text is.

    Raises:
        ConfigError: it is none, or a number in it makes no prices; names ``where``.
    """
    try:
        tree = json.loads(text)
        if tree["form"] != FORM or tree["traits"] != list(TRAITS):
            raise ValueError(f"its form is {tree['form']!r}, not {FORM!r}")
        given = tree["curve"]
        curve = AllocationCurve(
            float(given["constant"]),
            tuple(map(float, given["traits"])),
            float(given["log_bid"]),
            float(given["bid"]),
            tuple(map(float, given["gains"])),
            float(given["largest"]),
        )
        reserves = Reserves(
            float(tree["reserves"]["all"]),
            {name: float(bid) for name, bid in tree["reserves"]["by"].items()},
        )
        rates = {name: float(rate) for name, rate in tree["rates"].items()}
        _check(curve, reserves, rates)
        return PriceSheet(curve, reserves, rates, dict(tree["report"]), text)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"{where} is no price sheet ({type(error).__name__}: {error}); `raylla prices learn` writes one"
        ) from None


def _check(curve: AllocationCurve, reserves: Reserves, rates: Mapping[str, float]) -> None:
    """Refuse numbers under which an ad's share could fall in its bid, or a price leave [reserve, bid]."""
    rising = (curve.log_bid, curve.bid, *curve.gains)
    coefficients = (curve.constant, *curve.traits, *rising)
    least = {"all": reserves.all, **reserves.by}
    if not all(map(math.isfinite, (*coefficients, curve.largest, *rates.values(), *least.values()))):
        raise ValueError("a number is not finite")
    if max(map(abs, coefficients)) > MOST_COEFFICIENT:
        raise ValueError(f"a coefficient of the curve is beyond {MOST_COEFFICIENT:g}")
    if "" not in rates or min(rates.values()) < 0:
        raise ValueError('rates have none for all, "", or one below 0')
    if len(curve.traits) != len(TRAITS) or len(curve.gains) != RANK_GAINS:
        raise ValueError(f"the curve has not {len(TRAITS)} traits and {RANK_GAINS} gains")
    if min(rising) < 0:
        raise ValueError("a coefficient of the bid is below 0, so that a share could fall in the bid")
    if not 2 <= curve.largest <= MOST_UNITS or curve.largest != round(curve.largest):
        raise ValueError(f"curve.largest={curve.largest:g} is no whole bid of 2 to {MOST_UNITS}")
    for name, bid in least.items():
        if bid != round(bid) or not 1 <= bid <= curve.largest:
            raise ValueError(f"reserve {name!r} is {bid:g}, no bid of 1 to {curve.largest:g}")
