"""What the page is made of, and what it asks beside the chat endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Response
from fastapi import Path as InPath
from pydantic import BaseModel, Field

from raylla.records import Profile
from raylla.serving.http import web
from raylla.serving.http.bodies import example
from raylla.serving.money import pricing
from raylla.serving.money.records import Invalid, PriceRule

_HERE = Path(__file__).parent
_KINDS = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
SAFE = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Nothing on the page comes from elsewhere, and nothing that it shows can become script."""


class UserView(BaseModel):
    """A user to ask as."""

    id: str
    basics: str
    interests: list[str]


class PlaygroundStart(BaseModel):
    """What the page needs before the first question; bids go from one to ``max_bid`` units."""

    users: list[UserView]
    currency: str
    micros_per_unit: int
    max_bid: int
    price_rule: PriceRule
    disclosure: str


class ImpressionView(BaseModel):
    """A shown ad: what its click (or showing) costs, and what was booked for it so far."""

    impid: str
    ad_id: str
    bid_micros: int
    price_micros: int
    charged_at: Literal["impression", "click"]
    clicked: bool
    booked_micros: int | None = Field(
        description="the ledger's amount, 0 where it was taken back; null where nothing is booked"
    )
    booked_as: Literal["charge", "accrual"] | None
    invalid_clicks: dict[Invalid, int] = Field(description="clicks that were charged nothing, by reason")


class AuctionView(BaseModel):
    """An auction's impressions and what they were charged."""

    model_config = example(
        auction_id="auc_1f2e3d4c5b6a7988",
        test=False,
        price_rule="first_price",
        cur="USD",
        weight_version="v3",
        impressions=[
            {
                "impid": "imp_0123456789abcdef",
                "ad_id": "1042",
                "bid_micros": 640_000,
                "price_micros": 640_000,
                "charged_at": "click",
                "clicked": True,
                "booked_micros": 640_000,
                "booked_as": "charge",
                "invalid_clicks": {"prefetch": 1},
            }
        ],
    )

    auction_id: str
    test: bool
    price_rule: PriceRule
    cur: str
    weight_version: str
    impressions: list[ImpressionView]


def router(users: Sequence[Profile]) -> APIRouter:
    """The page at ``/`` with ``users`` to choose from, and `GET /v1/auctions/{auction_id}`."""
    made = APIRouter()
    shown = [UserView(id=user.id, basics=user.basics, interests=list(user.interests)) for user in users]

    @made.get("/", include_in_schema=False)
    def page() -> Response:
        return _file("page.html")

    @made.get("/playground/page.css", include_in_schema=False)
    def style() -> Response:
        return _file("page.css")

    @made.get("/playground/page.js", include_in_schema=False)
    def script() -> Response:
        return _file("page.js")

    @made.get("/playground/start", include_in_schema=False)
    def start(behind: web.Behind, _: web.Application) -> PlaygroundStart:
        serving = behind.serving
        return PlaygroundStart(
            users=shown,
            currency=serving.currency,
            micros_per_unit=serving.micros_per_unit,
            max_bid=behind.max_bid,
            price_rule=PriceRule(serving.price_rule),
            disclosure=serving.disclosure,
        )

    made.add_api_route(
        "/v1/auctions/{auction_id}",
        auction,
        tags=["answers"],
        responses=web.errors(401, 403, 404, 422, 503),
    )
    return made


AuctionId = Annotated[str, InPath(pattern="^[A-Za-z0-9_-]{1,64}$")]


def auction(auction_id: AuctionId, behind: web.Behind, _: web.Application) -> AuctionView:
    """What an auction's ads cost, which were clicked and what was booked for them."""
    served = behind.store.auction(auction_id)
    held = served.auction
    lines = behind.store.charges(auction_id)
    booked = {line.impression_id: line for line in lines if line.impression_id is not None}
    invalid = behind.store.invalid_clicks(auction_id)
    void = {line.voids for line in lines}
    impressions = []
    for impression in held.impressions:
        entry = booked.get(impression.id)
        impressions.append(
            ImpressionView(
                impid=impression.id,
                ad_id=impression.ad_id,
                bid_micros=impression.bid_micros,
                price_micros=impression.price_micros,
                charged_at=pricing.charged_at(held.price_rule),
                clicked=impression.id in served.clicked,
                booked_micros=(0 if entry.id in void else entry.amount_micros) if entry else None,
                booked_as=entry.kind if entry else None,
                invalid_clicks=invalid.get(impression.id, {}),
            )
        )
    return AuctionView(
        auction_id=held.id,
        test=held.test,
        price_rule=held.price_rule,
        cur=held.currency,
        weight_version=held.weight_version,
        impressions=impressions,
    )


def _file(name: str) -> Response:
    return Response((_HERE / name).read_bytes(), headers=SAFE, media_type=f"{_KINDS[name]}; charset=utf-8")
