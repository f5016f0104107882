"""A world: who asks, what is advertised, what is asked. Plain data, shared by every actor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from raylla.records import Ad, Auction, Profile, Query, Split


@dataclass(frozen=True)
class World:
    """Profiles, ads and queries, with look-ups by id.

    ``related`` names, for queries of real data, the ads that the data pairs with them (query id
    -> ad ids); a synthetic world has none.  ``notes`` count what an importer had to change.
    ``candidates`` are the ads that were found for a query by meaning (query id -> ad ids in the order
    of its prompts).  ``auctions`` are those that were served to users: phase 1 of the epoch that their
    id names.
    """

    name: str
    seed: int
    profiles: tuple[Profile, ...]
    ads: tuple[Ad, ...]
    queries: tuple[Query, ...] = ()
    related: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    candidates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)
    auctions: tuple[Auction, ...] = ()

    @cached_property
    def profile_by_id(self) -> dict[str, Profile]:
        """Profile id -> profile."""
        return {profile.id: profile for profile in self.profiles}

    @cached_property
    def ad_by_id(self) -> dict[str, Ad]:
        """Ad id -> ad."""
        return {ad.id: ad for ad in self.ads}

    @cached_property
    def query_by_id(self) -> dict[str, Query]:
        """Query id -> query."""
        return {query.id: query for query in self.queries}

    @cached_property
    def auction_by_id(self) -> dict[str, Auction]:
        """Auction id -> served auction."""
        return {auction.id: auction for auction in self.auctions}

    @cached_property
    def ad_ids(self) -> frozenset[str]:
        """Ids of the whole catalogue, as `auction.parse` wants them."""
        return frozenset(self.ad_by_id)

    def of(self, split: Split) -> tuple[Query, ...]:
        """The queries of one split, in the world's order."""
        return tuple(query for query in self.queries if query.split == split)
