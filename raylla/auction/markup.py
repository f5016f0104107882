"""Ads inside an answer: ``@Ad Title@[Ad-1234]``, parsed strictly (paper, section 3).

A placement is valid when its title and id are exactly those of one candidate and the ad was
not placed before.  Everything else that looks like an attempt at a placement is a violation
with a type; text that only happens to hold an ``@`` (an address, a handle) is not.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from enum import StrEnum

from raylla.records import Ad, Placement, Planned

MARKUP = re.compile(r"@(?P<title>[^@\[\]\n]+)@\[Ad-(?P<id>[0-9]+)\]")
# Every alternative starts at a literal "@" or "[Ad-" and ends at the next character that its class
# excludes, so that no text is read more than twice: parsing is linear in its length.
ATTEMPT = re.compile(
    r"(?P<closed>(?<!\w)@(?=[^\s@])[^@\[\]\n]*(?<=[^\s@])@(?!\w+(?:[.-]\w+)*\.\w))"
    r"|(?P<tag>\[Ad-[^\]\s]*\]?)"
    r"|(?P<bare>@\[)"
    r"|(?P<open>(?<!\w)@(?=\w)[^@\[\]\n]*)"
)
_BEGINNING = re.compile(r"[@\[]")  # of an attempt; to look for it is many times quicker than for `ATTEMPT`
_FIRST_WORD = re.compile(r"\w+")


class Violation(StrEnum):
    """What an attempted placement got wrong."""

    UNKNOWN_ID = "unknown_id"
    NOT_A_CANDIDATE = "not_a_candidate"
    ALTERED_TITLE = "altered_title"
    DUPLICATE = "duplicate"
    MALFORMED = "malformed"


@dataclass(frozen=True, slots=True)
class Parsed:
    """Valid placements in order of appearance, and one violation per failed attempt."""

    placements: tuple[Placement, ...]
    violations: tuple[Violation, ...]

    @property
    def ad_ids(self) -> tuple[str, ...]:
        """Ids of the validly placed ads, in order of appearance."""
        return tuple(placement.ad_id for placement in self.placements)

    @property
    def attempts(self) -> int:
        """Placements and violations together."""
        return len(self.placements) + len(self.violations)


def markup(ad: Ad) -> str:
    """The exact text that places ``ad``."""
    return f"@{ad.title}@[Ad-{ad.id}]"


def parse(text: str, candidates: Sequence[Ad], catalogue_ids: Container[str] = frozenset()) -> Parsed:
    """Parse ``text`` against its candidate ads.

    An id that belongs to ``catalogue_ids`` but not to ``candidates`` is NOT_A_CANDIDATE, one
    that belongs to neither is UNKNOWN_ID.
    """
    by_id = {ad.id: ad for ad in candidates}
    placements: list[Placement] = []
    violations: list[Violation] = []
    placed: set[str] = set()
    rest: list[str] = []
    cursor = 0
    for match in MARKUP.finditer(text):
        rest.append(text[cursor : match.start()])
        cursor = match.end()
        ad = by_id.get(match["id"])
        if ad is None:
            known = match["id"] in catalogue_ids
            violations.append(Violation.NOT_A_CANDIDATE if known else Violation.UNKNOWN_ID)
        elif ad.title != match["title"]:
            violations.append(Violation.ALTERED_TITLE)
        elif ad.id in placed:
            violations.append(Violation.DUPLICATE)
        else:
            placed.add(ad.id)
            placements.append(Placement(ad.id, match.start(), match.end()))
    rest.append(text[cursor:])
    for piece in rest:
        violations.extend([Violation.MALFORMED] * len(_broken(piece, candidates)))
    return Parsed(tuple(placements), tuple(violations))


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """An answer as it was written, its auction (query, profile, ads, bids), and what it places."""

    planned: Planned
    text: str
    parsed: Parsed

    @classmethod
    def of(cls, planned: Planned, text: str) -> ReadAnswer:
        """The answer ``text``, read."""
        return cls(planned, text, parse(text, planned.ads))


def attempts(text: str, candidates: Sequence[Ad]) -> list[tuple[int, int]]:
    """Half-open character spans of all that `parse` calls a placement or a violation, in order."""
    spans: list[tuple[int, int]] = []
    cursor = 0
    ends = [(match.start(), match.end()) for match in MARKUP.finditer(text)]
    for start, end in (*ends, (len(text), len(text))):
        spans += [(cursor + a, cursor + b) for a, b in _broken(text[cursor:start], candidates)]
        spans += [(start, end)] * (end > start)
        cursor = end
    return spans


def _broken(piece: str, candidates: Sequence[Ad]) -> list[tuple[int, int]]:
    """Spans of the broken placements in text that holds no well-formed one.

    A title without its closing ``@`` counts where it starts like a candidate's; otherwise it is
    a handle.  Parts with nothing but spaces between them are one attempt.  Of a title that nothing closes
    the span holds the first word.
    """
    spans: list[tuple[int, int]] = []
    end, start = -1, 0
    while begun := _BEGINNING.search(piece, start):
        match = ATTEMPT.match(piece, begun.start())
        start = match.end() if match else begun.end()
        if match is None:
            continue
        if match.lastgroup == "open" and not _opens(match.group(), candidates):
            continue
        begin = match.start()
        if end >= 0 and not piece[end:begin].strip(" "):
            begin = spans.pop()[0]
        end = match.end()
        word = _FIRST_WORD.search(piece, match.start()) if match.lastgroup == "open" else None
        spans.append((begin, word.end() if word else end))
    return spans


def _opens(handle: str, candidates: Sequence[Ad]) -> bool:
    """Whether a handle starts like a candidate's title."""
    word = _first_word(handle)
    return word != "" and any(_first_word(ad.title) == word for ad in candidates)


def _first_word(text: str) -> str:
    match = _FIRST_WORD.search(text)
    return match.group().casefold() if match else ""
