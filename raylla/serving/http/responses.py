"""The Responses API over the same auctions as chat completions: POST, GET and DELETE /v1/responses, and
what one was asked.

A response that is kept (OpenAI's default, `store`) can be gone on from by its id. It belongs to the key
that asked for it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from raylla.config import Config
from raylla.errors import TooLongError, UnknownError
from raylla.records import Turn
from raylla.serving.auction.auctioneer import Auctioneer
from raylla.serving.auction.exchange import Answered
from raylla.serving.http.openai import delivery, models
from raylla.serving.http.openai.bodies import Message
from raylla.serving.http.openai.events import ResponseForm
from raylla.serving.http.openai.faults import OpenAiRoute, refused, unusable
from raylla.serving.http.openai.history import Conversation, cleaned, conversation
from raylla.serving.http.openai.rates import Rates
from raylla.serving.http.openai.reading import asked_of
from raylla.serving.http.openai.responsebodies import (
    Deleted,
    InputItem,
    InputItems,
    ResponseBody,
    ResponseId,
    ResponseRequest,
)
from raylla.serving.http.reports import Reports
from raylla.serving.http.web import Application, Behind, errors, now
from raylla.serving.store.clients.responses import KeptResponse, Responses

_EVENT = {
    "type": "object",
    "properties": {"data": {"type": "string", "description": "an event of OpenAI's, its type in `type`"}},
    "required": ["data"],
}
_FAULTS: dict[int | str, dict[str, Any]] = {
    **errors(400, 401, 403, 404, 413, 429, 503),
    "4XX": {"description": "A fault of the request"},
}


def router(auctioneer: Auctioneer, config: Config, reports: Reports, rates: Rates) -> APIRouter:
    """The Responses API over ``auctioneer``."""
    made = APIRouter(tags=["answers"], route_class=OpenAiRoute)
    serving = config.serving
    streamed = {
        "description": "The response; with `stream` as server-sent events, the response in the last one",
        "content": {"text/event-stream": {"schema": _EVENT}},
    }

    @made.post(
        "/v1/responses",
        response_model=ResponseBody,
        responses={200: streamed, **_FAULTS},
        summary="Answer a question in a conversation that is kept here, with native ads",
    )
    async def respond(
        body: ResponseRequest, request: Request, behind: Behind, caller: Application
    ) -> Response:
        models.check_model(body.model, serving.model_name)
        said = _said(body)
        before = await _before(behind.store.responses, body, caller.key_id, serving.largest_body)
        rules = cleaned("system", body.instructions or "")
        whole = replace(said, turns=(*rules, *before, *said.turns))
        limits = [body.max_output_tokens]
        asked = asked_of(body, whole, request, caller, config, limits, field="input")
        headers = rates.admit(caller.key_id)
        form = ResponseForm(body, asked, serving.model_name, serving.disclosure, said.notes)
        spent = partial(rates.spent, caller.key_id)
        answer = delivery.watched(auctioneer, asked, bool(body.stream), reports, spent)
        if body.store is not False:
            answer = _kept(answer, form, said, body, behind.store.responses, caller.key_id)
        if body.stream:
            return await delivery.streamed(answer, form, headers)
        return await delivery.unless_gone(request, _whole(answer, form, headers))

    made.add_api_route(
        "/v1/responses/{response_id}", read, response_model=ResponseBody, responses=_FAULTS, methods=["GET"]
    )
    made.add_api_route(
        "/v1/responses/{response_id}/input_items", input_items, responses=_FAULTS, methods=["GET"]
    )
    made.add_api_route("/v1/responses/{response_id}", remove, responses=_FAULTS, methods=["DELETE"])
    return made


def read(
    response_id: ResponseId,
    behind: Behind,
    caller: Application,
    stream: Annotated[bool | None, Query(description="a kept response is not streamed again")] = None,
) -> Response:
    """A response that was kept, as its client got it."""
    if stream:
        raise refused("stream", "a kept response is given whole; leave it out")
    return JSONResponse(behind.store.responses.body(response_id, caller.key_id))


def input_items(
    response_id: ResponseId,
    behind: Behind,
    caller: Application,
    after: Annotated[str, Query(max_length=120, description="`last_id` of the page before")] = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> InputItems:
    """What a response was asked with, as the model read it, the last first unless ``order`` is asc.

    It is the request's own input, without what the response went on from.
    """
    turns = behind.store.responses.turns(response_id, caller.key_id)
    if turns[-1].role == "assistant":  # the answer
        turns = turns[:-1]
    number = response_id.removeprefix("resp_")
    items = [InputItem.of(f"msg_{number}_{place}", turn) for place, turn in enumerate(turns)]
    if order == "desc":
        items.reverse()
    ids = [item.id for item in items]
    if after and after not in ids:
        raise unusable("after", f"the response has no item {after!r}")
    start = ids.index(after) + 1 if after else 0
    data = items[start : start + limit]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return InputItems(data=data, first_id=first, last_id=last, has_more=start + limit < len(items))


def remove(response_id: ResponseId, behind: Behind, caller: Application) -> Deleted:
    """Delete a response for good; its auction stays in the books."""
    behind.store.responses.delete(response_id, caller.key_id)
    return Deleted(id=response_id)


def _said(body: ResponseRequest) -> Conversation:
    """The request's own part of the conversation."""
    if isinstance(body.input, str):
        return conversation([Message(role="user", content=body.input)], "input")
    return conversation(body.input, "input")


async def _before(kept: Responses, body: ResponseRequest, key_id: str, most: int) -> tuple[Turn, ...]:
    if body.previous_response_id is None:
        return ()
    try:
        return await run_in_threadpool(kept.conversation, body.previous_response_id, key_id, most)
    except TooLongError as error:
        why = f"{error} (serving.largest_body); begin a new conversation with its last turns"
        raise unusable("previous_response_id", why, "context_length_exceeded") from None
    except UnknownError as error:
        raise unusable("previous_response_id", str(error), "previous_response_not_found") from None


async def _kept(
    answer: delivery.AnswerStream,
    form: ResponseForm,
    said: Conversation,
    body: ResponseRequest,
    kept: Responses,
    key_id: str,
) -> AsyncGenerator[str | Answered, None]:
    """The answer, which is in the store before its client is told of its end."""
    texts: list[str] = []
    async with aclosing(answer) as parts:
        async for part in parts:
            if isinstance(part, Answered):
                text = "".join(texts)
                turns = (*said.turns, Turn("user", said.question), *cleaned("assistant", text))
                whole = form.whole(text, part)
                response = KeptResponse(form.id, key_id, body.previous_response_id, now(), turns, whole)
                await run_in_threadpool(kept.keep, response)
            else:
                texts.append(part)
            yield part


async def _whole(answer: delivery.AnswerStream, form: ResponseForm, headers: dict[str, str]) -> Response:
    return JSONResponse(form.whole(*await delivery.whole_answer(answer)), headers=headers)
