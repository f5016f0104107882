"""What an audit has read, and what does not add up."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from raylla.serving.money.money import Micros


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """Something that does not add up: what the store says, and what it should."""

    subject: str
    field: str
    found: object
    expected: object

    def __str__(self) -> str:
        return f"{self.subject}: {self.field} is {self.found}, should be {self.expected}"


@dataclass(slots=True)
class Audit:
    """What was read, and what did not add up.

    ``accounts`` is what the ledger leaves in each, all advertisers together; they sum to zero.
    ``last`` and ``seal`` are the end of the ledger's chain.
    """

    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    billed_micros: Micros = 0
    accounts: dict[str, Micros] = field(default_factory=lambda: defaultdict(int))
    last: int = 0
    seal: str = ""
    discrepancies: list[Discrepancy] = field(default_factory=list)

    def expect(self, subject: str, field: str, found: object, expected: object) -> None:
        """Note a discrepancy unless both are equal."""
        if found != expected:
            self.discrepancies.append(Discrepancy(subject, field, found, expected))
