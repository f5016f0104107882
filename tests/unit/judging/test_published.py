"""Published judgements: what is read of them, how they are split, and every broken row by its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from raylla.errors import DataError
from raylla.judging.published import CLICKED, Published, read_impressions, split_impressions

JUDGES = ("a", "b", "c", "d")


def row(question: str = "What tea?", clicks: str = "1010", **changes: Any) -> dict[str, Any]:
    said = {
        judge: {"click": CLICKED if bit == "1" else "NOT_NOTICEABLE"}
        for judge, bit in zip(JUDGES, clicks, strict=True)
    }
    product = {"name": "Lumo Kettle", "desc": "Boils.", "url": "https://lumo.example"}
    whole = {
        "question": question,
        "response": "Buy a Lumo Kettle. Sip.",
        "product": product,
        "judgements": said,
    }
    return whole | changes


def written(path: Path, *rows: Any) -> Path:
    text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture(scope="session")
def published(gem_bench: Path) -> Published:
    return read_impressions(gem_bench / "judged.jsonl.gz")


@pytest.mark.parametrize("name", ["judged.jsonl", "judged.jsonl.gz"])
def test_reads_rows(tmp_path: Path, name: str) -> None:
    other = row(clicks="0001", product={"name": "Zed", "description": "Of \n all"})
    found = read_impressions(
        written(tmp_path / name, row(), row(product=None), row(product={"name": None}), other)
    )
    first, second = found.impressions
    assert found.judges == JUDGES
    assert dict(found.notes) == {
        "rows": 4,
        "without_product": 2,
        "found_by_name": 1,
        "found_by_nothing": 1,
    }
    assert dict(first.clicks) == {"a": True, "b": False, "c": True, "d": False}
    assert (first.description, second.description) == ("Boils.", "Of \n all")
    assert first.share(JUDGES) == 0.5
    assert first.share(("a",)) == 1.0
    assert first.passage.text == "Buy a Lumo Kettle. Sip."


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "no JSON object"),
        (row(question=" "), "question is empty"),
        ("[" * 100_000, "is not JSON"),
        (row(question="half \ud800"), "is no text"),
        (row(response=None), "response=None is no text"),
        (row(product=[1]), r"product=\[1\] is no object"),
        (row(product={"name": 3}), "product.name=3 is no text"),
        (row(product={"name": "x", "desc": 3}), "product.desc=3 is no text"),
        (row(judgements={}), "names no judge"),
        (row(judgements={"a": {"click": "MAYBE"}}), "judgements.a.click='MAYBE' is none of"),
        (row(judgements={"a": {"click": ["x"]}}), "is none of"),
        (row(judgements={"a": "yes"}), "judgements.a.click=None"),
        (row(judgements={"a": {"click": CLICKED}}), "its judges are not a, b, c, d"),
    ],
)
def test_a_broken_row_is_named_by_its_line(tmp_path: Path, broken: Any, said: str) -> None:
    with pytest.raises(DataError, match=rf"judged\.jsonl, line 2.*{said}"):
        read_impressions(written(tmp_path / "judged.jsonl", row(), broken))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole.jsonl.gz", *[row(str(n)) for n in range(50)])
    for name, content in {"cut.gz": whole.read_bytes()[:-20], "plain.gz": b"{}", "none": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_impressions(tmp_path / name)
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        read_impressions(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="holds no judged ad"):
        read_impressions(written(tmp_path / "empty.jsonl", row(product=None)))
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9"}\n')
    with pytest.raises(DataError, match="line 1 is not JSON"):
        read_impressions(tmp_path / "latin.jsonl")


def test_chosen_judges(tmp_path: Path) -> None:
    found = read_impressions(written(tmp_path / "judged.jsonl", row()))
    assert found.chosen(()) == JUDGES
    assert found.chosen(("d", "a")) == ("a", "d")
    with pytest.raises(DataError, match="e is not among"):
        found.chosen(("a", "e"))
    with pytest.raises(DataError, match="named twice"):
        found.chosen(("a", "a"))


def test_split_by_question(tmp_path: Path) -> None:
    rows = [row(f"question {n // 3}") for n in range(30)]
    found = read_impressions(written(tmp_path / "judged.jsonl", *rows)).impressions
    learned, apart = split_impressions(found, 0.2, 0)
    assert len(learned) == 24
    assert len(apart) == 6
    assert not {one.question for one in learned} & {one.question for one in apart}
    assert split_impressions(found[::-1], 0.2, 0)[1] == apart[::-1]
    assert split_impressions(found, 0.2, 1)[1] != apart
    for share in (0.0, 0.04, 0.97):
        with pytest.raises(DataError, match=r"judging\.held_out"):
            split_impressions(found, share, 0)


def test_the_published_file(published: Published) -> None:
    assert published.judges == ("gpt-4.1-mini", "qwen-max", "kimi-k2", "claude-3.5-haiku")
    assert dict(published.notes) == {
        "rows": 2076,
        "without_product": 17,
        "found_by_name": 1830,
        "found_by_words": 226,
        "found_by_nothing": 3,
    }
    rates = [sum(one.clicks[judge] for one in published.impressions) for judge in published.judges]
    assert rates == [1595, 688, 395, 1361]
    learned, apart = split_impressions(published.impressions, 0.2, 0)
    assert (len(learned), len(apart), len({one.question for one in apart})) == (1651, 408, 34)
