"""`POST /v1/campaigns/{campaign_id}/ads/upload`: many ads at once, as a table."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from raylla.errors import WorldError
from raylla.serving.http import bodies, web
from raylla.serving.http.advertisers import table
from raylla.serving.http.bodies import example
from raylla.serving.http.campaigns import own_campaign
from raylla.serving.money import money

_KINDS = {
    "text/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "application/jsonl": ".jsonl",
    "application/x-ndjson": ".jsonl",
}
"""Content type -> how such a file's name ends."""


class Refused(BaseModel):
    """A row that is not listed: the line on which it begins (the first is 1), and why."""

    row: int
    field: str | None = Field(description="null: the row as a whole")
    reason: str


class NothingListed(web.ErrorBody):
    """Why an upload was refused; ``errors`` are the first of its rows at fault."""

    refused: int = 0
    errors: list[Refused] = Field([])


class Uploaded(BaseModel):
    """What became of an upload; ``errors`` are the first of those that are ``refused``."""

    model_config = example(
        listed=2,
        refused=1,
        ids=["1001", "1042"],
        errors=[{"row": 3, "field": "url", "reason": "give the landing page's https URL"}],
    )

    listed: int
    refused: int
    ids: list[str] = Field(description="of the listed ads, in the order of their rows")
    errors: list[Refused]


async def _body(request: Request) -> bytes:
    return await request.body()


def _kind(request: Request) -> str:
    """How the name of such a file ends."""
    said = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if said not in _KINDS:
        raise web.HttpError(
            415, "unsupported_media_type", f"Content-Type {said!r} is no table; give {', '.join(_KINDS)}"
        )
    return _KINDS[said]


Rows = Annotated[
    Literal["all", "good"],
    Query(description="all: one bad row and nothing is listed; good: good rows are listed, others told"),
]
_CONTENT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in _KINDS},
    }
}
router = APIRouter(prefix="/v1", tags=["ads"], dependencies=web.ONLY_KNOWN)


@router.post(
    "/campaigns/{campaign_id}/ads/upload",
    status_code=201,
    response_model=Uploaded,
    openapi_extra=_CONTENT,
    responses={
        **web.errors(400, 401, 403, 404, 413, 415, 503),
        422: {"model": NothingListed, "description": "Nothing is listed, and what is at fault"},
    },
)
def upload(
    campaign_id: bodies.CampaignId,
    behind: web.Behind,
    caller: web.Seat,
    kind: Annotated[str, Depends(_kind)],
    body: Annotated[bytes, Depends(_body)],
    rows: Rows = "all",
) -> Uploaded | JSONResponse:
    """List the ads of a table (CSV, TSV, JSON lines) in one transaction, each checked as a single ad is.

    Columns: title, category, url, and bid_micros or bid (in units); theme, description, labels (parted by
    commas or semicolons) and paused where there are any.
    """
    own_campaign(behind, caller, campaign_id)
    unit, most = behind.serving.micros_per_unit, behind.max_bid
    try:
        taken = table.take_table(body, kind, unit, lambda bid: money.check_bid(bid, unit, most))
    except (WorldError, table.TooManyError) as error:
        raise web.HttpError(422, "invalid_table", str(error)) from None
    if not taken.ads and not taken.refused:
        raise web.HttpError(422, "invalid_table", "the file holds no rows; fill it")
    told = [Refused(row=fault.row, field=fault.field or None, reason=fault.reason) for fault in taken.wrong]
    if not taken.ads or (taken.refused and rows == "all"):
        return _nothing(taken.refused, told)
    listed = behind.store.parties.add_ads(campaign_id, taken.ads, web.now())
    return Uploaded(listed=len(listed), refused=taken.refused, ids=[ad.id for ad in listed], errors=told)


def _nothing(refused: int, told: list[Refused]) -> JSONResponse:
    message = f"nothing is listed, rows at fault: {refused}; mend them, or list the others with rows=good"
    detail = web.ErrorDetail(message=message, type="invalid_request_error", code="bad_rows")
    return JSONResponse(NothingListed(error=detail, refused=refused, errors=told).model_dump(), 422)
