"""The real data comes in whole; every broken file is named with its line."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from raylla import config
from raylla.errors import WorldError
from raylla.world import World, build, store
from raylla.world.imports.webis import import_webis

SETTINGS = config.World(profiles=30)


@pytest.fixture(scope="module")
def imported(webis: Path) -> World:
    return import_webis(webis, None, SETTINGS, 0)


def test_counts(imported: World) -> None:
    assert len(imported.ads) == 968
    assert len(imported.queries) == 7679
    assert dict(imported.notes) == {
        "titles_cleaned": 0,
        "titles_repeated": 32,
        "queries_repeated": 0,
        "pairs_respelled": 4,
        "pairs_unlisted": 1,
    }
    assert len({ad.title for ad in imported.ads}) == 968
    assert imported.ads[0].id == "1000"
    assert Counter(ad.theme for ad in imported.ads)["real estate"] == 100


def test_each_query_is_asked_by_someone_who_cares(imported: World) -> None:
    for query in imported.queries:
        assert query.category in imported.profile_by_id[query.profile_id].interests


def test_candidates_prefer_paired_ads(imported: World) -> None:
    for query in imported.queries[::200]:
        found = build.candidates(imported, query, 6, 0)
        paired = imported.related.get(query.id, ())
        ids = {ad.id for ad in found}
        assert len(ids) == 6
        assert len(ids & set(paired)) >= min(2, len(paired))
        others = [ad for ad in found if ad.id not in paired]
        assert sum(ad.theme == query.theme for ad in others) >= 2


def test_sample_is_even_over_topics(imported: World) -> None:
    small = build.sample_queries(imported, 100, 0)
    assert len(small.queries) == 100
    assert min(Counter(query.theme for query in small.queries).values()) >= 8
    store.check_world(small)


def test_import_is_deterministic_and_saves(webis: Path, imported: World, tmp_path: Path) -> None:
    assert import_webis(webis, tmp_path / "world", SETTINGS, 0) == imported
    assert store.load_world(tmp_path / "world") == imported


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("advertisements/banking_qualities.csv", None, b"", r"banking_qualities.csv: .*fetch"),
        ("queries/car_queries.txt", None, b"", r"car_queries.txt: .*fetch"),
        ("advertisements/car_qualities.csv", b"advertisement,", b"name,", r"line 1: .*'advertisement'"),
        ("advertisements/banking_qualities.csv", b"\nChase,", b"\nChase,x,", r"line 3: 4 columns"),
        (
            "advertisements/banking_qualities.csv",
            b"\nChase,",
            b"\n@,",
            r"line 3: advertisement='@' is empty",
        ),
        ("advertisements/banking_qualities.csv", b"\nChase,", b"\nCh\xffse,", r"line 3: byte 0xff"),
        (
            "advertisements/banking_query_pairs.csv",
            b"PNC Bank",
            b"Nobody",
            r"line 2: advertisement='Nobody'",
        ),
        ("advertisements/banking_query_pairs.csv", b"aba bank,", b"none,", r"line 2: query='none'"),
    ],
)
def test_broken_files_are_named(
    webis: Path, tmp_path: Path, file: str, old: bytes | None, new: bytes, message: str
) -> None:
    copy = tmp_path / "webis"
    shutil.copytree(webis, copy)
    broken = copy / file
    if old is None:
        broken.unlink()
    else:
        data = broken.read_bytes()
        assert old in data
        broken.write_bytes(data.replace(old, new, 1))
    with pytest.raises(WorldError, match=message):
        import_webis(copy, None, SETTINGS, 0)
