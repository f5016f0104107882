"""An answer on its way to the client: whole or streamed, watched to its end, dropped with who hangs up."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from fastapi import Request
from fastapi.responses import StreamingResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from raylla.errors import BusyError, EndpointError, RayllaError
from raylla.serving.auction.auctioneer import Auctioneer
from raylla.serving.auction.exchange import Answered, Asked
from raylla.serving.http.reports import Reports

log = logging.getLogger("raylla.serving")
RETRY_AFTER = "1"
AnswerStream = AsyncGenerator[str | Answered, None]


class Events(Protocol):
    """How a protocol writes a stream: its events as text."""

    def opening(self) -> str:
        """Before the first text."""

    def piece(self, text: str) -> str:
        """More text."""

    def closing(self, end: Answered) -> str:
        """The end."""

    def failing(self, problem: dict[str, str]) -> str:
        """The end that is none."""


async def watched(
    auctioneer: Auctioneer, asked: Asked, stream: bool, reports: Reports, spent: Callable[[int], None]
) -> AnswerStream:
    """The answer, its end last, reported however it ends; ``spent`` is told its tokens.

    Raises:
        EndpointError: it stopped without an end.
    """
    started, ended = time.monotonic(), False
    try:
        async with aclosing(auctioneer.answer(asked, stream, spent)) as parts:
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
        if not ended:
            reports.dropped(asked, time.monotonic() - started)
        raise


async def whole_answer(answer: AnswerStream) -> tuple[str, Answered]:
    """All of the text, and how it ended."""
    texts: list[str] = []
    async for part in answer:  # to its end: an answer that is left before counts as dropped
        if isinstance(part, Answered):
            end = part
        else:
            texts.append(part)
    return "".join(texts), end


async def streamed(answer: AnswerStream, form: Events, headers: Mapping[str, str]) -> Response:
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
            yield form.failing({"message": said(error), "type": "server_error", "code": code_of(error)})
        finally:
            await answer.aclose()

    return StreamingResponse(
        events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache", **headers}
    )


async def unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
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
