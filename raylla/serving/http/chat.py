"""POST /v1/chat/completions: the OpenAI chat completion, with ads as annotations, Markdown links or both.

The user's last message is the question, what stands around it the conversation that it is read in. What of
OpenAI's parameters is honoured and what is refused is said in `raylla.serving.http.openai.parameters`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from raylla.config import Config, Serving
from raylla.serving.auction.auctioneer import Auctioneer
from raylla.serving.auction.exchange import Answered, Asked
from raylla.serving.http.openai import delivery, models
from raylla.serving.http.openai.bodies import ChatRequest, ChatResponse
from raylla.serving.http.openai.faults import OpenAiRoute
from raylla.serving.http.openai.history import conversation
from raylla.serving.http.openai.rates import Rates
from raylla.serving.http.openai.reading import asked_of
from raylla.serving.http.openai.shown import cited, detail
from raylla.serving.http.reports import Reports
from raylla.serving.http.web import Application, errors

_EVENT = {
    "type": "object",
    "properties": {"data": {"type": "string", "description": "a `chat.completion.chunk`, or `[DONE]`"}},
    "required": ["data"],
}
"""An event of a streamed answer, as the OpenAPI document describes it."""
_FAULTS = (400, 401, 403, 404, 413, 429, 503)


def router(auctioneer: Auctioneer, config: Config, reports: Reports, rates: Rates) -> APIRouter:
    """The chat endpoint over ``auctioneer``."""
    made = APIRouter(tags=["answers"], route_class=OpenAiRoute)
    serving = config.serving
    streamed = {
        "description": "The answer; with `stream` as server-sent events of `chat.completion.chunk`, whose "
        "last one before `[DONE]` carries annotations and the auction",
        "content": {"text/event-stream": {"schema": _EVENT}},
    }

    @made.post(
        "/v1/chat/completions",
        response_model=ChatResponse,
        responses={200: streamed, **errors(*_FAULTS), "4XX": {"description": "A fault of the request"}},
        summary="Answer a question, with native ads",
    )
    async def complete(body: ChatRequest, request: Request, caller: Application) -> Response:
        models.check_model(body.model, serving.model_name)
        said = conversation(body.messages)
        limits = (body.max_tokens, body.max_completion_tokens)
        asked = asked_of(body, said, request, caller, config, limits, body.stop)
        headers = rates.admit(caller.key_id)
        form = _Form(body, asked, serving, said.notes)
        spent = partial(rates.spent, caller.key_id)
        answer = delivery.watched(auctioneer, asked, bool(body.stream), reports, spent)
        if body.stream:
            return await delivery.streamed(answer, form, headers)
        return await delivery.unless_gone(request, _whole(answer, form, headers))

    return made


class _Form:
    """The OpenAI objects of one response."""

    def __init__(self, body: ChatRequest, asked: Asked, serving: Serving, notes: Sequence[str]) -> None:
        self._asked, self._serving, self._notes = asked, serving, notes
        self.usage_wanted = bool(body.stream_options and body.stream_options.include_usage)
        self._common = {
            "id": f"chatcmpl-{asked.request_id}",
            "created": int(time.time()),
            "model": serving.model_name,
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

    def failing(self, problem: dict[str, str]) -> str:
        """The event of an answer that broke off."""
        return f"data: {json.dumps({'error': problem})}\n\n"

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
            **({"metadata": dict(self._asked.metadata)} if self._asked.metadata else {}),
            "raylla": self.detail(end),
        }

    def annotations(self, end: Answered) -> list[dict[str, Any]]:
        """One url_citation per placed ad, unless the text alone has the links."""
        return [
            {"type": "url_citation", "url_citation": citation} for citation in cited(end, self._asked.links)
        ]

    def detail(self, end: Answered) -> dict[str, Any]:
        """The `raylla` object."""
        return detail(end, self._serving.disclosure, self._notes)

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


async def _whole(answer: delivery.AnswerStream, form: _Form, headers: dict[str, str]) -> Response:
    return JSONResponse(form.whole(*await delivery.whole_answer(answer)), headers=headers)


__all__ = ["ChatRequest", "ChatResponse", "router"]
