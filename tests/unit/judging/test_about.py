"""Who taught a judge, and whose clicks results count."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylla.config import UserLlm
from raylla.errors import DataError
from raylla.judging import about

TAUGHT = about.Taught(("a", "b"), 3, 0.25)


def adapter(path: Path) -> str:
    path.mkdir()
    (path / "config.json").write_text("{}")
    about.write_taught(path, TAUGHT)
    return str(path)


def test_an_adapter_says_who_taught_it(tmp_path: Path) -> None:
    place = adapter(tmp_path / "judge")
    assert about.read_taught(place) == TAUGHT
    assert about.judge_name(UserLlm(path=place)) == f"{place} (taught by a, b)"
    assert about.read_taught(str(tmp_path)) is None
    assert about.judge_name(UserLlm(path="pocket:user-llm")) == "pocket:user-llm"
    assert about.judge_name(UserLlm(path=str(tmp_path / "gone"))) == str(tmp_path / "gone")


def test_sources_and_their_caption(tmp_path: Path) -> None:
    place = adapter(tmp_path / "judge")
    by_word = about.sources(UserLlm(path=place, reading="token"))
    assert by_word == dict.fromkeys(("counted", "expected"), f"{place} (taught by a, b)")
    assert about.caption(by_word) == f"clicks of {place} (taught by a, b); expected: by its probabilities"
    by_json = about.sources(UserLlm(path="pocket:user-llm"))
    assert about.caption(by_json) == "clicks of pocket:user-llm; expected: by the click model"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"judges": ["a"]}', '{"judges": "a", "seed": 0, "held_out": 0}']
)
def test_a_broken_note_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / about.ABOUT).write_text(text)
    with pytest.raises(DataError, match=r"judge\.json does not say"):
        about.read_taught(str(tmp_path))
