"""An answer as its reader sees it: in sentences, with bare titles for ads, or without the ads. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from raylla.auction import attempts
from raylla.auction.markup import MARKUP
from raylla.records import Ad

_Span = tuple[int, int]
"""Half-open range of characters."""

_BREAK = re.compile(r"(?<=[.!?])[\"'’”)\]*]*\s+|\s*\n\s*")
_MARKS = re.compile(r"@?\[Ad-[^\]\s]*\]?|@\[|@")
_SPACES = re.compile(r"[ \t]+")


def sentences(text: str, whole: Sequence[_Span] = ()) -> list[_Span]:
    """The sentences of ``text``: each ends at a full stop, question or exclamation mark, or with its line.

    None ends within a span of ``whole``.  What holds no letter (the number of a list's entry) begins the
    sentence after it.
    """
    spans: list[_Span] = []
    start = 0
    for match in _BREAK.finditer(text):
        if any(a < match.end() and match.start() < b for a, b in whole):
            continue
        end = match.start() + len(match.group().rstrip())
        if _worded(text[start:end]):
            spans.append((start, end))
            start = match.end()
    if _worded(text[start:]):
        spans.append((start, len(text.rstrip())))
    return spans


def undisclosed(text: str, label: str) -> str:
    """``text`` without the ``label`` that discloses an ad behind its title."""
    return text.replace(f" ({label})", "")


def stripped(text: str, candidates: Sequence[Ad]) -> str:
    """``text`` with the bare title in place of each ad's markup, well-formed or not."""
    pieces, cursor = [], 0
    for start, end in attempts(text, candidates):
        marked = MARKUP.fullmatch(text, start, end)
        pieces += [text[cursor:start], marked["title"] if marked else _MARKS.sub("", text[start:end])]
        cursor = end
    return _SPACES.sub(" ", "".join([*pieces, text[cursor:]])).strip()


def bare(text: str, candidates: Sequence[Ad]) -> str:
    """An organic answer: one that names an ad by its markup all the same is `stripped`."""
    return stripped(text, candidates) if attempts(text, candidates) else text


def without_ads(text: str, candidates: Sequence[Ad]) -> str:
    """``text`` without the sentences that hold an ad's markup, well-formed or not; empty where all do.

    A sentence that goes on about an ad without its markup stays.
    """
    ads = attempts(text, candidates)
    kept = [
        text[start:end]
        for start, end in sentences(text, ads)
        if not any(a < end and start < b for a, b in ads)
    ]
    return " ".join(kept)


def enclosing_sentence(text: str, candidates: Sequence[Ad], span: _Span) -> str:
    """The sentence of ``text`` that holds ``span``."""
    for start, end in sentences(text, attempts(text, candidates)):
        if start <= span[0] < end:
            return text[start:end]
    return text[slice(*span)]


def _worded(piece: str) -> bool:
    return any(letter.isalpha() for letter in piece)
