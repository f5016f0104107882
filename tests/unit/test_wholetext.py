"""Halves of surrogate pairs become U+FFFD; everything else stays as it is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylla.wholetext import whole, whole_json


@given(st.text(st.characters()))
def test_any_text_can_be_encoded_afterwards(text: str) -> None:
    mended = whole(text)
    mended.encode()
    kept = [one for one in text if not "\ud800" <= one <= "\udfff"]
    if len(kept) == len(text):
        assert mended == text


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("a\ud83d", "a\ufffd"),
        ("\ude00b", "\ufffdb"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\U0001f600 茶", "\U0001f600 茶"),
    ],
)
def test_halves_are_replaced(text: str, mended: str) -> None:
    assert whole(text) == mended
    assert json.loads(whole_json(json.dumps({text: [text, 1]}).encode())) == {mended: [mended, 1]}


@pytest.mark.parametrize(
    "body", [b"", b"[", b'{"a": "\\\\ud83d"}', b"\xff\xfe", b'"\\ud83d', b'{"a": "tea \xe8\x8c\xb6"}']
)
def test_what_holds_none_or_is_no_json_stays(body: bytes) -> None:
    mended = whole_json(body)
    assert mended == body or json.loads(mended) == json.loads(body)
