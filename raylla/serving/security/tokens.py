"""Click tokens: what a click is for, signed with HMAC-SHA256, in a form that fits a URL.

    key id . base64url(claims as JSON) . base64url(HMAC over the two before)

A token verifies in exactly one spelling: base64 is decoded strictly and must encode back to itself, so
no bit of it can be changed. Keys rotate: the first of `RAYLLA_TOKEN_KEYS` signs, all of them verify; a
key is dropped once no token that it signed can charge any more (`serving.token_ttl`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from raylla.errors import TokenError
from raylla.serving.money.money import Micros

KEY_BYTES = 32
"""Least length of a signing key."""
LONGEST = 1024
"""Longest token that is looked at, in characters."""
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")
_TOKEN = re.compile(r"([A-Za-z0-9_-]{1,32})\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")


@dataclass(frozen=True, slots=True)
class Claims:
    """What a click token says. ``seat`` is the advertiser, ``issued`` and ``expires`` are Unix seconds."""

    token_id: str
    auction_id: str
    impression_id: str
    ad_id: str
    seat: str
    price_micros: Micros
    currency: str
    issued: int
    expires: int

    def expired(self, now: datetime) -> bool:
        """Whether a click at ``now`` comes too late to charge."""
        return now.timestamp() >= self.expires


_KINDS = [int if field.type == "int" or field.type == "Micros" else str for field in fields(Claims)]


class TokenKeys:
    """The keys that sign and verify, by key id; the first one signs."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        """Take ``keys``, at least one.

        Raises:
            TokenError: none, an unusable key id, or a key of fewer than 32 bytes.
        """
        if not keys:
            raise TokenError('RAYLLA_TOKEN_KEYS is empty; set it to JSON such as {"k1": "64 hex digits"}')
        for id, key in keys.items():
            if not _KEY_ID.fullmatch(id):
                raise TokenError(f"RAYLLA_TOKEN_KEYS: key id {id!r}: use up to 32 letters, digits, - and _")
            if len(key) < KEY_BYTES:
                raise TokenError(
                    f"RAYLLA_TOKEN_KEYS: key {id} has {len(key)} bytes; give {KEY_BYTES} or more"
                )
        self._keys = dict(keys)
        self._signer = next(iter(self._keys))

    @classmethod
    def parse(cls, text: str) -> TokenKeys:
        """Read ``{"key id": "hex", ...}``, the form of `RAYLLA_TOKEN_KEYS`.

        Raises:
            TokenError: not that form, or a key id twice. Key material is never part of a message.
        """
        try:
            tree = json.loads(text, object_pairs_hook=_once)
            keys = {id: bytes.fromhex(key) for id, key in tree.items()}
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise TokenError('RAYLLA_TOKEN_KEYS is not JSON of the form {"key id": "hex digits"}') from None
        return cls(keys)

    @staticmethod
    def make() -> str:
        """Fresh keys in the form that `parse` reads."""
        return json.dumps({f"k{secrets.token_hex(3)}": secrets.token_hex(KEY_BYTES)})

    def sign(self, claims: Claims) -> str:
        """The token of ``claims``."""
        payload = _encode(json.dumps(astuple(claims), separators=(",", ":")).encode())
        return f"{self._signer}.{payload}.{self._mac(self._signer, payload)}"

    def verify(self, token: str) -> Claims:
        """The claims of an authentic token, expired or not.

        Raises:
            TokenError: the token is not, character by character, one that these keys have signed.
        """
        match = _TOKEN.fullmatch(token) if len(token) <= LONGEST else None
        if match is None or match[1] not in self._keys:
            raise TokenError("the token is malformed or of an unknown key")
        if not hmac.compare_digest(self._mac(match[1], match[2]), match[3]):
            raise TokenError("the token's signature does not verify")
        return _claims(match[2])

    def derived(self, purpose: str) -> dict[str, bytes]:
        """32 bytes for ``purpose`` alone from each key, by that key's id; the signing key's first."""
        text = f"derive\n{purpose}".encode()
        return {id: hmac.digest(key, text, hashlib.sha256) for id, key in self._keys.items()}

    def _mac(self, key_id: str, payload: str) -> str:
        text = f"click\n{key_id}.{payload}".encode()
        return _encode(hmac.digest(self._keys[key_id], text, hashlib.sha256))


def new_claims(
    auction_id: str,
    impression_id: str,
    ad_id: str,
    seat: str,
    price: Micros,
    currency: str,
    issued: datetime,
    ttl: float,
) -> Claims:
    """Claims with a fresh token id, charging until ``ttl`` seconds after ``issued``, at least."""
    moment = issued.astimezone(UTC).timestamp()
    return Claims(
        secrets.token_urlsafe(9),
        auction_id,
        impression_id,
        ad_id,
        seat,
        price,
        currency,
        int(moment),
        math.ceil(moment + ttl),
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    claims = dict(pairs)
    if len(claims) < len(pairs):
        raise TokenError("RAYLLA_TOKEN_KEYS holds a key id twice; give each key an id of its own")
    return claims


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _claims(payload: str) -> Claims:
    try:
        values = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, binascii.Error):
        values = None
    if not isinstance(values, list) or [type(value) for value in values] != _KINDS:
        raise TokenError("the token was signed by another version of raylla")
    return Claims(*values)
