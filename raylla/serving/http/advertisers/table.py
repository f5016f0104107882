"""Ads of a table that somebody uploads: each row goes through the door of a single ad."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from raylla.errors import MoneyError, WorldError
from raylla.serving.http import bodies
from raylla.serving.store import AdTerms
from raylla.wholetext import whole
from raylla.world.imports import catalogue
from raylla.world.imports.tablefiles import Cells, Columns, Fault, read_rows
from raylla.world.texts import cut

FIELDS: dict[str, tuple[str, ...]] = {
    **{name: catalogue.ADS[name] for name in ("title", "category", "description", "url", "bid")},
    "theme": ("theme",),
    "bid_micros": ("bid_micros",),
    "labels": ("labels", "label"),
    "paused": ("paused",),
}
"""Field of an ad -> names that its column may have."""
WAY_OUT = "name it so"
MOST_ROWS = 100_000
MOST_ERRORS = 1_000
"""Errors that an answer tells; it counts all."""
_SAID = re.compile(r"(?:Value error, )?(?:ads: 0: )?(?:(\w+)=)?")
_FLAGS = {"": False, "false": False, "0": False, "no": False, "true": True, "1": True, "yes": True}


class RowError(Exception):
    """What is wrong with a row, and with which of its fields ("": with all of it)."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field, self.reason = field, reason


class TooManyError(Exception):
    """There are more rows than one upload may have."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """An error by the line of the file on which its row begins; the first line is 1."""

    row: int
    field: str
    reason: str


@dataclass(slots=True)
class CheckedAds:
    """The ads of a table, and what is wrong with the others."""

    ads: list[AdTerms] = field(default_factory=list)
    wrong: list[Wrong] = field(default_factory=list)
    refused: int = 0

    def refuse(self, row: int, field: str, reason: str) -> None:
        """Count a row, and keep what is wrong with it while there is room."""
        self.refused += 1
        if len(self.wrong) < MOST_ERRORS:
            self.wrong.append(Wrong(row, field, whole(reason)))


def take_table(table: bytes, kind: str, unit: int, check_bid: Callable[[int], object]) -> CheckedAds:
    """The ads of ``table``, a file of ``kind`` (".csv", ".tsv", ".jsonl"), bids in ``unit`` micros.

    Raises:
        WorldError: it cannot be read as such, or has no column `title`.
        TooManyError: it has more than `MOST_ROWS` rows.
    """
    taken = CheckedAds()
    for number, (row, cells) in enumerate(_rows(table, kind)):
        if number == MOST_ROWS:
            raise TooManyError(f"the file has more than {MOST_ROWS} rows; split it")
        try:
            if isinstance(cells, Fault):
                raise RowError(cells.field, cells.why)
            taken.ads.append(_ad(cells, unit, check_bid))
        except RowError as error:
            taken.refuse(row, error.field, error.reason)
    return taken


def _rows(table: bytes, kind: str) -> Iterator[tuple[int, Cells | Fault]]:
    """Rows of the table reader, which reads files."""
    with TemporaryDirectory(prefix="raylla-upload-") as directory:
        file = Path(directory, f"file{kind}")
        file.write_bytes(table)
        try:
            yield from read_rows(file, Columns(FIELDS, "title", WAY_OUT))
        except WorldError as error:
            raise WorldError(whole(str(error)).replace(f"{file}", "the file")) from None


def _ad(cells: Cells, unit: int, check_bid: Callable[[int], object]) -> AdTerms:
    given: dict[str, Any] = {
        name: cells[name] for name in ("title", "category", "theme", "description", "url") if name in cells
    }
    given["bid_micros"] = _bid(cells, unit)
    given["labels"] = [
        label for part in re.split("[,;]", cells.get("labels", "")) if (label := part.strip())
    ]
    given["paused"] = _flag(cells.get("paused", ""))
    try:
        body = bodies.NewAd.model_validate(given)
        check_bid(body.bid_micros)
    except ValidationError as error:
        raise _first(error) from None
    except MoneyError as error:
        raise RowError("bid_micros", str(error)) from None
    return AdTerms(body.ad(), body.url, body.bid_micros, tuple(body.labels), body.paused)


def _bid(cells: Cells, unit: int) -> int:
    """Micros per click, given as such or in bid units."""
    name = "bid_micros" if cells.get("bid_micros") else "bid"
    text = cells.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        said = f"{cut(text, 40)!r} is no whole number; give bid_micros, or bid in units of {unit} micros"
        raise RowError(name if name in cells else "bid_micros", said)
    return int(text) * (1 if name == "bid_micros" else unit)


def _flag(text: str) -> bool:
    flag = _FLAGS.get(text.lower())
    if flag is None:
        raise RowError("paused", f"{cut(text, 40)!r} is neither true nor false")
    return flag


def _first(error: ValidationError) -> RowError:
    """The first error of a row; of a check of the whole ad, the field is in its words."""
    first = error.errors(include_url=False, include_context=False)[0]
    said = first["msg"]
    if first["loc"]:
        return RowError(str(first["loc"][0]), said.removeprefix("Value error, "))
    start = _SAID.match(said)
    if start is None or start[1] is None:
        return RowError("", said.removeprefix("Value error, "))
    return RowError(start[1], said[start.start(1) :])
