"""Price rules: what bid an ad enters an auction with, and what each impression or click costs.

    first_price   the bid, for each click.
    expected      bid * pCTR, for each shown impression, clicked or not.
    resampled     the bid for each click, or bid * (1 - 1/mu), a rebate, where the bid was resampled.
    reserve       for each click what a price sheet says of who competes, at least the ad's reserve and
                  at most its bid (`raylla.pricing.rule`, `raylla.serving.money.sheets`).

All money is whole micros of the account's currency and every result is a pure function of its
arguments, so that the response, the ledger and the audit compute the same number.

`expected` bills the paper's expected payment p_i = b_i * itctr_i (Eq. 7) without computing itctr_i: of
the answer that was sampled it bills b_i * pctr_i where ad i is shown and nothing where it is not, and

    E_y[ b_i pctr_i(y) 1(a_i in y) ] = b_i * itctr_i      for answers y ~ policy and exact pctr.

`resampled` is canonical self-resampling (Babaioff, Kleinberg, Slivkins 2010; `raylla.auction.truthful`)
on the grid of bids that the model was trained on: a lowered bid is rounded up to whole bid units.  The
model then sees a step function of the bid, still monotone, and the expected charge is the Myerson
price of exactly that function.  A floor must act on the bid that `enter` returns, not on the one that
was handed in, or else an advertiser below the floor would gain by bidding above it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, assert_never

import numpy as np

from raylla.auction import truthful
from raylla.serving.money.money import Micros, times
from raylla.serving.money.records import PriceRule

Event = Literal["impression", "click"]


@dataclass(frozen=True, slots=True)
class EnteredBid:
    """The bid that the model reads for one ad, and whether it was resampled (it may then still be
    the whole bid)."""

    bid_micros: Micros
    resampled: bool


@dataclass(frozen=True, slots=True)
class PeriodBill:
    """What a period bills an advertiser (at least 0), and the rebates that it carries on (at most 0)."""

    billed_micros: Micros
    carried_micros: Micros


def enter(
    rule: PriceRule,
    bid_micros: Micros,
    unit_micros: Micros,
    mu: float,
    seed: int,
    auction_id: str,
    ad_id: str,
) -> EnteredBid:
    """The bid with which an ad enters an auction: its own, or under `resampled` with probability
    ``mu`` a lower one, fixed by (seed, auction id, ad id) and by no other ad.

    Raises:
        ValueError: the bid is not a positive whole multiple of ``unit_micros``, or ``mu`` is not
            inside (0, 1).
    """
    if unit_micros < 1 or bid_micros < 1 or bid_micros % unit_micros:
        raise ValueError(
            f"bid_micros={bid_micros}: give a positive whole multiple of micros_per_unit={unit_micros}"
        )
    if rule is not PriceRule.RESAMPLED:
        return EnteredBid(bid_micros, False)
    units = bid_micros // unit_micros
    name = hashlib.sha256(f"{seed}/resample/{auction_id}/{ad_id}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(name, "big"))
    lowered, resampled = truthful.resample([units], mu, rng)
    # u = 0 is possible, if barely; the grid begins at one unit
    entered = max(1, int(np.ceil(lowered[0])))
    return EnteredBid(entered * unit_micros, bool(resampled[0]))


def charged_at(rule: PriceRule) -> Event:
    """Whether an impression is charged when it is shown or when it is clicked."""
    match rule:
        case PriceRule.EXPECTED:
            return "impression"
        case PriceRule.FIRST_PRICE | PriceRule.RESAMPLED | PriceRule.RESERVE:
            return "click"
        case _:
            assert_never(rule)


def price(
    rule: PriceRule,
    bid_micros: Micros,
    *,
    pctr: float,
    resampled: bool,
    mu: float,
    quoted: Micros | None = None,
) -> Micros:
    """What one event (`charged_at`) of an impression costs; negative for a rebate.

    ``bid_micros`` is the advertiser's own bid, whatever bid the model read.  Exact arithmetic,
    rounded once, half to even: ``mu`` counts as the decimal number that it is written as.  ``quoted``
    is what the price sheet of `reserve` says of the auction.

    Raises:
        ValueError: the bid is negative, ``pctr`` or ``mu`` is out of its range, or ``quoted`` is missing
            under `reserve`, negative or above the bid.
    """
    if bid_micros < 0:
        raise ValueError(f"bid_micros={bid_micros}: a bid is at least 0")
    match rule:
        case PriceRule.FIRST_PRICE:
            return bid_micros
        case PriceRule.EXPECTED:
            if not 0 <= pctr <= 1:
                raise ValueError(f"pctr={pctr!r} is no probability; give a number in [0, 1]")
            return times(bid_micros, pctr)
        case PriceRule.RESAMPLED:
            if not resampled:
                return bid_micros
            if not 0 < mu < 1:
                raise ValueError(f"mu={mu!r}: give a probability between 0 and 1, for example 0.1")
            return round(bid_micros * (1 - 1 / Fraction(str(mu))))
        case PriceRule.RESERVE:
            if quoted is None or not 0 <= quoted <= bid_micros:
                raise ValueError(
                    f"price_micros={quoted} of its candidate: under `reserve` it is at most the bid, "
                    f"{bid_micros}, and at least 0"
                )
            return quoted
        case _:
            assert_never(rule)


def per_click(
    rule: PriceRule, bid_micros: Micros, *, resampled: bool, mu: float, quoted: Micros | None = None
) -> Micros:
    """What a click itself costs: `price`, or 0 where the impression is what is billed."""
    if charged_at(rule) == "impression":
        return 0
    return price(rule, bid_micros, pctr=0.0, resampled=resampled, mu=mu, quoted=quoted)


def settle_period(accrued_micros: Micros) -> PeriodBill:
    """Bill one advertiser's period: the sum of its accrued prices and of what earlier ones carried on.

    A single resampled click is worth 1/mu - 1 bids to the advertiser and says nothing about its
    price; over a period the sum does.  A period never pays out: a sum below 0 bills nothing and is
    carried on, so that over all periods nothing is lost or billed twice.
    """
    return PeriodBill(max(0, accrued_micros), min(0, accrued_micros))
