"""Token ids to text while they come, whatever the model writes: bytes that are no character are U+FFFD.

The tokenizers library's own stream gives up with an untyped error where a byte that comes later makes
characters of bytes before it invalid, as tokenizers with byte fallback have it.
"""

from __future__ import annotations

from typing import Any

UNKNOWN = "\ufffd"
REST = 3
"""Tokens at the end of a text that may be the beginning of one character: it has four bytes at most."""


class Spelling:
    """The text of an answer, token by token; special tokens have none.

    Args:
        backend: of a fast tokenizer.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._before: list[int] = []
        """Tokens that were spelled last: how the next are depends on them (a space before a word)."""
        self._known = ""
        """Their text."""
        self._waiting: list[int] = []

    def add(self, id: int) -> str:
        """The text that is certain because of one token more."""
        self._waiting.append(id)
        text = self._text(self._before + self._waiting)
        if not text.endswith(UNKNOWN):
            return self._said(len(self._waiting), text)
        ready = len(self._waiting) - REST
        return self._said(ready, self._text(self._before + self._waiting[:ready])) if ready > 0 else ""

    def end(self) -> str:
        """The text of what still waits, after the last token."""
        return self._said(len(self._waiting), self._text(self._before + self._waiting))

    def _said(self, count: int, text: str) -> str:
        """What the first ``count`` tokens that wait add to the text before them, ``text`` being both."""
        ready, self._waiting = self._waiting[:count], self._waiting[count:]
        # Where they have changed what was said before them, they are spelled alone.
        new = text[len(self._known) :] if text.startswith(self._known) else self._text(ready)
        self._before = ready if new else self._before + ready
        self._known = self._text(self._before)
        return new

    def _text(self, ids: list[int]) -> str:
        text: str = self._backend.decode(ids, skip_special_tokens=True)
        return text
