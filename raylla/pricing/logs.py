"""Logged auctions as what curves and reserves are learned from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raylla.auction.checks import Array
from raylla.errors import DataError
from raylla.pricing.curve import MOST_UNITS, TRAITS, Contests

_SLACK = 1e-6
"""What sums of shares of answers may be off by."""


@dataclass(frozen=True, slots=True)
class LoggedAuction:
    """An auction, its ads in the order of the prompt, and what ``answers`` answers made of it.

    ``asked`` names what is kept together in a fold: the question.  ``placed`` [n] counts answers, one of k
    ads as 1 / k each ad's; of those that were read for clicks, ``judged`` [n] counts the same, and
    ``clicks`` [n] adds up their clicks, or the probabilities of them.
    """

    asked: str
    bids: tuple[float, ...]
    traits: tuple[tuple[int, ...], ...]
    kinds: tuple[tuple[str, str], ...]
    """Category and theme of each ad."""
    answers: int
    placed: tuple[float, ...]
    judged: tuple[float, ...]
    clicks: tuple[float, ...]
    version: str = ""


@dataclass(frozen=True)
class AuctionLog:
    """Logged auctions as arrays; see `LoggedAuction`. ``cells`` [a, n] numbers ``names``: what an ad is,
    (category, theme, traits), -1 where there is none."""

    contests: Contests
    answers: Array
    placed: Array
    judged: Array
    clicks: Array
    asked: NDArray[np.int64]
    """Number [a] of the auction's question."""
    folds: NDArray[np.int64]
    cells: NDArray[np.int64]
    names: tuple[tuple[str, str, str], ...]

    def __len__(self) -> int:
        return len(self.contests)

    def rows(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> AuctionLog:
        """Some of the auctions."""
        return AuctionLog(
            self.contests.rows(chosen),
            self.answers[chosen],
            self.placed[chosen],
            self.judged[chosen],
            self.clicks[chosen],
            self.asked[chosen],
            self.folds[chosen],
            self.cells[chosen],
            self.names,
        )

    def thinned(self, bidders: int, seed: int) -> AuctionLog:
        """The auctions with ``bidders`` of their candidates each, drawn; what was answered no longer
        counts."""
        rng = np.random.default_rng(seed)
        there = self.contests.there
        drawn = np.where(there, rng.random(there.shape), np.inf).argsort(axis=1)[:, :bidders]
        drawn.sort(axis=1)  # as they were listed
        at = np.arange(len(self))[:, None], drawn
        kept = Contests(self.contests.bids[at], self.contests.traits[at], there[at])
        nothing = np.zeros_like(kept.bids)
        none = np.zeros_like(self.answers)
        return replace(
            self,
            contests=kept,
            answers=none,
            placed=nothing,
            judged=nothing,
            clicks=nothing,
            cells=self.cells[at],
        )


def check_log(auctions: Sequence[LoggedAuction], largest: float, way_out: str) -> None:
    """Refuse a log that nothing can be learned from, edited or of another grid of bids.

    Raises:
        DataError: names the auction, by its number and question, the field, and ``way_out``.
    """
    if not (2 <= largest <= MOST_UNITS and largest == round(largest)):
        raise DataError(f"largest={largest:g}: give a whole bid of 2 to {MOST_UNITS}; {way_out}")
    for number, auction in enumerate(auctions):
        fault = _fault(auction, largest)
        if fault is not None:
            raise DataError(f"auction {number} ({auction.asked[:60]!r}): {fault}; {way_out}")


def _fault(auction: LoggedAuction, largest: float) -> str | None:
    """What is wrong with an auction's field."""
    for name in ("traits", "kinds", "placed", "judged", "clicks"):
        if len(getattr(auction, name)) != len(auction.bids):
            return f"{name} has {len(getattr(auction, name))} entries, and bids {len(auction.bids)}"
    for bid in auction.bids:
        if not (1 <= bid <= largest and bid == round(bid)):
            return f"bids has {bid:g}, no whole bid of 1 to {largest:g}"
    for traits in auction.traits:
        if len(traits) != len(TRAITS) or not set(traits) <= {0, 1}:
            return f"traits has {traits}, not {len(TRAITS)} of 0 or 1"
    if auction.answers < 0:
        return f"answers is {auction.answers}, below 0"
    placed, judged = sum(auction.placed), sum(auction.judged)
    for name, total, most in (
        ("placed", placed, float(auction.answers)),
        ("judged", judged, placed),
        ("clicks", max(auction.clicks, default=0.0), float(auction.answers)),
    ):
        counts = getattr(auction, name)
        if not (all(count >= 0 for count in counts) and total <= most + _SLACK):
            return f"{name} has {counts}, not counts from 0 of {most:g}"
    return None


def code(traits: Sequence[float]) -> str:
    """Traits as a word: "110"."""
    return "".join(str(int(trait)) for trait in traits)


def as_log(auctions: Sequence[LoggedAuction], folds: int) -> AuctionLog:
    """The arrays of ``auctions``; each question's are in one of ``folds``, told by its text alone."""
    names: dict[tuple[str, str, str], int] = {}
    questions: dict[str, int] = {}
    contests = Contests.of([auction.bids for auction in auctions], [auction.traits for auction in auctions])
    cells = np.full(contests.bids.shape, -1)
    sums = {what: np.zeros(contests.bids.shape) for what in ("placed", "judged", "clicks")}
    for row, auction in enumerate(auctions):
        for place, (kind, traits) in enumerate(zip(auction.kinds, auction.traits, strict=True)):
            cells[row, place] = names.setdefault((*kind, code(traits)), len(names))
        for what, table in sums.items():
            table[row, : len(auction.bids)] = getattr(auction, what)
    return AuctionLog(
        contests,
        np.array([float(auction.answers) for auction in auctions]),
        sums["placed"],
        sums["judged"],
        sums["clicks"],
        np.array(
            [questions.setdefault(auction.asked, len(questions)) for auction in auctions], dtype=np.int64
        ),
        np.array([_fold(auction.asked, folds) for auction in auctions]),
        cells,
        tuple(names),
    )


def _fold(asked: str, folds: int) -> int:
    return int.from_bytes(hashlib.sha256(f"fold/{asked}".encode()).digest()[:8], "big") % folds


def by_question(table: Array, asked: NDArray[np.int64]) -> Array:
    """Means [q, ...] over the rows of ``table`` [a, ...] of each question, numbered by ``asked`` [a]: its
    auctions are not independent of each other."""
    _, at, counts = np.unique(asked, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), *table.shape[1:]))
    np.add.at(sums, at, table)
    result: Array = sums / counts.reshape(-1, *[1] * (table.ndim - 1))
    return result


CLICK_PRIOR = 10.0
"""Placed ads of the average rate that a cell of traits begins with."""


def click_rates(log: AuctionLog) -> dict[str, float]:
    """Clicks of an ad for each answer that is its own, by `code` of its traits, "" all; a cell with few is
    drawn to the average."""
    judged, clicks = log.judged.sum(), log.clicks.sum()
    rates = {"": float(clicks / judged) if judged > 0 else 0.0}
    codes = np.array(["", *(traits for _, _, traits in log.names)])[log.cells + 1]
    for word in sorted(set(codes.ravel()) - {""}):
        here = codes == word
        above = log.clicks[here].sum() + CLICK_PRIOR * rates[""]
        rates[str(word)] = float(above / (log.judged[here].sum() + CLICK_PRIOR))
    return rates


def rates_at(rates: dict[str, float], traits: Array) -> Array:
    """The click rate [a, n] of ads with ``traits`` [a, n, t]."""
    flat = traits.reshape(-1, traits.shape[-1])
    words = [code(row) for row in flat.tolist()]
    return np.array([rates.get(word, rates[""]) for word in words]).reshape(traits.shape[:-1])
