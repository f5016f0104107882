"""Logged auctions as what curves and reserves are learned from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raylla.auction.checks import Array
from raylla.pricing.curve import Contests


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
        return AuctionLog(kept, none, nothing, nothing, nothing, self.folds, self.cells[at], self.names)


def code(traits: Sequence[float]) -> str:
    """Traits as a word: "110"."""
    return "".join(str(int(one)) for one in traits)


def as_log(auctions: Sequence[LoggedAuction], folds: int) -> AuctionLog:
    """The arrays of ``auctions``; each question's are in one of ``folds``, told by its text alone."""
    names: dict[tuple[str, str, str], int] = {}
    contests = Contests.of([one.bids for one in auctions], [one.traits for one in auctions])
    cells = np.full(contests.bids.shape, -1)
    sums = {what: np.zeros(contests.bids.shape) for what in ("placed", "judged", "clicks")}
    for row, one in enumerate(auctions):
        for place, (kind, traits) in enumerate(zip(one.kinds, one.traits, strict=True)):
            cells[row, place] = names.setdefault((*kind, code(traits)), len(names))
        for what, table in sums.items():
            table[row, : len(one.bids)] = getattr(one, what)
    return AuctionLog(
        contests,
        np.array([float(one.answers) for one in auctions]),
        sums["placed"],
        sums["judged"],
        sums["clicks"],
        np.array([_fold(one.asked, folds) for one in auctions]),
        cells,
        tuple(names),
    )


def _fold(asked: str, folds: int) -> int:
    return int.from_bytes(hashlib.sha256(f"fold/{asked}".encode()).digest()[:8], "big") % folds


CLICK_PRIOR = 10.0
"""Placed ads of the average rate that a cell of traits begins with."""


def click_rates(log: AuctionLog) -> dict[str, float]:
    """Clicks of an ad for each answer that is its own, by `code` of its traits, "" all; a cell with few is
    drawn to the average."""
    judged, clicks = log.judged.sum(), log.clicks.sum()
    found = {"": float(clicks / judged) if judged > 0 else 0.0}
    codes = np.array(["", *(traits for _, _, traits in log.names)])[log.cells + 1]
    for one in sorted(set(codes.ravel()) - {""}):
        here = codes == one
        above = log.clicks[here].sum() + CLICK_PRIOR * found[""]
        found[str(one)] = float(above / (log.judged[here].sum() + CLICK_PRIOR))
    return found


def rates_at(rates: dict[str, float], traits: Array) -> Array:
    """The click rate [a, n] of ads with ``traits`` [a, n, t]."""
    flat = traits.reshape(-1, traits.shape[-1])
    words = [code(one) for one in flat.tolist()]
    return np.array([rates.get(one, rates[""]) for one in words]).reshape(traits.shape[:-1])
