"""What of an answer is about one product: the sentences that name it and their neighbours, as plain text.

Published answers carry Markdown, links and bare URLs, answers of the loop the markup of placed ads; both
are read the same way, so that a judge taught on the first understands the second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from raylla.auction.markup import MARKUP
from raylla.world.texts import cut

LONGEST_PASSAGE = 480
"""Characters of a passage: about 110 tokens of English."""
BEFORE = 120
"""Characters that a sentence longer than a passage keeps before the product's name."""
BRAND = 0.5
"""The first word of a name counts this much more than its others."""

_Found = Literal["name", "words", "nothing"]
"""How a passage was found: by the name itself, by words of it, or not: then it is the beginning."""

_TAG = re.compile(r"@?\[Ad-[0-9]+\]")
_LINK = re.compile(r"!?\[([^\[\]\n]*)\]\([^)\s\[]*(?:[ \t]+\"[^\"\n\[]*\")?\)")
_URL = re.compile(r"(?:https?://|www\.)[^\s<>\])]*[^\s<>\]).,;:!?'\"]/?")
_SIGNS = re.compile(r"\*+|`+|~~|__+")
_BULLETS = re.compile(r"^[ \t]*(?:(?:#{1,6}|>|[-+•]|\d{1,2}[.)])[ \t]+)+|^[-=_|: \t]+$", re.MULTILINE)
_HOLES = re.compile(r"\([ \t]*\)|(?<![ \t])[ \t]+(?=[.,;:!?])")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[a-z)][.!?])(?=[A-Z])")
_WORD = re.compile(r"\w{2,}")


@dataclass(frozen=True, slots=True)
class Passage:
    """Plain text on one line, at most `LONGEST_PASSAGE` characters, and how it was found."""

    text: str
    found: _Found


def plain(text: str) -> str:
    """``text`` without markup of ads, links, bare URLs and Markdown's signs; lines are kept apart."""
    text = _unmarked(text)
    text = _BULLETS.sub("", _SIGNS.sub("", _URL.sub("", _LINK.sub(r"\1", text))))
    text = _unmarked(text)  # what was taken out may have stood within markup
    lines = (" ".join(line.split()) for line in _HOLES.sub("", text).splitlines())
    return "\n".join(line for line in lines if line)


def _unmarked(text: str) -> str:
    while (cleaned := _TAG.sub("", MARKUP.sub(lambda ad: ad["title"], text))) != text:
        text = cleaned
    return text


def passage(text: str, name: str) -> Passage:
    """The sentences of ``text`` that name ``name``, one before and one after, in their order.

    The first that names it comes in whatever else has to go, with its neighbours; further ones where
    there is room. Where the name is nowhere as it is, the sentences with most of its words stand for it.
    """
    sentences = _sentences(plain(text))
    name = " ".join(plain(name).split())
    places, found = _named(sentences, name)
    chosen: dict[int, str] = {}
    left = LONGEST_PASSAGE
    for place in dict.fromkeys(near for at in places for near in (at, at - 1, at + 1)):
        if 0 <= place < len(sentences):
            kept = sentences[place] if chosen else _cut(sentences[place], name)
            if len(kept) <= left:
                chosen[place] = kept
                left -= len(kept) + 1
    return Passage(" ".join(chosen[place] for place in sorted(chosen)), found)


def shortened(text: str, longest: int) -> str:
    """``text`` on one line, its end cut off between words beyond ``longest`` characters."""
    return cut(" ".join(text.split()), longest)


def _sentences(text: str) -> list[str]:
    return [
        sentence
        for line in text.splitlines()
        for sentence in _SENTENCE_END.split(line)
        if _WORD.search(sentence)
    ]


def _named(sentences: list[str], name: str) -> tuple[list[int], _Found]:
    """Which sentences name it, and how that was seen; a name may hold the end of a sentence."""
    whole = " ".join(sentences)
    starts = [0]
    for sentence in sentences:
        starts.append(starts[-1] + len(sentence) + 1)
    spans = [match.span() for match in _pattern(name).finditer(whole)] if name else []
    places = [
        place
        for place in range(len(sentences))
        if any(start < starts[place + 1] and end > starts[place] for start, end in spans)
    ]
    if places:
        return places, "name"
    words = [word.casefold() for word in _WORD.findall(name)]
    scores = [_score(sentence, words) for sentence in sentences]
    best = max(scores, default=0)
    if best == 0:
        return list(range(len(sentences)))[:1], "nothing"
    return [place for place, score in enumerate(scores) if score == best], "words"


def _score(sentence: str, words: list[str]) -> float:
    said = {word.casefold() for word in _WORD.findall(sentence)}
    return len(said & set(words)) + BRAND * bool(words and words[0] in said)


def _cut(sentence: str, name: str) -> str:
    """The part of a long sentence about the name, of whole words."""
    if len(sentence) <= LONGEST_PASSAGE:
        return sentence
    match = _pattern(name).search(sentence) if name else None
    start = max(0, (match.start() if match else 0) - BEFORE)
    if start:
        start = sentence.find(" ", start) + 1
    return shortened(sentence[start:], LONGEST_PASSAGE)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)
