"""The importers of `raylla world import`, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from raylla import config
from raylla.errors import WorldError
from raylla.world.imports import gembench, tables, webis

DATA_SETS = ("webis", "gem-bench")
_KINDS = (*DATA_SETS, "table")


def import_world(
    kind: str,
    path: Path,
    queries: Path | None,
    out: Path,
    named: Mapping[str, str],
    settings: config.World,
    seed: int,
) -> tables.Imported:
    """Read what is at ``path`` into a world, saved to ``out``.

    Raises:
        WorldError: there is no such kind, it goes without a table of queries or a mapping, or as the
            importer says.
    """
    if kind not in _KINDS:
        raise WorldError(f"no importer named {kind!r}; there is: {', '.join(_KINDS)}")
    if kind == "table":
        if queries is None:
            raise WorldError("world import table: give two tables, ADS and QUERIES")
        return tables.import_tables(path, queries, out, settings, seed, named)
    if queries is not None or named:
        raise WorldError(f"world import {kind}: give the data set's directory alone, without --map")
    if kind == "webis":
        return tables.Imported(webis.import_webis(path, out, settings, seed), ())
    return gembench.import_gembench(path, out, settings, seed)


def mapping(pairs: Sequence[str]) -> dict[str, str]:
    """``field=column`` of each --map.

    Raises:
        WorldError: one is no such pair, or a field is named twice.
    """
    columns: dict[str, str] = {}
    for pair in pairs:
        field, sign, column = (part.strip() for part in pair.partition("="))
        if not (sign and field and column):
            raise WorldError(f"--map {pair!r}: write it as FIELD=COLUMN, for instance title=ad_title")
        if field in columns:
            raise WorldError(f"--map {pair!r}: {field} is {columns[field]!r} already; name it once")
        columns[field] = column
    return columns
