"""Numbers that only grow, the ids of ads that come from them, and those of all else, which are random."""

from __future__ import annotations

import secrets

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from raylla.serving.store import models
from raylla.world.build import scattered_id

FIRST_COUNT = 1001
"""What the counter of ads says at the first of them."""
MOST_ASKED = 10_000
"""Ids that one query names."""


def new_id(kind: str) -> str:
    """A fresh id, for instance ``cmp_0f3a...``: 64 random bits."""
    return f"{kind}_{secrets.token_hex(8)}"


def bumped(session: Session, counter: str, by: int = 1) -> int:
    """Add to a counter and return what it says then."""
    change = update(models.StoredCounter).where(models.StoredCounter.name == counter)
    return session.execute(
        change.values(value=models.StoredCounter.value + by).returning(models.StoredCounter.value)
    ).scalar_one()


def free_ids(session: Session, count: int) -> list[str]:
    """The next ``count`` ad ids that no ad has."""
    free: list[str] = []
    while len(free) < count:
        some = min(count - len(free), MOST_ASKED)
        end = bumped(session, "ad", some) - FIRST_COUNT + 1
        ids = [scattered_id(index) for index in range(end - some, end)]
        listed = set(session.scalars(select(models.StoredAd.id).where(models.StoredAd.id.in_(ids))))
        free += [id for id in ids if id not in listed]
    return free
