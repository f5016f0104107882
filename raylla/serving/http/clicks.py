"""Clicks and what follows them: `GET /v1/clicks/{token}` and `POST /v1/conversions`.

Only a token that verifies leads anywhere, and only to the landing page that the store holds for its ad:
the endpoint is no open redirect. A click is charged once; a replay or a late click is redirected and
charged nothing.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote, urlsplit, urlunsplit

from fastapi import APIRouter, Path, Response

from raylla.errors import TokenError
from raylla.serving.http import bodies, views, web
from raylla.serving.security.keys import Role
from raylla.serving.security.tokens import LONGEST

CLICK_PARAMETER = "raylla_click"
"""Query parameter by which the landing page learns the click's id, for conversions."""

router = APIRouter(prefix="/v1", tags=["clicks"])
Token = Annotated[str, Path(min_length=1, max_length=LONGEST, description="click token of an annotation")]


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
def click(token: Token, behind: web.Behind) -> Response:
    """Charge the click, if it is the impression's first and in time, and redirect to the landing page."""
    try:
        claims = behind.tokens.verify(token)
    except TokenError as error:
        # Not a row of the store: whoever forges tokens would fill it.
        web.log.warning("click refused: %s", error)
        behind.clicked("forged")
        raise web.HttpError(400, "invalid_token", str(error)) from None
    charge = behind.store.click(claims, web.now())
    behind.clicked(charge.outcome)
    web.log.info(
        "click",
        extra={
            "click_id": charge.click_id,
            "impression_id": claims.impression_id,
            "auction_id": claims.auction_id,
            "outcome": charge.outcome.value,
            "amount_micros": charge.amount_micros,
        },
    )
    headers = {
        "Location": _landing(charge.url, charge.click_id),
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
    }
    return Response(status_code=302, headers=headers)


@router.post("/conversions", responses=web.errors(400, 401, 403, 404, 409, 422, 503))
def convert(body: bodies.NewConversion, behind: web.Behind, caller: web.Seat) -> views.ConversionView:
    """Book what a click led to; the same order again changes nothing."""
    owner = caller.advertiser_id if caller.role is Role.ADVERTISER else None
    row = behind.store.convert(body.click_id, body.order_id, body.value_micros, owner, web.now())
    return views.ConversionView.model_validate(row)


def _landing(url: str, click_id: str) -> str:
    parts = urlsplit(url)
    own = f"{CLICK_PARAMETER}={quote(click_id, safe='')}"
    return urlunsplit(parts._replace(query=f"{parts.query}&{own}" if parts.query else own))
