"""Clicks and what follows them: `GET /v1/clicks/{token}` and `POST /v1/conversions`.

Only a token that verifies leads anywhere, and only to the landing page that the store holds for its ad:
the endpoint is no open redirect. A click is charged once; a replay, a late click or one that no person made
is redirected and charged nothing.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote, urlsplit, urlunsplit

from fastapi import APIRouter, Path, Request, Response

from raylla.errors import TokenError, UnknownError
from raylla.serving.http import bodies, views, web
from raylla.serving.http.arrivals.automatic import automatic
from raylla.serving.money.records import ClickLimits
from raylla.serving.security.keys import Role
from raylla.serving.security.tokens import LONGEST

CLICK_PARAMETER = "raylla_click"
"""Query parameter by which the landing page learns the click's id, for conversions."""

router = APIRouter(prefix="/v1", tags=["clicks"])
Token = Annotated[str, Path(min_length=1, max_length=LONGEST, description="click token of an annotation")]


@router.head("/clicks/{token}", response_class=Response, include_in_schema=False)
@router.get(
    "/clicks/{token}",
    status_code=302,
    response_class=Response,
    responses={
        302: {
            "description": "To the ad's landing page",
            "headers": {"Location": {"schema": {"type": "string"}}},
        },
        **web.errors(400, 404, 422, 503),
    },
)
def click(token: Token, behind: web.Behind, request: Request) -> Response:
    """Charge the click, if it is the impression's first, in time and a person's, and redirect to the
    landing page."""
    try:
        claims = behind.tokens.verify(token)
    except TokenError as error:
        # Not a row of the store: whoever forges tokens would fill it.
        web.log.warning("click refused: %s", error)
        behind.clicked("forged")
        raise web.HttpError(400, "invalid_token", str(error)) from None
    serving = behind.serving
    limits = ClickLimits(serving.click_least_seconds, serving.clicks_per_user_hour)
    try:
        charge = behind.store.click(claims, web.now(), automatic(request.method, request.headers), limits)
    except UnknownError:
        # A link of a text that is still being written, or was broken off: it leads on, and is no click.
        url = behind.store.landing(claims)
        behind.clicked("unrecorded")
        return _redirect(url)
    behind.clicked(f"invalid_{charge.reason}" if charge.reason else charge.outcome)
    web.log.info(
        "click",
        extra={
            "click_id": charge.click_id,
            "impression_id": claims.impression_id,
            "auction_id": claims.auction_id,
            "outcome": charge.outcome.value,
            "reason": charge.reason,
            "amount_micros": charge.amount_micros,
        },
    )
    return _redirect(_landing(charge.url, charge.click_id))


@router.post("/conversions", responses=web.errors(400, 401, 403, 404, 409, 422, 503))
def convert(body: bodies.NewConversion, behind: web.Behind, caller: web.Seat) -> views.ConversionView:
    """Book what a click led to; the same order again changes nothing."""
    owner = caller.advertiser_id if caller.role is Role.ADVERTISER else None
    row = behind.store.convert(body.click_id, body.order_id, body.value_micros, owner, web.now())
    return views.ConversionView.model_validate(row)


def _redirect(url: str) -> Response:
    headers = {"Location": url, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    return Response(status_code=302, headers=headers)


def _landing(url: str, click_id: str) -> str:
    parts = urlsplit(url)
    own = f"{CLICK_PARAMETER}={quote(click_id, safe='')}"
    return urlunsplit(parts._replace(query=f"{parts.query}&{own}" if parts.query else own))
