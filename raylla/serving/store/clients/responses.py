"""Responses that clients may ask for again and go on from, each with what it adds to its conversation.

They are the clients' own, no part of the books: their key alone reads them, and deletes them for good.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import String, cast, delete, func, literal, select

from raylla.errors import TooLongError, UnknownError
from raylla.records import Turn
from raylla.serving.store import models
from raylla.serving.store.database import Database


@dataclass(frozen=True, slots=True)
class KeptResponse:
    """A response: whose it is, which one it goes on from, what was said since, and what the client got."""

    id: str
    key_id: str
    previous_id: str | None
    created: dt.datetime
    turns: tuple[Turn, ...]
    body: Any


class Responses:
    """The responses of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def keep(self, response: KeptResponse) -> None:
        """Write a response."""
        row = models.StoredResponse(
            id=response.id,
            key_id=response.key_id,
            previous_id=response.previous_id,
            created=response.created,
            turns=[[turn.role, turn.text] for turn in response.turns],
            body=response.body,
        )
        with self._database.writing() as session:
            session.add(row)

    def body(self, id: str, key_id: str) -> Any:
        """What the client of ``key_id`` got.

        Raises:
            UnknownError: it has no such response.
        """
        with self._database.reading() as session:
            return _own(session.get(models.StoredResponse, id), id, key_id).body

    def turns(self, id: str, key_id: str) -> tuple[Turn, ...]:
        """What a response itself added to its conversation: what was asked, and its answer last.

        Raises:
            UnknownError: the client has no such response.
        """
        with self._database.reading() as session:
            row = _own(session.get(models.StoredResponse, id), id, key_id)
            return tuple(Turn(role, text) for role, text in row.turns)

    def conversation(self, id: str, key_id: str, most: int) -> tuple[Turn, ...]:
        """All that was said up to the end of a response, oldest first, in one reading.

        Raises:
            UnknownError: it, or one that it goes on from, is not there.
            TooLongError: the conversation takes more than ``most`` characters.
        """
        row = models.StoredResponse
        size = func.length(cast(row.turns, String))
        last = select(row.id, row.key_id, row.previous_id, row.turns, size.label("size"))
        chain = last.add_columns(literal(0).label("place")).where(row.id == id).cte("chain", recursive=True)
        earlier = select(
            row.id, row.key_id, row.previous_id, row.turns, chain.c.size + size, chain.c.place + 1
        ).join(chain, row.id == chain.c.previous_id)
        chain = chain.union_all(earlier.where(chain.c.size <= most))
        with self._database.reading() as session:
            rows = session.execute(select(chain).order_by(chain.c.place)).all()
        parts: list[Sequence[Turn]] = []
        wanted: str | None = id
        for link in rows:
            if link.size > most:
                raise TooLongError(f"the conversation up to {id!r} is longer than {most} characters")
            if link.key_id != key_id:
                break
            parts.append([Turn(role, text) for role, text in link.turns])
            wanted = link.previous_id
        if wanted is not None:
            raise UnknownError(f"response {wanted!r} does not exist")
        return tuple(turn for part in reversed(parts) for turn in part)

    def delete(self, id: str, key_id: str) -> None:
        """Take a response away; what went on from it cannot be gone on from any more.

        Raises:
            UnknownError: the client has no such response.
        """
        with self._database.writing() as session:
            _own(session.get(models.StoredResponse, id), id, key_id)
            session.execute(delete(models.StoredResponse).where(models.StoredResponse.id == id))


def _own(row: models.StoredResponse | None, id: str, key_id: str) -> models.StoredResponse:
    if row is None or row.key_id != key_id:
        raise UnknownError(f"response {id!r} does not exist")
    return row
