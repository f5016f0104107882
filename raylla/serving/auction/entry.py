"""How retrieved ads enter an auction: with which bid, above which floors and reserve, at which price."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from raylla.config import Config
from raylla.pricing.sheet import PriceSheet
from raylla.records import Profile, Query
from raylla.serving.money import pricing
from raylla.serving.money.money import Micros
from raylla.serving.money.records import Candidate, Filtered, Listing, PriceRule, Reason
from raylla.serving.money.sheets import quoted_micros, reserve_micros


class Entry:
    """Enters ads; ``sheet`` is that of the rule `reserve`."""

    def __init__(self, config: Config, sheet: PriceSheet | None) -> None:
        self._serving, self._seed, self._sheet = config.serving, config.seed, sheet
        self._rule = PriceRule(config.serving.price_rule)

    def candidates(
        self, listings: Sequence[tuple[Listing, Micros]], auction_id: str, query: Query, profile: Profile
    ) -> tuple[list[Candidate], list[Filtered]]:
        """The candidates among ads and their floors, in the order of the prompt, and those below.

        A floor acts on the bid that enters, not on the advertiser's own (`raylla.serving.money.pricing`).
        Under `reserve` the sheet's reserve or the floor, whichever is more, is where prices begin; they
        follow from who is left.
        """
        kept, below = [], []
        for listing, floor in listings:
            candidate = self._enter(listing, auction_id)
            if self._sheet is not None:
                unit = self._serving.micros_per_unit
                reserve = reserve_micros(self._sheet, query, profile, listing.ad, unit, floor)
                candidate = replace(candidate, reserve_micros=reserve)
            if candidate.bid_micros < max(floor, candidate.reserve_micros or 0):
                below.append(Filtered(listing.ad.id, Reason.FLOOR))
            else:
                kept.append(candidate)
        # Training prompts list their ads in no order: an order would be read as a signal.
        random.Random(auction_id).shuffle(kept)
        return self._priced(kept, query, profile), below

    def _enter(self, listing: Listing, auction_id: str) -> Candidate:
        """``listing`` with the bid that the model reads."""
        entry = pricing.enter(
            self._rule,
            listing.bid_micros,
            self._serving.micros_per_unit,
            self._serving.resample_share,
            self._seed,
            auction_id,
            listing.ad.id,
        )
        return Candidate(listing, entry.bid_micros, entry.resampled)

    def _priced(self, kept: list[Candidate], query: Query, profile: Profile) -> list[Candidate]:
        if self._sheet is None:
            return kept
        entered = [
            (candidate.listing.ad, candidate.bid_micros, candidate.reserve_micros or 0)
            for candidate in kept
        ]
        prices = quoted_micros(self._sheet, query, profile, entered, self._serving.micros_per_unit)
        return [
            replace(candidate, price_micros=price) for candidate, price in zip(kept, prices, strict=True)
        ]
