"""Tokens to text as they come: the same text as all at once, and no error whatever they are."""

from __future__ import annotations

import random
from typing import Any

import pytest

from raylla.records import Profile
from raylla.serving.auction.draft import Draft, Field
from raylla.serving.auction.exchange import Asked
from raylla.serving.auction.spelling import Spelling
from raylla.serving.engine.wire import Piece
from raylla.serving.money.records import Filters
from tests import tokenizers

MADE = {name: make() for name, make in tokenizers.FAMILIES.items()}


def spelled(tokenizer: Any, ids: list[int]) -> list[str]:
    spelling = Spelling(tokenizer.backend_tokenizer)
    return [*map(spelling.add, ids), spelling.end()]


def at_once(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=True)
    return text


def fallback(*values: int) -> list[int]:
    return [MADE["sentencepiece"].convert_tokens_to_ids(f"<0x{value:02X}>") for value in values]


@pytest.mark.parametrize("family", sorted(MADE))
def test_a_text_is_the_same_token_by_token(family: str) -> None:
    made = MADE[family]
    for text in [*tokenizers.texts(40, seed=2), " tea  😀茶é ", "<s></s>"]:
        ids = made(text, add_special_tokens=False)["input_ids"]
        assert "".join(spelled(made, ids)) == at_once(made, ids)


@pytest.mark.parametrize("family", sorted(MADE))
def test_any_tokens_at_all_have_a_text(family: str) -> None:
    made, rng = MADE[family], random.Random(0)
    for _ in range(200):
        ids = [rng.randrange(len(made)) for _ in range(rng.randint(1, 30))]
        text = "".join(spelled(made, ids))
        # A byte that falls back may unmake characters before it, which have been shown by then.
        if family != "sentencepiece" or "\ufffd" not in text:
            assert text == at_once(made, ids)


def test_bytes_that_are_no_character() -> None:
    made = MADE["sentencepiece"]
    word = made("tea", add_special_tokens=False)["input_ids"]
    tea = [0xE8, 0x8C, 0xB6]  # one character of three bytes
    assert "".join(spelled(made, [*word, *fallback(0xFF), *word])) == "tea\ufffd tea"
    assert "".join(spelled(made, [*word, *fallback(*tea, 0xFF), *word])) in (
        "tea茶\ufffd tea",
        "tea\ufffd\ufffd\ufffd\ufffd tea",
    )
    assert "".join(spelled(made, [*word, *fallback(*tea[:2])])) == "tea\ufffd\ufffd"
    assert "".join(spelled(made, [*word, *fallback(*tea)])) == "tea茶"
    many = "".join(spelled(made, [*fallback(*[0xFF] * 40), *word]))
    assert many == "\ufffd" * 40 + " tea"


def test_a_character_comes_when_it_is_whole_and_no_later() -> None:
    made = MADE["byte_level"]
    ids = made("é😀x", add_special_tokens=False)["input_ids"]
    parts = spelled(made, ids)
    assert "".join(parts) == "é😀x"
    assert parts[-1] == ""
    assert "\ufffd" not in "".join(parts)
    # Bytes that go on being none do not hold the stream back for ever.
    assert [bool(part) for part in spelled(MADE["sentencepiece"], fallback(*[0xFF] * 8))][3:8] == [True] * 5


def test_a_draft_ends_with_what_was_held_back() -> None:
    asked = Asked("r", "tea?", Profile("u", "", ()), Filters(None, 0, frozenset(), frozenset()), ads=False)
    draft = Draft([1], Field.empty(asked), "Sponsored", MADE["sentencepiece"])
    word = MADE["sentencepiece"]("tea", add_special_tokens=False)["input_ids"]
    shown = draft.add(Piece(tuple(word), None, "v1"))
    shown += draft.add(Piece(tuple(fallback(0xE8, 0x8C)), None, "v1"))
    shown += draft.add(Piece((), "length", "v1"))
    shown += draft.end()
    assert shown == draft.raw == draft.repaired().text == "tea\ufffd\ufffd"
