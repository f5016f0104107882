"""One auction from request to record, top to bottom.

    request ─▶ who may compete ─▶ k candidates ─▶ bids ─▶ prompt ─▶ ONE generation ─▶ repair ─▶ pCTR
            ─▶ prices ─▶ record in the store ─▶ response

The generation is the auction: whom the model places has won.  Text is released while it is written, as
far as no ad can still come of it, with the click's URL where the text is to hold links; a click counts
only with the record, which is in the store before the response is complete.  A request without ads is
answered by the same model, whose prompt then lists none; it is logged, and is no auction.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, get_args

import numpy as np

from raylla.auction import reward
from raylla.config import Config, Sampling
from raylla.engines.chat import chat_format
from raylla.engines.live import Finish
from raylla.engines.protocol import Wish
from raylla.errors import BusyError, EndpointError, TooLongError
from raylla.records import Ad, Query, Turn
from raylla.reward.rows import click_rows
from raylla.serving.auction.draft import Draft, Field
from raylla.serving.auction.eligibility import Eligibility, Selection
from raylla.serving.auction.entry import Entry
from raylla.serving.auction.exchange import Answered, Asked, Shown, Stopwatch, Traffic
from raylla.serving.auction.repair import Repaired
from raylla.serving.auction.tickets import Tickets
from raylla.serving.engine.predictor import Oracle, Rate
from raylla.serving.engine.together import Together
from raylla.serving.money import pricing
from raylla.serving.money.money import check_bid, to_units
from raylla.serving.money.records import (
    Candidate,
    Impression,
    PriceRule,
    Reason,
    ServedAuction,
)
from raylla.serving.money.sheets import served_sheet
from raylla.serving.security.tokens import TokenKeys
from raylla.serving.store import Store
from raylla.serving.tracing import traced
from raylla.world import prompts
from raylla.world.retrieval import Retrieval, Vectors
from raylla.world.synthetic import lexicon
from raylla.world.turns import in_context

FINISHES = get_args(Finish)


def _ignore(tokens: int) -> None:
    """Count nothing."""


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
        self._records = Together[ServedAuction, Exception | None](store.record_together, threads)
        self._eligibility = eligibility
        self.retrieval: Retrieval | None = None
        """Set once the catalogue has been read."""
        self._tokens = tokens
        self._tokenizer = tokenizer
        self._chat = chat_format(tokenizer)
        self._chat.literal()  # no request waits for it
        self._rule = PriceRule(self._serving.price_rule)
        self._sheet = served_sheet(config)
        if self._sheet is not None:
            store.keep_sheet(self._sheet.digest, self._sheet.text, datetime.now(UTC))
        self._entry = Entry(config, self._sheet)
        self._ongoing = 0

    @property
    def ongoing(self) -> int:
        """Requests in progress."""
        return self._ongoing

    async def answer(
        self, asked: Asked, stream: bool, spent: Callable[[int], None] = _ignore
    ) -> AsyncGenerator[str | Answered, None]:
        """The user's text as it becomes final, then how it ended; closing it aborts the generation.

        ``spent`` is told the tokens that were read and written, however the answer ends.

        Raises:
            BusyError: too many requests are in progress, or this one has run past ``serving.tmax``.
            EndpointError: the engine cannot answer.
            RequestError: the engine does not take the request; `TooLongError`: for its question's length.
            StoreError: the auction could not be recorded; nothing of it is clickable.
        """
        if self._ongoing >= self._serving.max_ongoing:
            raise BusyError(
                f"{self._ongoing} requests are in progress, as many as serving.max_ongoing allows"
            )
        self._ongoing += 1
        try:
            with traced("auction", asked.trace) as told, Stopwatch(self._serving.tmax, told.trace) as clock:
                async with aclosing(self._hold(asked, stream, spent, clock)) as parts:
                    async for part in parts:
                        if isinstance(part, Answered):
                            told.note(part.facts())
                        yield part
        finally:
            self._ongoing -= 1

    async def _hold(
        self, asked: Asked, stream: bool, spent: Callable[[int], None], clock: Stopwatch
    ) -> AsyncGenerator[str | Answered, None]:
        field = await self._compete(asked, clock) if asked.ads else Field.empty(asked)
        clock.begin("prompt")
        sampling = _sampling(self._config.ad_llm.sampling, asked)
        prompt, turns = self._prompt(field, asked, self._config.engine.max_model_len - sampling.max_tokens)
        writer, canary = self.traffic.writer(asked.request_id, asked.ads)
        tickets = Tickets(asked, field, self._serving, self._tokens)
        draft = Draft(
            prompt,
            field,
            self._serving.disclosure,
            self._tokenizer,
            tickets,
            turns,
            asked.stop,
            verbatim="json_schema" in asked.sampling,
        )
        clock.begin("generation")
        # An answer that may stop early is followed as it is written.
        pieces = writer.generate(prompt, sampling, stream or bool(asked.stop), clock.trace)
        try:
            async with aclosing(pieces):
                while not draft.finish:
                    piece = await clock.within("the engine", anext(pieces, None))
                    if piece is None:
                        raise EndpointError("the engine has ended the answer without a finish_reason")
                    if text := draft.add(piece):
                        clock.first_text()
                        yield text
        finally:  # a client that leaves before the end has had its text, too
            spent(len(prompt) + len(draft.token_ids) if draft.token_ids else 0)
        if draft.finish not in FINISHES:
            raise EndpointError(f"the engine has ended the answer early: {draft.finish}")
        if text := draft.end():
            yield text
        if not asked.ads:
            clock.end()
            yield draft.answered(clock)
            return
        clock.begin("repair")
        repaired = draft.repaired()
        clock.begin("pctr")
        pctr_version, rates = await self._rates(asked, field, draft.raw, repaired, clock)
        clock.begin("record")
        impressions = self._impressions(repaired, field.candidates, rates, tickets)
        auction = self._auction(asked, field, draft, repaired, pctr_version, impressions, clock, canary)
        # Not within the deadline: once begun, it is written whole, and waits for nobody but the disk.
        (refused,) = await asyncio.shield(self._records.ask([auction]))
        if refused is not None:
            raise refused
        clock.end()
        yield draft.answered(clock, auction, _shown(auction, repaired, tickets))

    async def _compete(self, asked: Asked, clock: Stopwatch) -> Field:
        """Eligible ads, the most relevant of them, and the bids that they enter with.

        Raises:
            MoneyError: no bid may be what a test sets.
        """
        clock.begin("candidates")
        if self.retrieval is None:
            raise BusyError("the catalogue is not read yet")
        now = datetime.now(UTC)
        auction_id = f"auc_{secrets.token_hex(12)}"
        for bid in asked.bids.values():
            check_bid(bid, self._serving.micros_per_unit, self._config.world.max_bid)
        with traced("eligibility", clock.trace) as told:
            selection = self._eligibility.select(asked.filters, now, asked.bids)
            told.note({"raylla.eligible": int(np.count_nonzero(selection.mask))})
        left_out = Counter(selection.counts())
        nearest: list[int] = []
        if selection.mask.any():
            said = in_context(asked.about())
            with traced("retrieval", clock.trace) as told:
                encoded = self._oracle.encode([said], told.trace)
                vector = (await clock.within("the query's vector", encoded))[0]
                nearest = self._relevant(self.retrieval, vector, selection, left_out)
                told.note({"raylla.retrieved": len(nearest)})
        category, theme = _about(asked.about(), selection.catalogue.ads[nearest[0]] if nearest else None)
        query = asked.about(category, theme)
        listed = [(selection.catalogue.listing(row), selection.floor(row)) for row in nearest]
        candidates, below = self._entry.candidates(listed, auction_id, query, asked.profile)
        left_out[Reason.FLOOR] += len(below)
        return Field(auction_id, now, query, tuple(candidates), selection, +left_out, tuple(below))

    def _relevant(
        self, retrieval: Retrieval, vector: Vectors, selection: Selection, left_out: Counter[Reason]
    ) -> list[int]:
        """Rows of the most relevant ads that may stand in one prompt together; counts the others."""
        k = self._serving.candidates or self._config.world.candidates
        mask = selection.mask
        while True:  # each round fills the places of the most relevant for good
            nearest = retrieval.search(vector, mask, k)
            mask, gone = selection.without(mask, nearest)
            left_out += gone
            if not gone:
                left_out[Reason.NOT_RETRIEVED] += int(np.count_nonzero(mask)) - len(nearest)
                return nearest

    def _prompt(self, field: Field, asked: Asked, room: int) -> tuple[list[int], list[Turn]]:
        """The prompt's token ids, at most ``room`` of them, and the turns that it holds.

        Raises:
            TooLongError: the question alone is.
        """
        bids = [self._units(candidate.bid_micros) for candidate in field.candidates]
        model, query, profile = self._config.ad_llm, field.query, asked.profile
        if asked.ads:
            messages = prompts.of(model, query, profile, field.ads, bids)
        else:
            messages = prompts.organic(model.prompt, query, profile)
        ids, kept = self._chat.fitted(messages, len(query.turns), room)
        if len(ids) > room:
            raise TooLongError(
                f"messages: the question makes a prompt of {len(ids)} tokens and may make {room}: "
                "engine.max_model_len less the answer's max_tokens; shorten the one or lower the other"
            )
        return ids, [query.turns[place] for place in kept]

    async def _rates(
        self, asked: Asked, field: Field, raw: str, repaired: Repaired, clock: Stopwatch
    ) -> tuple[str, list[Rate]]:
        """The pCTR version, and a rate for each placement, of the text as the model wrote it."""
        ads = {ad.id: ad for ad in field.ads}
        asks = click_rows("", field.query, asked.profile, raw, repaired.parsed.placements, ads, None)
        return await clock.within("click predictions", self._oracle.rates(asks, clock.trace))

    def _auction(
        self,
        asked: Asked,
        field: Field,
        draft: Draft,
        repaired: Repaired,
        pctr_version: str,
        impressions: tuple[Impression, ...],
        clock: Stopwatch,
        canary: bool,
    ) -> ServedAuction:
        """The record, prices and reward included."""
        bids = {
            candidate.listing.ad.id: self._units(candidate.bid_micros) for candidate in field.candidates
        }
        pctr = {shown.ad_id: shown.pctr for shown in impressions}
        found = reward(repaired.parsed, bids, pctr, self._config.penalty)
        return ServedAuction(
            id=field.auction_id,
            request_id=asked.request_id,
            created=field.created,
            query=asked.query,
            user_id=asked.filters.user_id,
            basics=asked.profile.basics,
            interests=asked.profile.interests,
            weight_version=draft.version,
            pctr_version=pctr_version,
            prompt=self._config.ad_llm.prompt,
            seed=self._config.seed,
            price_rule=self._rule,
            currency=self._serving.currency,
            candidates=field.candidates,
            raw_text=draft.raw,
            text=repaired.text,
            prompt_token_ids=tuple(draft.prompt),
            token_ids=tuple(draft.token_ids),
            reward_value=found.value,
            reward_penalty=found.penalty,
            impressions=impressions,
            filtered=field.filtered(self._serving.filtered_logged),
            filtered_counts=dict(field.left_out),
            violations=dict(Counter(str(violation) for violation in repaired.parsed.violations)),
            latency_ms=clock.total(),
            category=field.query.category,
            theme=field.query.theme,
            resample_share=self._serving.resample_share if self._rule is PriceRule.RESAMPLED else None,
            micros_per_unit=self._serving.micros_per_unit,
            canary=canary,
            test=asked.test,
            turns=draft.turns,
            turns_cut=draft.turns_cut,
            metadata=dict(asked.metadata),
            prices=self._sheet.digest if self._sheet is not None else None,
        )

    def _impressions(
        self,
        repaired: Repaired,
        candidates: Sequence[Candidate],
        rates: Sequence[Rate],
        tickets: Tickets,
    ) -> tuple[Impression, ...]:
        by_ad = {candidate.listing.ad.id: candidate for candidate in candidates}
        impressions = []
        for span, rate in zip(repaired.spans, rates, strict=True):
            candidate = by_ad[span.ad_id]
            listing, ticket = candidate.listing, tickets.of(span.ad_id)
            price = pricing.price(
                self._rule,
                listing.bid_micros,
                pctr=rate.mean,
                resampled=candidate.resampled,
                mu=self._serving.resample_share,
                quoted=candidate.price_micros,
            )
            impressions.append(
                Impression(
                    id=ticket.impression_id,
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
                    seen=ticket.seen,
                )
            )
        return tuple(impressions)

    def _units(self, micros: int) -> float:
        return to_units(micros, self._serving.micros_per_unit)


def _shown(auction: ServedAuction, repaired: Repaired, tickets: Tickets) -> tuple[Shown, ...]:
    by_ad = {candidate.listing.ad.id: candidate.listing for candidate in auction.candidates}
    shown = []
    for impression, span in zip(auction.impressions, repaired.shown_spans, strict=True):
        listing, url = by_ad[impression.ad_id], tickets.of(impression.ad_id).url
        ad = listing.ad
        shown.append(Shown(impression, ad.title, ad.category, listing.domain, url, span.start, span.end))
    return tuple(shown)


def _about(query: Query, nearest: Ad | None) -> tuple[str, str]:
    """Category and theme of a question: by its words, or those before it, else of the most relevant ad."""
    category = lexicon.category_of(query.text) or lexicon.category_of(in_context(query))
    if category or nearest is None:
        return category, lexicon.theme_of(category)
    return nearest.category, nearest.theme


def _sampling(configured: Sampling, asked: Asked) -> Sampling:
    """The config's, with what the request may change of it."""
    longest = min(configured.max_tokens, asked.max_tokens or configured.max_tokens)
    if not asked.sampling:
        return configured.model_copy(update={"max_tokens": longest})
    return Wish.model_validate(configured.model_dump() | {"max_tokens": longest} | dict(asked.sampling))
