"""First-price payments per click, and the intention-to-treat click rate they follow from."""

from __future__ import annotations

import math
from collections.abc import Sequence


def payment_per_click(bid: float, clicked: bool) -> float:
    """The charge for one impression, in bid units: the bid on a valid click, else nothing."""
    return _checked(bid) if clicked else 0.0


def expected_payment(bid: float, itctr: float) -> float:
    """Expected payment p_i = b_i * itctr_i of one auction (Eq. 7), in bid units.

    Raises:
        ValueError: ``bid`` is no finite number of at least 0, or ``itctr`` is not in [0, 1].
    """
    if not 0 <= itctr <= 1:
        raise ValueError(f"itctr={itctr!r} is no rate; give a number in [0, 1]")
    return _checked(bid) * itctr


def estimate_itctr(samples: Sequence[float | None]) -> float:
    """Estimate of itctr_i = E_y[ctr_i 1(a_i in y)] (Def. 3.1) from sampled answers.

    Each sample is the ad's click probability (or its click, 0 or 1) in one answer, None where
    the answer does not place the ad; those count as 0.

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("itctr of no samples; sample at least one answer")
    return math.fsum(sample for sample in samples if sample is not None) / len(samples)


def _checked(bid: float) -> float:
    if not math.isfinite(bid) or bid < 0:
        raise ValueError(f"bid={bid!r}: a bid is a finite number of at least 0")
    return bid
