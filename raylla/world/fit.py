"""How well ads suit questions, by the text encoder: RAG-Auction weighs it, user welfare is made of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raylla.records import Planned
from raylla.world.retrieval import ENCODED_AT_ONCE, Encode, Vectors
from raylla.world.texts import ad_text
from raylla.world.turns import in_context
from raylla.world.world import World


class Fit:
    """Cosines of queries and ads of one world.

    From all vectors the mean of the catalogue and the training queries is taken off first: mean-pooled
    vectors have most of their length in common.
    """

    def __init__(self, world: World, encode: Encode) -> None:
        self._world = world
        self._encode = encode
        self._mean: NDArray[np.float32] | None = None

    def encode(self, texts: Sequence[str]) -> Vectors:
        """The encoder's vectors, [len(texts), dim]."""
        parts = [
            list(texts[start : start + ENCODED_AT_ONCE]) for start in range(0, len(texts), ENCODED_AT_ONCE)
        ]
        return np.concatenate([self._encode(part) for part in parts or [[]]])

    def directions(self, texts: Sequence[str]) -> Vectors:
        """The vectors less the mean, of length 1, [len(texts), dim]."""
        vectors = self.encode(texts)
        if not len(vectors):
            return vectors
        vectors = vectors - self._center()
        units: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        return units

    def relevance(self, auctions: Sequence[Planned]) -> list[NDArray[np.float64]]:
        """Cosine of query and ad (what it says of itself), [n] for each auction."""
        queries = [in_context(planned.query) for planned in auctions]
        ads = list(dict.fromkeys(ad for planned in auctions for ad in planned.ads))
        vectors = self.directions([*queries, *map(ad_text, ads)])
        place = {ad: len(queries) + index for index, ad in enumerate(ads)}
        return [
            vectors[[place[ad] for ad in planned.ads]].astype(np.float64) @ vectors[index]
            for index, planned in enumerate(auctions)
        ]

    def _center(self) -> NDArray[np.float32]:
        if self._mean is None:
            queries = [in_context(query) for query in self._world.of("train")]
            self._mean = self.encode([*queries, *map(ad_text, self._world.ads)]).mean(axis=0)
        return self._mean
