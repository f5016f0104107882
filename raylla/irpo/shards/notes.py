"""What a shard tells its driver: which chunks are whole, and what its workers did, in bulk."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from raylla.actors.spans import Span
from raylla.records import Phase


@dataclass(frozen=True, slots=True)
class Whole:
    """A chunk whose answers are there, judged and written.

    ``answers`` were drawn, and none of the auctions ``refused``, by place in the chunk; ``read`` answers
    have a judgement.  Of the draws, the judge was asked about ``judged``; ``dropped`` counts those without
    an answer, and those whose judgement could not be read.
    """

    number: int
    phase: Phase
    answers: int
    refused: tuple[int, ...]
    read: int
    judged: int
    dropped: tuple[int, int]


@dataclass(slots=True)
class News:
    """What is new since the last news: chunks that are whole, and an observer's events by kind."""

    whole: list[Whole] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    done: list[tuple[str, int, int]] = field(default_factory=list)
    expected: list[tuple[str, int]] = field(default_factory=list)
    said: list[tuple[str, str]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    sizes: list[tuple[str, int, int]] = field(default_factory=list)


class Notes:
    """A `squad.Witness` that keeps everything until it is sent."""

    def __init__(self) -> None:
        self._news = News()
        self._done: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._expected: Counter[str] = Counter()

    def spent(self, span: Span) -> None:
        """See `squad.Witness`."""
        self._news.spans.append(span)

    def pool(self, name: str, workers: int, joining: int) -> None:
        """See `squad.Witness`."""
        self._news.sizes.append((name, workers, joining))

    def lost(self, group: str) -> None:
        """See `squad.Witness`."""
        self._news.lost.append(group)

    def say(self, text: str, style: str = "") -> None:
        """See `squad.Witness`."""
        self._news.said.append((text, style))

    def advance(self, kind: str, count: int, tokens: int = 0) -> None:
        """See `squad.Witness`."""
        self._done[kind] += count
        self._tokens[kind] += tokens

    def expect(self, kind: str, more: int) -> None:
        """See `squad.Witness`."""
        self._expected[kind] += more

    def take(self) -> News:
        """What was noted since the last time."""
        news, self._news = self._news, News()
        news.done = [(kind, count, self._tokens[kind]) for kind, count in self._done.items()]
        news.expected = list(self._expected.items())
        for counter in (self._done, self._tokens, self._expected):
            counter.clear()
        return news
