"""What the reader of an answer gets: figures per test query with bootstrap intervals. Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raylla.auction.checks import Array
from raylla.figures.intervals import Figure, averages, bounded, made, means, quotients

READ_COLUMNS = (
    "words",
    "similarity",
    "compared",
    "nll",
    "tokens",
    "nothing_left",
    "detected",
    "borne_out",
    "chance",
    "claims",
)
_AT = {name: place for place, name in enumerate(READ_COLUMNS)}
_MEANS = ("words", "nothing_left", "detected")
QUOTIENTS = {
    "similarity": ("similarity", "compared"),
    "perplexity": ("nll", "tokens"),
    "fidelity": ("borne_out", "claims"),
    "fidelity_chance": ("chance", "claims"),
}
FIDELITY = ("fidelity", "fidelity_chance")
SHARES = ("nothing_left", "detected", *FIDELITY)
"""Figures between 0 and 1, whose intervals end there."""
READER = {
    "words": "words",
    "similarity": "similarity",
    "perplexity": "perplexity",
    "perplexity_ratio": "÷ v0's",
    "nothing_left": "only ads",
    "detected": "detected",
    "fidelity": "fidelity",
    "fidelity_chance": "by chance",
}
"""Headings of the figures in a table."""
FIRST = "v0"
"""The weights that perplexities are compared with."""

Table = Mapping[str, Array]
"""Query id -> mean over its answers of each of `READ_COLUMNS`."""
Reads = Mapping[str, Mapping[str, Table]]
"""The tables of one run: "mechanisms" by name, "versions" by name, and of "organic" answers."""


@dataclass(frozen=True, slots=True)
class Read:
    """One answer to a test query.

    ``words`` are those of the answer with bare titles for its ads; ``similarity`` is its cosine to the
    answer without ads, none where there is no such answer; ``nll`` is the negative log-likelihood (nats) of
    the ``tokens`` tokens that are left without its ads, both 0 where nothing is; ``borne_out`` has (share,
    chance) of each ad of which it says something that its description may bear out.
    """

    query_id: str
    words: int
    similarity: float | None
    nll: float
    tokens: int
    detected: bool
    borne_out: Sequence[tuple[float, float]]


def reads_per_query(reads: Sequence[Read]) -> Table:
    """The table of some answers."""
    by_query: dict[str, list[list[float]]] = {}
    for read in reads:
        by_query.setdefault(read.query_id, []).append(_row(read))
    return {query: np.mean(rows, axis=0) for query, rows in by_query.items()}


def quality_figures(seeds: Sequence[Table], resamples: int, seed: int) -> dict[str, Figure | None]:
    """The row of one weight version or mechanism, from its table of each training seed.

    ``perplexity`` is exp of the mean negative log-likelihood per token, all tokens alike; none where no
    answer has what a figure is made of.

    Raises:
        ValueError: a seed has no answers.
    """
    groups = [np.array(list(table.values())) for table in seeds]
    mean, rng = averages(groups), np.random.default_rng(seed)
    columns = [group[:, [_AT[name] for name in _MEANS]] for group in groups]
    row: dict[str, Figure | None] = dict(zip(_MEANS, means(columns, resamples, rng), strict=True))
    for name, (above, below) in QUOTIENTS.items():
        if mean[_AT[below]] <= 0:
            row[name] = None
            continue
        tops, bottoms = ([group[:, [_AT[side]]] for group in groups] for side in (above, below))
        (figures,) = quotients(tops, bottoms, resamples, rng)
        if name == "perplexity":
            figures = {end: float(np.exp(value)) for end, value in bounded(figures, 0).items()}
        row[name] = figures
    for name in SHARES:
        if (share := row[name]) is not None:
            row[name] = bounded(share, 0, 1)
    return row


def perplexity_ratio(
    after: Sequence[Table], before: Sequence[Table], resamples: int, seed: int
) -> Figure | None:
    """Perplexity of the one over that of the other on the same queries, which are resampled in pairs; none
    where nothing was left to read."""
    wanted = [_AT["nll"], _AT["tokens"]]
    pairs = [
        [[*a[query][wanted], *b[query][wanted]] for query in a if query in b]
        for a, b in zip(after, before, strict=True)
    ]
    if not pairs or not all(pairs):
        return None
    if not (averages(pairs)[[1, 3]] > 0).all():
        return None

    def ratio(mean: Array) -> Array:
        tokens = np.maximum(mean[..., [1, 3]], 1e-9)
        both = mean[..., [0, 2]] / tokens
        result: Array = np.exp(both[..., :1] - both[..., 1:])
        return result

    return made(pairs, ratio, resamples, np.random.default_rng(seed))[0]


def summary(
    seeds: Sequence[Reads],
    variants: Mapping[str, Sequence[tuple[Table, Table | None]]],
    absent: Mapping[str, str],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """What `evaluation.json` says of the answers: rows of mechanisms, weight versions and organic answers.

    Args:
        seeds: of the main config.
        variants: name -> of each of its runs the table, and that of `FIRST` under the same seed.
        absent: figures that were not measured, and why.
    """

    def row(tables: Sequence[Table], first: Sequence[Table]) -> dict[str, Figure | None]:
        figures = quality_figures(tables, resamples, seed)
        figures["perplexity_ratio"] = perplexity_ratio(tables, first, resamples, seed) if first else None
        return {name: value for name, value in figures.items() if name not in absent}

    first = [reads["versions"][FIRST] for reads in seeds]
    rows: dict[str, Any] = {
        kind: {
            name: row([reads[kind][name] for reads in seeds], first if kind != "organic" else ())
            for name in tables
            if all(name in reads[kind] for reads in seeds)
        }
        for kind, tables in seeds[0].items()
    }
    for name, tables in variants.items():
        firsts = [before for _, before in tables if before is not None]
        paired = firsts if len(firsts) == len(tables) else ()
        rows["mechanisms"][name] = row([table for table, _ in tables], paired)
    return rows | {"absent": dict(absent)}


def _row(read: Read) -> list[float]:
    shares, chances = zip(*read.borne_out, strict=True) if read.borne_out else ((), ())
    return [
        read.words,
        read.similarity or 0.0,
        read.similarity is not None,
        read.nll,
        read.tokens,
        read.tokens == 0,
        read.detected,
        sum(shares),
        sum(chances),
        len(shares),
    ]
