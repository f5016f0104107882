"""Where an answer stops: before the first of the words that its request names, and never within an ad.

Words are looked for in the text that the user gets.  Text that may turn out to begin one is held back; an
ad, label included, is shown whole or, where a stop is within it, not at all.
"""

from __future__ import annotations

from collections.abc import Sequence

Spans = Sequence[tuple[int, int]]
"""Half-open characters that are shown together."""


class Stops:
    """One answer's text up to the first of ``words``, fed piece by piece."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = [word for word in words if word]
        self._text = ""
        self._said = 0
        self.end: int | None = None
        """Characters of the answer, once a stop was found."""

    def take(self, text: str, ads: Spans, final: bool = False) -> str:
        """More of the text, and the ads in all of it so far; returns what may be shown now."""
        if self.end is not None:
            return ""
        if not self._words:
            return text
        self._text += text
        places = [self._text.find(word, self._said) for word in self._words]
        starts = [place for place in places if place >= 0]
        if starts:
            upto = self.end = _before(min(starts), ads)
        else:
            upto = len(self._text) if final else _before(len(self._text) - self._open(), ads)
        shown, self._said = self._text[self._said : upto], max(self._said, upto)
        return shown

    def _open(self) -> int:
        """Characters at the end of the text that may begin a stop."""
        tail = self._text[self._said :]
        longest = min(len(tail), max(map(len, self._words)) - 1)
        starts = (
            size
            for size in range(longest, 0, -1)
            if any(word.startswith(tail[-size:]) for word in self._words)
        )
        return next(starts, 0)


def _before(place: int, ads: Spans) -> int:
    """``place``, or where the ad begins that it is within."""
    return next((start for start, end in ads if start < place < end), place)
