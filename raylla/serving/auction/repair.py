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

Three texts run side by side: the model's (``raw``), the user's without links (``clean``), which spans and
stops count in, and the one that is shown, where a link (`raylla.serving.auction.links`) may stand in a
title's place. The link is shown in one piece with its label.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Protocol

from raylla.auction import Parsed, markup, parse
from raylla.records import Ad, Placement
from raylla.serving.auction.links import BINDING

HELD_CHARACTERS = 80
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

    def again(self, title: str) -> Sequence[str]:
        """For each character of the title of an ad that was placed before."""


class Repair:
    """The repair of one answer, fed piece by piece; without ``titles`` users are shown the titles."""

    def __init__(self, candidates: Sequence[Ad], label: str, titles: Titles | None = None) -> None:
        self._candidates = tuple(candidates)
        self._by_id = {ad.id: ad for ad in candidates}
        self._titles = [_WORDS.findall(ad.title.casefold()) for ad in candidates]
        self._label = f" ({label})" if label else ""
        self._shows = titles
        longest = max([HELD_CHARACTERS, *(len(ad.title) for ad in candidates)])
        self._hold = longest
        self._markup = re.compile(rf"@([^@\[\]\n]{{1,{longest}}})@\[Ad-([0-9]{{1,20}})\]")
        self._unfinished = re.compile(
            rf"@(?:[^@\[\]\n]{{0,{longest}}}|[^@\[\]\n]{{1,{longest}}}@(?:\[(?:A(?:d(?:-[0-9]{{0,20}})?)?)?)?)"
        )
        self._raw: list[str] = []
        self._rest = ""
        self._before = ""
        self._clean: list[str] = []
        self._shown: list[str] = []
        self._starts: list[int] = []
        """Characters of the clean text before each part of it, and of the shown one."""
        self._length = 0
        self._shown_length = 0
        self._space = ""
        self._cut = False
        self._placed: set[str] = set()
        self._spans: list[Placement] = []
        self._shown_spans: list[Placement] = []
        self._read = 0
        self._marks: list[tuple[int, int]] = []
        """Characters of the clean text, and of the model's, before each part of it."""
        self._halved = False

    @property
    def disclosed(self) -> list[tuple[int, int]]:
        """Characters of each ad in the clean text so far, its label included."""
        return [(span.start, span.end + len(self._label)) for span in self._spans]

    def clean(self, start: int = 0, end: int | None = None) -> str:
        """The clean text so far, from character ``start`` to ``end``, both within no ad."""
        return self._between(self._clean, start, end)

    def shown(self, start: int = 0, end: int | None = None) -> str:
        """What is shown of those characters of the clean text."""
        return self._between(self._shown, start, end)

    def _between(self, parts: Sequence[str], start: int, end: int | None) -> str:
        stop = self._length if end is None else min(end, self._length)
        pieces = []
        for place in range(max(0, bisect_right(self._starts, start) - 1), len(parts)):
            at = self._starts[place]
            if at >= stop:
                break
            if at >= start and at + len(self._clean[place]) <= stop:
                pieces.append(parts[place])
            else:  # plain words, which are shown as they are
                pieces.append(self._clean[place][max(0, start - at) : stop - at])
        return "".join(pieces)

    def feed(self, piece: str) -> str:
        """More of the model's text; returns the text that the user may see now."""
        self._raw.append(piece)
        self._rest += piece
        return self._advance(final=False)

    def finish(self, halved: bool = False) -> str:
        """The last of the text; where it is ``halved``, cut off by a limit, the beginning of an ad at its
        end goes."""
        self._halved = halved
        released = self._advance(final=True)
        if not self._cut:
            self._put(self._space)
            released += self._space
        return released

    def repaired(self, catalogue_ids: Container[str] = frozenset(), end: int | None = None) -> Repaired:
        """Everything, after `finish`; ``catalogue_ids`` tell a wrong ad from one that does not exist.

        ``end``: only so many characters of the clean text, which must not end within an ad.
        """
        parsed = parse(self.raw(end), self._candidates, catalogue_ids)
        spans = tuple(span for span in self._spans if end is None or span.end <= end)
        shown_spans = tuple(self._shown_spans[: len(spans)])
        return Repaired(self.clean(end=end), spans, parsed, self.shown(end=end), shown_spans)

    def raw(self, end: int | None = None) -> str:
        """The model's text, or what of it became the first ``end`` characters of the clean text."""
        whole = "".join(self._raw)
        if end is None:
            return whole
        clean, raw = next((mark for mark in reversed(self._marks) if mark[0] <= end), (0, 0))
        return whole[: raw + end - clean]

    def _advance(self, final: bool) -> str:
        at, released = 0, len(self._shown)
        text = self._rest
        while at < len(text):
            if text[at] not in "@[":
                stop = _next_mark(text, at)
                self._say(text[at:stop], self._read + at)
            else:
                read = self._sign(text, at) if text[at] == "@" else self._bracket(text, at)
                stop = at + self._act(read, text, at, final)
                if stop == at:
                    break
            self._before = text[stop - 1]
            at = stop
        self._rest = text[at:]
        self._read += at
        return "".join(self._shown[released:])

    def _act(self, read: _Read, text: str, at: int, final: bool) -> int:
        """Do what was read at ``at``; how many characters that used up, 0 to wait for more."""
        if not read.certain and not final:
            return 0
        if final and self._halved and self._begun(text[at:]):
            self._cut = True
            return len(text) - at
        if read.ad is not None and read.words is None:
            self._place(read.ad, self._read + at)
        elif read.words is None:
            self._cut = True
        else:
            self._say(read.words, self._read + at, titled=read.ad is not None)
        self._marks.append((self._length, self._read + at + read.length))
        return read.length

    def _begun(self, tail: str) -> bool:
        """Whether ``tail`` may be the beginning of an ad's markup, or of a link."""
        if any(tail != whole and whole.startswith(tail) for whole in map(markup, self._candidates)):
            return True
        return "[Ad-".startswith(tail)

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

    def _place(self, ad: Ad, raw: int) -> None:
        self._placed.add(ad.id)
        self._open_gap(ad.title[0])
        start, shown, apart = self._length, ad.title, ""
        if self._shows is not None:
            shown = self._shows.placed(ad)
            if shown != ad.title and self._shown and self._shown[-1][-1] in BINDING:
                apart = " "
        shown_start = self._shown_length + len(apart)
        self._marks.append((start, raw))
        self._put(ad.title, apart + shown)
        self._spans.append(Placement(ad.id, start, self._length))
        self._shown_spans.append(Placement(ad.id, shown_start, self._shown_length))
        self._put(self._label)

    def _say(self, words: str, raw: int, titled: bool = False) -> None:
        """Plain text, at ``raw`` in the model's, or an ad's title (``titled``), within which an answer may
        stop, too; spaces at its end wait: what follows may be removed."""
        body = words.strip()
        if not body:
            self._space += words
            return
        lead = len(words) - len(words.lstrip())
        self._space += words[:lead]
        self._open_gap(body[0])
        self._marks.append((self._length, raw + lead))
        if titled and self._shows is not None:
            for letter, shown in zip(body, self._shows.again(body), strict=True):
                self._put(letter, shown)
        else:
            self._put(body)
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

    def _put(self, text: str, shown: str | None = None) -> None:
        """Text, of which ``shown`` is shown (None: itself)."""
        if not text:
            return
        seen = text if shown is None else shown
        self._starts.append(self._length)
        self._clean.append(text)
        self._shown.append(seen)
        self._length += len(text)
        self._shown_length += len(seen)


class Verbatim:
    """A `Repair` of text in which nothing is an ad: it is shown as it is."""

    disclosed: tuple[tuple[int, int], ...] = ()

    def __init__(self) -> None:
        self._text: list[str] = []

    def clean(self, start: int = 0, end: int | None = None) -> str:
        """See `Repair`."""
        return "".join(self._text)[start:end]

    def shown(self, start: int = 0, end: int | None = None) -> str:
        """See `Repair`."""
        return self.clean(start, end)

    def feed(self, piece: str) -> str:
        """See `Repair`."""
        self._text.append(piece)
        return piece

    def finish(self, halved: bool = False) -> str:
        """See `Repair`."""
        return ""

    def repaired(self, catalogue_ids: Container[str] = frozenset(), end: int | None = None) -> Repaired:
        """See `Repair`."""
        text = self.clean(end=end)
        return Repaired(text, (), parse("", ()), text, ())

    def raw(self, end: int | None = None) -> str:
        """See `Repair`."""
        return self.clean(end=end)


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
    repaired = Repair(candidates, label)
    repaired.feed(text)
    repaired.finish()
    return repaired.repaired(catalogue_ids)


def _next_mark(text: str, start: int) -> int:
    places = [place for mark in "@[" if (place := text.find(mark, start)) >= 0]
    return min(places, default=len(text))
