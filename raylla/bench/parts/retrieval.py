"""Candidate retrieval from a large catalogue ÷ comparing every eligible ad; how much of it is found."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import faiss
import numpy as np
from numpy.typing import NDArray

from raylla import config
from raylla.bench.measure import Row, Side, Spread, compare
from raylla.bench.run import Bench
from raylla.models import resolve
from raylla.records import Ad
from raylla.reward.encoder import Encoder
from raylla.world import build
from raylla.world.retrieval import Mask, Retrieval, Vectors, as_asked
from raylla.world.synthetic import lexicon

_ADS = 1_000_000
REAL = 8_000
"""Ads whose texts are really encoded; the others lie around them."""
NOISE = 0.35
"""Spread around a real ad, as a share of each entry's deviation over all real ads."""
SHARES = (1.0, 0.5, 0.1, 0.01)
_QUERIES = 200
K = 20


def rows(bench: Bench) -> list[Row]:
    """A row for each share of eligible ads, of the median of `_QUERIES` searches, and one for building."""
    faiss.omp_set_num_threads(1)
    encoder = Encoder(resolve(bench.config.pctr.encoder, "pctr.encoder"))
    real = build.catalogue(config.World(ads=REAL), bench.config.seed)
    queries = encoder.encode(_questions())
    search = Retrieval(queries)
    vectors = _crowd(encoder.encode([as_asked(ad) for ad in real]), bench.config.seed)
    crowd = [real[row % REAL] for row in range(_ADS)]
    encoded = _Cursor(vectors)
    started = time.perf_counter()
    search.refresh(crowd, encoded)
    built = time.perf_counter() - started
    del vectors, encoded
    rng = np.random.default_rng(bench.config.seed)
    asked = queries[rng.integers(0, len(queries), _QUERIES)]
    measured = [_row(bench, search, crowd, asked, rng.random(_ADS) < share, share) for share in SHARES]
    return [*measured, Row(f"index over {_ADS:,} ads, built", Spread((built,)), "s")]


def _row(
    bench: Bench, retrieval: Retrieval, ads: list[Ad], asked: Vectors, mask: Mask, share: float
) -> Row:
    every = partial(retrieval.search, exact=True)

    def searched(search: Callable[[Vectors, Mask, int], list[int]], count: int) -> NDArray[np.float64]:
        seconds = []
        for vector in asked[:count]:
            started = time.perf_counter()
            search(vector, mask, K)
            seconds.append(time.perf_counter() - started)
        return 1e3 * np.array(seconds)

    same = [
        len({*retrieval.search(vector, mask, K)} & {*every(vector, mask, K)}) / K for vector in asked[:50]
    ]
    times = searched(retrieval.search, _QUERIES)
    return compare(
        f"retrieval of {K} from {len(ads):,} ads, {share:.0%} eligible ÷ comparing all eligible",
        Side("raylla", lambda: float(np.median(searched(retrieval.search, _QUERIES)))),
        Side("all compared", lambda: float(np.median(searched(every, 10)))),
        bench.repeats,
        "ms",
        {"recall": float(np.mean(same)), "p99 ms": float(np.quantile(times, 0.99))},
    )


class _Cursor:
    """Stands in for the encoder: hands out ready vectors in the order in which rows are asked for."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors, self._at = vectors, 0

    def __call__(self, texts: list[str]) -> Vectors:
        self._at += len(texts)
        return self._vectors[self._at - len(texts) : self._at]


def _questions() -> list[str]:
    forms = ("where can I find {}?", "I need {}, any ideas?", "which {} would you get for a beginner?")
    return [form.format(name) for form in forms for members in lexicon.THEMES.values() for name in members]


def _crowd(real: Vectors, seed: int) -> Vectors:
    """`_ADS` vectors [_ADS, dim]: the real ones in turn, each moved by noise."""
    rng = np.random.default_rng(seed)
    deviation = real.std(axis=0) * NOISE
    vectors = np.empty((_ADS, real.shape[1]), dtype=np.float32)
    for start in range(0, _ADS, REAL):
        rows = vectors[start : start + REAL]
        rows[:] = real[: len(rows)] + deviation * rng.standard_normal(rows.shape, dtype=np.float32)
    return vectors
