"""From click rows to arrays: text encodings, their standardization, and the answer's structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raylla.auction.markup import MARKUP
from raylla.reward.cues import BUCKETS, Words
from raylla.reward.encoder import MAX_WORDS, Encoder, Encodings, TextSpan
from raylla.reward.rows import ClickRow

PLACED, RANKS, EARLIER = 5, 4, 3
"""Numbers of one-hot entries; the last of each stands for itself and all above."""


def texts(groups: Sequence[str]) -> tuple[str, ...]:
    """Names of the text encodings that the feature groups ask for, the query first."""
    return ("query", *(name for name in ("answer", "sentence", "ad_text") if name in groups))


def encode(encoder: Encoder, rows: Sequence[ClickRow], names: Sequence[str]) -> dict[str, Encodings]:
    """Encodings [N, dim] by name; the sentence is pooled within its answer, in context.

    All in one call of the encoder, so that an answer and its sentences are read once.
    """
    spans = [_span(name, row) for name in names for row in rows]
    encoded = encoder.encode_spans(spans)
    return {name: encoded[place * len(rows) : (place + 1) * len(rows)] for place, name in enumerate(names)}


def buckets(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """Word buckets [N, T] of each text, 0 for padding."""
    numbers = np.zeros((len(texts), MAX_WORDS), dtype=np.int64)
    for index, text in enumerate(texts):
        ids = encoder.words(text)
        numbers[index, : len(ids)] = [1 + id % (BUCKETS - 1) for id in ids]
    return torch.from_numpy(numbers[:, : max(1, int((numbers > 0).sum(axis=1).max(initial=0)))])


def words(encoder: Encoder, rows: Sequence[ClickRow]) -> Words:
    """The words of each row that `Cues` compares."""
    return Words(
        query=buckets(encoder, [row.query_text for row in rows]),
        ad=buckets(encoder, [row.ad_text for row in rows]),
        category=buckets(encoder, [row.ad_category for row in rows]),
        tone=buckets(encoder, [_unmarked(row.sentence) for row in rows]),
        answer=buckets(encoder, [_unmarked(row.answer_text) for row in rows]),
    )


def structure(rows: Sequence[ClickRow], scaled: dict[str, Encodings]) -> Encodings:
    """[N, 14]: one-hot ads placed, rank and earlier ads of the category; cosines of the
    standardized encodings of query and ad text, query and sentence (0 where not encoded)."""
    values = np.zeros((len(rows), PLACED + RANKS + EARLIER + 2), dtype=np.float32)
    for index, row in enumerate(rows):
        values[index, min(max(row.placed, 1), PLACED) - 1] = 1
        values[index, PLACED + min(row.rank, RANKS - 1)] = 1
        values[index, PLACED + RANKS + min(row.earlier_same_category, EARLIER - 1)] = 1
    for column, other in enumerate(("ad_text", "sentence"), start=PLACED + RANKS + EARLIER):
        if other in scaled:
            values[:, column] = _cosine(scaled["query"], scaled[other])
    return values


@dataclass
class Moments:
    """Running mean and variance of encodings [dim] over all training rows so far."""

    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def empty(cls, dim: int) -> Moments:
        """No rows yet."""
        return cls(0, np.zeros(dim), np.zeros(dim))

    def add(self, rows: Encodings) -> None:
        """Count ``rows`` [N, dim] in, by the pairwise update of mean and sum of squares."""
        mean = rows.mean(axis=0, dtype=np.float64)
        total = self.count + len(rows)
        shift = mean - self.mean
        self.squares += ((rows - mean) ** 2).sum(axis=0) + shift**2 * (self.count * len(rows) / total)
        self.mean += shift * (len(rows) / total)
        self.count = total

    def scale(self, rows: Encodings) -> Encodings:
        """``rows`` at mean 0 and deviation 1, entry by entry."""
        deviation = np.sqrt(self.squares / max(1, self.count)) + 1e-6
        scaled: Encodings = ((rows - self.mean) / deviation).astype(np.float32)
        return scaled


def _cosine(left: Encodings, right: Encodings) -> Encodings:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosine: Encodings = (left * right).sum(axis=1) / np.maximum(norms, 1e-6)
    return cosine


def _span(name: str, row: ClickRow) -> TextSpan:
    """What of a row is encoded under ``name``."""
    if name == "sentence":
        return _sentence_span(row)
    text = {"query": row.query_text, "answer": row.answer_text, "ad_text": row.ad_text}[name]
    return text, 0, len(text)


def _sentence_span(row: ClickRow) -> TextSpan:
    start = max(0, row.answer_text.find(row.sentence))
    return row.answer_text, start, start + len(row.sentence)


def _unmarked(text: str) -> str:
    return " ".join(MARKUP.sub(" ", text).split())
