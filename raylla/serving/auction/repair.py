"""The model's text on its way to the user: whole ads become disclosed titles, broken ones go.

    ``a mug like @Lumo Cup@[Ad-4820] helps``  ->  ``a mug like Lumo Cup (Sponsored) helps``

A stream is repaired as it comes: text is held back only while it may still turn out to be part of
an ad, so that however the text is cut into pieces, the outcome is the same.  What counts as an ad
and what as a violation is `raylla.auction.parse`'s word over the whole text; here is only what
becomes of them:

- a placement: its title, then the label of disclosure; the span covers the title;
- an ad that is placed again: its title as plain words, for its first mention is disclosed;
- any other attempt (unknown id, another ad's id, altered title, unfinished markup): removed, so that
  nobody is shown an advertiser's name that leads nowhere and is not disclosed;
- an ``@`` or a bracket that is none of these (an address, a handle): left alone.

Users may be shown something else in a title's place (a Markdown link, `raylla.serving.auction.links`): it
is released in one piece with its label, and ``text`` stays with the title.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Protocol

from raylla.auction import Parsed, parse
from raylla.records import Ad, Placement
from raylla.serving.auction.links import BINDING

HOLD = 80
"""Characters that an unfinished title may hold the stream back, where no candidate's is longer."""
_STOPS = re.compile(r"[@\[\]\n]")
_TAG = re.compile(r"\[Ad-[^@\[\]\s]{0,40}\]?")
_HOST = re.compile(r"\w+(?:[.-]\w+)*\.\w")
_HOST_LENGTH = 60
_HOST_PREFIX = re.compile(rf"(?:\w[\w.-]{{0,{_HOST_LENGTH - 2}}})?")
_WORDS = re.compile(r"\w+")
_CLOSERS = frozenset(".,;:!?)")


@dataclass(frozen=True, slots=True)
class Repaired:
    """An answer as the user gets it.

    ``spans`` are the half-open character spans of the placed titles in ``text``, in order;
    ``parsed`` is what the model wrote: its placements are in the raw text. ``shown`` is the text as it was
    released, ``shown_spans`` are those of what stands there for the titles.
    """

    text: str
    spans: tuple[Placement, ...]
    parsed: Parsed
    shown: str
    shown_spans: tuple[Placement, ...]


class Titles(Protocol):
    """What users are shown in the place of ads' titles."""

    def placed(self, ad: Ad) -> str:
        """For an ad that is placed now; asked once for each."""

    def again(self, ad: Ad) -> str:
        """For an ad that was placed before."""


class Repair:
    """The repair of one answer, fed piece by piece; without ``titles`` users are shown the titles."""

    def __init__(self, candidates: Sequence[Ad], label: str, titles: Titles | None = None) -> None:
        self._candidates = tuple(candidates)
        self._by_id = {ad.id: ad for ad in candidates}
        self._titles = [_WORDS.findall(ad.title.casefold()) for ad in candidates]
        self._label = f" ({label})" if label else ""
        self._shows = titles
        longest = max([HOLD, *(len(ad.title) for ad in candidates)])
        self._hold = longest
        self._markup = re.compile(rf"@([^@\[\]\n]{{1,{longest}}})@\[Ad-([0-9]{{1,20}})\]")
        self._unfinished = re.compile(
            rf"@(?:[^@\[\]\n]{{0,{longest}}}|[^@\[\]\n]{{1,{longest}}}@(?:\[(?:A(?:d(?:-[0-9]{{0,20}})?)?)?)?)"
        )
        self._raw: list[str] = []
        self._rest = ""
        self._before = ""
        self._clean: list[str] = []
        self._length = 0
        self._out: list[str] = []
        self._sent = 0
        self._space = ""
        self._cut = False
        self._placed: set[str] = set()
        self._spans: list[Placement] = []
        self._shown: list[Placement] = []

    @property
    def shown(self) -> str:
        """The text that was released so far."""
        return "".join(self._out)

    def feed(self, piece: str) -> str:
        """More of the model's text; returns the text that the user may see now."""
        self._raw.append(piece)
        self._rest += piece
        return self._advance(final=False)

    def finish(self) -> str:
        """The last of the text."""
        released = self._advance(final=True)
        if not self._cut:
            released += self._put(self._space)
        return released

    def repaired(self, catalogue_ids: Container[str] = frozenset()) -> Repaired:
        """Everything, after `finish`; ``catalogue_ids`` tell a wrong ad from one that does not exist."""
        parsed = parse("".join(self._raw), self._candidates, catalogue_ids)
        return Repaired("".join(self._clean), tuple(self._spans), parsed, self.shown, tuple(self._shown))

    def _advance(self, final: bool) -> str:
        at, released = 0, len(self._out)
        text = self._rest
        while at < len(text):
            if text[at] not in "@[":
                stop = _next_mark(text, at)
                self._say(text[at:stop])
            else:
                read = self._sign(text, at) if text[at] == "@" else self._bracket(text, at)
                stop = at + self._act(read, text, at, final)
                if stop == at:
                    break
            self._before = text[stop - 1]
            at = stop
        self._rest = text[at:]
        return "".join(self._out[released:])

    def _act(self, read: _Read, text: str, at: int, final: bool) -> int:
        """Do what was read at ``at``; how many characters that used up, 0 to wait for more."""
        if not read.certain and not final:
            return 0
        if read.ad is not None and read.words is not None:
            self._say(read.words, None if self._shows is None else self._shows.again(read.ad))
        elif read.ad is not None:
            self._place(read.ad)
        elif read.words is None:
            self._cut = True
        else:
            self._say(read.words)
        return read.length

    def _sign(self, text: str, at: int) -> _Read:
        """What stands at an ``@``."""
        whole = self._markup.match(text, at)
        if whole:
            return self._mention(whole)
        # Certain once no text to come can make another thing of it.
        certain = not self._unfinished.fullmatch(text, at)
        if text.startswith("@[", at):
            tagged = text.startswith("Ad-", at + 2)
            possible = len(text) < at + 5 and "Ad-".startswith(text[at + 2 :])
            return _Read(1 if tagged else 2, None, certain=not possible)
        stop = _STOPS.search(text, at + 1)
        end = min(stop.start() if stop else len(text), at + 1 + self._hold)
        run = text[at + 1 : end]
        word_before = bool(re.match(r"\w", self._before))
        if run and text[end : end + 1] == "@" and not self._markup.match(text, end):
            certain = certain and not self._unfinished.fullmatch(text, end)
            host = _HOST.match(text, end + 1, end + 1 + _HOST_LENGTH)
            certain = certain and (bool(host) or not _HOST_PREFIX.fullmatch(text, end + 1))
            if not word_before and not host and run == run.strip():
                return _Read(end + 1 - at, None, certain)
        if not word_before and (known := self._known_words(run)):
            return _Read(1 + known, None, certain)
        return _Read(1, "@", certain)

    def _bracket(self, text: str, at: int) -> _Read:
        """What stands at a ``[``."""
        tag = _TAG.match(text, at)
        if tag:
            unclosed = tag.end() == len(text) and not tag.group().endswith("]")
            return _Read(len(tag.group()), None, certain=not unclosed)
        possible = len(text) - at < 4 and "[Ad-".startswith(text[at:])
        return _Read(1, "[", certain=not possible)

    def _mention(self, whole: re.Match[str]) -> _Read:
        """Well-formed markup: a placement, a repetition, or an ad that is none."""
        ad = self._by_id.get(whole[2])
        length = len(whole.group())
        if ad is None or ad.title != whole[1]:
            return _Read(length, None)
        if ad.id in self._placed:
            return _Read(length, ad.title, ad=ad)
        return _Read(length, None, ad=ad)

    def _known_words(self, run: str) -> int:
        """Length of the longest start of ``run`` whose words begin a candidate's title; 0: none."""
        best = 0
        words = list(_WORDS.finditer(run.casefold()))
        if not words or words[0].start() > 0:
            return 0
        for title in self._titles:
            same = 0
            while same < min(len(title), len(words)) and title[same] == words[same].group():
                same += 1
            if same:
                best = max(best, words[same - 1].end())
        return min(best, len(run))

    def _place(self, ad: Ad) -> None:
        self._placed.add(ad.id)
        self._open_gap(ad.title[0])
        start, shown = self._length, ad.title
        if self._shows is not None:
            shown = self._shows.placed(ad)
            if shown != ad.title and self._out and self._out[-1][-1] in BINDING:
                self._release(" ")
        sent = self._sent
        self._put(ad.title, shown)
        self._spans.append(Placement(ad.id, start, self._length))
        self._shown.append(Placement(ad.id, sent, self._sent))
        self._put(self._label)

    def _say(self, words: str, shown: str | None = None) -> None:
        """Plain text; spaces at its end wait, for what follows may be removed."""
        body = words.strip()
        if not body:
            self._space += words
            return
        lead = len(words) - len(words.lstrip())
        self._space += words[:lead]
        self._open_gap(body[0])
        self._put(body, None if shown is None else shown.strip())
        self._space = words[lead + len(body) :]

    def _open_gap(self, following: str) -> None:
        """The spaces before ``following``; those around something removed are drawn together."""
        gap = self._space
        if self._cut:
            line = gap.find("\n")
            bare = not self._length or (following in _CLOSERS and line < 0)
            gap = "" if bare else gap[line:] if line >= 0 else " "
        self._put(gap)
        self._space, self._cut = "", False

    def _put(self, text: str, shown: str | None = None) -> str:
        if text:
            self._clean.append(text)
            self._length += len(text)
            self._release(text if shown is None else shown)
        return text

    def _release(self, text: str) -> None:
        self._out.append(text)
        self._sent += len(text)


@dataclass(frozen=True, slots=True)
class _Read:
    """``length`` characters that become ``ad``, the plain ``words`` (with both, of that ad once more), or
    (neither) nothing."""

    length: int
    words: str | None
    certain: bool = True
    ad: Ad | None = None


def repair(
    text: str, candidates: Sequence[Ad], label: str, catalogue_ids: Container[str] = frozenset()
) -> Repaired:
    """The repair of a whole text."""
    one = Repair(candidates, label)
    one.feed(text)
    one.finish()
    return one.repaired(catalogue_ids)


def _next_mark(text: str, start: int) -> int:
    found = [place for mark in "@[" if (place := text.find(mark, start)) >= 0]
    return min(found, default=len(text))
