"""Which ads may compete now: a mask over the catalogue's rows, with a reason for every ad left out.

The store's state is looked at by `Eligibility.refresh` (budgets, pacing, pauses, floors), the request's
filters by `Eligibility.select`. An ad carries its first reason: those of the state come before those of
the request. Everything per ad is an array operation; 10^6 ads take milliseconds.

What one answer could use up more than once, a user's frequency cap and a campaign's budget, is looked at
again for the ads that are to stand in one prompt together (`Selection.without`).

Even pacing: a campaign sits out while it has spent more than its daily budget times the elapsed share
of the day (UTC). That is a plan and may be passed by clicks in flight; the budget itself cannot be,
since charging checks it again (`raylla.serving.store.billing`).
"""

from __future__ import annotations

import datetime as dt
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raylla import records
from raylla.config import Serving, World
from raylla.serving.money.money import Micros
from raylla.serving.money.records import Filtered, Filters, Listing, Reason
from raylla.serving.store import names
from raylla.serving.store.snapshot import AdRow, CampaignRow, Changes
from raylla.world.texts import MAX_READ, cut

_REASONS = (
    Reason.PAUSED,
    Reason.OFF_GRID,
    Reason.FLOOR,
    Reason.BUDGET,
    Reason.PACING,
    Reason.BLOCKED_ADVERTISER,
    Reason.BLOCKED_CATEGORY,
    Reason.FREQUENCY_CAP,
)
_CODE = {reason: code for code, reason in enumerate(_REASONS, start=1)}
_DAY_SECONDS = 86_400
_NAMED = 20
"""Ads with a bid off the grid that the log names."""
log = logging.getLogger("raylla.serving")


class Source(Protocol):
    """What eligibility asks of the store."""

    def changes(self, since: int) -> Changes: ...

    def spending(self, day: dt.date) -> dict[str, Micros]: ...

    def seen(self, user_id: str, since: dt.datetime) -> list[tuple[str, dt.datetime]]: ...


@dataclass(frozen=True)
class Limits:
    """What campaigns allow: arrays [campaigns], and look-ups by what a request or the store may name."""

    number: dict[str, int]
    seats: dict[str, list[int]]
    """Advertiser id or domain (`names.party`) -> its campaigns."""
    caps: dict[str, tuple[int, int]]
    """Campaign id -> most impressions per user, in how many hours."""
    budgets: NDArray[np.int64]
    even: NDArray[np.bool_]
    paused: NDArray[np.bool_]

    @classmethod
    def of(cls, campaigns: Sequence[CampaignRow]) -> Limits:
        """The limits of ``campaigns``, in their order."""
        seats: dict[str, list[int]] = defaultdict(list)
        for number, campaign in enumerate(campaigns):
            for name in {names.party(campaign.advertiser_id), names.party(campaign.domain)}:
                seats[name].append(number)
        return cls(
            {campaign.id: number for number, campaign in enumerate(campaigns)},
            dict(seats),
            {
                campaign.id: (campaign.cap_impressions, campaign.cap_hours)
                for campaign in campaigns
                if campaign.cap_impressions and campaign.cap_hours
            },
            np.array([campaign.daily_budget_micros for campaign in campaigns], np.int64),
            np.array([campaign.pacing == "even" for campaign in campaigns], np.bool_),
            np.array([campaign.paused for campaign in campaigns], np.bool_),
        )


@dataclass(frozen=True)
class Catalogue:
    """All ads ever listed, a row each, in order of listing. A row's ad never changes, only its terms.

    Arrays [rows]: campaign and kind (category and theme) by number, bid, paused.
    """

    version: int = 0
    rows: int = 0
    ads: list[records.Ad] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    labels: list[tuple[str, ...]] = field(default_factory=list)
    campaigns: tuple[CampaignRow, ...] = ()
    limits: Limits = field(default_factory=lambda: Limits.of(()))
    kinds: tuple[tuple[str, str], ...] = ()
    names: tuple[frozenset[str], ...] = ()
    """Of each kind, its category and theme as they are compared."""
    campaign_of: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    kind_of: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    bids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    paused: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    row_by_id: dict[str, int] = field(default_factory=dict)
    floors: dict[str, Micros] = field(default_factory=dict)
    """Category or theme, as it is compared -> least bid."""

    def listing(self, row: int) -> Listing:
        """The ad of a row with its terms."""
        campaign = self.campaigns[self.campaign_of[row]]
        return Listing(
            self.ads[row],
            campaign.id,
            campaign.advertiser_id,
            campaign.domain,
            self.urls[row],
            int(self.bids[row]),
            self.labels[row],
        )

    def row_of(self, ad_id: str) -> int | None:
        """Where an ad is."""
        return self.row_by_id.get(ad_id)

    def bidding(self, bids: Mapping[str, Micros]) -> Catalogue:
        """The same with other bids for some ads; ads that are not listed have none."""
        rows = {row: bid for id, bid in bids.items() if (row := self.row_of(id)) is not None}
        changed = self.bids.copy()
        changed[list(rows)] = list(rows.values())
        return replace(self, bids=changed)


@dataclass(frozen=True, slots=True)
class Selection:
    """Who may compete in one auction. ``codes`` [rows] is 0 for them, else the reason's number.

    ``floors`` [kinds] are the least bids, ``left`` [campaigns] what each may still spend today, ``seen``
    how often the user has seen a capped campaign, by number.
    """

    catalogue: Catalogue
    codes: NDArray[np.uint8]
    floors: NDArray[np.int64]
    left: NDArray[np.int64]
    seen: Mapping[int, int]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """[rows], true where an ad may compete."""
        eligible: NDArray[np.bool_] = self.codes == 0
        return eligible

    def counts(self) -> dict[Reason, int]:
        """How many ads each reason kept out."""
        numbers = np.bincount(self.codes, minlength=len(_REASONS) + 1)
        return {reason: int(numbers[code]) for reason, code in _CODE.items() if numbers[code]}

    def filtered(self, limit: int) -> tuple[Filtered, ...]:
        """The first ``limit`` ads kept out, in order of row."""
        rows = np.flatnonzero(self.codes)[:limit]
        return tuple(
            Filtered(self.catalogue.ads[row].id, _REASONS[self.codes[row] - 1]) for row in rows.tolist()
        )

    def floor(self, row: int) -> Micros:
        """The least bid with which the ad of a row may enter: of the endpoint, its kind and the request."""
        return int(self.floors[self.catalogue.kind_of[row]])

    def without(
        self, mask: NDArray[np.bool_], rows: Sequence[int]
    ) -> tuple[NDArray[np.bool_], Counter[Reason]]:
        """``mask`` less what could not stand beside the first of ``rows`` in one prompt, and why.

        An answer may place every ad of its prompt, so that together they must be within their campaign's
        frequency cap for this user, and within what is left of its budget. The most relevant come first;
        of a campaign that they fill, no other ad stays in the mask.
        """
        catalogue, caps = self.catalogue, self.catalogue.limits.caps
        kept: dict[int, list[int]] = defaultdict(list)
        full: dict[int, Reason] = {}
        for row in rows:
            number = int(catalogue.campaign_of[row])
            most = caps.get(catalogue.campaigns[number].id, (None, None))[0]
            spent = int(catalogue.bids[kept[number]].sum())
            if most is not None and self.seen.get(number, 0) + len(kept[number]) >= most:
                full[number] = Reason.FREQUENCY_CAP
            elif spent + int(catalogue.bids[row]) > self.left[number]:
                full.setdefault(number, Reason.BUDGET)
            else:
                kept[number].append(row)
        gone: Counter[Reason] = Counter()
        for number, reason in full.items():
            out = mask & (catalogue.campaign_of == number)
            if reason is Reason.BUDGET:
                out &= catalogue.bids > self.left[number] - int(catalogue.bids[kept[number]].sum())
            out[kept[number]] = False
            gone[reason] += int(np.count_nonzero(out))
            mask = mask & ~out
        return mask, gone


@dataclass(frozen=True)
class _State:
    """As of the last refresh: codes [rows] and floors [kinds] that hold for every request, what is spent
    [campaigns]."""

    catalogue: Catalogue
    codes: NDArray[np.uint8]
    floors: NDArray[np.int64]
    spent: NDArray[np.int64]
    at: dt.datetime


class Eligibility:
    """Selects ads; safe to use from many threads.

    Args:
        max_bid: largest bid, in units.
    """

    def __init__(self, store: Source, serving: Serving, max_bid: int = World().max_bid) -> None:
        self._store = store
        self._floor = serving.floor_micros
        self._unit = serving.micros_per_unit
        self._most = serving.micros_per_unit * max_bid
        self._lock = Lock()
        nothing = np.zeros(0, np.int64)
        self._state = _State(Catalogue(), np.zeros(0, np.uint8), nothing, nothing, dt.datetime.min)

    def refresh(self, now: dt.datetime) -> Catalogue:
        """Take over what has changed in the store; cheap where little has."""
        now = now.astimezone(dt.UTC)
        with self._lock:
            before = self._state.catalogue
            changes = self._store.changes(before.version)
            catalogue = before if changes.version == before.version else _merged(before, changes)
            spent = np.zeros(len(catalogue.campaigns), np.int64)
            for campaign_id, micros in self._store.spending(now.date()).items():
                if campaign_id in catalogue.limits.number:
                    spent[catalogue.limits.number[campaign_id]] = micros
            floors = self._floors(catalogue)
            codes = self._codes(catalogue, floors, spent, now)
            if catalogue is not before:
                self._tell_off_grid(catalogue, codes)
            self._state = _State(catalogue, codes, floors, spent, now)
            return catalogue

    def select(
        self, filters: Filters, now: dt.datetime, bids: Mapping[str, Micros] | None = None
    ) -> Selection:
        """Who may compete in an auction of ``filters``, as of the last refresh; a test may set ``bids``."""
        state = self._state
        catalogue, codes = state.catalogue, state.codes
        if bids:
            catalogue = catalogue.bidding(bids)
            codes = self._codes(catalogue, state.floors, state.spent, state.at)
        if filters.blocked_advertisers:
            blocked = np.zeros(len(catalogue.campaigns), np.bool_)
            for name in filters.blocked_advertisers:
                blocked[catalogue.limits.seats.get(names.party(name), [])] = True
            codes = _first(codes, Reason.BLOCKED_ADVERTISER, blocked[catalogue.campaign_of])
        if filters.blocked_categories:
            unwanted = {names.name(category) for category in filters.blocked_categories} - {""}
            kinds = [not unwanted.isdisjoint(kind) for kind in catalogue.names]
            codes = _first(codes, Reason.BLOCKED_CATEGORY, np.array(kinds, np.bool_)[catalogue.kind_of])
        if filters.floor_micros > self._floor:
            codes = _first(codes, Reason.FLOOR, catalogue.bids < filters.floor_micros)
        seen = self._seen(catalogue, filters.user_id, now)
        caps = catalogue.limits.caps
        full = [place for place, count in seen.items() if count >= caps[catalogue.campaigns[place].id][0]]
        if full:
            capped = np.zeros(len(catalogue.campaigns), np.bool_)
            capped[full] = True
            codes = _first(codes, Reason.FREQUENCY_CAP, capped[catalogue.campaign_of])
        floors = np.maximum(state.floors, filters.floor_micros)
        return Selection(catalogue, codes, floors, catalogue.limits.budgets - state.spent, seen)

    def _floors(self, catalogue: Catalogue) -> NDArray[np.int64]:
        """Least bids [kinds], the request's left out."""
        return np.array(
            [
                max(self._floor, *(catalogue.floors.get(name, 0) for name in kind))
                for kind in catalogue.names
            ],
            np.int64,
        )

    def _codes(
        self,
        catalogue: Catalogue,
        floors: NDArray[np.int64],
        spent: NDArray[np.int64],
        now: dt.datetime,
    ) -> NDArray[np.uint8]:
        """Codes [rows] that hold for every request."""
        codes = np.zeros(catalogue.rows, np.uint8)
        if not catalogue.rows:
            return codes
        limits, bids, of = catalogue.limits, catalogue.bids, catalogue.campaign_of
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        elapsed = (now - midnight).total_seconds() / _DAY_SECONDS
        off = (bids % self._unit != 0) | (bids < self._unit) | (bids > self._most)
        codes = _first(codes, Reason.PAUSED, catalogue.paused | limits.paused[of])
        codes = _first(codes, Reason.OFF_GRID, off)
        codes = _first(codes, Reason.FLOOR, bids < floors[catalogue.kind_of])
        codes = _first(codes, Reason.BUDGET, (limits.budgets - spent)[of] < bids)
        return _first(codes, Reason.PACING, (limits.even & (spent > limits.budgets * elapsed))[of])

    def _tell_off_grid(self, catalogue: Catalogue, codes: NDArray[np.uint8]) -> None:
        rows = np.flatnonzero(codes == _CODE[Reason.OFF_GRID])
        if len(rows):
            ids = ", ".join(catalogue.ads[row].id for row in rows[:_NAMED].tolist())
            log.warning(
                "%d ads sit out, for their bids are none of the grid of %d micros up to %d "
                "(serving.micros_per_unit, world.max_bid): change their bids; ads %s%s",
                *(len(rows), self._unit, self._most, ids, ", ..." if len(rows) > _NAMED else ""),
            )

    def _seen(self, catalogue: Catalogue, user_id: str | None, now: dt.datetime) -> dict[int, int]:
        """How often the user has seen each capped campaign within its hours, by number."""
        caps = catalogue.limits.caps
        if user_id is None or not caps:
            return {}
        longest = max(hours for _, hours in caps.values())
        seen: Counter[str] = Counter()
        for campaign_id, at in self._store.seen(user_id, now - dt.timedelta(hours=longest)):
            if campaign_id in caps and at > now - dt.timedelta(hours=caps[campaign_id][1]):
                seen[campaign_id] += 1
        return {catalogue.limits.number[campaign_id]: count for campaign_id, count in seen.items()}


def _first(codes: NDArray[np.uint8], reason: Reason, hit: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """``codes`` with ``reason`` where it hits and there is none yet."""
    return np.where((codes == 0) & hit, np.uint8(_CODE[reason]), codes)


def _merged(before: Catalogue, changes: Changes) -> Catalogue:
    """``before`` with the changed rows replaced and the new ones appended."""
    campaigns = {campaign.id: campaign for campaign in before.campaigns}
    campaigns.update((campaign.id, campaign) for campaign in changes.campaigns)
    limits = Limits.of(tuple(campaigns.values())) if changes.campaigns else before.limits
    kinds = {kind: index for index, kind in enumerate(before.kinds)}
    for ad in changes.ads:
        kinds.setdefault((ad.category, ad.theme), len(kinds))
    floors: dict[str, Micros] = defaultdict(int)
    for name, floor in changes.floors.items():
        floors[names.name(name)] = max(floor, floors[names.name(name)])
    new = [ad for ad in changes.ads if ad.row >= before.rows]
    old = [ad for ad in changes.ads if ad.row < before.rows]
    urls = before.urls + [ad.url for ad in new]
    labels = before.labels + [tuple(ad.labels) for ad in new]
    bids = np.concatenate([before.bids, np.array([ad.bid_micros for ad in new], np.int64)])
    paused = np.concatenate([before.paused, np.array([ad.paused for ad in new], np.bool_)])
    for ad in old:
        urls[ad.row], labels[ad.row] = ad.url, tuple(ad.labels)
        bids[ad.row], paused[ad.row] = ad.bid_micros, ad.paused
    return replace(
        before,
        version=changes.version,
        rows=before.rows + len(new),
        ads=before.ads + [_listed(ad) for ad in new],
        urls=urls,
        labels=labels,
        row_by_id=before.row_by_id | {ad.id: ad.row for ad in new} if new else before.row_by_id,
        campaigns=tuple(campaigns.values()),
        limits=limits,
        kinds=tuple(kinds),
        names=tuple(frozenset(map(names.name, kind)) for kind in kinds),
        campaign_of=_numbers(before.campaign_of, [limits.number[ad.campaign_id] for ad in new]),
        kind_of=_numbers(before.kind_of, [kinds[ad.category, ad.theme] for ad in new]),
        bids=bids,
        paused=paused,
        floors=dict(floors),
    )


def _listed(ad: AdRow) -> records.Ad:
    return records.Ad(ad.id, ad.title, ad.category, ad.theme, cut(ad.description, MAX_READ))


def _numbers(before: NDArray[np.int32], new: list[int]) -> NDArray[np.int32]:
    return np.concatenate([before, np.array(new, np.int32)])
