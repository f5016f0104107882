"""The console at `/console`: one page on which an advertiser sees its money and steers its campaigns."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from raylla.serving.http import web
from raylla.serving.http.playground.routes import SAFE

_HERE = Path(__file__).parent / "page"
FILES = {
    "page.html": "text/html",
    "page.css": "text/css",
    **dict.fromkeys(("base.js", "chart.js", "editing.js", "page.js"), "text/javascript"),
}


class ConsoleStart(BaseModel):
    """Who signed in, and how money is written; bids go from one to ``max_bid`` units."""

    role: Literal["admin", "advertiser"]
    advertiser_id: str | None
    currency: str
    micros_per_unit: int
    max_bid: int


router = APIRouter(include_in_schema=False)


@router.get("/console")
def page() -> Response:
    """The page."""
    return _file("page.html")


@router.get("/console/start")
def start(behind: web.Behind, caller: web.Seat) -> ConsoleStart:
    """What the page needs first."""
    serving = behind.serving
    return ConsoleStart(
        role="advertiser" if caller.advertiser_id is not None else "admin",
        advertiser_id=caller.advertiser_id,
        currency=serving.currency,
        micros_per_unit=serving.micros_per_unit,
        max_bid=behind.max_bid,
    )


@router.get("/console/{name}")
def part(name: Literal["page.css", "base.js", "chart.js", "editing.js", "page.js"]) -> Response:
    """Style and scripts of the page."""
    return _file(name)


def _file(name: str) -> Response:
    kind = f"{FILES[name]}; charset=utf-8"
    return Response((_HERE / name).read_bytes(), headers=SAFE, media_type=kind)
