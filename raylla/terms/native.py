"""Whether an answer reads as holding an ad: a classifier of sentences, taught by published answers.

The published answers (Webis Generated Native Ads 2024) come in pairs, with and without a native ad, and the
sentence with the ad is marked.  A sentence is its words and pairs of neighbouring words, names masked, so
that tone is learned and not brands, weighted by tf-idf; a logistic regression says how much like an ad it
is, and an answer is as much like one as its most suspicious sentence.  The more sentences an answer has,
the more likely one of them is suspected: the rate on answers without ads says how often.

A score becomes the probability that an answer has an ad hidden in it by a logistic curve that is fitted to
the scores of answers held out (Platt 1999).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from raylla.auction.checks import Array
from raylla.auction.prose import sentences
from raylla.errors import ConfigError
from raylla.strictjson import objects, strange

LEAST_F1 = 0.85
"""A detector below it says nothing."""
FOLDS = 5
LEAST_SENTENCES = 3
"""Of training that hold a word or pair for it to be looked at."""
VARIANCE = 10.0
"""Of each weight before any data."""
STEPS, CONJUGATES = 30, 20
_TOKEN = re.compile(r"\w+|[^\w\s]")
_NAME = re.compile(r"(?<=\S )[A-Z][\w’'&.-]*(?: [A-Z0-9][\w’'&.-]*)*")
"""Words in capitals, but for a sentence's first."""
Terms = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AnswerTerms:
    """One published answer as the classifier reads it: the terms of its sentences, and which of them hold
    its ad (none where ``brand`` is empty)."""

    id: str
    query: str
    brand: str
    sentences: tuple[Terms, ...]
    ads: tuple[bool, ...]


Outcomes = tuple[Array, NDArray[np.bool_]]
"""Scores of answers [n], and whether each has an ad [n]."""


def read_answers(path: Path) -> list[AnswerTerms]:
    """The published answers in a file of JSON lines, gzipped or not.

    Raises:
        ConfigError: it is not there, or a line is none; names the line.
    """
    field = "evaluation.native_answers"
    answers = []
    for where, row in objects(path, lambda why: ConfigError(f"{field}: {why}; give another file")):
        try:
            answers.append(_published(row))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{field}: {where}: {error!r}; each line is an answer with id, query, response and label, "
                "and where that is 1 with advertisement and sen_span"
            ) from None
    brands = {answer.brand for answer in answers if answer.brand}
    queries = {answer.query for answer in answers}
    if min(len(brands), len(queries)) < FOLDS:
        raise ConfigError(
            f"{field}: {path} holds {len(brands)} brands and {len(queries)} queries; "
            f"{FOLDS} of each are the least"
        )
    return answers


class Detector:
    """A logistic regression over the terms of sentences.

    Args:
        answers: to learn from.
        threshold: log-odds of an answer's most suspicious sentence from which it reads as an ad.
        curve: slope and intercept that make the log-odds of an answer's having an ad of its score.
    """

    def __init__(
        self,
        answers: Sequence[AnswerTerms],
        threshold: float = 0.0,
        curve: tuple[float, float] = (1.0, 0.0),
    ) -> None:
        texts = [terms for answer in answers for terms in answer.sentences]
        labels = np.array([ad for answer in answers for ad in answer.ads], np.float64)
        counts = Counter(term for terms in texts for term in set(terms))
        kept = [term for term, count in counts.items() if count >= LEAST_SENTENCES]
        self.threshold, self.curve = threshold, curve
        self._places = {term: place for place, term in enumerate(kept)}
        self._rarity = np.log((1 + len(texts)) / (1 + np.array([counts[term] for term in kept]))) + 1
        self._weights = _fit(self._table(texts), labels, len(kept) + 1)

    def scores(self, answers: Sequence[Sequence[Terms]]) -> Array:
        """Log-odds of the most suspicious sentence of each answer [n]; -inf where it has none."""
        texts = [terms for answer in answers for terms in answer]
        owner = np.repeat(np.arange(len(answers)), [len(answer) for answer in answers])
        scores = np.full(len(answers), -np.inf)
        np.maximum.at(scores, owner, self._table(texts).times(self._weights))
        return scores

    def suspects(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Whether each answer, markup and disclosure taken out, reads as holding an ad [n]."""
        suspected: NDArray[np.bool_] = self.scores([_sentences(text) for text in texts]) >= self.threshold
        return suspected

    def chances(self, texts: Sequence[str]) -> Array:
        """The probability that each answer, markup and disclosure taken out, has an ad hidden in it [n]; 0
        where it has no sentence."""
        scores = self.scores([_sentences(text) for text in texts])
        chances: Array = np.where(np.isfinite(scores), expit(self.curve[0] * scores + self.curve[1]), 0.0)
        return chances

    def _table(self, texts: Sequence[Terms]) -> _Table:
        """tf-idf of each sentence, of length 1, and a constant 1 in the last column."""
        last = np.array([len(self._places)])
        columns: list[NDArray[np.int64]] = []
        values: list[Array] = []
        lengths = []
        for terms in texts:
            counts = Counter(self._places[term] for term in terms if term in self._places)
            places = np.fromiter(counts, np.int64)
            weights = (1 + np.log(np.fromiter(counts.values(), np.float64))) * self._rarity[places]
            scale = np.sqrt((weights**2).sum())
            columns += [places, last]
            values += [weights / max(scale, 1e-9), np.ones(1)]
            lengths.append(len(places) + 1)
        rows = np.repeat(np.arange(len(texts)), lengths)
        if not texts:
            return _Table(rows, np.empty(0, np.int64), np.empty(0), 0)
        return _Table(rows, np.concatenate(columns), np.concatenate(values), len(texts))


@lru_cache(maxsize=1)
def taught(path: Path) -> tuple[Detector, tuple[Outcomes, ...]]:
    """The detector that learned from all answers in the file ``path``, and how the answers of each fold
    were scored by one that saw none of their queries and brands.

    In each of `FOLDS` folds of queries and of brands both are held out.  Threshold and curve are those that
    are best on all that were held out.

    Raises:
        ConfigError: as `read_answers`.
    """
    answers = read_answers(path)
    tested = tuple(_held_out(answers, fold) for fold in range(FOLDS))
    scores, labels = (np.concatenate(parts) for parts in zip(*tested, strict=True))
    return Detector(answers, best_threshold(scores, labels), _curve(scores, labels)), tested


def outcomes(tested: Sequence[Outcomes]) -> Array:
    """Hits, false alarms and misses of each answer [n, 3], each fold under the threshold that is best on
    the others."""
    counts = []
    for fold, (scores, labels) in enumerate(tested):
        others = [fold_outcomes for place, fold_outcomes in enumerate(tested) if place != fold]
        suspected = scores >= best_threshold(*map(np.concatenate, zip(*others, strict=True)))
        counts += [np.stack([suspected & labels, suspected & ~labels, ~suspected & labels], axis=1)]
    return np.concatenate(counts).astype(np.float64)


def f1_of(tested: Sequence[Outcomes]) -> float:
    """F1 on what was held out."""
    return float(f1(outcomes(tested).sum(axis=0)))


def f1(counts: Array) -> Array:
    """F1 [...] from hits, false alarms and misses [..., 3]."""
    scores: Array = 2 * counts[..., 0] / np.maximum(counts @ np.array([2.0, 1.0, 1.0]), 1e-9)
    return scores


def best_threshold(scores: Array, labels: NDArray[np.bool_]) -> float:
    """The threshold of the highest F1, halfway between two scores."""

    def reached(threshold: float) -> float:
        suspected = scores >= threshold
        counts = [(suspected & labels).sum(), (suspected & ~labels).sum(), (~suspected & labels).sum()]
        return float(f1(np.array(counts, np.float64)))

    ranked = np.unique(scores)
    return float(max((ranked[:-1] + ranked[1:]) / 2, key=reached, default=0.0))


def _curve(scores: Array, labels: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and intercept of the logistic curve of labels over scores."""
    known = np.flatnonzero(np.isfinite(scores))
    rows, count = np.repeat(np.arange(len(known)), 2), len(known)
    values = np.stack([scores[known], np.ones(count)], axis=1).ravel()
    table = _Table(rows, np.tile(np.arange(2), count), values, count)
    slope, intercept = _fit(table, labels[known].astype(np.float64), 2)
    return float(slope), float(intercept)


def _held_out(answers: Sequence[AnswerTerms], fold: int) -> Outcomes:
    """Scores and labels of the answers of one fold, from a detector that saw none of its queries and
    brands.  Of answers without an ad as large a share is tested as of those with one."""
    queries = [_fold(answer.query) for answer in answers]
    brands = [_fold(answer.brand or answer.id) for answer in answers]
    seen = [
        answer
        for answer, query, brand in zip(answers, queries, brands, strict=True)
        if query != fold and (brand != fold or not answer.brand)
    ]
    tested = [
        answer
        for answer, query, brand in zip(answers, queries, brands, strict=True)
        if query == fold and brand == fold
    ]
    scores = Detector(seen).scores([answer.sentences for answer in tested])
    return scores, np.array([bool(answer.brand) for answer in tested])


@dataclass(frozen=True, slots=True)
class _Table:
    """A sparse matrix by its entries: row, column and value of each."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: Array
    height: int

    def times(self, vector: Array) -> Array:
        sums = np.bincount(self.rows, self.values * vector[self.columns], self.height)
        return sums.astype(np.float64)

    def transposed_times(self, vector: Array, width: int) -> Array:
        sums = np.bincount(self.columns, self.values * vector[self.rows], width)
        return sums.astype(np.float64)


def _fit(table: _Table, labels: Array, width: int) -> Array:
    """Weights [width] of the logistic regression with normal priors of `VARIANCE`: Newton's steps, each
    solved for by conjugate gradients to a tenth, and halved until they lower the loss."""

    def loss(weights: Array) -> float:
        odds = table.times(weights)
        return float((np.logaddexp(0, odds) - labels * odds).sum() + weights @ weights / (2 * VARIANCE))

    weights = np.zeros(width)
    lost, first = loss(weights), 0.0
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-table.times(weights)))
        left = table.transposed_times(labels - p, width) - weights / VARIANCE
        slope, curvature, step, direction = left, p * (1 - p), np.zeros(width), left
        square = goal = left @ left
        first = first or float(goal)
        if goal <= 1e-6 * first:
            break
        for _ in range(CONJUGATES):
            bent = table.transposed_times(curvature * table.times(direction), width) + direction / VARIANCE
            length = square / (direction @ bent)
            step = step + length * direction
            left = left - length * bent
            before, square = square, left @ left
            if square < goal / 100:
                break
            direction = left + square / before * direction
        while (fresh := loss(weights + step)) > lost - 1e-4 * (slope @ step):
            step = step / 2
        weights, lost = weights + step, fresh
    return weights


def _published(row: dict[str, Any]) -> AnswerTerms:
    if wrong := strange(row, ("response",)):
        raise ValueError(wrong)
    text = row["response"]
    spans = sentences(text)
    start, end = row["sen_span"] if row["label"] else (0, 0)
    ads = tuple(2 * (min(b, end) - max(a, start)) > b - a for a, b in spans)
    brand = str(row["advertisement"]) if row["label"] else ""
    return AnswerTerms(str(row["id"]), str(row["query"]), brand, _sentences(text), ads)


def _sentences(text: str) -> tuple[Terms, ...]:
    return tuple(_terms(text[start:end]) for start, end in sentences(text))


def _terms(sentence: str) -> Terms:
    words = _TOKEN.findall(_NAME.sub("Nnn", sentence).lower())
    return (*words, *map(" ".join, pairwise(words)))


def _fold(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % FOLDS
