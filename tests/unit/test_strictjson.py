"""Files of JSON lines from outside: their objects, or a typed error that names the place."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raylla.errors import ConfigError, DataError, RayllaError, WorldError
from raylla.judging import published
from raylla.strictjson import objects
from raylla.terms import native
from raylla.warmstart import rows

READERS: list[tuple[Callable[[Path], Any], type[RayllaError], str]] = [
    (published.read_impressions, DataError, "judging.data"),
    (native.read_answers, ConfigError, "evaluation.native_answers"),
    (rows.read_published, WorldError, "warmstart.data"),
]
WHOLE = gzip.compress((json.dumps({"id": "1", "response": "x" * 3000}) + "\n").encode(), mtime=0)


def test_a_line_ends_at_a_line_feed_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "one\u2028two\x85"}\r\n\n{"a": 2}', newline="")
    found = list(objects(path, DataError))
    assert found == [(f"{path}, line 1", {"a": "one\u2028two\x85"}), (f"{path}, line 3", {"a": 2})]


@pytest.mark.parametrize(("read", "wrong", "field"), READERS)
@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", b'{"id": "1"}\n[1]\n', "line [12]"),
        ("a.jsonl", b'{"id": \n', "line 1 is not JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", b"\xff\xfe\n", "line 1 is not JSON"),
        ("a.jsonl.gz", WHOLE[:-12], "cannot be read"),
        ("a.jsonl.gz", WHOLE[:20] + b"\x00" * 10 + WHOLE[30:], "cannot be read"),
        ("a.jsonl.gz", b"no archive", "cannot be read"),
    ],
)
def test_what_is_damaged_is_named(
    tmp_path: Path,
    read: Callable[[Path], Any],
    wrong: type[RayllaError],
    field: str,
    name: str,
    data: bytes,
    words: str,
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(wrong, match=words) as caught:
        read(path)
    assert name in str(caught.value)
    with pytest.raises(wrong, match=field):
        read(tmp_path / "missing.jsonl")


@pytest.mark.parametrize("value", [7, None, ["a"], "half \ud83d"])
def test_an_answer_that_is_no_text_is_named(tmp_path: Path, value: object) -> None:
    row = {"id": "1", "meta_topic": "t", "query": "q", "question": "q", "response": value, "label": 0}
    row |= {
        "advertisement": None,
        "product": {"name": "Mug"},
        "judgements": {"a": {"click": "NOT_NOTICEABLE"}},
    }
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    for read, wrong, _ in READERS:
        with pytest.raises(wrong, match=r"line 1.*response="):
            read(path)
