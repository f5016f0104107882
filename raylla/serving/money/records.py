"""The records of the endpoint, each frozen: what competed, what was shown, what it costs.

Money is in whole micros (`raylla.serving.money.money`), times are UTC, probabilities in [0, 1]. Imports no
ray, torch, vllm or database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from raylla.records import Ad, Profile, Query, Turn
from raylla.serving.money.money import Micros


class PriceRule(StrEnum):
    """What an advertiser pays, and for what; `at` is the rule's number in OpenRTB's field of that name."""

    FIRST_PRICE = "first_price"
    EXPECTED = "expected"
    RESAMPLED = "resampled"
    RESERVE = "reserve"

    @property
    def at(self) -> int:
        """OpenRTB auction type: 1 is first price, rules of our own count from 500."""
        numbers = {"first_price": 1, "expected": 500, "resampled": 501, "reserve": 502}
        return numbers[self.value]


class Reason(StrEnum):
    """Why an ad did not compete in an auction, or competed and was not shown."""

    PAUSED = "paused"
    OFF_GRID = "off_grid"
    """The bid is none of the grid: `serving.micros_per_unit` or `world.max_bid` has changed since."""
    BLOCKED_ADVERTISER = "blocked_advertiser"
    BLOCKED_CATEGORY = "blocked_category"
    FLOOR = "floor"
    BUDGET = "budget"
    PACING = "pacing"
    FREQUENCY_CAP = "frequency_cap"
    NOT_RETRIEVED = "not_retrieved"
    NOT_PLACED = "not_placed"

    @property
    def loss_code(self) -> int:
        """OpenRTB loss reason: 100 below floor, 102 outbid, 205 and 209 exclusions, from 500 our own."""
        return _LOSS_CODES[self]


_LOSS_CODES = {
    Reason.FLOOR: 100,
    Reason.NOT_PLACED: 102,
    Reason.BLOCKED_ADVERTISER: 205,
    Reason.BLOCKED_CATEGORY: 209,
    Reason.BUDGET: 500,
    Reason.PACING: 501,
    Reason.FREQUENCY_CAP: 502,
    Reason.PAUSED: 503,
    Reason.NOT_RETRIEVED: 504,
    Reason.OFF_GRID: 505,
}


@dataclass(frozen=True, slots=True)
class Listing:
    """An ad of the store with what competes for it: campaign, advertiser, landing page and bid."""

    ad: Ad
    campaign_id: str
    advertiser_id: str
    domain: str
    url: str
    bid_micros: Micros
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Filters:
    """What a request says about who may compete; categories are those of the catalogue.

    ``blocked_advertisers`` holds advertiser ids or domains, ``user_id`` is whom frequency caps count.
    """

    user_id: str | None = None
    floor_micros: Micros = 0
    blocked_categories: frozenset[str] = frozenset()
    blocked_advertisers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Filtered:
    """An ad that did not compete, and the first reason that kept it out."""

    ad_id: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Candidate:
    """An ad in the prompt. ``bid_micros`` is the bid that the model reads; it differs from the
    listing's only where the `resampled` rule has replaced it. Under `reserve`, ``reserve_micros`` is the
    least bid with which it could enter, and ``price_micros`` what a click on it costs."""

    listing: Listing
    bid_micros: Micros
    resampled: bool = False
    reserve_micros: Micros | None = None
    price_micros: Micros | None = None


@dataclass(frozen=True, slots=True)
class Impression:
    """An ad in the text that the user got: ``start`` and ``end`` are its title's characters there.

    ``price_micros`` is what the price rule charges: per click under `first_price`, `reserve`
    and `resampled` (there below 0, a rebate, where the bid was resampled), at once under `expected`.
    ``seen`` is when its text was released; None: not noted yet, when it was served.
    """

    id: str
    ad_id: str
    campaign_id: str
    advertiser_id: str
    start: int
    end: int
    bid_micros: Micros
    price_micros: Micros
    pctr: float
    pctr_low: float
    pctr_high: float
    resampled: bool = False
    seen: datetime | None = None


@dataclass(frozen=True, slots=True)
class ServedAuction:
    """One auction as it was served, with everything that made it: enough to learn from and to bill by.

    ``raw_text`` is the model's, ``text`` the user's. ``filtered`` names ads that did not compete (a
    bounded number of them), ``filtered_counts`` counts all. ``resample_share`` is mu of the
    `resampled` rule, None under the others. ``latency_ms`` is by part. A ``test`` auction is never
    charged. ``category`` and ``theme`` are what the prompt took the query to be about. ``turns`` are the
    earlier ones that the prompt held, ``turns_cut`` counts those before them that found no room.
    ``metadata`` is the application's. ``prices`` is the digest of the price sheet of the rule `reserve`.
    """

    id: str
    request_id: str
    created: datetime
    query: str
    user_id: str | None
    basics: str
    interests: tuple[str, ...]
    weight_version: str
    pctr_version: str
    prompt: str
    seed: int | None
    price_rule: PriceRule
    currency: str
    candidates: tuple[Candidate, ...]
    raw_text: str
    text: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    reward_value: float
    reward_penalty: float
    impressions: tuple[Impression, ...]
    filtered: tuple[Filtered, ...] = ()
    filtered_counts: Mapping[Reason, int] = field(default_factory=dict)
    violations: Mapping[str, int] = field(default_factory=dict)
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    resample_share: float | None = None
    canary: bool = False
    test: bool = False
    category: str = ""
    theme: str = ""
    micros_per_unit: int | None = None
    """What one unit of the model's bids was worth; None: not noted yet, when it was served."""
    turns: tuple[Turn, ...] = ()
    turns_cut: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    prices: str | None = None


NOBODY = "anonymous"
"""Whom a question is from that names no user."""


def question_of(auction: ServedAuction) -> tuple[Query, Profile]:
    """Question and user of a recorded auction, as its prompt, predictions and prices read them."""
    user = auction.user_id or NOBODY
    query = Query(auction.id, user, auction.query, auction.category, auction.theme, "test", auction.turns)
    return query, Profile(user, auction.basics, auction.interests)


class Outcome(StrEnum):
    """What became of an authentic click."""

    CHARGED = "charged"
    ACCRUED = "accrued"
    """Under `resampled`: in the ledger, and billed with the next settlement."""
    BILLED_AT_IMPRESSION = "billed_at_impression"
    TEST = "test"
    BUDGET = "budget"
    REPLAY = "replay"
    EXPIRED = "expired"
    INVALID = "invalid"
    """No person's click, or too soon, or one too many; the impression's true click may still come."""


class Invalid(StrEnum):
    """Why a click is invalid."""

    PREFETCH = "prefetch"
    HEAD = "head"
    ROBOT = "robot"
    TOO_SOON = "too_soon"
    TOO_MANY = "too_many"


@dataclass(frozen=True, slots=True)
class ClickLimits:
    """Within which a click counts: at least so many seconds after its ad was seen, and no more than so
    many of a user within an hour (None: any number)."""

    least_seconds: float = 0.0
    per_user_hour: int | None = None


@dataclass(frozen=True, slots=True)
class Charge:
    """What a click cost and where it leads. Only CHARGED and ACCRUED have ``amount_micros`` other than 0.

    ``click_id`` is the click that conversions name: the impression's first that counts, where there is
    one. ``reason`` is that of an INVALID one.
    """

    click_id: str
    outcome: Outcome
    amount_micros: Micros
    url: str
    reason: Invalid | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """A recorded auction with its valid clicks and conversions, for learning and comparison."""

    auction: ServedAuction
    clicked: frozenset[str]
    """Ids of impressions with an authentic click in time, charged or not."""
    conversion_micros: Mapping[str, Micros]
    """Impression id -> summed value of its conversions."""
    charged_micros: Micros = 0
    """What the ledger holds for it: charges and accruals, less what was taken back of them."""
