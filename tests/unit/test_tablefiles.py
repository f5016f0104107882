"""Tables in the forms that other programs write them in, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylla.errors import WorldError
from raylla.world.imports.tablefiles import Cells, Columns, Fault, read_rows

COLUMNS = Columns({"title": ("title",), "bid": ("bid",), "description": ("description",)}, "title")
LONG = "a,b\n" * 40_000


def _read(path: Path, data: str | bytes) -> list[tuple[int, Cells | Fault]]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return list(read_rows(path, COLUMNS))


def _column(tmp_path: Path, title: Any) -> list[Cells | Fault]:
    pq.write_table(pa.table({"title": title}), tmp_path / "a.parquet")
    return [cells for _, cells in read_rows(tmp_path / "a.parquet", COLUMNS)]


def _titles(tmp_path: Path, values: Sequence[Any], kind: Any) -> list[str]:
    found = _column(tmp_path, pa.array(values, kind))
    return [str(cells) if isinstance(cells, Fault) else cells["title"] for cells in found]


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("blank.csv", '\n"title";bid\r\nMug;3', 3),
        ("blanks.csv", " \r\n\t\r\ntitle\tbid\r\nMug\t3", 4),
        ("semicolon.csv", "sep=;\r\ntitle;bid\r\nMug;3\r\n", 3),
        ("comma.csv", "SEP=,\ntitle,bid\nMug,3\n", 3),
        ("tab.csv", "sep=\t\rtitle\tbid\rMug\t3\r", 3),
        ("spelled.csv", '"sep=\\t"\ntitle\tbid\nMug\t3\n', 3),
        ("own.csv", "\ufeffsep=^\n\ntitle^bid\nMug^3\n", 4),
        ("wide.csv", "sep=|\ntitle|bid\nMug|3\n".encode("utf-16"), 3),
        ("other.csv", "sep=,\ntitle,bid,a;b;c;d\nMug,3,\n", 3),
        ("named.tsv", "sep=\t\ntitle\tbid\nMug\t3\n", 3),
        ("quoted.csv", '"title";"price, in EUR, net";bid\nMug;1;3\n', 2),
        ("bare.csv", 'title;"price, ""net"", in EUR";bid\nMug;1;3\n', 2),
        ("two-lines.csv", '"price,\r\nin EUR,\r\nnet";title;bid\n1;Mug;3\n', 4),
        ("inches.csv", 'title;5" or 6", about;bid;7"\nMug;1;3;x\n', 2),
    ],
)
def test_what_parts_the_cells_of_a_csv(tmp_path: Path, name: str, data: str | bytes, line: int) -> None:
    assert _read(tmp_path / name, data) == [(line, {"title": "Mug", "bid": "3"})]


def test_a_quoted_header_of_one_column_parts_nothing(tmp_path: Path) -> None:
    found = _read(tmp_path / "a.csv", '"title"\nMug; red\n')
    assert found == [(2, {"title": "Mug; red"})]


@pytest.mark.parametrize(
    ("name", "row", "lines"),
    [
        ("last.csv", f'Mug,"{LONG}"', 40_001),
        ("first.csv", f'"{LONG}",Mug', 40_001),
        ("doubled.csv", f'Mug,"""{LONG}"",""\n"', 40_002),
        ("after.csv", f'Mug 5","{LONG}"', 40_001),
        ("two.csv", f'"{LONG}","{LONG}"', 80_001),
        ("quotes.csv", f'"{LONG}",5" mug', 40_001),
        ("line.csv", f'"{LONG}"'.replace("\n", " ") + ',"a\nb"', 2),
        ("none.csv", f'"{LONG}",x'.replace("\n", " "), 1),
        ("tab.tsv", f'Mug\t"{LONG}"', 40_001),
    ],
)
def test_a_cell_that_is_too_long_costs_its_row_alone(
    tmp_path: Path, name: str, row: str, lines: int
) -> None:
    head = "title,description\r\nPot,x\r\n".replace(",", "\t" if name.endswith("tsv") else ",")
    found = _read(tmp_path / name, f"{head}{row}\r\n{head}")
    assert [line for line, _ in found] == [2, 3, 3 + lines, 4 + lines]
    assert [isinstance(cells, Fault) for _, cells in found] == [False, True, False, False]
    assert str(found[1][1]).endswith(
        f"{name}, line 3: not CSV: field larger than field limit (131072); shorten the cell"
    )


def test_a_long_cell_that_is_never_closed_is_said_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="line 2: a quote is opened here and never closed"):
        _read(tmp_path / "a.csv", f'title,bid\nMug,"{LONG}')


def test_parquet_keeps_all_digits_of_a_number(tmp_path: Path) -> None:
    ids = [Decimal("12345678901234567890123456789012"), Decimal("12345678901234567890123456789013")]
    assert _titles(tmp_path, ids, pa.decimal128(38, 0)) == list(map(str, ids))
    long = Decimal("1" * 60 + ".10")
    assert _titles(tmp_path, [long, Decimal(100)], pa.decimal256(70, 2)) == ["1" * 60 + ".1", "100"]


def test_parquet_gives_uuids_as_text(tmp_path: Path) -> None:
    said = "61c2db02-32b6-49ce-b7e9-8b1b7723f4af"
    assert _titles(tmp_path, [UUID(said).bytes, None], pa.uuid()) == [said, ""]


@pytest.mark.parametrize(
    ("kind", "late"),
    [
        (pa.timestamp("us"), 2**62),
        (pa.timestamp("ms", "UTC"), -(2**60)),
        (pa.date32(), 2**30),
        (pa.list_(pa.timestamp("us")), [2**62]),
    ],
)
def test_a_time_out_of_range_costs_its_row_alone(tmp_path: Path, kind: Any, late: Any) -> None:
    day = [0] if isinstance(late, list) else 0
    first, second, third = _column(tmp_path, pa.array([day, late, day], kind))
    assert first == third
    assert not isinstance(first, Fault)
    assert isinstance(second, Fault)
    assert (second.line, second.field) == (2, "title")


def test_text_of_parquet_that_is_none_costs_its_row_alone(tmp_path: Path) -> None:
    text = pa.array([b"Mug", b"\xff", b"Pot"]).view(pa.string())
    first, second, third = _column(tmp_path, text)
    assert [first, third] == [{"title": "Mug"}, {"title": "Pot"}]
    assert "title: 'utf-8' codec can't decode byte 0xff" in str(second)


def test_a_path_that_no_file_can_have(tmp_path: Path) -> None:
    for name in ("a\0.csv", "a\0.jsonl.gz", "a\0.parquet"):
        with pytest.raises(WorldError, match=r"a\\x00.*no path holds a NUL"):
            list(read_rows(Path(name), COLUMNS))


def test_json_lines_end_in_any_way(tmp_path: Path) -> None:
    rows = ('{"title": "Mug\u2028red\x85"}', '{"title": "Pot"}', '{"title": 7}', '["x"]')
    for end in ("\r", "\n", "\r\n"):
        found = _read(tmp_path / "a.jsonl", end.join(rows))
        assert [cells["title"] for _, cells in found if not isinstance(cells, Fault)] == [
            "Mug\u2028red",
            "Pot",
            "7",
        ]
        assert [line for line, _ in found] == [1, 2, 3, 4]


def test_a_cr_within_an_object_is_a_blank(tmp_path: Path) -> None:
    found = _read(tmp_path / "a.jsonl", '{"title":\r"Mug"}\r\n{"title": "Pot"}\r\n')
    assert [cells["title"] for _, cells in found if not isinstance(cells, Fault)] == ["Mug", "Pot"]
    assert [line for line, _ in found] == [1, 2]
