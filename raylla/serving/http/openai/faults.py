"""Faults of a request as OpenAI's clients know them: status 400, with the parameter named."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from raylla.errors import MoneyError, RequestError, TextError, TooLongError
from raylla.serving.http.web import HttpError

CODES = {"extra_forbidden": "unknown_parameter", "missing": "missing_required_parameter"}
"""What pydantic finds -> OpenAI's code; anything else is an `invalid_value`."""


def refused(param: str, why: str) -> HttpError:
    """The answer to something that this endpoint does not do."""
    return HttpError(400, "unsupported_parameter", f"{param}: {why}", param=param)


def unusable(param: str, why: str, code: str = "invalid_value") -> HttpError:
    """The answer to a value that nobody could use."""
    return HttpError(400, code, f"{param}: {why}", param=param)


class OpenAiRoute(APIRoute):
    """A route whose every fault of the client is a 400."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with faults translated."""
        handle = super().get_route_handler()

        async def translated(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                raise _invalid(error.errors()) from None
            except TooLongError as error:
                raise HttpError(400, "context_length_exceeded", str(error), param="messages") from None
            except (RequestError, MoneyError, TextError) as error:
                raise HttpError(400, "invalid_value", str(error)) from None

        return translated


def _invalid(errors: Sequence[Any]) -> HttpError:
    """Of what is wrong, the first, with all of it in the message."""
    said = "; ".join(f"{_path(error['loc']) or 'body'}: {error['msg']}" for error in errors)
    first = errors[0]
    return HttpError(
        400, CODES.get(first["type"], "invalid_value"), said, param=_path(first["loc"]) or None
    )


def _path(location: Sequence[str | int]) -> str:
    """``messages[0].content``, of a location in a body."""
    path = ""
    for part in location[1:]:  # the first says that it is of the body
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path
