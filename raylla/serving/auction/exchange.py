"""What goes into an auction and what comes out of it, who writes, and how long it may take."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, TypeVar

from raylla.config import Links, Sampling
from raylla.errors import BusyError
from raylla.records import Profile, Query, Turn
from raylla.serving.engine.wire import Piece
from raylla.serving.money.money import Micros
from raylla.serving.money.records import Filters, Impression, ServedAuction
from raylla.serving.tracing import NO_TRACE, Carrier, Facts, Span, traced

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request. ``profile.id`` is the user's, or nobody's; ``max_tokens`` may only lower the config's.

    ``turns`` is what was said before, oldest first; the answer ends before the first of ``stop``;
    ``sampling`` is what `raylla.engines.protocol.Wish` says of this answer alone.
    """

    request_id: str
    query: str
    profile: Profile
    filters: Filters
    ads: bool = True
    test: bool = False
    max_tokens: int | None = None
    bids: Mapping[str, Micros] = field(default_factory=dict)
    """Of a test auction: other bids than the ads' own, by ad id."""
    base: str = ""
    """Where users reach the endpoint; click URLs begin with it."""
    links: Links = "annotations"
    """Whether the text has titles or Markdown links."""
    turns: tuple[Turn, ...] = ()
    stop: tuple[str, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    trace: Carrier = field(default_factory=dict)
    """Of the request that asked."""

    def about(self, category: str = "", theme: str = "") -> Query:
        """The question as prompts read it."""
        id = self.profile.id
        return Query(self.request_id, id, self.query, category, theme, "test", self.turns)


@dataclass(frozen=True, slots=True)
class Shown:
    """A placed ad of a response: the impression, where a click on it goes, and the half-open span of
    characters that stand for it in the text as the user gets it: its title, or a Markdown link."""

    impression: Impression
    title: str
    category: str
    domain: str
    url: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Answered:
    """The end of a response. ``text`` is what the user got, ``auction`` None where no ads were wanted;
    ``turns_cut`` counts the oldest turns, which found no room in the prompt."""

    text: str
    finish: str
    weight_version: str
    prompt_tokens: int
    answer_tokens: int
    latency_ms: dict[str, float]
    auction: ServedAuction | None = None
    shown: tuple[Shown, ...] = ()
    turns_cut: int = 0

    def facts(self) -> Facts:
        """What a trace says of it: nothing of what was asked, of whom, or what was bid."""
        told: dict[str, str | bool | int | list[str]] = {
            "raylla.weight_version": self.weight_version,
            "gen_ai.usage.input_tokens": self.prompt_tokens,
            "gen_ai.usage.output_tokens": self.answer_tokens,
            "gen_ai.response.finish_reasons": [self.finish],
        }
        if (auction := self.auction) is None:
            return told
        return told | {
            "raylla.auction.id": auction.id,
            "raylla.auction.test": auction.test,
            "raylla.auction.canary": auction.canary,
            "raylla.auction.price_rule": auction.price_rule.value,
            "raylla.auction.candidates": len(auction.candidates),
            "raylla.auction.placed": [impression.ad_id for impression in auction.impressions],
            "raylla.auction.violations": sum(auction.violations.values()),
            "raylla.pctr_version": auction.pctr_version,
        }


class Writer(Protocol):
    """Who writes answers: an `AsyncEngine` here, or a Serve deployment of one."""

    def generate(
        self, prompt: Sequence[int], sampling: Sampling, stream: bool, trace: Carrier = NO_TRACE
    ) -> AsyncGenerator[Piece, None]:
        """See `AsyncEngine.generate`."""


@dataclass(slots=True)
class Traffic:
    """Who answers which request: a ``share`` of them the canary, told by the request's id, and those
    without ads ``organic``, where that is another."""

    stable: Writer
    canary: Writer | None = None
    share: float = 0.0
    organic: Writer | None = None

    def writer(self, request_id: str, ads: bool = True) -> tuple[Writer, bool]:
        """Who answers, and whether that is the canary; the same request id goes the same way."""
        if not ads and self.organic is not None:
            return self.organic, False
        if self.canary is None or self.share <= 0:
            return self.stable, False
        place = int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big") / 2**64
        return (self.canary, True) if place < self.share else (self.stable, False)


@dataclass(slots=True)
class Stopwatch:
    """Milliseconds by part of an auction, one part after the other, within a deadline; each is a span of
    ``whole``. To be left by `with`, so that a part that fails is over, too."""

    seconds: float
    whole: Carrier = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    parts: dict[str, float] = field(default_factory=dict)
    _part: str = ""
    _span: Span = field(default_factory=Span)
    _since: float = 0.0

    def begin(self, part: str) -> None:
        """``part`` begins here, and the one before it ends."""
        self.end()
        self._part, self._since, self._span = part, time.monotonic(), traced(part, self.whole)

    def end(self) -> None:
        """The last part ends here."""
        if self._part:
            self.parts[self._part] = round(1000 * (time.monotonic() - self._since), 3)
            self._span.end()
            self._part = ""

    @property
    def trace(self) -> Carrier:
        """Of the part that goes on."""
        return self._span.trace if self._part else NO_TRACE

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """What goes on is over with the whole."""
        if self._part:
            self._span.__exit__(kind, error, at)
            self._part = ""

    def first_text(self) -> None:
        """The user sees the first text, if not before."""
        self.parts.setdefault("first_text", round(1000 * (time.monotonic() - self.started), 3))

    def total(self) -> dict[str, float]:
        """All parts, and the whole so far."""
        return {**self.parts, "total": round(1000 * (time.monotonic() - self.started), 3)}

    async def within(self, what: str, waited: Awaitable[_T]) -> _T:
        """``waited``, or the deadline's error.

        Raises:
            BusyError: the auction has taken ``seconds``.
        """
        try:
            async with asyncio.timeout(self.started + self.seconds - time.monotonic()):
                return await waited
        except TimeoutError:
            raise BusyError(
                f"the auction was not done within serving.tmax={self.seconds:g} s, waiting for {what}"
            ) from None
