"""Tables as people have them: CSV, TSV, JSON lines (each also gzipped) and Parquet, row by row.

Every cell becomes text.  A row that cannot be read is named with its line and passed over; a file that
cannot be read is an error.
"""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import IO, Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

from raylla.errors import WorldError
from raylla.wholetext import whole_value

Cells = dict[str, str]
"""Field -> text of the cell, without blanks around it; `""` where there is none."""
DELIMITED = {".csv": ",;\t|", ".tsv": "\t", ".tab": "\t"}
"""What may part cells, the first where a header has none of them."""
NAMED_SIGN = re.compile(r'"?sep=(\\t|[^"\r\n])"?[\r\n]', re.IGNORECASE)
"""A first line that names what parts them, as Excel reads it."""
_HEAD = 2**16
"""Characters in which the header is looked for."""
STRUCTURED = ("turns",)
"""Fields whose lists and objects become JSON."""
LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet", ".pq")
SUFFIXES = (*DELIMITED, *LINES, *PARQUET)


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that is passed over: where it begins, why, and the field at fault where it is one."""

    file: Path
    line: int
    why: str
    field: str = ""

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.why}"


@dataclass(frozen=True, slots=True)
class Columns:
    """What to take from a table: field -> names that its column may have, the best first.

    Names are compared without case, and with blanks and signs taken for underscores.
    """

    names: Mapping[str, Sequence[str]]
    needed: str
    """The field without which a row says nothing."""
    way_out: str = "name one with --map {needed}=COLUMN"
    """What to do where it is not there."""

    def found(self, file: Path, header: Sequence[str]) -> dict[str, str]:
        """Field -> column of ``header``.

        Raises:
            WorldError: the needed one is not there.
        """
        by_name: dict[str, str] = {}
        for column in header:
            by_name.setdefault(_plain(column), column)
        chosen = {}
        for field, names in self.names.items():
            there = [by_name[name] for name in map(_plain, names) if name in by_name]
            if there:
                chosen[field] = there[0]
        if self.needed not in chosen:
            raise WorldError(
                f"{file} has no column for {self.needed}; it has {', '.join(header) or 'none'}: "
                f"{self.way_out.format(needed=self.needed)}"
            )
        return chosen


def is_table(path: Path) -> bool:
    """Whether a path is named as a table is."""
    return _kind(path) in SUFFIXES


def read_rows(file: Path, columns: Columns) -> Iterator[tuple[int, Cells | Fault]]:
    """(line, cells) of each row, or what is wrong with it; lines count from 1, rows of Parquet too.

    Raises:
        WorldError: the file is missing, of no known kind, damaged, or has no column for what is needed.
    """
    kind = _kind(file)
    if "\0" in str(file):
        raise WorldError(f"{str(file)!r}: no path holds a NUL; give a table that can be read")
    try:
        if kind in PARQUET:
            yield from _parquet(file, columns)
        elif kind in LINES:
            yield from _json_lines(file, columns)
        elif kind in DELIMITED:
            yield from _delimited(file, columns, DELIMITED[kind])
        else:
            raise WorldError(
                f"{file}: no table by its name; give {', '.join(SUFFIXES)} or .gz of a text one"
            )
    except (EOFError, zlib.error, UnicodeError) as error:
        raise WorldError(f"{file} is damaged: {error}; write it again") from None
    except OSError as error:
        raise WorldError(f"{file}: {error.strerror or error}; give a table that can be read") from None


def _kind(path: Path) -> str:
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name.casefold()).strip("_")


def _open(file: Path, newline: str = "") -> IO[str]:
    """The file's text: UTF-8 with or without a mark, or UTF-16 with one; bytes that are neither are
    kept as what `_bytes` finds.  Lines keep their ends: CR, LF or both, or what ``newline`` says."""
    opener = gzip.open if file.name.lower().endswith(".gz") else open
    with opener(file, "rb") as head:
        marked = head.read(2) in (b"\xff\xfe", b"\xfe\xff")
    encoding = "utf-16" if marked else "utf-8-sig"
    text: IO[str] = opener(file, "rt", encoding=encoding, errors="surrogateescape", newline=newline)
    return text


def _delimited(file: Path, columns: Columns, signs: str) -> Iterator[tuple[int, Cells | Fault]]:
    """CSV and TSV; TSV whose quotes do not pair is read as one that has no quoting."""
    with _open(file) as text:
        sign = _sign(text.read(_HEAD), signs)
    plain = sign == "\t" and not _pairs(file)
    with _open(file) as text:
        yield from _records(file, columns, _rows(text, sign, plain))


def _sign(head: str, signs: str) -> str:
    """What parts cells: what the first line names, else what is most often between the header's."""
    if named := NAMED_SIGN.match(head):
        return "\t" if named[1] == "\\t" else named[1]
    header = next((line for line in re.split("[\r\n]", _unquoted(head, signs)) if line.strip()), "")
    return max(signs, key=header.count)


def _unquoted(text: str, signs: str) -> str:
    """``text`` with "x" for every quoted cell that ends in it."""
    return re.sub(rf'(?<![^{re.escape(signs)}\r\n])"(?:[^"]|"")*+"', "x", text)


def _pairs(file: Path) -> bool:
    """Whether every cell of a TSV that begins with a quote ends with one."""
    with _open(file) as text:
        return all(isinstance(row, list) or _too_long(row) for _, row in _rows(text, "\t", False))


def _too_long(error: csv.Error) -> bool:
    return "field larger" in str(error)


def _rows(text: IO[str], sign: str, plain: bool) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Rows with the lines that they begin at, or why there is none; ``plain``: quotes are text.

    The csv module gives up a cell of more than `csv.field_size_limit` characters, and would take the
    lines that are left of it for rows: they are passed over here.
    """
    last = ""
    passed = 0

    def lines() -> Iterator[str]:
        nonlocal last
        for number, last in enumerate(text):
            yield "\n" if not number and NAMED_SIGN.match(last) else last

    reader = csv.reader(
        lines(), delimiter=sign, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL, strict=True
    )
    while True:
        line = passed + reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            left = last if passed + reader.line_num == line else f'"{last}'
            while _too_long(error) and not plain and _ends_quoted(left, sign):
                passed += 1
                left = f'"{next(text, "")}'
                if left == '"':
                    error = csv.Error("unexpected end of data")
            yield line, error


def _ends_quoted(line: str, sign: str) -> bool:
    """Whether a line's last cell goes on in the next."""
    return bool(re.search(rf'(?<![^{re.escape(sign)}])"', _unquoted(line, sign)))


def _records(
    file: Path, columns: Columns, rows: Iterator[tuple[int, list[str] | csv.Error]]
) -> Iterator[tuple[int, Cells | Fault]]:
    header: list[str] = []
    chosen: dict[str, int] = {}
    for line, row in rows:
        if isinstance(row, csv.Error):
            if "unexpected end" in str(row):
                raise WorldError(f"{file}, line {line}: a quote is opened here and never closed")
            way_out = "shorten the cell" if _too_long(row) else "mend the quotes"
            yield line, Fault(file, line, f"not CSV: {row}; {way_out}")
        elif not any(cell.strip() for cell in row):
            continue
        elif not header:
            header = [cell.strip() for cell in row]
            taken = columns.found(file, header)
            chosen = {field: header.index(column) for field, column in taken.items()}
        elif len(row) != len(header):
            yield line, Fault(file, line, f"{len(row)} cells instead of {len(header)}; quote its cells")
        else:
            yield line, _texts(file, line, {field: row[place] for field, place in chosen.items()})


def _json_texts(lines: Iterable[str]) -> Iterator[str]:
    """Lines end with LF, and with CR where what stands before an LF is no JSON; within JSON CR is blank."""
    for said in lines:
        if "\r" in said.rstrip("\r\n"):
            try:
                json.loads(said)
            except (ValueError, RecursionError):
                yield from said.removesuffix("\n").removesuffix("\r").split("\r")
                continue
        yield said


def _json_lines(file: Path, columns: Columns) -> Iterator[tuple[int, Cells | Fault]]:
    """Objects may have other keys from line to line; the needed one must be in some."""
    seen: dict[str, None] = {}
    some = False
    with _open(file, "\n") as text:
        for line, said in enumerate(_json_texts(text), start=1):
            if not said.strip():
                continue
            try:
                row = json.loads(said)
                if not _bytes(said):  # a byte that is no UTF-8 stays what `_bytes` finds
                    row = whole_value(row)
            except (ValueError, RecursionError) as error:
                yield line, Fault(file, line, f"not JSON: {error}")
                continue
            if not isinstance(row, dict):
                yield line, Fault(file, line, f"holds a {type(row).__name__}, not an object")
                continue
            seen |= dict.fromkeys(row)
            try:
                chosen = columns.found(file, list(row))
            except WorldError:
                yield line, Fault(file, line, f"has no {columns.needed}", columns.needed)
                continue
            some = True
            yield line, _texts(file, line, {field: row[key] for field, key in chosen.items()})
    if seen and not some:
        columns.found(file, list(seen))


def _parquet(file: Path, columns: Columns) -> Iterator[tuple[int, Cells | Fault]]:
    try:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            chosen = columns.found(file, names)
            line = 0
            for batch in table.iter_batches():
                places = [_values(batch.column(names.index(column))) for column in chosen.values()]
                for cells in zip(*places, strict=True):
                    line += 1
                    yield line, _texts(file, line, dict(zip(chosen, cells, strict=True)))
    except (pa.ArrowException, OverflowError) as error:
        raise WorldError(f"{file} cannot be read as parquet: {error}; write it again") from None


def _values(column: Any) -> list[Any]:
    """The values of a column, with the error for each that Python has none for."""
    try:
        values: list[Any] = column.to_pylist()
    except (OverflowError, ValueError):
        values = [_value(cell) for cell in column]
    return values


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (OverflowError, ValueError) as error:
        return error


def _texts(file: Path, line: int, cells: Mapping[str, Any]) -> Cells | Fault:
    """The cells as text, or the one that cannot be."""
    texts = {}
    for field, value in cells.items():
        if isinstance(value, Exception):
            return Fault(file, line, f"{field}: {value}", field)
        nested = field in STRUCTURED and isinstance(value, list | dict)
        text = json.dumps(value, default=str) if nested else _text(value)
        if text is None:
            return Fault(file, line, f"{field} is a {type(value).__name__}, not a text or number", field)
        if byte := _bytes(text):
            return Fault(file, line, f"{field}: byte {byte:#04x} is not UTF-8", field)
        texts[field] = text.strip()
    return texts


def _text(value: object) -> str | None:
    """A cell's text: whole numbers without a point, days as in ISO 8601; None where it has no text."""
    if value is None or value != value:  # an empty cell of a column of numbers is no number
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else str(value)
    if isinstance(value, Decimal):
        text = f"{value:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(value, int | UUID):
        return str(value)
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, list | tuple):
        parts = [_text(part) for part in value]
        return None if None in parts else ", ".join(part for part in parts if part)
    return None


def _bytes(text: str) -> int:
    """The first byte that was no UTF-8, 0 for none."""
    return next((ord(c) - 0xDC00 for c in text if "\udc80" <= c <= "\udcff"), 0)
