"""The endpoint as one FastAPI application, whoever runs it (Ray Serve, or a test in its own process)."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylla.config import Config
from raylla.errors import BusyError, EndpointError, StoreError
from raylla.records import Profile
from raylla.serving.auction.auctioneer import Auctioneer
from raylla.serving.http import advertisers, campaigns, chat, clicks, playground, responses, web
from raylla.serving.http.advertisers.reporting import NEXT_HEADER
from raylla.serving.http.openai import models
from raylla.serving.http.openai.delivery import RETRY_AFTER, code_of, said
from raylla.serving.http.openai.rates import LIMIT_HEADERS, Rates
from raylla.serving.http.reports import Reports
from raylla.serving.tracing import Span, traced
from raylla.wholetext import whole_json

log = logging.getLogger("raylla.serving")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TRACE_HEADERS = (b"traceparent", b"tracestate")
_UPLOAD = re.compile(r"/v1/campaigns/[^/]+/ads/upload")
DESCRIPTION = """
Answers with native ads, each chosen and placed by one generation of the Ad-LLM, and the campaigns,
clicks and money behind them. Money is in whole micros (millionths) of `serving.currency`.
"""


class Health(BaseModel):
    """Whether the endpoint can answer, and by which weight versions.

    ``status`` is ok, degraded (it answers, and something in ``tasks`` is wrong) or unavailable.
    """

    status: Literal["ok", "degraded", "unavailable"]
    versions: dict[str, str | None]
    problems: list[str]
    tasks: list[str] = []


Check = Callable[[], Awaitable[Health]]


def _alike(*routers: APIRouter) -> APIRouter:
    """The routes that are the same for every application, whose making takes a fifth of a second."""
    made = APIRouter()
    for router in routers:
        made.include_router(router)
    return made


_FIRST, _LAST = _alike(campaigns.router, clicks.router), _alike(*advertisers.ROUTERS)


def create(
    config: Config,
    auctioneer: Auctioneer,
    services: web.Services,
    reports: Reports,
    health: Check,
    users: Sequence[Profile],
) -> FastAPI:
    """The application over what a replica has opened; ``users`` are those of the playground."""
    app = FastAPI(title="raylla", description=DESCRIPTION, version="1", docs_url="/docs", redoc_url=None)
    web.install(app, services)
    for kind in (BusyError, EndpointError, StoreError):
        app.add_exception_handler(kind, _unavailable)
    app.add_exception_handler(Exception, _unforeseen)
    rates = Rates(config.serving.requests_per_minute, config.serving.tokens_per_minute)
    app.include_router(chat.router(auctioneer, config, reports, rates))
    app.include_router(responses.router(auctioneer, config, reports, rates))
    app.include_router(models.router(config.serving.model_name))
    app.router.routes += _FIRST.routes
    app.include_router(playground.router(users))
    app.router.routes += _LAST.routes

    @app.get("/healthz", tags=["operations"], responses={503: {"model": Health}}, response_model=Health)
    async def healthz() -> JSONResponse:
        """Alive: the engine steps, the store answers; ``tasks`` names background tasks that fail."""
        why = await health()
        return JSONResponse(why.model_dump(), 503 if why.status == "unavailable" else 200)

    @app.get("/metrics", tags=["operations"], response_class=PlainTextResponse)
    def metrics() -> PlainTextResponse:
        """Prometheus metrics of the replica that answers."""
        return PlainTextResponse(reports.text(), media_type="text/plain; version=0.0.4")

    serving = config.serving
    app.add_middleware(Envelope, largest=serving.largest_body, largest_upload=serving.largest_upload)
    if serving.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=serving.cors_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["*"],  # whatever the page asks for: clients send names of their own
            expose_headers=["X-Request-ID", "Retry-After", NEXT_HEADER, *LIMIT_HEADERS],
        )
    return app


def _unavailable(_: Request, error: Exception) -> JSONResponse:
    problem = {"message": str(error), "type": "server_error", "code": code_of(error)}
    return JSONResponse({"error": problem}, 503, {"Retry-After": RETRY_AFTER})


def _unforeseen(_: Request, error: Exception) -> JSONResponse:
    """The answer to what nobody foresaw; the error goes on, into the log."""
    problem = {"message": said(error), "type": "server_error", "code": code_of(error)}
    return JSONResponse({"error": problem}, 500)


class Envelope:
    """ASGI middleware around every request: its id, the size of its body, and a line in the log."""

    def __init__(self, app: ASGIApp, largest: int, largest_upload: int) -> None:
        self._app = app
        self._largest = largest
        self._largest_upload = largest_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        started, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        length = headers.get(b"content-length", b"0")
        upload = _UPLOAD.fullmatch(scope["path"]) is not None
        largest = self._largest_upload if upload else self._largest
        try:
            with _request_span(scope, headers) as told:
                scope["state"]["trace"] = told.trace
                try:
                    if length.isdigit() and int(length) > largest:
                        await _refusal(largest, upload)(scope, receive, answer)
                    else:
                        await self._app(scope, _Body(receive, largest, upload), answer)
                finally:
                    _name_request(told, scope, status)
        finally:
            log.info(
                "request",
                extra={
                    "request_id": request_id,
                    "method": scope["method"],
                    # Not the path of a click: its token is worth money.
                    "path": re.sub(r"^/v1/clicks/.*", "/v1/clicks/...", scope["path"]),
                    "status": status,
                    "seconds": round(time.monotonic() - started, 4),
                },
            )


def _request_span(scope: Scope, headers: Mapping[bytes, bytes]) -> Span:
    """The span of a request to the API, a part of the client's trace where it names one."""
    if not scope["path"].startswith("/v1/"):
        return Span()
    sent = {name: headers[name].decode("latin-1") for name in _TRACE_HEADERS if name in headers}
    return traced(scope["method"], {name.decode(): text for name, text in sent.items()}, serves=True)


def _name_request(told: Span, scope: Scope, status: int) -> None:
    """Say which route it was, once it is known; not the path: a click's is worth money."""
    route = getattr(scope.get("route"), "path", "")
    told.rename(f"{scope['method']} {route}".rstrip())
    told.note(
        {
            "http.request.method": scope["method"],
            "http.route": route,
            "http.response.status_code": status,
            "raylla.request.id": scope["state"]["request_id"],
        }
    )


def _refusal(largest: int, upload: bool) -> JSONResponse:
    problem = {
        "message": _too_large(largest, upload),
        "type": "invalid_request_error",
        "code": "too_large",
    }
    return JSONResponse({"error": problem}, 413)


class _Body:
    """``receive``, with the body in one piece and of whole characters, up to a number of bytes: some bodies
    do not state their length. An ``upload`` is no JSON text and comes as it is."""

    def __init__(self, receive: Receive, largest: int, upload: bool) -> None:
        self._receive = receive
        self._largest = largest
        self._upload = upload
        self._taken = False

    async def __call__(self) -> Message:
        body = bytearray()
        while not self._taken:
            message = await self._receive()
            if message["type"] != "http.request":
                return message  # the client has hung up
            body += message.get("body", b"")
            if len(body) > self._largest:
                raise HTTPException(413, _too_large(self._largest, self._upload))
            if not message.get("more_body", False):
                self._taken = True
                whole = bytes(body) if self._upload else whole_json(bytes(body))
                return {"type": "http.request", "body": whole, "more_body": False}
        return await self._receive()


def _too_large(largest: int, upload: bool) -> str:
    name = "largest_upload" if upload else "largest_body"
    return f"the body has more than serving.{name}={largest} bytes"
