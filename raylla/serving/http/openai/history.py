"""A client's messages as a question and the turns before it.

Text is all that the model reads.  What else stands in a history (images, files, tool calls and their
results) is passed over and counted in notes; a question that is made of it is refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raylla.records import Turn, TurnRole
from raylla.serving.auction.links import unlinked
from raylla.serving.http.openai.faults import refused, unusable
from raylla.world.prompts import neutral
from raylla.world.turns import ROLES

TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Types of parts that are text -> the field that holds it."""
SILENT = {"id", "name", "status", "annotations", "refusal", "phase"}
"""Fields of a message that say nothing to the model: clients send back what they got."""
MOST_NOTES = 20
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Said(Protocol):
    """A message of a client."""

    @property
    def role(self) -> str | None:
        """Who says it; None where it is no message."""

    @property
    def content(self) -> str | list[Any] | None:
        """The text, or its parts."""

    @property
    def model_extra(self) -> dict[str, Any] | None:
        """All its other fields."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is asked, what was said before (oldest first), and what of it was passed over."""

    question: str
    turns: tuple[Turn, ...]
    notes: tuple[str, ...]


def without_controls(text: str) -> str:
    """``text`` composed (NFC), with control characters as spaces."""
    return _CONTROL.sub(" ", unicodedata.normalize("NFC", text))


def cleaned(role: TurnRole, text: str) -> tuple[Turn, ...]:
    """What is said as a turn; none where that is nothing. Of an answer's ads it keeps the titles."""
    words = neutral(without_controls(unlinked(text) if role == "assistant" else text))
    return (Turn(role, words),) if words else ()


def conversation(messages: Sequence[Said], field: str = "messages") -> Conversation:
    """What ``messages`` ask; the application's may stand anywhere, behind the question too.

    Raises:
        HttpError: the last turn is no user's, holds no text, or more than text.
    """
    passed: dict[str, list[str]] = {}
    turns: list[tuple[int, Turn]] = []
    for place, message in enumerate(messages):
        where = f"{field}[{place}]"
        role = ROLES.get(message.role or "")
        if role is None:
            kind = (
                f"message of role {message.role}" if message.role else str(getattr(message, "type", "item"))
            )
            passed.setdefault(kind[:40], []).append(where)
            continue
        for name, value in (message.model_extra or {}).items():
            if name not in SILENT and value:
                passed.setdefault(name[:40], []).append(where)
        texts = []
        for kind, text, part in _parts(message, where):
            if text is None:
                passed.setdefault(kind, []).append(part)
            else:
                texts.append(text)
        if said := cleaned(role, "\n".join(texts)):
            turns.append((place, said[0]))
        elif role == "user":
            turns.append((place, Turn(role, "")))
    asked = next((at for at in reversed(range(len(turns))) if turns[at][1].role != "system"), None)
    if asked is None or turns[asked][1].role != "user":
        raise unusable(field, "the last one must be the user's and hold text", "no_question")
    place, question = turns[asked]
    for kind, _, part in (
        unread for unread in _parts(messages[place], f"{field}[{place}]") if unread[1] is None
    ):
        raise refused(part, f"{kind} cannot be part of a question here; ask in text")
    if not question.text:
        raise unusable(field, "the last one must be the user's and hold text", "no_question")
    before = tuple(turn for at, (_, turn) in enumerate(turns) if at != asked and turn.text)
    notes = [f"{len(places)} x {kind} passed over, first {places[0]}" for kind, places in passed.items()]
    return Conversation(question.text, before, tuple(notes[:MOST_NOTES]))


def _parts(message: Said, where: str) -> Iterator[tuple[str, str | None, str]]:
    """Type, text (None where it is none) and place of each part of a message."""
    if isinstance(message.content, str):
        yield "text", message.content, f"{where}.content"
        return
    for place, part in enumerate(message.content or ()):
        at = f"{where}.content[{place}]"
        if isinstance(part, str):
            yield "text", part, at
            continue
        kind = str(part.get("type"))[:40]
        text = part.get(TEXTS[kind]) if kind in TEXTS else None
        if kind in TEXTS and not isinstance(text, str):
            raise unusable(f"{at}.{TEXTS[kind]}", "give text")
        yield kind, text, at
