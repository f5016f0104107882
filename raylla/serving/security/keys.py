"""API keys and what they may do.

A key reads ``rk_<id>_<secret>``. The store keeps the SHA-256 of the secret: it is 256 random bits, so
a slow hash would add nothing. The bootstrap admin key comes from `RAYLLA_ADMIN_KEY` and is in no table.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from raylla.config import Links
from raylla.errors import TokenError

_KEY = re.compile(r"rk_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_LEAST_ADMIN_KEY = 20
_KEPT = 10_000
KEPT_SECONDS = 1.0
"""Keys that are remembered, and for how long: as long as a revoked one may still be let in by a replica
other than the one that revoked it."""


class Role(StrEnum):
    """What a key is for: everything; one advertiser's own campaigns; asking questions."""

    ADMIN = "admin"
    ADVERTISER = "advertiser"
    APPLICATION = "application"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling. ``advertiser_id`` is set for advertisers only; ``links`` is how answers to the key
    carry click URLs, None: as the server says."""

    key_id: str
    role: Role
    advertiser_id: str | None = None
    links: Links | None = None


@dataclass(frozen=True, slots=True)
class StoredKey:
    """An API key as the store keeps it."""

    id: str
    role: Role
    advertiser_id: str | None
    digest: str
    revoked: bool
    links: Links | None = None


class KeyStore(Protocol):
    """Where keys are looked up."""

    def api_key(self, id: str) -> StoredKey | None:
        """The key of that id, revoked or not."""


def make() -> tuple[str, str, str]:
    """A new key: its id, the key as its holder gets it, and the digest to store."""
    id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    return id, f"rk_{id}_{secret}", _digest(secret)


def _digest(secret: str) -> str:
    """SHA-256 of a key's secret, in hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Access:
    """Tells from a request's key who is calling; remembers for a moment whom it has looked up."""

    def __init__(self, store: KeyStore, admin_key: str) -> None:
        """Look keys up in ``store``; ``admin_key`` is the bootstrap key.

        Raises:
            TokenError: the admin key is shorter than 20 characters, or no header can carry it.
        """
        admin_key = admin_key.strip()
        if len(admin_key) < _LEAST_ADMIN_KEY:
            raise TokenError(f"RAYLLA_ADMIN_KEY: give at least {_LEAST_ADMIN_KEY} characters")
        if not (admin_key.isascii() and admin_key.isprintable()):
            raise TokenError("RAYLLA_ADMIN_KEY: give printable ASCII characters: a header has to carry it")
        self._store = store
        self._admin = _digest(admin_key)
        self._known: dict[str, tuple[float, Principal]] = {}

    def known(self, key: str) -> Principal | None:
        """Whose ``key`` it is, where that can be told without the store: `principal` knows in any case."""
        given = _digest(key)
        if hmac.compare_digest(given, self._admin):
            return Principal("bootstrap", Role.ADMIN)
        until, principal = self._known.get(given, (0.0, None))
        return principal if time.monotonic() < until else None

    def forget(self) -> None:
        """Look every key up again: one was revoked."""
        self._known.clear()

    def principal(self, key: str) -> Principal | None:
        """Whose ``key`` it is; None for a wrong, unknown or revoked one."""
        if (known := self.known(key)) is not None:
            return known
        match = _KEY.fullmatch(key)
        stored = self._store.api_key(match[1]) if match else None
        if match is None or stored is None or stored.revoked:
            return None
        if not hmac.compare_digest(_digest(match[2]), stored.digest):
            return None
        principal = Principal(stored.id, stored.role, stored.advertiser_id, stored.links)
        if len(self._known) >= _KEPT:
            self._known.clear()
        self._known[_digest(key)] = (time.monotonic() + KEPT_SECONDS, principal)
        return principal
