"""POST /v1/chat/completions: the OpenAI chat completion, with ads as annotations, Markdown links or both.

The last message is the question; the model was trained on single questions, so earlier messages are
accepted and not read.  How the model samples is part of the mechanism (its policy is what prices are
computed of): ``temperature``, ``top_p`` and the like are accepted and have no effect.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from raylla.config import Serving
from raylla.errors import BusyError, EndpointError, RayllaError
from raylla.records import Profile
from raylla.serving.auction.auctioneer import Auctioneer
from raylla.serving.auction.exchange import Answered, Asked, Shown
from raylla.serving.http.arrivals.origin import base_url
from raylla.serving.http.chatbodies import ChatRequest, ChatResponse
from raylla.serving.http.reports import Reports
from raylla.serving.http.web import Application, HttpError, errors
from raylla.serving.money.records import Filters
from raylla.world.prompts import neutral

log = logging.getLogger("raylla.serving")
RETRY_AFTER = "1"
NOBODY = "anonymous"


EVENT = {
    "type": "object",
    "properties": {"data": {"type": "string", "description": "a `chat.completion.chunk`, or `[DONE]`"}},
    "required": ["data"],
}
"""An event of a streamed answer, as the OpenAPI document describes it."""


def router(auctioneer: Auctioneer, serving: Serving, reports: Reports) -> APIRouter:
    """The chat endpoint over ``auctioneer``."""
    made = APIRouter(tags=["answers"])
    streamed = {
        "description": "The answer; with `stream` as server-sent events of `chat.completion.chunk`, whose "
        "last one before `[DONE]` carries annotations and the auction",
        "content": {"text/event-stream": {"schema": EVENT}},
    }

    @made.post(
        "/v1/chat/completions",
        response_model=ChatResponse,
        responses={200: streamed, **errors(400, 401, 403, 413, 422, 503)},
        summary="Answer a question, with native ads",
    )
    async def complete(body: ChatRequest, request: Request, caller: Application) -> Response:
        asked = replace(
            _asked(body, request.state.request_id, serving),
            base=base_url(request, serving),
            links=body.raylla.links or caller.links or serving.links,
        )
        writer = _Form(body, asked, serving)
        answer = _watched(auctioneer, asked, bool(body.stream), reports)
        if not body.stream:
            return await _unless_gone(request, _whole(answer, writer))
        return await _begun(answer, writer)

    return made


def _asked(body: ChatRequest, request_id: str, serving: Serving) -> Asked:
    """The request in the auction's terms.

    Raises:
        HttpError: there is no question, or it is too long.
    """
    last = body.messages[-1]
    query = neutral(printable(last.words()))
    if last.role != "user" or not query:
        raise HttpError(422, "no_question", "messages: the last one must be the user's and hold text")
    extras = body.raylla
    for field, text in (("messages", query), ("raylla.profile.basics", extras.profile.basics)):
        if len(text) > serving.longest_query:
            raise HttpError(
                422,
                "too_long",
                f"{field}: {len(text)} characters; at most serving.longest_query={serving.longest_query}",
            )
    if extras.bids and not extras.test:
        raise HttpError(400, "not_a_test", "raylla.bids: only a request with raylla.test=true may set bids")
    user_id = extras.profile.id or body.user
    limits = [one for one in (body.max_tokens, body.max_completion_tokens) if one is not None]
    return Asked(
        request_id,
        query,
        Profile(
            user_id or NOBODY,
            printable(extras.profile.basics),
            tuple(neutral(printable(one)) for one in extras.profile.interests),
        ),
        Filters(user_id, extras.floor_micros, frozenset(extras.bcat), frozenset(extras.badv)),
        ads=extras.ads,
        test=extras.test,
        max_tokens=min(limits, default=None),
        bids=extras.bids,
    )


def printable(text: str) -> str:
    """``text`` with control characters as spaces."""
    return "".join(" " if unicodedata.category(one) == "Cc" else one for one in text)


async def _watched(
    auctioneer: Auctioneer, asked: Asked, stream: bool, reports: Reports
) -> AsyncGenerator[str | Answered, None]:
    """The answer, its end last, reported however it ends.

    Raises:
        EndpointError: it stopped without an end.
    """
    started, ended = time.monotonic(), False
    try:
        async with aclosing(auctioneer.answer(asked, stream)) as parts:
            async for part in parts:
                if isinstance(part, Answered):
                    ended = True
                    reports.answered(asked, part)
                yield part
        if not ended:
            raise EndpointError("the answer has stopped without an end")
    except Exception as error:  # whatever it was, it is reported and goes on
        reports.failed(asked, error, time.monotonic() - started)
        raise
    except (asyncio.CancelledError, GeneratorExit):
        reports.dropped(asked, time.monotonic() - started)
        raise


class _Form:
    """The OpenAI objects of one response."""

    def __init__(self, body: ChatRequest, asked: Asked, serving: Serving) -> None:
        self._asked, self._serving = asked, serving
        self.usage_wanted = bool(body.stream_options and body.stream_options.include_usage)
        self._common = {
            "id": f"chatcmpl-{asked.request_id}",
            "created": int(time.time()),
            "model": body.model,
        }
        head = json.dumps({**self._common, "object": "chat.completion.chunk"})[:-1]
        self._before = (
            f'data: {head}, "choices": [{{"index": 0, "finish_reason": null, "delta": {{"content": '
        )

    def piece(self, text: str) -> str:
        """One event of a stream; only the text differs from the one before."""
        return f"{self._before}{json.dumps(text)}}}}}]}}\n\n"

    def opening(self) -> str:
        """The first event."""
        return self._event({"role": "assistant", "content": ""}, None)

    def closing(self, end: Answered) -> str:
        """The events behind the text."""
        last = self._event({"annotations": self.annotations(end)}, end.finish, raylla=self.detail(end))
        if self.usage_wanted:
            usage = {**self._common, "object": "chat.completion.chunk", "choices": [], "usage": _usage(end)}
            last += f"data: {json.dumps(usage)}\n\n"
        return last + "data: [DONE]\n\n"

    def whole(self, text: str, end: Answered) -> dict[str, Any]:
        """The response that is not streamed."""
        message = {
            "role": "assistant",
            "content": text,
            "refusal": None,
            "annotations": self.annotations(end),
        }
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": end.finish}
        return {
            **self._common,
            "object": "chat.completion",
            "choices": [choice],
            "usage": _usage(end),
            "raylla": self.detail(end),
        }

    def annotations(self, end: Answered) -> list[dict[str, Any]]:
        """One url_citation per placed ad, unless the text alone has the links."""
        if self._asked.links == "markdown":
            return []
        return [
            {
                "type": "url_citation",
                "url_citation": {
                    "start_index": one.start,
                    "end_index": one.end,
                    "url": one.url,
                    "title": one.title,
                },
            }
            for one in end.shown
        ]

    def detail(self, end: Answered) -> dict[str, Any]:
        """The `raylla` object."""
        auction = end.auction
        if auction is None:
            return {"auction_id": None, "weight_version": end.weight_version, "ads": []}
        candidates = [
            {
                "ad_id": one.listing.ad.id,
                "title": one.listing.ad.title,
                "category": one.listing.ad.category,
                "bid_micros": one.bid_micros,
            }
            for one in auction.candidates
        ]
        return {
            "auction_id": auction.id,
            "weight_version": auction.weight_version,
            "pctr_version": auction.pctr_version,
            "price_rule": auction.price_rule.value,
            "at": auction.price_rule.at,
            "cur": auction.currency,
            "ads": [self._ad(one) for one in end.shown],
            "filtered": {reason.value: count for reason, count in auction.filtered_counts.items()},
            "violations": dict(auction.violations),
            **({"candidates": candidates} if auction.test else {}),
        }

    def _ad(self, one: Shown) -> dict[str, Any]:
        impression = one.impression
        return {
            "ad_id": impression.ad_id,
            "impid": impression.id,
            "seat": impression.advertiser_id,
            "bid_micros": impression.bid_micros,
            "price_micros": impression.price_micros,
            "ctr": impression.pctr,
            "ctr_low": impression.pctr_low,
            "ctr_high": impression.pctr_high,
            "disclosure": self._serving.disclosure,
            "adomain": [one.domain],
            "cat": [one.category],
        }

    def _event(self, delta: dict[str, Any], finish: str | None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        event = {**self._common, "object": "chat.completion.chunk", "choices": [choice], **more}
        return f"data: {json.dumps(event)}\n\n"


def _usage(end: Answered) -> dict[str, int]:
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.answer_tokens,
        "total_tokens": end.prompt_tokens + end.answer_tokens,
    }


async def _whole(answer: AsyncGenerator[str | Answered, None], form: _Form) -> Response:
    texts: list[str] = []
    async for part in answer:  # to its end: an answer that is left before counts as dropped
        if isinstance(part, Answered):
            whole = form.whole("".join(texts), part)
        else:
            texts.append(part)
    return JSONResponse(whole)


async def _begun(answer: AsyncGenerator[str | Answered, None], form: _Form) -> Response:
    """A streamed response once there is something to say: what fails before has a status of its own."""
    first = await anext(answer)

    async def events() -> AsyncIterator[str]:
        yield form.opening()
        part: str | Answered | None = first
        try:
            while part is not None:
                yield form.closing(part) if isinstance(part, Answered) else form.piece(part)
                part = await anext(answer, None)
        except Exception as error:  # whatever it was: nobody may take half an answer for a whole one
            if not isinstance(error, RayllaError):
                log.exception("a stream has failed")
            problem = {"message": said(error), "type": "server_error", "code": code_of(error)}
            yield f"data: {json.dumps({'error': problem})}\n\n"
        finally:
            await answer.aclose()

    return StreamingResponse(
        events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
    )


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The response, or its end where the client has hung up: nobody would read it."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return await working
        return Response(status_code=499)
    finally:
        for task in (working, leaving):
            task.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def code_of(error: Exception) -> str:
    """The code of an error answer."""
    if isinstance(error, SQLAlchemyError):
        return "store_unavailable"
    if not isinstance(error, RayllaError):
        return "internal_error"
    return "overloaded" if isinstance(error, BusyError) else "unavailable"


def said(error: Exception) -> str:
    """The sentence of an error answer; what was not foreseen stays in the log."""
    if isinstance(error, SQLAlchemyError):
        return "the store does not answer; try again"
    return str(error) if isinstance(error, RayllaError) else "the answer has failed; try again"


__all__ = ["RETRY_AFTER", "ChatRequest", "ChatResponse", "code_of", "router", "said"]
