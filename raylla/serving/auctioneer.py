"""One auction from request to record, top to bottom.

    request ─▶ who may compete ─▶ k candidates ─▶ bids ─▶ prompt ─▶ ONE generation ─▶ repair ─▶ pCTR
            ─▶ prices ─▶ record in the store ─▶ click tokens ─▶ response

The generation is the auction: whom the model places has won.  Text is released while it is written, as
far as no ad can still come of it; an ad becomes clickable only with the record, which is in the store
before the response is complete.  A request without ads is answered by the same model, whose prompt then
lists none; it is logged, and is no auction.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

import numpy as np
from tokenizers.decoders import DecodeStream

from raylla.auction import reward
from raylla.config import Config, Sampling
from raylla.engines.protocol import prompt_ids
from raylla.errors import BusyError, EndpointError
from raylla.records import Ad, Profile, Query
from raylla.reward.rows import rows
from raylla.serving import pricing
from raylla.serving.eligibility import Eligibility, Selection
from raylla.serving.engine import Piece
from raylla.serving.money import Micros, check_bid, to_units
from raylla.serving.predictor import Oracle, Rate
from raylla.serving.records import (
    Candidate,
    Filters,
    Impression,
    Listing,
    PriceRule,
    Reason,
    ServedAuction,
)
from raylla.serving.repair import Repair, Repaired
from raylla.serving.retrieval import Retrieval
from raylla.serving.store import Store
from raylla.serving.tokens import TokenKeys, new_claims
from raylla.world import lexicon, prompts

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request. ``profile.id`` is the user's, or nobody's; ``max_tokens`` may only lower the config's."""

    request_id: str
    query: str
    profile: Profile
    filters: Filters
    ads: bool = True
    test: bool = False
    max_tokens: int | None = None
    bids: Mapping[str, Micros] = field(default_factory=dict)
    """Of a test auction: other bids than the ads' own, by ad id."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A placed ad of a response: the impression and where a click on it goes."""

    impression: Impression
    title: str
    category: str
    domain: str
    token: str


@dataclass(frozen=True, slots=True)
class Answered:
    """The end of a response. ``auction`` is None where no ads were wanted."""

    text: str
    finish: str
    weight_version: str
    prompt_tokens: int
    answer_tokens: int
    latency_ms: dict[str, float]
    auction: ServedAuction | None = None
    shown: tuple[Shown, ...] = ()


class Writer(Protocol):
    """Who writes answers: an `AsyncEngine` here, or a Serve deployment of one."""

    def generate(
        self, prompt: Sequence[int], sampling: Sampling, stream: bool
    ) -> AsyncGenerator[Piece, None]:
        """See `AsyncEngine.generate`."""


@dataclass(slots=True)
class Traffic:
    """Which engine answers which request: a ``share`` of them the canary, told by the request's id."""

    stable: Writer
    canary: Writer | None = None
    share: float = 0.0

    def writer(self, request_id: str) -> tuple[Writer, bool]:
        """Who answers, and whether that is the canary; the same request id goes the same way."""
        if self.canary is None or self.share <= 0:
            return self.stable, False
        place = int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big") / 2**64
        return (self.canary, True) if place < self.share else (self.stable, False)


@dataclass(slots=True)
class _Clock:
    """Milliseconds by part of an auction, one part after the other, within a deadline."""

    seconds: float
    started: float = field(default_factory=time.monotonic)
    parts: dict[str, float] = field(default_factory=dict)
    _last: float = 0.0

    def __post_init__(self) -> None:
        self._last = self.started

    def mark(self, part: str) -> None:
        now = time.monotonic()
        self.parts[part] = round(1000 * (now - self._last), 3)
        self._last = now

    def first_text(self) -> None:
        self.parts.setdefault("first_text", round(1000 * (time.monotonic() - self.started), 3))

    def total(self) -> dict[str, float]:
        return {**self.parts, "total": round(1000 * (time.monotonic() - self.started), 3)}

    async def within(self, what: str, waited: Awaitable[T]) -> T:
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


@dataclass(frozen=True, slots=True)
class _Field:
    """Who competes: candidates in the order of the prompt, and who was left out."""

    query: Query
    candidates: tuple[Candidate, ...]
    selection: Selection
    left_out: Counter[Reason]


class Auctioneer:
    """Holds auctions; one per ingress replica.

    Args:
        threads: where the store is called from, which waits for a disk.
        tokenizer: of the Ad-LLM.
    """

    def __init__(
        self,
        config: Config,
        traffic: Traffic,
        oracle: Oracle,
        store: Store,
        eligibility: Eligibility,
        tokens: TokenKeys,
        tokenizer: Any,
        threads: Executor,
    ) -> None:
        self._config = config
        self._serving = config.serving
        self.traffic = traffic
        self._oracle = oracle
        self._store = store
        self._eligibility = eligibility
        self.retrieval: Retrieval | None = None
        """Set once the catalogue has been read."""
        self._tokens = tokens
        self._tokenizer = tokenizer
        self._threads = threads
        self._rule = PriceRule(self._serving.price_rule)
        self._ongoing = 0

    @property
    def ongoing(self) -> int:
        """Requests in progress."""
        return self._ongoing

    async def answer(self, asked: Asked, stream: bool) -> AsyncGenerator[str | Answered, None]:
        """The user's text as it becomes final, then how it ended; closing it aborts the generation.

        Raises:
            BusyError: too many requests are in progress, or this one has run past ``serving.tmax``.
            EndpointError: the engine cannot answer, or the query is too long for its context.
            StoreError: the auction could not be recorded; nothing of it is clickable.
        """
        if self._ongoing >= self._serving.max_ongoing:
            raise BusyError(
                f"{self._ongoing} requests are in progress, as many as serving.max_ongoing allows"
            )
        self._ongoing += 1
        try:
            async with aclosing(self._hold(asked, stream)) as parts:
                async for part in parts:
                    yield part
        finally:
            self._ongoing -= 1

    async def _hold(self, asked: Asked, stream: bool) -> AsyncGenerator[str | Answered, None]:
        clock = _Clock(self._serving.tmax)
        now = datetime.now(UTC)
        auction_id = f"auc_{secrets.token_hex(12)}"
        competing = await self._compete(asked, auction_id, now, clock) if asked.ads else None
        candidates = competing.candidates if competing else ()
        query = competing.query if competing else _query(asked, "", "")
        prompt = self._prompt(query, asked.profile, candidates)
        clock.mark("prompt")

        writer, canary = self.traffic.writer(asked.request_id)
        repair = Repair([one.listing.ad for one in candidates], self._serving.disclosure)
        decode = DecodeStream(skip_special_tokens=True)
        token_ids: list[int] = []
        raw: list[str] = []
        sampling = _sampling(self._config.ad_llm.sampling, asked.max_tokens)
        async with aclosing(writer.generate(prompt, sampling, stream)) as pieces:
            while True:
                piece: Piece = await clock.within("the engine", anext(pieces))
                token_ids += piece.token_ids
                words = _decoded(self._tokenizer, decode, piece.token_ids)
                raw.append(words)
                if text := repair.feed(words):
                    clock.first_text()
                    yield text
                if piece.finish is not None:
                    break
        if text := repair.finish():
            yield text
        clock.mark("generation")

        finish, version = piece.finish, piece.version
        repaired = repair.repaired(competing.selection.catalogue.row_by_id if competing else ())
        if competing is None:
            yield Answered(repaired.text, finish, version, len(prompt), len(token_ids), clock.total())
            return
        pctr_version, rates = await self._rates(asked, query, "".join(raw), repaired, candidates, clock)
        clock.mark("pctr")
        impressions = self._impressions(repaired, candidates, rates)
        found = reward(
            repaired.parsed,
            {one.listing.ad.id: self._units(one.bid_micros) for one in candidates},
            {one.ad_id: one.pctr for one in impressions},
            self._config.penalty,
        )
        auction = ServedAuction(
            id=auction_id,
            request_id=asked.request_id,
            created=now,
            query=asked.query,
            user_id=asked.filters.user_id,
            basics=asked.profile.basics,
            interests=asked.profile.interests,
            weight_version=version,
            pctr_version=pctr_version,
            prompt=self._config.ad_llm.prompt,
            seed=self._config.seed,
            price_rule=self._rule,
            currency=self._serving.currency,
            candidates=candidates,
            raw_text="".join(raw),
            text=repaired.text,
            prompt_token_ids=tuple(prompt),
            token_ids=tuple(token_ids),
            reward_value=found.value,
            reward_penalty=found.penalty,
            impressions=impressions,
            filtered=competing.selection.filtered(self._serving.filtered_logged),
            filtered_counts=dict(competing.left_out),
            violations=dict(Counter(str(one) for one in repaired.parsed.violations)),
            latency_ms=clock.total(),
            category=query.category,
            theme=query.theme,
            resample_share=self._serving.resample_share if self._rule is PriceRule.RESAMPLED else None,
            canary=canary,
            test=asked.test,
        )
        loop = asyncio.get_running_loop()
        # Not within the deadline: once begun, it is written whole, and waits for nobody but the disk.
        await asyncio.shield(loop.run_in_executor(self._threads, self._store.record, auction))
        clock.mark("record")
        yield Answered(
            repaired.text,
            finish,
            version,
            len(prompt),
            len(token_ids),
            clock.total(),
            auction,
            self._shown(auction, candidates),
        )

    async def _compete(self, asked: Asked, auction_id: str, now: datetime, clock: _Clock) -> _Field:
        """Eligible ads, the most relevant of them, and the bids that they enter with."""
        if self.retrieval is None:
            raise BusyError("the catalogue is not read yet")
        selection = self._eligibility.select(asked.filters, now)
        left_out = Counter(selection.counts())
        mask = selection.mask
        eligible = int(np.count_nonzero(mask))
        k = self._serving.candidates or self._config.world.candidates
        found: list[int] = []
        if eligible:
            vector = (await clock.within("the query's vector", self._oracle.encode([asked.query])))[0]
            found = self.retrieval.search(vector, mask, k)
        left_out[Reason.NOT_RETRIEVED] += eligible - len(found)
        floor = max(self._serving.floor_micros, asked.filters.floor_micros)
        candidates = []
        for row in found:
            listing = self._bidding(selection.catalogue.listing(row), asked.bids)
            entry = pricing.enter(
                self._rule,
                listing.bid_micros,
                self._serving.micros_per_unit,
                self._serving.resample_share,
                self._config.seed,
                auction_id,
                listing.ad.id,
            )
            if entry.bid_micros < floor:
                left_out[Reason.FLOOR] += 1
            else:
                candidates.append(Candidate(listing, entry.bid_micros, entry.resampled))
        about = _about(asked.query, selection.catalogue.ads[found[0]] if found else None)
        # Training prompts list their ads in no order: an order would be read as a signal.
        random.Random(auction_id).shuffle(candidates)
        clock.mark("candidates")
        return _Field(_query(asked, *about), tuple(candidates), selection, +left_out)

    def _bidding(self, listing: Listing, bids: Mapping[str, Micros]) -> Listing:
        """``listing`` at the bid that a test sets for it, if it does.

        Raises:
            MoneyError: no bid may be that.
        """
        if listing.ad.id not in bids:
            return listing
        bid = check_bid(bids[listing.ad.id], self._serving.micros_per_unit, self._config.world.max_bid)
        return replace(listing, bid_micros=bid)

    def _prompt(self, query: Query, profile: Profile, candidates: Sequence[Candidate]) -> list[int]:
        """The prompt's token ids.

        Raises:
            EndpointError: it leaves no room for an answer.
        """
        ads = [one.listing.ad for one in candidates]
        bids = [self._units(one.bid_micros) for one in candidates]
        messages = prompts.answer(self._config.ad_llm.prompt, query, profile, ads, bids)
        return prompt_ids(self._tokenizer, messages)

    async def _rates(
        self,
        asked: Asked,
        query: Query,
        raw: str,
        repaired: Repaired,
        candidates: Sequence[Candidate],
        clock: _Clock,
    ) -> tuple[str, list[Rate]]:
        """The pCTR version, and a rate for each placement, of the text as the model wrote it."""
        ads = {one.listing.ad.id: one.listing.ad for one in candidates}
        asks = rows("", query, asked.profile, raw, repaired.parsed.placements, ads, None)
        return await clock.within("click predictions", self._oracle.rates(asks))

    def _impressions(
        self, repaired: Repaired, candidates: Sequence[Candidate], rates: Sequence[Rate]
    ) -> tuple[Impression, ...]:
        by_ad = {one.listing.ad.id: one for one in candidates}
        found = []
        for span, rate in zip(repaired.spans, rates, strict=True):
            candidate = by_ad[span.ad_id]
            listing = candidate.listing
            price = pricing.price(
                self._rule,
                listing.bid_micros,
                pctr=rate.mean,
                resampled=candidate.resampled,
                mu=self._serving.resample_share,
            )
            found.append(
                Impression(
                    id=f"imp_{secrets.token_hex(12)}",
                    ad_id=span.ad_id,
                    campaign_id=listing.campaign_id,
                    advertiser_id=listing.advertiser_id,
                    start=span.start,
                    end=span.end,
                    bid_micros=listing.bid_micros,
                    price_micros=price,
                    pctr=rate.mean,
                    pctr_low=rate.low,
                    pctr_high=rate.high,
                    resampled=candidate.resampled,
                )
            )
        return tuple(found)

    def _shown(self, auction: ServedAuction, candidates: Sequence[Candidate]) -> tuple[Shown, ...]:
        by_ad = {one.listing.ad.id: one.listing for one in candidates}
        shown = []
        for one in auction.impressions:
            listing = by_ad[one.ad_id]
            claims = new_claims(
                auction.id,
                one.id,
                one.ad_id,
                one.advertiser_id,
                one.price_micros,
                auction.currency,
                auction.created,
                self._serving.token_ttl,
            )
            token = self._tokens.sign(claims)
            shown.append(Shown(one, listing.ad.title, listing.ad.category, listing.domain, token))
        return tuple(shown)

    def _units(self, micros: int) -> float:
        return to_units(micros, self._serving.micros_per_unit)


def _query(asked: Asked, category: str, theme: str) -> Query:
    return Query(asked.request_id, asked.profile.id, asked.query, category, theme, "test")


def _about(text: str, nearest: Ad | None) -> tuple[str, str]:
    """Category and theme of a question: by its words, else those of the most relevant ad."""
    category = lexicon.category_of(text)
    if category or nearest is None:
        return category, lexicon.theme_of(category)
    return nearest.category, nearest.theme


def _sampling(configured: Sampling, max_tokens: int | None) -> Sampling:
    if max_tokens is None or max_tokens >= configured.max_tokens:
        return configured
    return configured.model_copy(update={"max_tokens": max_tokens})


def _decoded(tokenizer: Any, decode: DecodeStream, token_ids: Sequence[int]) -> str:
    """The text that these tokens complete."""
    steps = (decode.step(tokenizer.backend_tokenizer, one) for one in token_ids)
    return "".join(step for step in steps if step)


__all__ = ["Answered", "Asked", "Auctioneer", "EndpointError", "Shown", "Traffic", "Writer"]
