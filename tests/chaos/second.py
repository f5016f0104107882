"""A second ledger, in memory and of its own making: what the store should hold after the same events."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from dataclasses import dataclass, field
from fractions import Fraction

SHARE = Fraction(1, 10)
"""mu of the rule `resampled`."""


@dataclass(frozen=True, slots=True)
class Shown:
    """An impression as the second ledger knows it."""

    id: str
    advertiser: str
    campaign: str
    rule: str
    bid: int
    pctr: float
    resampled: bool
    test: bool
    until: float
    """When its token stops to charge, in Unix seconds."""
    quoted: int | None = None
    """What the price sheet asks for a click, under `reserve`."""

    @property
    def price(self) -> int:
        """What it costs, once."""
        if self.rule == "expected":
            return round(self.bid * Fraction(self.pctr))
        if self.rule == "resampled" and self.resampled:
            return round(self.bid - self.bid / SHARE)
        return self.bid if self.quoted is None else self.quoted


@dataclass(frozen=True, slots=True)
class Line:
    """A line that the ledger should have."""

    kind: str
    advertiser: str
    debit: str
    credit: str
    amount: int


@dataclass
class Second:
    """Accounts, budgets and lines. Each method says what the store should answer."""

    lines: list[Line] = field(default_factory=list)
    owed: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    """(account, advertiser) -> what it holds."""
    spent: dict[tuple[str, dt.date], int] = field(default_factory=lambda: defaultdict(int))
    budgets: dict[str, int] = field(default_factory=dict)
    clicked: set[str] = field(default_factory=set)
    paid: dict[str, int] = field(default_factory=dict)
    void: set[int] = field(default_factory=set)

    def show(self, shown: Shown, now: dt.datetime) -> None:
        """An impression; under `expected` it is billed at once, within its budget."""
        if shown.rule == "expected" and not shown.test and self._fits(shown, now):
            self._move("charge", shown.advertiser, "advertiser", "revenue", shown.price)

    def click(self, shown: Shown, now: dt.datetime) -> tuple[str, int]:
        """A click: its outcome and amount."""
        if shown.id in self.clicked:
            return "replay", 0
        if now.timestamp() >= shown.until:
            return "expired", 0
        self.clicked.add(shown.id)
        if shown.test:
            return "test", 0
        if shown.rule == "expected":
            return "billed_at_impression", 0
        if not self._fits(shown, now):
            return "budget", 0
        if shown.rule == "resampled":
            self._move("accrual", shown.advertiser, "accrued", "revenue", shown.price)
            return "accrued", shown.price
        self._move("charge", shown.advertiser, "advertiser", "revenue", shown.price)
        return "charged", shown.price

    def settle(self, advertiser: str) -> int:
        """A settlement: what it bills."""
        due = max(0, -self.owed["accrued", advertiser])
        if due:
            self._move("settlement", advertiser, "advertiser", "accrued", due)
        return due

    def pay(self, advertiser: str, reference: str, amount: int) -> int:
        """A payment: the line that books it."""
        if reference not in self.paid:
            self._move("payment", advertiser, "cash", "advertiser", amount)
            self.paid[reference] = len(self.lines)
        return self.paid[reference]

    def take_back(self, line: int) -> None:
        """The charge or accrual of a line is taken back, once."""
        if line not in self.void:
            self.void.add(line)
            taken = self.lines[line - 1]
            self._move("invalid", taken.advertiser, "invalid", taken.debit, taken.amount)

    def accounts(self) -> dict[str, int]:
        """What each account holds, all advertisers together."""
        found: dict[str, int] = defaultdict(int)
        for (account, _), amount in self.owed.items():
            found[account] += amount
        return found

    def _fits(self, shown: Shown, now: dt.datetime) -> bool:
        day = shown.campaign, now.date()
        price = shown.price
        if price > 0 and self.spent[day] + price > self.budgets[shown.campaign]:
            return False
        self.spent[day] += max(0, price)
        return True

    def _move(self, kind: str, advertiser: str, debit: str, credit: str, amount: int) -> None:
        self.lines.append(Line(kind, advertiser, debit, credit, amount))
        self.owed[debit, advertiser] -= amount
        self.owed[credit, advertiser] += amount
