"""Money is a whole number of micros: millionths of the currency that `serving.currency` names.

The model reads bids in units (1 .. world.max_bid); `serving.micros_per_unit` says what one unit is
worth. Prices are rounded once, half to even, from the exact product, so that whoever computes one
again, in the response, the ledger or the audit, finds the same micro.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from raylla.errors import MoneyError

Micros = int
"""An amount of money, in millionths of the currency."""

MICROS = 1_000_000
"""Micros of one unit of the currency."""

LARGEST = 10**15
"""Largest single amount, 10^9 of the currency."""

MOST: Micros = 2**63 - 1
"""Largest sum that a database keeps."""


def from_units(units: float, micros_per_unit: int) -> Micros:
    """Bid units as micros."""
    return times(micros_per_unit, units)


def to_units(micros: Micros, micros_per_unit: int) -> float:
    """Micros as bid units, the scale of rewards and prompts."""
    return micros / micros_per_unit


def times(micros: Micros, factor: float) -> Micros:
    """``micros * factor``, exact before it is rounded half to even."""
    return round(micros * Fraction(factor))


def check_bid(micros: Micros, micros_per_unit: int, max_bid: int) -> Micros:
    """``micros``, if it is a bid: a whole multiple of ``micros_per_unit``, of 1 to ``max_bid`` units.

    Raises:
        MoneyError: any other amount; the model was trained on that grid.
    """
    units, rest = divmod(micros, micros_per_unit)
    if rest or not 1 <= units <= max_bid:
        raise MoneyError(
            f"bid_micros={micros}: a bid is a whole multiple of {micros_per_unit} micros, "
            f"from {micros_per_unit} to {max_bid * micros_per_unit}"
        )
    return micros


def decimal(micros: Micros) -> str:
    """Micros as a decimal number of the currency, for people and notices: 640000 is 0.640000."""
    return f"{Decimal(micros) / MICROS:.6f}"
