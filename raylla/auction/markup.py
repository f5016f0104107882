"""Ads inside an answer: ``@Ad Title@[Ad-1234]``, parsed strictly (paper, section 3).

A placement is valid when its title and id are exactly those of one candidate and the ad was
not placed before.  Everything else that looks like an attempt at a placement is a violation
with a type; text that only happens to hold an ``@`` (an address, a handle) is not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from raylla.records import Ad, Placement

MARKUP = re.compile(r"@(?P<title>[^@\[\]\n]+)@\[Ad-(?P<id>[0-9]+)\]")
ATTEMPT = re.compile(r"@[^@\[\]\n]+@|\[Ad-[^\]\s]*\]?|@\[|(?<![\w.])@(?=[^\s@])[^@\n]*$", re.MULTILINE)


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


def parse(text: str, candidates: Sequence[Ad], catalogue_ids: frozenset[str] = frozenset()) -> Parsed:
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
        violations.extend(Violation.MALFORMED for _ in _attempts(piece))
    return Parsed(tuple(placements), tuple(violations))


def _attempts(piece: str) -> list[str]:
    """Broken placements in text that holds no well-formed one; adjacent parts count once."""
    found: list[str] = []
    end = -1
    for match in ATTEMPT.finditer(piece):
        if match.start() != end:
            found.append(match.group())
        end = match.end()
    return found
