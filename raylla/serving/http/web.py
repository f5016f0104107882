"""What the routers share: the services behind them, who is calling, and errors in OpenAI's shape."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.dependencies.utils import get_flat_dependant
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from raylla.config import Serving
from raylla.errors import ClashError, MoneyError, RayllaError, TextError, UnknownError
from raylla.serving.security.keys import Access, Principal, Role
from raylla.serving.security.tokens import TokenKeys
from raylla.serving.store import Store

log = logging.getLogger("raylla.serving")


def _ignore(outcome: str) -> None:
    """Count nothing."""


@dataclass(frozen=True, slots=True)
class Services:
    """What the routers work with. ``clicked`` is told the outcome of each click, for metrics."""

    store: Store
    tokens: TokenKeys
    access: Access
    serving: Serving
    max_bid: int
    clicked: Callable[[str], None] = _ignore


class HttpError(RayllaError):
    """An answer other than success: status, a code that programs can read, a sentence for people.

    ``param`` is the field that it is about, ``kind`` the error's type where the status does not tell it.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        headers: dict[str, str] | None = None,
        param: str | None = None,
        kind: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers, self.param, self.kind = status, code, headers, param, kind


class ErrorDetail(BaseModel):
    """One error."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorBody(BaseModel):
    """The shape of every error."""

    error: ErrorDetail

    model_config = {
        "json_schema_extra": {
            "examples": [
                {
                    "error": {
                        "message": "campaign 'cmp_00' does not exist",
                        "type": "invalid_request_error",
                        "code": "not_found",
                    }
                }
            ]
        }
    }


_MEANING = {
    400: "The request cannot be understood",
    401: "No API key, or one that is wrong or revoked",
    403: "The key's role may not do this",
    404: "No such thing, or not yours",
    409: "Something else is already booked under that id or reference",
    422: "A field is missing, unknown or unusable; the message names it",
    413: "The body is larger than serving.largest_body, or serving.largest_upload",
    415: "The body is of a type that is not read here",
    429: "The key has used its requests or tokens of this minute",
    503: "The database is busy or away; try again after the given seconds",
}


_CODES = {400: "invalid_json", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}
"""Status -> code of an error that the framework tells, or the reader of a body."""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entry of error answers."""
    return {status: {"model": ErrorBody, "description": _MEANING[status]} for status in statuses}


def install(app: FastAPI, services: Services) -> None:
    """Put the services behind ``app``'s routers and give its errors one shape."""
    app.state.services = services
    app.add_exception_handler(HttpError, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    for kind, status, code in (
        (UnknownError, 404, "not_found"),
        (ClashError, 409, "clash"),
        (TextError, 422, "invalid_field"),
        (MoneyError, 422, "invalid_amount"),
        (OperationalError, 503, "store_unavailable"),
        (PoolTimeout, 503, "store_unavailable"),
    ):
        app.add_exception_handler(kind, _typed(status, code))


def now() -> dt.datetime:
    """This moment, in UTC."""
    return dt.datetime.now(dt.UTC)


async def services(request: Request) -> Services:  # async: a plain one is called in a thread
    """The services that `install` put there."""
    behind: Services = request.app.state.services
    return behind


Behind = Annotated[Services, Depends(services)]
_bearer = HTTPBearer(auto_error=False, scheme_name="API key", description="`Authorization: Bearer rk_...`")


async def principal(
    behind: Behind, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Principal:
    """Who is calling.

    Raises:
        HttpError: 401 without a key that holds.
    """
    principal = None
    if credentials is not None:
        key, access = credentials.credentials, behind.access
        principal = access.known(key) or await run_in_threadpool(access.principal, key)
    if principal is None:
        raise HttpError(
            401, "invalid_api_key", "give a valid API key as a bearer token", {"WWW-Authenticate": "Bearer"}
        )
    return principal


Caller = Annotated[Principal, Depends(principal)]


def _role(*roles: Role) -> Callable[[Principal], Awaitable[Principal]]:
    async def check(caller: Caller) -> Principal:
        if caller.role not in roles:
            wanted = " or ".join(roles)
            raise HttpError(403, "forbidden", f"this needs a key of role {wanted}; yours is {caller.role}")
        return caller

    return check


Admin = Annotated[Principal, Depends(_role(Role.ADMIN))]
Seat = Annotated[Principal, Depends(_role(Role.ADVERTISER, Role.ADMIN))]
Application = Annotated[Principal, Depends(_role(Role.APPLICATION, Role.ADMIN))]


async def only_known(request: Request) -> None:
    """Refuse a query parameter that the route does not have: what it should have left out would be counted.

    Raises:
        HttpError: 422, names it.
    """
    fields = get_flat_dependant(request.scope["route"].dependant).query_params
    known = [field.alias for field in fields]
    for name in request.query_params:
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "there are none here"
            raise HttpError(422, "invalid_field", f"query.{name[:40]}: no such parameter; {there}")


ONLY_KNOWN = [Depends(only_known)]
"""Dependencies of a router whose routes take no other query parameters than their own."""


def _told(error: HttpError) -> JSONResponse:
    kind = error.kind or ("server_error" if error.status >= 500 else "invalid_request_error")
    detail = ErrorDetail(message=str(error), type=kind, param=error.param, code=error.code)
    return JSONResponse(ErrorBody(error=detail).model_dump(), error.status, error.headers)


def _problem(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HttpError)
    return _told(error)


def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    parts = (f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors())
    return _told(HttpError(422, "invalid_field", "; ".join(parts)))


def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "http_error")
    return _told(HttpError(error.status_code, code, str(error.detail), dict(error.headers or {})))


def _typed(status: int, code: str) -> Callable[[Request, Exception], JSONResponse]:
    def answer(request: Request, error: Exception) -> JSONResponse:
        if status < 500:
            return _told(HttpError(status, code, str(error)))
        log.error("store unavailable: %s", error, extra={"path": request.url.path})
        why = "the store does not answer; try again"
        return _told(HttpError(status, code, why, {"Retry-After": "1"}))

    return answer
