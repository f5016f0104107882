"""Tables as people have them become worlds; what cannot be used is named with its line."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import json
import shutil
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from raylla import config
from raylla.cli import app
from raylla.errors import WorldError
from raylla.records import Turn
from raylla.world import build, store
from raylla.world.imports import catalogue, gembench, tables
from raylla.world.imports.webis import import_webis

SETTINGS = config.World(profiles=10)
ADS = "title,category\nMug,tea\nKettle,tea\nTent,camping\n"
QUERIES = "query\nwhich mug\nwhat tent\nbest kettle\n"


def _write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def _taken(path: Path, data: str | bytes, **named: str) -> catalogue.Taken:
    return catalogue.take_ads(_write(path, data), named)


def _world(tmp_path: Path, ads: str, queries: str) -> tables.Imported:
    ads_file, queries_file = _write(tmp_path / "ads.csv", ads), _write(tmp_path / "queries.csv", queries)
    return tables.import_tables(ads_file, queries_file, tmp_path / "world", SETTINGS, 0)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("mark.csv", b"\xef\xbb\xbftitle,category\nMug,tea\nTent,camping\n"),
        ("crlf.csv", b"title,category\r\nMug,tea\r\nTent,camping\r\n"),
        ("cr.csv", b"title,category\rMug,tea\rTent,camping"),
        ("blank.csv", b"\ntitle , Category\n\nMug,tea\n,\n Tent ,camping\n"),
        ("semicolon.csv", b"title;category\nMug;tea\nTent;camping\n"),
        ("tab.csv", b"title\tcategory\nMug\ttea\nTent\tcamping\n"),
        ("utf16.csv", "title\tcategory\nMug\ttea\nTent\tcamping\n".encode("utf-16")),
        ("plain.tsv", b"title\tcategory\nMug\ttea\nTent\tcamping\n"),
        ("packed.csv.gz", gzip.compress(b"title,category\nMug,tea\nTent,camping\n", mtime=0)),
        ("UPPER.CSV", b"TITLE,CATEGORY\nMug,tea\nTent,camping\n"),
        (
            "keys.jsonl",
            b'{"title": "Mug", "category": "tea"}\r\n\n{"category": "camping", "title": "Tent"}',
        ),
        (
            "packed.ndjson.gz",
            gzip.compress(b'{"Title":"Mug","topic":"tea"}\n{"name":"Tent","topic":"camping"}', mtime=0),
        ),
    ],
)
def test_the_same_table_in_many_forms(tmp_path: Path, name: str, data: bytes) -> None:
    taken = _taken(tmp_path / name, data)
    assert [(ad.title, ad.category, ad.theme) for ad in taken.ads] == [
        ("Mug", "tea", "tea"),
        ("Tent", "camping", "camping"),
    ]
    assert [ad.id for ad in taken.ads] == [build.scattered_id(0), build.scattered_id(1)]
    assert taken.faults == []


def test_cells_with_line_ends_and_quotes(tmp_path: Path) -> None:
    rows = ["title,description", '"Mug\r\nred","a\rb\u2028c\x85d\x0be"', '"5"" pipe","say ""hi"""']
    text = "\r\n".join([*rows, "Tent\u2028XL,x"])
    taken = _taken(tmp_path / "ads.csv", text)
    assert [(ad.title, ad.description) for ad in taken.ads] == [
        ("Mug red", "a b c d e"),
        ('5" pipe', 'say "hi"'),
        ("Tent XL", "x"),
    ]
    assert taken.notes["titles_cleaned"] == 2


def test_quotes_of_a_tsv_that_has_no_quoting(tmp_path: Path) -> None:
    taken = _taken(tmp_path / "ads.tsv", 'title\tcategory\n"Best" mug\ttea\n5" pipe\tparts\n"Open\ttea\n')
    assert [ad.title for ad in taken.ads] == ['"Best" mug', '5" pipe', '"Open']
    quoted = _taken(tmp_path / "quoted.tsv", 'title\tcategory\n"A ""good"" mug"\ttea\n"a\tb"\ttea\n')
    assert [ad.title for ad in quoted.ads] == ['A "good" mug', "a b"]


def test_rows_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    rows = [b"id,title,url", b"1,Mug,a.example", b"2,@@,b.example", b"3,Tent", b"4,Pot,ftp://c.example"]
    rows += [b"1,Pan,", b"5,Caf\xe9,", b"6,Cup,", b"7,Jar,", b"8,Box,", b"9,Lid,"]
    text = b"\n".join(rows)
    taken = _taken(tmp_path / "ads.csv", text)
    assert [(ad.id, ad.title) for ad in taken.ads] == [
        ("1", "Mug"),
        ("6", "Cup"),
        ("7", "Jar"),
        ("8", "Box"),
        ("9", "Lid"),
    ]
    assert [(fault.line, fault.why.partition(";")[0]) for fault in taken.faults[:2]] == [
        (3, "title='@@' is empty"),
        (4, "2 cells instead of 3"),
    ]
    assert [fault.line for fault in taken.faults] == [3, 4, 5, 6, 7]
    assert "id='1' is that of line 2 too" in taken.faults[3].why
    assert taken.faults[4].why == "title: byte 0xe9 is not UTF-8"
    assert taken.notes["ads_unusable"] == 5


def test_json_lines_that_are_none(tmp_path: Path) -> None:
    lines = [
        '{"title": "Mug", "bid": 3}',
        '{"title": "Mug"',
        '["Mug"]',
        '{"name": {"en": "Mug"}}',
        '{"title": "half \\ud83d pair", "bid": null}',
        '{"title": 1984, "category": true, "bid": 2.0}',
        '{"title": "Lists", "category": ["a", "b"], "bid": "x"}',
        '{"category": "tea"}',
        '{"title": "A\u2028B", "bid": 7}',
        '{"title": "Cup"}',
    ]
    taken = _taken(tmp_path / "ads.jsonl", "\n".join(lines))
    assert [(ad.title, bid) for ad, bid in zip(taken.ads, taken.bids, strict=True)] == [
        ("Mug", 3.0),
        ("half \ufffd pair", None),
        ("1984", 2.0),
        ("A B", 7.0),
        ("Cup", None),
    ]
    assert [fault.line for fault in taken.faults] == [2, 3, 4, 7, 8]
    assert "not JSON" in taken.faults[0].why
    assert taken.faults[1].why == "holds a list, not an object"
    assert taken.faults[2].why == "title is a dict, not a text or number"
    assert taken.faults[4].why == "has no title"


def test_halves_of_surrogate_pairs_are_replaced_in_every_field(tmp_path: Path) -> None:
    row = '{{"title": "Mug {0}", "description": "a{1}b", "unread{1}": 1}}'
    half = enumerate(("\\ud83d", "\\udcff", "\\ud83d\\ude00"))
    lines = [row.format(number, one) for number, one in half]
    data = "\n".join([*lines, '{"title": "Cup", "description": "a']).encode() + b'\xff"}\n'
    taken = _taken(tmp_path / "ads.jsonl", data)
    assert [ad.description for ad in taken.ads] == ["a\ufffdb", "a\ufffdb", "a\U0001f600b"]
    assert [fault.why for fault in taken.faults] == ["description: byte 0xff is not UTF-8"]
    asked = [f'{{"query": "which mug {number} \\ud83d"}}' for number in range(20)]
    queries = _write(tmp_path / "queries.jsonl", "\n".join(asked))
    done = tables.import_tables(tmp_path / "ads.jsonl", queries, tmp_path / "world", SETTINGS, 0)
    assert {query.text[-1] for query in store.load_world(tmp_path / "world").queries} == {"\ufffd"}
    assert len(done.world.ads) == 3


def test_columns_of_other_types(tmp_path: Path) -> None:
    columns = {
        "title": pa.array(["Mug", "Kettle", "Tent", None], pa.large_string()),
        "product_id": pa.array([12, 7, 30, 31], pa.int64()),
        "cluster": pa.array(["tea", "tea", "camping", "camping"]).dictionary_encode(),
        "description": pa.array([dt.date(2026, 1, 2), None, None, None], pa.date32()),
        "bid": pa.array([5, None, 100, 1], pa.float64()),
        "website": pa.array(["a.example", None, "", "b.example"], pa.string_view()),
        "unread": pa.array([{"x": 1}] * 4),
    }
    pq.write_table(pa.table(columns), tmp_path / "ads.parquet")
    taken = catalogue.take_ads(tmp_path / "ads.parquet", {})
    assert [(ad.id, ad.title, ad.category, ad.url) for ad in taken.ads] == [
        ("12", "Mug", "tea", "https://a.example/"),
        ("7", "Kettle", "tea", ""),
        ("30", "Tent", "camping", ""),
    ]
    assert taken.bids == [5.0, None, 100.0]
    assert taken.ads[0].description == "2026-01-02"
    assert [(fault.line, fault.why) for fault in taken.faults] == [
        (4, "title='' is empty; fill or drop the row")
    ]


def test_numbers_as_titles_and_as_ids(tmp_path: Path) -> None:
    columns = {
        "title": pa.array([Decimal("1984.00"), Decimal("2001.50")], pa.decimal128(8, 2)),
        "id": pa.array([1.0, 2.0]),
        "category": pa.array([b"tea", b"\xff"], pa.binary()),
    }
    pq.write_table(pa.table(columns), tmp_path / "ads.parquet")
    taken = catalogue.take_ads(tmp_path / "ads.parquet", {})
    assert [(ad.id, ad.title, ad.category) for ad in taken.ads] == [("1", "1984", "tea")]
    assert str(taken.faults[0]).endswith("ads.parquet, line 2: category: byte 0xff is not UTF-8")


def test_titles_that_the_markup_cannot_hold_are_cleaned(tmp_path: Path) -> None:
    rows = ["title", "Cafe\u0301 @home [new]", "Mug \u00a4100", "word " * 30, "Mug", "Mug"]
    taken = _taken(tmp_path / "ads.csv", "\n".join(rows))
    assert [ad.title for ad in taken.ads] == [
        "Caf\u00e9 home new",
        "Mug 100",
        ("word " * 16).strip(),
        "Mug",
    ]
    assert (taken.notes["titles_cleaned"], taken.notes["rows_repeated"]) == (3, 1)
    assert {ad.category for ad in taken.ads} == {"general"}


def test_ads_of_one_title_stay_apart_by_what_else_they_say(tmp_path: Path) -> None:
    taken = _taken(tmp_path / "ads.csv", "sku,title,url\na1,Mug,a.example\na2,Mug,b.example\n")
    assert [(ad.id, ad.url) for ad in taken.ads] == [
        ("1000", "https://a.example/"),
        ("4989", "https://b.example/"),
    ]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("ads.csv", "", "holds no rows"),
        ("ads.csv", "title\n", "holds no rows"),
        (
            "ads.csv",
            "label,kind\nMug,tea\n",
            "no column for title; it has label, kind: name one with --map",
        ),
        ("ads.jsonl", '{"label": "Mug"}\n', "no column for title; it has label"),
        ("ads.csv", 'title,category\nMug,tea\n"Tent,x\nPot,y\n', "line 3: a quote is opened here"),
        ("ads.csv", "title\n@\n@\nMug\n", "2 of 3 rows cannot be used(.|\n)*line 2: title='@' is empty"),
        ("ads.parquet", "title\nMug\n", "cannot be read as parquet"),
        ("ads.csv.gz", "title\nMug\n", "[Nn]ot a gzipped file"),
        ("ads.csv.gz", gzip.compress(b"title\nMug\n" * 99, mtime=0)[:-6], "is damaged"),
        ("ads.xlsx", "title\nMug\n", r"no table by its name; give \.csv"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, name: str, data: str | bytes, message: str) -> None:
    with pytest.raises(WorldError, match=message) as told:
        _taken(tmp_path / name, data)
    assert name in str(told.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path / "none.parquet"):
        with pytest.raises(WorldError, match="No such file"):
            catalogue.take_ads(path, {})
    (tmp_path / "dir.csv").mkdir()
    with pytest.raises(WorldError, match="directory"):
        catalogue.take_ads(tmp_path / "dir.csv", {})


def test_users_are_dealt_queries_and_both_splits_have_some(tmp_path: Path) -> None:
    done = _world(tmp_path, ADS, QUERIES)
    world = done.world
    assert done.faults == ()
    assert sorted(query.text for query in world.queries) == ["best kettle", "what tent", "which mug"]
    assert len(world.profiles) == 3
    assert {query.split for query in world.queries} == {"train", "test"}
    assert all(set(user.interests) == {"tea", "camping"} for user in world.profiles)
    assert store.load_world(tmp_path / "world") == world
    assert _world(tmp_path, ADS, QUERIES).world == world


def test_users_of_the_table_keep_what_is_said_of_them(tmp_path: Path) -> None:
    rows = [
        "user_id,question,profile,topic",
        "ann,which mug,34 nurse from Oslo,tea",
        "ben,what tent,,camping",
        "ann,best kettle,another,tea",
        "ann,which mug,,",
        ",@ 12,,",
        ",where to camp,,camping",
    ]
    done = _world(tmp_path, ADS, "\n".join(rows))
    users = done.world.profiles
    assert users[0].basics == "34 nurse from Oslo"
    assert users[0].interests[0] == "tea"
    assert users[1].basics != ""
    assert [query.id for query in done.world.queries] == ["p0-0", "p0-1", "p1-0", "p2-0"]
    assert [query.category for query in done.world.queries] == ["tea", "tea", "camping", "camping"]
    assert done.world.notes["queries_repeated"] == 1
    assert [(fault.line, fault.why.partition(";")[0]) for fault in done.faults] == [
        (6, "query='@ 12' says nothing")
    ]
    asked = "profile,query,likes\nnurse,which mug,tea; hiking\nteacher,what tent,\n"
    by_profile = _world(tmp_path, ADS, asked).world
    assert [user.basics for user in by_profile.profiles] == ["nurse", "teacher"]
    assert by_profile.profiles[0].interests == ("tea", "hiking")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_query_may_bring_its_conversation(tmp_path: Path, kind: str) -> None:
    said = [{"role": "developer", "content": "be\nbrief"}, {"role": "assistant", "content": " "}]
    said += [{"role": "user", "content": "which mug"}, {"role": "assistant", "content": "of steel"}]
    rows = [
        {"user": "ann", "query": "and a cheaper one", "history": said},
        {"user": "ben", "query": "and a cheaper one", "history": []},
        {"user": "ben", "query": "what tent", "history": [{"role": "king", "content": "x"}]},
        {"user": "ben", "query": "what tent", "history": None},
    ]
    path = tmp_path / f"q.{kind}"
    if kind == "csv":
        with path.open("w", newline="") as text:
            writer = csv.writer(text)
            writer.writerow(rows[0])
            writer.writerows([row["user"], row["query"], json.dumps(row["history"])] for row in rows[:3])
            writer.writerow(["ben", "what tent", ""])
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    done = tables.import_tables(_write(tmp_path / "a.csv", ADS), path, tmp_path / "world", SETTINGS, 0)
    asked = {
        (query.profile_id, query.text): query.turns
        for query in store.load_world(tmp_path / "world").queries
    }
    turns = (Turn("system", "be brief"), Turn("user", "which mug"), Turn("assistant", "of steel"))
    assert asked == {
        ("p0", "and a cheaper one"): turns,
        ("p1", "and a cheaper one"): (),
        ("p1", "what tent"): (),
    }
    (fault,) = done.faults
    assert "give a JSON list of {role, content}" in fault.why


def test_one_user_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="1 users ask"):
        _world(tmp_path, ADS, "user,query\na,which mug\na,what tent\n")


def test_the_command_maps_columns_and_names_what_it_left_out(tmp_path: Path) -> None:
    ads = _write(tmp_path / "a[1].csv", "Label,Gruppe\nMug [red],tea\n@,tea\nTent,camping\nPot,tea\n")
    asked = [{"q": "which mug"}, {"q": "what tent"}]
    queries = _write(tmp_path / "q.jsonl", "\n".join(map(json.dumps, asked)))
    out = tmp_path / "world"
    command = ["world", "import", "table", str(ads), str(queries), "--out", str(out)]
    maps = ["--map", "title=label", "--map", "query=q", "--map", "category=Gruppe"]
    result = CliRunner().invoke(app, [*command, *maps])
    assert result.exit_code == 0, result.output
    assert "a[1].csv, line 3: title='@' is empty" in result.output
    assert "3 ads, 2 queries of 2 users" in result.output
    assert store.load_world(out).ads[0].title == "Mug red"
    for wrong, message in (
        (["--map", "title"], "write it as FIELD=COLUMN"),
        (["--map", "colour=x"], "no such field"),
        (["--map", "title=Nowhere", "--map", "query=q"], "no column for title"),
        ([*maps, "--map", "title=x"], "name it once"),
    ):
        result = CliRunner().invoke(app, [*command, *wrong])
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
    result = CliRunner().invoke(app, ["world", "import", "table", str(ads), "--out", str(out)])
    assert "give two tables" in result.output


def test_products_and_queries_of_gem_bench(gem_bench: Path, tmp_path: Path) -> None:
    done = gembench.import_gembench(gem_bench, tmp_path / "world", SETTINGS, 0)
    world = done.world
    assert (len(world.ads), len(world.queries), len(world.profiles), done.faults) == (2215, 120, 10, ())
    assert world.notes["titles_cleaned"] == 577
    assert world.ad_by_id["23"].title == "Hooker Furniture Chatelet Dining Room Set"
    assert world.ad_by_id["23"].url == "https://luxedecor.com/"
    assert world.ad_by_id["23"].description.startswith("One 20 Inch leaf extends table")
    assert max(len(ad.title) for ad in world.ads) == 80
    assert Counter(ad.category for ad in world.ads)["clothing"] == 565
    texts = {query.text for query in world.queries}
    assert {"nickel & nickel furniture", "k\u00e9rastase nutrients: densitive", "slides"} <= texts
    assert world.related == {}
    assert store.load_world(tmp_path / "world") == world


def test_the_published_tables_are_tables_too(gem_bench: Path, webis: Path, tmp_path: Path) -> None:
    ads = webis / "advertisements" / "banking_qualities.csv"
    queries = webis / "advertisements" / "banking_query_pairs.csv"
    done = tables.import_tables(ads, queries, None, SETTINGS, 0, {"category": "type"})
    assert done.faults == ()
    assert len(done.world.ads) > 80
    assert all(ad.description for ad in done.world.ads)
    products = tables.import_tables(
        gem_bench / gembench.PRODUCTS, gem_bench / gembench.QUERIES, None, SETTINGS, 0
    )
    assert len(products.world.ads) == 2215
    assert {ad.category for ad in products.world.ads} == {f"{number}.0" for number in range(6)}


def test_lines_of_webis_end_where_lines_end(webis: Path, tmp_path: Path) -> None:
    copy = tmp_path / "webis"
    shutil.copytree(webis, copy)
    file = copy / "queries" / "car_queries.txt"
    file.write_bytes(file.read_bytes() + "what\u2028car, what\x85price\rsmall cars\r\n".encode())
    world = import_webis(copy, None, config.World(profiles=30), 0)
    texts = {query.text for query in world.queries}
    assert {"what car, what price", "small cars"} <= texts
    assert "what" not in texts
