"""Published answers as auctions with a known answer."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from raylla.auction import parse
from raylla.config import Warmstart
from raylla.errors import WorldError
from raylla.figures.intervals import spearman
from raylla.warmstart import rows


def line(number: int, brand: str, topic: str = "tea", **other: Any) -> dict[str, Any]:
    text = f"Tea number {number} is fine. Warm it. {brand} makes it easy. Then drink it."
    row = {"id": str(number), "meta_topic": topic, "query": f"tea {number}", "response": text}
    return row | {"advertisement": brand, "label": 1} | other


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(one) + "\n" for one in lines)
    return path


def test_an_answer_is_cut_to_the_sentences_around_its_ad(tmp_path: Path) -> None:
    topics = ["tea", "tea", "tea", "car", "car", "real_estate"]
    found = rows.read_published(
        write(tmp_path / "a.jsonl.gz", [line(n, f"Brand {n}", topic) for n, topic in enumerate(topics)])
    )
    made = rows.rows(found, Warmstart(data=tmp_path, candidates=4), 0)
    assert len(made) == 6
    first = made[0]
    own = next(ad for ad in first.ads if ad.title == "Brand 0")
    assert first.answer == f"Tea number 0 is fine. Warm it. @Brand 0@[Ad-{own.id}] makes it easy."
    assert parse(first.answer, first.ads).ad_ids == (own.id,)
    assert [ad.category for ad in first.ads].count("tea") == 3
    assert made[5].query.category == "real estate"
    assert len({ad.id for ad in first.ads}) == 4


def test_what_cannot_be_learned_from_is_left_out(tmp_path: Path) -> None:
    lines = [
        line(1, "Lumo"),
        line(2, "Lumo", label=0),
        line(3, "Lumo") | {"response": "No name here."},
        line(4, "L[u]mo"),
    ]
    assert [one.query for one in rows.read_published(write(tmp_path / "a.jsonl.gz", lines))] == ["tea 1"]


def test_a_damaged_file_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(line(1, "Lumo")) + "\n{]\n")
    with pytest.raises(WorldError, match=r"a\.jsonl, line 2"):
        rows.read_published(file)
    with pytest.raises(WorldError, match=r"warmstart\.data: .*absent"):
        rows.read_published(tmp_path / "absent")
    with pytest.raises(WorldError, match="holds no answer with an ad"):
        rows.read_published(write(tmp_path / "b.jsonl.gz", [line(1, "Lumo", label=0)]))


@pytest.fixture(scope="module")
def published(native_answers: Path) -> list[rows.PublishedAnswer]:
    return rows.read_published(native_answers)


def test_held_out_brands_and_questions_are_never_trained_on(published: list[rows.PublishedAnswer]) -> None:
    split = rows.split_answers(published, 0.15, 0)
    assert len(split.train) > 700
    assert len(split.test) > 100
    assert not {one.brand for one in split.train} & {one.brand for one in split.test}
    assert not {one.query for one in split.train} & {one.query for one in split.test}
    settings = Warmstart(data=Path())
    shown = {ad.title for row in rows.rows(split.train, settings, 0) for ad in row.ads}
    assert not shown & {one.brand for one in split.test}


def test_bids_say_nothing_of_the_answer(published: list[rows.PublishedAnswer]) -> None:
    made = rows.rows(published, Warmstart(data=Path()), 0)
    trends = []
    for row in made:
        placed = parse(row.answer, row.ads)
        assert len(placed.placements) == 1
        assert not placed.violations
        chosen = [float(ad.id in placed.ad_ids) for ad in row.ads]
        trends.append(float(spearman(row.bids, chosen)))
    assert abs(sum(trends) / len(trends)) < 3 * 0.45 / len(trends) ** 0.5
