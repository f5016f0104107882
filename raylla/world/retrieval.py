"""Which ads reach the prompt where the catalogue holds more: search by meaning, among eligible ads.

The endpoint asks it for every question, and training and evaluation once for the queries of a world.

A row is an ad's place in the catalogue that `refresh` was given.  Ads and queries are vectors of the
frozen text encoder; relevance is the cosine of an ad's and a query's, both centred and scaled first,
because mean-pooled vectors have most of their length in common.

Retrieval reads relevance alone, never a bid.  Whether ad i reaches the prompt, and beside which others,
then does not depend on b_i, so an allocation that is monotone in b_i within a prompt is monotone in it
altogether, and prices computed from it stay what they are.  (Ranking by any score that rises with an
ad's own bid would keep monotonicity too, but each ad's price would then need the least bid at which it
is still retrieved.)

    up to FLAT eligible rows    every one is compared
    more                        inverted lists (faiss IVF) around k-means centres: those nearest to the
                                query, and then as many more as may still hold a better row

The mask is applied inside the search, so that ineligible ads never take a place among the k. A mask may go
with the topic (a blocked category is the question's own), and then what is left of the nearest lists says
nothing about where the best rows are. So a list is left out only where its rows, by their mean and spread
along the query, cannot be expected to reach the k-th best that was found: WORTH deviations above the mean
are still below it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from raylla.records import Ad
from raylla.world.texts import ad_text
from raylla.world.turns import in_context
from raylla.world.world import World

Vectors = NDArray[np.float32]
Mask = NDArray[np.bool_]
Encode = Callable[[list[str]], Vectors]

FLAT = 20_000
"""Most rows that are compared one by one."""
PROBES = 24
"""Lists that are searched in any case."""
MORE = 4
"""How many times as many are searched next, at most, where that may find better rows."""
WORTH = 4.0
"""Standard deviations above a list's mean score up to which its best row is expected."""
ENCODED_AT_ONCE = 4096
TRAINED_ON = 64
"""Rows per list that k-means sees."""
SEED = 0
_QUERIES = 500
"""Questions of a world that tell what all questions have in common."""


def as_asked(ad: Ad) -> str:
    """What is encoded of an ad: its words as they would stand in the middle of a query."""
    return f" {ad_text(ad)}".lower()


def questions(world: World) -> list[str]:
    """The texts that `Retrieval` is begun with."""
    return [in_context(query) for query in world.queries[:_QUERIES]]


@dataclass(frozen=True, slots=True)
class _Scale:
    """What all ads, and all queries, have in common; taken out before they are compared."""

    ads: Vectors
    queries: Vectors
    deviation: Vectors

    def ad(self, vectors: Vectors) -> Vectors:
        return _unit((vectors - self.ads) / self.deviation)

    def query(self, vector: Vectors) -> Vectors:
        return _unit((vector - self.queries) / self.deviation)


class Retrieval:
    """An index over the catalogue; `search` may be called while another thread is in `refresh`."""

    def __init__(self, queries: Vectors) -> None:
        """``queries`` [n, dim]: the encoder's vectors of some hundred queries, of which the mean is
        what questions have in common.

        Raises:
            ValueError: there are none.
        """
        if queries.ndim != 2 or not len(queries):
            raise ValueError(f"queries has shape {queries.shape}; give the vectors of at least one query")
        self._queries = queries.mean(axis=0)
        self._lock = threading.Lock()
        self._refreshing = threading.Lock()
        self._texts: list[str] = []
        self._units: Vectors = np.zeros((0, queries.shape[1]), dtype=np.float32)
        self._scale = _Scale(self._queries, self._queries, np.ones_like(self._queries))
        self._fitted = 0
        self._index: _Lists | None = None

    def __len__(self) -> int:
        """Rows of the catalogue."""
        return len(self._texts)

    def refresh(self, ads: Sequence[Ad], encode: Encode) -> int:
        """Take over a catalogue; how many rows had to be encoded.

        Only rows that are new or read otherwise than before are encoded, and put into the index in
        place; all of them are, and the index is made anew, once the catalogue has doubled or halved.
        """
        with self._refreshing:
            texts = [as_asked(ad) for ad in ads]
            if not texts or not self._fitted / 2 <= len(texts) <= self._fitted * 2:
                self._rebuild(texts, encode)
                return len(texts)
            known = self._texts
            moved = [row for row, text in enumerate(texts) if row >= len(known) or text != known[row]]
            if moved or len(texts) != len(known):
                vectors = self._scale.ad(
                    encoded([texts[row] for row in moved], encode, self._units.shape[1])
                )
                self._replace(texts, np.array(moved, dtype=np.int64), vectors)
            return len(moved)

    def search(self, vector: Vectors, mask: Mask | None, k: int, exact: bool = False) -> list[int]:
        """Rows of the ``k`` most relevant ads that ``mask`` [rows] allows, the most relevant first.

        ``vector`` [dim] is the encoder's of the query's text.  Fewer than ``k`` where fewer are allowed.
        ``exact`` compares every allowed row, however many they are.  A mask may be of a catalogue that
        has grown since, or that `refresh` has still to take over: rows that only one of both knows
        are not found.
        """
        with self._lock:
            if mask is not None:
                mask = _fitted(mask, len(self._texts))
            allowed = len(self._texts) if mask is None else int(np.count_nonzero(mask))
            k = min(k, allowed)
            if k < 1:
                return []
            query = self._scale.query(vector.astype(np.float32))
            if exact or self._index is None or allowed <= FLAT:
                return self._compare(query, mask, k)
            return self._index.search(query, mask, k)

    def _compare(self, query: Vectors, mask: Mask | None, k: int) -> list[int]:
        rows = np.arange(len(self._texts)) if mask is None else np.flatnonzero(mask)
        scores = self._units[rows] @ query
        best = np.argpartition(-scores, k - 1)[:k]
        nearest: list[int] = rows[best[np.lexsort((best, -scores[best]))]].tolist()
        return nearest

    def _rebuild(self, texts: list[str], encode: Encode) -> None:
        vectors = encoded(texts, encode, self._units.shape[1])
        mean, deviation = self._queries, np.ones_like(self._queries)
        if texts:
            mean, deviation = vectors.mean(axis=0), vectors.std(axis=0)
        # One ad has no deviation, and an entry that never varies tells no ad from another.
        scale = _Scale(mean, self._queries, np.where(deviation > 0, deviation, 1).astype(np.float32))
        # Room for as many rows again, after which all is made anew; untouched memory is not taken.
        units = np.empty((2 * len(texts), vectors.shape[1]), dtype=np.float32)
        units[: len(texts)] = scale.ad(vectors)
        index = _Lists(units[: len(texts)]) if len(texts) > FLAT else None
        with self._lock:
            self._texts, self._units, self._scale, self._index = texts, units, scale, index
            self._fitted = len(texts)

    def _replace(self, texts: list[str], moved: NDArray[np.int64], vectors: Vectors) -> None:
        with self._lock:
            self._units[moved] = vectors
            if self._index is not None:
                self._index.replace(self._units[: len(texts)], moved)
            self._texts = texts


def _fitted(mask: Mask, rows: int) -> Mask:
    """``mask`` over ``rows`` rows, false where it has none."""
    if len(mask) >= rows:
        return mask[:rows]
    return np.concatenate([mask, np.zeros(rows - len(mask), dtype=bool)])


def encoded(texts: Sequence[str], encode: Encode, dim: int) -> Vectors:
    """``encode`` of all ``texts``, asked for some thousands at a time: [texts, dim]."""
    vectors = np.zeros((len(texts), dim), dtype=np.float32)
    for start in range(0, len(texts), ENCODED_AT_ONCE):
        vectors[start : start + ENCODED_AT_ONCE] = encode(list(texts[start : start + ENCODED_AT_ONCE]))
    return vectors


class _Lists:
    """Inverted lists over unit vectors, about sqrt(rows) of them, and how the rows of each are spread."""

    def __init__(self, units: Vectors) -> None:
        count, dim = units.shape
        self._index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(dim), dim, 2 ** round(math.log2(math.sqrt(count))), faiss.METRIC_INNER_PRODUCT
        )
        self._index.cp.max_points_per_centroid = TRAINED_ON
        self._index.cp.seed = SEED
        self._index.train(units)
        self._index.add(units)
        lists = self._index.nlist
        self._centers: Vectors = self._index.quantizer.reconstruct_n(0, lists)
        self._of = self._nearest(units)
        self._mean = np.zeros((lists, dim), dtype=np.float32)
        self._variance = np.zeros((lists, dim), dtype=np.float32)
        self._measure(units, np.arange(lists))

    def replace(self, units: Vectors, moved: NDArray[np.int64]) -> None:
        """Take over ``units``, of which the rows ``moved`` are new or other than before."""
        gone = np.arange(len(units), len(self._of))
        self._index.remove_ids(faiss.IDSelectorBatch(np.concatenate([moved, gone])))
        self._index.add_with_ids(units[moved], moved)
        known = moved[moved < len(self._of)]
        touched = [self._of[known], self._of[len(units) :]]
        of = np.zeros(len(units), dtype=np.int64)
        kept = min(len(units), len(self._of))
        of[:kept] = self._of[:kept]
        of[moved] = self._nearest(units[moved])
        self._of = of
        self._measure(units, np.unique(np.concatenate([*touched, of[moved]])))

    def search(self, query: Vectors, mask: Mask | None, k: int) -> list[int]:
        """The ``k`` best rows that ``mask`` allows."""
        bits = None if mask is None else np.packbits(mask, bitorder="little")
        # faiss declares the constructors of its C++ side, not those that Python has
        chosen = None if bits is None else faiss.IDSelectorBitmap(bits)  # type: ignore[arg-type, call-arg]
        best = self._mean @ query + WORTH * np.sqrt(self._variance @ query**2)
        best = best[np.argsort(-(self._centers @ query))]  # in the order in which faiss takes the lists
        probes = min(PROBES, len(best))
        while True:
            how = faiss.SearchParametersIVF(sel=chosen, nprobe=probes)  # type: ignore[call-arg]
            scores, nearest = self._index.search(query[None], k, params=how)
            least = scores[0, -1] if nearest[0, -1] >= 0 else -np.inf
            hopeful = np.flatnonzero(best > least)
            needed = int(hopeful[-1]) + 1 if len(hopeful) else 0
            if needed <= probes:
                rows: list[int] = nearest[0][nearest[0] >= 0].tolist()
                return rows
            probes = min(needed, MORE * probes)

    def _nearest(self, units: Vectors) -> NDArray[np.int64]:
        """The list of each row."""
        if not len(units):
            return np.zeros(0, dtype=np.int64)
        lists: NDArray[np.int64] = self._index.quantizer.search(units, 1)[1][:, 0]
        return lists

    def _measure(self, units: Vectors, lists: NDArray[np.int64]) -> None:
        """Mean and variance [dim] of the rows of ``lists``."""
        order = np.argsort(self._of, kind="stable")
        bounds = np.searchsorted(self._of[order], np.stack([lists, lists + 1]))
        for number, start, stop in zip(lists.tolist(), *bounds.tolist(), strict=True):
            rows = units[order[start:stop]]
            if len(rows):
                self._mean[number], self._variance[number] = rows.mean(axis=0), rows.var(axis=0)


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units: Vectors = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return units
