"""A click token verifies as it was signed and in no other form."""

from __future__ import annotations

import base64
import datetime as dt
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylla.errors import TokenError
from raylla.serving.security.tokens import Claims, TokenKeys, new_claims
from tests.unit.serving.market import KEYS

NOW = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)
CLAIMS = new_claims("auc1", "imp1", "1042", "adv_1", 640_000, "USD", NOW, 60)
TOKEN = TokenKeys(KEYS).sign(CLAIMS)

texts = st.text(st.characters(codec="utf-8"), max_size=20)
micros = st.integers(-(10**12), 10**12)
claims = st.builds(Claims, texts, texts, texts, texts, texts, micros, texts, micros, micros)


@given(claims)
@settings(max_examples=100, deadline=None)
def test_claims_come_back_as_they_were_signed(one: Claims) -> None:
    keys = TokenKeys(KEYS)
    token = keys.sign(one)
    assert len(token) > 1024 or keys.verify(token) == one


def test_no_flipped_bit_verifies() -> None:
    keys = TokenKeys(KEYS)
    for place in range(len(TOKEN)):
        for bit in range(7):
            flipped = TOKEN[:place] + chr(ord(TOKEN[place]) ^ 1 << bit) + TOKEN[place + 1 :]
            with pytest.raises(TokenError):
                keys.verify(flipped)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_no_edit_verifies(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(TOKEN)))
    end = data.draw(st.integers(start, min(len(TOKEN), start + 4)))
    put = data.draw(st.text(st.sampled_from("Ak2_-=.+/ \n%\x00é"), max_size=4))
    edited = TOKEN[:start] + put + TOKEN[end:]
    if edited != TOKEN:
        with pytest.raises(TokenError):
            TokenKeys(KEYS).verify(edited)


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_no_text_of_ones_own_verifies(text: str) -> None:
    with pytest.raises(TokenError):
        TokenKeys(KEYS).verify(text)


def test_a_token_of_another_purpose_does_not_verify() -> None:
    keys = TokenKeys(KEYS)
    key_id, payload, _ = TOKEN.split(".")
    for purpose in ("click", f"click\n{key_id}.{payload}", f"{key_id}.{payload}"):
        mac = base64.urlsafe_b64encode(keys.derived(purpose)[key_id]).rstrip(b"=").decode()
        with pytest.raises(TokenError):
            keys.verify(f"{key_id}.{payload}.{mac}")


def test_keys_rotate_the_first_signs_and_all_verify() -> None:
    old = TokenKeys({"k1": KEYS["k1"]})
    token = old.sign(CLAIMS)
    assert TokenKeys(KEYS).verify(token) == CLAIMS
    assert TokenKeys(KEYS).sign(CLAIMS).startswith("k2.")
    with pytest.raises(TokenError, match="unknown key"):
        TokenKeys({"k2": KEYS["k2"]}).verify(token)
    with pytest.raises(TokenError, match="does not verify"):
        TokenKeys({"k1": KEYS["k2"]}).verify(token)


def test_a_token_expires_at_its_last_second() -> None:
    assert not CLAIMS.expired(NOW + dt.timedelta(seconds=59))
    assert CLAIMS.expired(NOW + dt.timedelta(seconds=60))


def test_made_keys_are_read_back() -> None:
    keys = TokenKeys.parse(TokenKeys.make())
    assert keys.verify(keys.sign(CLAIMS)) == CLAIMS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[]", "not JSON"),
        ("[" * 100_000, "not JSON"),
        (f'{{"k1": "{"ab" * 32}", "k1": "{"cd" * 32}"}}', "twice"),
        ("{}", "empty"),
        ('{"k1": 5}', "not JSON"),
        ('{"k1": "zz"}', "not JSON"),
        (json.dumps({"k1": "ab" * 16}), "16 bytes"),
        (json.dumps({"k.1": "ab" * 32}), "key id"),
    ],
)
def test_unusable_key_material_is_refused_without_showing_it(text: str, message: str) -> None:
    with pytest.raises(TokenError, match=message) as caught:
        TokenKeys.parse(text)
    assert "ab" * 8 not in str(caught.value)
