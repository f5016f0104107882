"""What was said before a question: taken in from outside, and the question in the light of it."""

from __future__ import annotations

import json
from typing import get_args

from raylla.errors import WorldError
from raylla.records import Query, Turn, TurnRole
from raylla.world.texts import cut, one_line

CONTEXT = 200
"""Characters of earlier turns that stand before a question where it is read by itself."""
ROLES: dict[str, TurnRole] = {role: role for role in get_args(TurnRole)} | {"developer": "system"}
"""Who may speak, by the names that are in use."""


def in_context(query: Query) -> str:
    """The question as it can be read by itself: behind what the user asked last ("which mug keeps tea warm?
    and a cheaper one?"), or behind the last answer where nothing was asked before.

    Retrieval, the judge and the pCTR model read it so; a query without turns is its text.
    """
    asked = [turn.text for turn in query.turns if turn.role == "user"]
    told = [turn.text for turn in query.turns if turn.role == "assistant"][-1:]
    said: list[str] = []
    left = CONTEXT
    for text in reversed(asked or told):
        if said and len(text) > left:
            break
        said.insert(0, cut(text, CONTEXT))
        left -= len(said[0])
    return " ".join([*said, query.text])


def read_turns(text: str) -> tuple[Turn, ...]:
    """Turns of a table's cell: a JSON list of objects with ``role`` and ``content`` (or ``text``).

    Raises:
        WorldError: it is none; says what a cell must hold.
    """
    if not text:
        return ()
    wrong = f"turns={cut(text, 60)!r}: give a JSON list of {{role, content}}, roles {', '.join(ROLES)}"
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        raise WorldError(wrong) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise WorldError(wrong)
    turns = []
    for row in rows:
        said = row.get("content", row.get("text"))
        if row.get("role") not in ROLES or not isinstance(said, str):
            raise WorldError(wrong)
        if words := one_line(said):
            turns.append(Turn(ROLES[row["role"]], words))
    return tuple(turns)
