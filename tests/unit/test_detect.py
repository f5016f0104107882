"""The detector of native ads: on made answers, on the published ones, and what it refuses to learn from."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylla import config
from raylla.errors import ConfigError
from raylla.evaluation.reader import detect
from raylla.terms import native

PLAIN = "The bus leaves at nine. Bring water. Tickets cost two coins."


def made(count: int = 60) -> list[dict[str, Any]]:
    """Answers with and without a sentence that praises a brand."""
    rows: list[dict[str, Any]] = []
    for place in range(count):
        about = {"query": f"question {place % 20}", "id": str(place)}
        ad = f" Indulge in the timeless elegance of Brand{place % 12} today."
        rows += [
            about | {"response": PLAIN, "label": 0, "advertisement": None, "sen_span": None},
            about
            | {"id": f"{place}a", "response": PLAIN + ad, "label": 1, "advertisement": f"Brand{place % 12}"}
            | {"sen_span": [len(PLAIN) + 1, len(PLAIN + ad)]},
        ]
    return rows


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return path


def test_what_is_easy_is_learned_from_brands_never_seen(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl.gz", made())
    answers = native.read_answers(path)
    assert [sum(one.ads) for one in answers[:2]] == [0, 1]
    found, tested = native.taught(path)
    quality = detect.quality_of(tested, 100, 0)
    assert native.f1_of(tested) == quality.f1["mean"]
    assert quality.f1["mean"] == pytest.approx(1)
    assert 0 < quality.with_ad < quality.answers < len(answers)
    texts = [PLAIN, PLAIN + " Indulge in the timeless elegance of Nobody here.", ""]
    assert found.suspects(texts).tolist() == [False, True, False]
    plain, praise, nothing = found.chances(texts)
    assert nothing == 0 <= plain < 0.2 < 0.8 < praise <= 1


def test_chances_are_shares_of_what_was_held_out() -> None:
    """Scores of 2 with 80 % ads and of -1 with 10 %: the curve goes through both."""
    scores = np.repeat([2.0, -1.0], 500)
    labels = np.concatenate([np.arange(500) < 400, np.arange(500) < 50])
    slope, intercept = native._curve(scores, labels)
    found = 1 / (1 + np.exp(-(slope * np.array([2.0, -1.0]) + intercept)))
    assert found == pytest.approx([0.8, 0.1], abs=5e-3)
    assert native._curve(np.append(scores, -np.inf), np.append(labels, True)) == (slope, intercept)


def test_labels_that_mean_nothing_teach_nothing(tmp_path: Path) -> None:
    rows = made()
    for row in rows:
        if row["label"]:  # the ad is a sentence that all answers have
            row["response"], row["sen_span"] = PLAIN, [0, len("The bus leaves at nine.")]
    settings = config.parse_config(
        {"evaluation": {"native_answers": str(written(tmp_path / "a.jsonl.gz", rows))}}, "test"
    )
    taught = detect.detector(settings.evaluation, 0)
    assert taught.one is None
    assert "below 0.85" in taught.absent["detected"]
    assert taught.report is not None


def test_nothing_to_learn_from_is_said() -> None:
    taught = detect.detector(config.parse_config({}, "test").evaluation, 0)
    assert (taught.one, taught.report) == (None, None)
    assert "evaluation.native_answers" in taught.absent["detected"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"id": "1"}], "line 1: .*response=None is no text"),
        ([*made(2), {"id": "1", "query": "q", "response": "A.", "label": 1}], "line 5: KeyError"),
        (made(3), "3 brands and 3 queries; 5 of each"),
    ],
)
def test_files_that_cannot_teach_are_refused(tmp_path: Path, rows: list[Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        native.read_answers(written(tmp_path / "a.jsonl.gz", rows))


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_text("no archive")
    with pytest.raises(ConfigError, match="cannot be read"):
        native.read_answers(tmp_path / "a.jsonl.gz")


def test_ads_of_published_answers_are_found(native_answers: Path) -> None:
    """A third of the published answers teach and another is asked, words alone."""
    answers = [replace(one, sentences=_words(one)) for one in native.read_answers(native_answers)]
    assert (len(answers), sum(bool(one.brand) for one in answers)) == (3257, 1182)
    assert all(sum(one.ads) >= bool(one.brand) for one in answers)
    brands = sorted({one.brand for one in answers})
    queries = sorted({one.query for one in answers})
    seen, tested = (
        [
            one
            for one in answers
            if queries.index(one.query) % 3 == part
            and (not one.brand or brands.index(one.brand) % 2 == part)
        ]
        for part in (0, 1)
    )
    labels = np.array([bool(one.brand) for one in tested])
    scores = native.Detector(seen).scores([one.sentences for one in tested])
    above = (scores[labels][:, None] > scores[~labels]).mean()
    assert above > 0.9


def _words(one: native.AnswerTerms) -> tuple[native.Terms, ...]:
    return tuple(tuple(term for term in terms if " " not in term) for terms in one.sentences)
