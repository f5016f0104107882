"""The endpoint's secrets: from the environment, or for a local run from a file beside the database.

RAYLLA_TOKEN_KEYS   {"key id": "hex", ...}: the first signs click tokens, all verify
RAYLLA_ADMIN_KEY    bootstrap API key of role admin
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from raylla.errors import ConfigError
from raylla.serving.security.tokens import TokenKeys

TOKEN_KEYS, ADMIN_KEY = "RAYLLA_TOKEN_KEYS", "RAYLLA_ADMIN_KEY"
_SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Keyring:
    """Both secrets; neither is ever printed, logged or put into a config."""

    token_keys: str = field(repr=False)
    admin_key: str = field(repr=False)


def file(database: str) -> Path | None:
    """Where a local run keeps its secrets; None where the database is no SQLite file."""
    if not database.startswith(_SQLITE) or database == _SQLITE:
        return None
    return Path(database.removeprefix(_SQLITE)).with_suffix(".keys.json")


def read_keyring(database: str) -> Keyring:
    """The secrets of the environment, else of the file beside ``database``.

    Raises:
        ConfigError: they are in neither, or the file cannot be read; names what to set.
    """
    kept = _kept(database)
    keys = {name: _given(name) or kept.get(name, "").strip() for name in (TOKEN_KEYS, ADMIN_KEY)}
    missing = [name for name, value in keys.items() if not value]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} not set: give the endpoint's secrets as environment variables of the "
            "Ray nodes, or start it with `raylla serve` on a SQLite database, which makes them"
        )
    return Keyring(keys[TOKEN_KEYS], keys[ADMIN_KEY])


def ensure(database: str) -> Path | None:
    """Make what is missing for a local run, readable by its owner only; the file, if it was written.

    Raises:
        ConfigError: something is missing, and the database is no SQLite file to keep it beside; or the file
            cannot be read.
    """
    kept = _kept(database)
    made: dict[str, Callable[[], str]] = {
        TOKEN_KEYS: TokenKeys.make,
        ADMIN_KEY: lambda: f"admin_{secrets.token_urlsafe(24)}",
    }
    missing = [name for name in made if not _given(name) and name not in kept]
    path = file(database)
    if not missing or path is None:
        read_keyring(database)
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(kept | {name: made[name]() for name in missing}, indent=2)
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(content + "\n")
    fresh.replace(path)
    return path


def _given(name: str) -> str:
    """A secret of the environment, without the line break that a file leaves at its end; "" for none."""
    return os.environ.get(name, "").strip()


def _kept(database: str) -> dict[str, str]:
    path = file(database)
    if path is None or not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: the endpoint's secrets cannot be read: {error}") from None
    if not isinstance(kept, dict) or not all(isinstance(one, str) for one in kept.values()):
        raise ConfigError(
            f'{path} holds no JSON object such as {{"{ADMIN_KEY}": "..."}}; mend it or remove it'
        )
    return kept
