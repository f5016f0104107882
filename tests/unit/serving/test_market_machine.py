"""Whatever happens in whatever order: no double charge, no budget passed, the audit clean."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import event

from raylla.errors import TokenError
from raylla.serving.billing.audit import audit
from raylla.serving.money.records import (
    Filters,
    Invalid,
    Listing,
    Outcome,
    PriceRule,
    Reason,
    ServedAuction,
)
from raylla.serving.security.tokens import TokenKeys
from raylla.serving.store import Store
from tests.unit.serving.market import KEYS, UNIT, Market
from tests.unit.serving.test_eligibility import reasons

TTL = 3 * 3600.0
DAY = dt.timedelta(days=1)
NUMBERS = st.integers(0, 30)
RULES = st.sampled_from(PriceRule)
FOUR_RULES = st.lists(RULES, min_size=4, max_size=4)
T = TypeVar("T")
BILLED = (Outcome.CHARGED, Outcome.ACCRUED)
AUTOMATIC = (Invalid.PREFETCH, Invalid.HEAD, Invalid.ROBOT)


def pick(things: list[T], number: int) -> T:
    """One of ``things``, whatever the number."""
    return things[number % len(things)]


class KilledError(Exception):
    """The process is gone."""


def _gone(_: object) -> None:
    raise KilledError


class Trade(RuleBasedStateMachine):
    """Advertisers, campaigns, auctions, clicks and the passing of time, over one store."""

    fresh: Callable[[], AbstractContextManager[Store]]

    def __init__(self) -> None:
        super().__init__()
        self.opened = ExitStack()
        self.store = self.opened.enter_context(type(self).fresh())
        self.market = Market(self.store, dt.datetime(2026, 11, 25, 20, tzinfo=dt.UTC))
        self.keys = TokenKeys(KEYS)
        self.seats = [self.market.seat("Lumo"), self.market.seat("Vara")]
        self.listings: list[Listing] = []
        self.auctions: list[ServedAuction] = []
        self.owed: dict[str, int] = defaultdict(int)
        self.paid: dict[str, int] = defaultdict(int)
        self.spent: dict[tuple[str, dt.date], int] = defaultdict(int)
        self.budget: dict[str, int] = {}
        self.clicked: set[str] = set()
        self.steps = 0

    def teardown(self) -> None:
        with self.opened:
            assert audit(self.store).discrepancies == []

    @initialize(
        bids=st.lists(st.integers(1, 100), min_size=2, max_size=4), rules=st.lists(RULES, min_size=3)
    )
    def open_market(self, bids: list[int], rules: list[PriceRule]) -> None:
        for number, bid in enumerate(bids):
            self.list_ad(number % 2, bid, 3 * bid)
        for number, price_rule in enumerate(rules):
            self.hold_auction([number, number + 1], price_rule, 1 / 3, False, False)

    @rule(seat=st.integers(0, 1), bid=st.integers(1, 100), budget=st.integers(0, 300))
    def list_ad(self, seat: int, bid: int, budget: int) -> None:
        listing = self.market.listing(self.seats[seat], bid=bid, budget=budget * UNIT)
        self.budget[listing.campaign_id] = budget * UNIT
        self.listings.append(listing)

    @rule(number=NUMBERS, budget=st.integers(0, 300))
    def change_budget(self, number: int, budget: int) -> None:
        listing = pick(self.listings, number)
        change = {"daily_budget_micros": budget * UNIT}
        self.store.parties.change_campaign(listing.campaign_id, change, self.market.now)
        self.budget[listing.campaign_id] = budget * UNIT

    @rule(
        numbers=st.lists(NUMBERS, min_size=1, max_size=3),
        price_rule=RULES,
        pctr=st.sampled_from([0.0, 0.013, 1 / 3, 0.5, 1.0]),
        resampled=st.booleans(),
        test=st.sampled_from([False, False, False, True]),
    )
    def hold_auction(
        self, numbers: list[int], price_rule: PriceRule, pctr: float, resampled: bool, test: bool
    ) -> None:
        placed = {one.ad.id: one for one in (pick(self.listings, number) for number in numbers)}.values()
        resampled = resampled and price_rule is PriceRule.RESAMPLED
        auction = self.market.auction(*placed, rule=price_rule, pctr=pctr, resampled=resampled, test=test)
        self.store.record(auction)
        if price_rule is PriceRule.EXPECTED and not test:
            for shown in sorted(auction.impressions, key=lambda one: (one.advertiser_id, one.campaign_id)):
                if self.fits(shown.campaign_id, shown.price_micros):
                    self.owed[shown.advertiser_id] += shown.price_micros
        self.auctions.append(auction)

    @rule(number=NUMBERS)
    def record_again(self, number: int) -> None:
        self.store.record(pick(self.auctions, number))

    @rule(hours=st.integers(0, 5))
    def wait(self, hours: int) -> None:
        self.market.now += dt.timedelta(hours=hours)

    @rule(number=NUMBERS, index=st.integers(0, 2))
    def click(self, number: int, index: int) -> None:
        auction = pick(self.auctions, number)
        index %= len(auction.impressions)
        shown = auction.impressions[index]
        claims = self.keys.verify(self.keys.sign(self.market.claims(auction, index, TTL)))
        charge = self.store.click(claims, self.market.now)
        assert charge.outcome is self.outcome_of(auction, index)
        if charge.outcome in BILLED:
            assert charge.amount_micros == shown.price_micros
        else:
            assert charge.amount_micros == 0
        if charge.outcome is Outcome.CHARGED:
            self.owed[shown.advertiser_id] += charge.amount_micros
        if charge.outcome not in (Outcome.EXPIRED, Outcome.REPLAY):
            self.clicked.add(shown.id)

    @rule(number=NUMBERS, index=st.integers(0, 2), reason=st.sampled_from(AUTOMATIC))
    def click_that_no_person_made(self, number: int, index: int, reason: Invalid) -> None:
        auction = pick(self.auctions, number)
        claims = self.market.claims(auction, index % len(auction.impressions), TTL)
        charge = self.store.click(claims, self.market.now, reason)
        assert (charge.outcome, charge.reason, charge.amount_micros) == (Outcome.INVALID, reason, 0)

    @rule(number=NUMBERS, place=st.integers(0, 400), bit=st.integers(0, 6))
    def click_tampered(self, number: int, place: int, bit: int) -> None:
        token = self.keys.sign(self.market.claims(pick(self.auctions, number), 0, TTL))
        place %= len(token)
        with pytest.raises(TokenError):
            self.keys.verify(token[:place] + chr(ord(token[place]) ^ 1 << bit) + token[place + 1 :])

    @rule(count=st.integers(1, 4))
    def click_everything_at_once(self, count: int) -> None:
        chosen = self.auctions[-count:]
        claims = [
            self.market.claims(auction, index, TTL)
            for auction in chosen
            for index in range(len(auction.impressions))
        ]
        with ThreadPoolExecutor(4) as threads:
            charges = list(threads.map(lambda one: self.store.click(one, self.market.now), claims * 2))
        by_id = {shown.id: shown for auction in chosen for shown in auction.impressions}
        charged: list[str] = []
        for one, charge in zip(claims * 2, charges, strict=True):
            shown = by_id[one.impression_id]
            if charge.outcome in BILLED:
                charged.append(shown.id)
                self.spent[shown.campaign_id, self.market.now.date()] += max(0, charge.amount_micros)
            if charge.outcome is Outcome.CHARGED:
                self.owed[shown.advertiser_id] += charge.amount_micros
            if charge.outcome not in (Outcome.EXPIRED, Outcome.REPLAY):
                assert shown.id not in self.clicked
                self.clicked.add(shown.id)
        assert len(charged) == len(set(charged))

    @rule()
    def settle(self) -> None:
        accrued = {seat: self.store.parties.advertiser(seat).accrued_micros for seat in self.seats}
        billed = {one.advertiser_id: one.billed_micros for one in self.store.settle(self.market.now)}
        assert billed == {seat: micros for seat, micros in accrued.items() if micros > 0}
        for seat, micros in billed.items():
            self.owed[seat] += micros

    @rule(seat=st.integers(0, 1), micros=st.integers(1, 10**9))
    def pay(self, seat: int, micros: int) -> None:
        reference = f"INV-{next(self.market.numbers)}"
        self.store.parties.pay(self.seats[seat], micros, "USD", reference, self.market.now)
        self.paid[self.seats[seat]] += micros

    @rule(
        number=NUMBERS, index=st.integers(0, 2), what=st.sampled_from(["click", "auction", "settle", "pay"])
    )
    def killed_before_the_commit(self, number: int, index: int, what: str) -> None:
        """Nothing of it has happened: not a line, not a debit, not the click itself."""
        auction, now = pick(self.auctions, number), self.market.now
        listed = pick(self.listings, number)
        if what == "click":
            claims = self.market.claims(auction, index % len(auction.impressions), TTL)
            self.killed(lambda: self.store.click(claims, now))
        elif what == "auction":
            held = self.market.auction(listed, rule=PriceRule.EXPECTED, pctr=0.5)
            self.killed(lambda: self.store.record(held))
            assert all(one.auction.id != held.id for one in self.store.auctions(now - DAY, now + DAY, None))
        elif what == "settle":
            if any(self.store.parties.advertiser(seat).accrued_micros > 0 for seat in self.seats):
                self.killed(lambda: self.store.settle(now))
        else:
            self.killed(lambda: self.store.parties.pay(self.seats[0], 10**6, "USD", "INV-killed", now))

    def killed(self, act: Callable[[], object]) -> None:
        """``act`` in a process that is gone before its first commit, and another one after it."""
        engine = self.store.database.engine
        event.listen(engine, "commit", _gone)
        try:
            with pytest.raises(KilledError):
                act()
        finally:
            event.remove(engine, "commit", _gone)
            engine.dispose()

    @rule(number=NUMBERS)
    def select(self, number: int) -> None:
        listing = pick(self.listings, number)
        left = self.budget[listing.campaign_id] - self.spent[listing.campaign_id, self.market.now.date()]
        found = reasons(self.store, self.market.now, Filters())[listing.ad.id]
        assert found is (Reason.BUDGET if left < listing.bid_micros else None)

    @invariant()
    def balances_are_what_was_owed_and_paid(self) -> None:
        for seat in self.seats:
            assert self.store.parties.advertiser(seat).balance_micros == self.paid[seat] - self.owed[seat]

    @invariant()
    def spending_is_what_was_charged(self) -> None:
        for (campaign_id, day), micros in self.spent.items():
            assert self.store.parties.spent(campaign_id, day) == micros

    @invariant()
    def the_audit_is_clean(self) -> None:
        """Every fifth time, and at the end: entries stay, and with them what is wrong in them."""
        self.steps += 1
        assert self.steps % 5 or audit(self.store).discrepancies == []

    def outcome_of(self, auction: ServedAuction, index: int) -> Outcome:
        """What a click now should come to; the budget is debited where it is a charge."""
        shown = auction.impressions[index]
        if shown.id in self.clicked:
            return Outcome.REPLAY
        if self.market.now.timestamp() >= int(auction.created.timestamp()) + TTL:
            return Outcome.EXPIRED
        if auction.test:
            return Outcome.TEST
        if auction.price_rule is PriceRule.EXPECTED:
            return Outcome.BILLED_AT_IMPRESSION
        if not self.fits(shown.campaign_id, shown.price_micros):
            return Outcome.BUDGET
        return Outcome.ACCRUED if auction.price_rule is PriceRule.RESAMPLED else Outcome.CHARGED

    def fits(self, campaign_id: str, price: int) -> bool:
        """Debit the campaign's day, if it holds the price."""
        key = (campaign_id, self.market.now.date())
        if price > 0 and self.spent[key] + price > self.budget[campaign_id]:
            return False
        self.spent[key] += max(price, 0)
        return True


def trade(fresh: Callable[[], AbstractContextManager[Store]], examples: int) -> None:
    """Run the machine over stores that ``fresh`` opens."""

    class Here(Trade):
        pass

    Here.fresh = staticmethod(fresh)
    how = settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Here, settings=how)  # type: ignore[no-untyped-call]


@pytest.mark.slow
def test_trade(fresh: Callable[[], AbstractContextManager[Store]]) -> None:
    trade(fresh, examples=50)
