"""`GET /v1/reports`: what was shown, clicked, charged and lost, from the store's tallies."""

from __future__ import annotations

import csv
import datetime as dt
import io
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel, Field

from raylla.errors import UnknownError
from raylla.serving.http import web
from raylla.serving.http.advertisers import rates
from raylla.serving.http.bodies import example
from raylla.serving.security.keys import Principal, Role
from raylla.serving.store.tallies import LOSSES, Group, Line, Report, Wanted

DAYS = 30
"""Of a report that says not when."""
_MOST = 100_000
"""Lines of one answer."""
NEXT_HEADER = "Raylla-Next"
"""Of CSV: `offset` of the lines behind these."""

By = Annotated[
    list[Group],
    Query(max_length=6, description="what lines are apart by, one or several; none: the total only"),
]
From = Annotated[
    str,
    Query(alias="from", max_length=40, description="day or whole hour; none: 30 days before `to`"),
]
To = Annotated[
    str, Query(max_length=40, description="day or whole hour, not included any more; none: tomorrow")
]
Id = Annotated[str | None, Query(max_length=64, pattern="^[A-Za-z0-9_]+$")]
_Form = Annotated[Literal["json", "csv"] | None, Query(description="none: as `Accept` says")]


class Loss(BaseModel):
    """Auctions in which an ad was not shown for one reason, and their share of all it stood by for."""

    auctions: int
    share: float


class ReportLine(BaseModel):
    """Counts of one group. Money in micros; what cannot be said, such as a rate of nothing, is null."""

    day: dt.date | None = None
    hour: dt.datetime | None = None
    advertiser: str | None = None
    campaign: str | None = None
    ad: str | None = None
    weight_version: str | None = None
    category: str | None = None
    impressions: int
    clicks: int = Field(description="valid ones, charged or not, by when they came")
    invalid_clicks: int
    click_rate: float | None = Field(description="share of these impressions that were clicked by now")
    click_rate_low: float | None = Field(description="95 % interval (Wilson)")
    click_rate_high: float | None
    expected_micros: int = Field(description="price x pCTR of the impressions")
    charged_micros: int = Field(description="what the ledger earned, less what was taken back")
    conversions: int
    conversion_micros: int
    cost_per_click_micros: int | None
    cost_per_conversion_micros: int | None
    auctions: int = Field(description="that an ad stood by for: shown, or lost for one of the reasons")
    lost: dict[str, Loss]


class ReportView(BaseModel):
    """A report: lines in order of their groups, and the total of the whole time."""

    model_config = example(
        since="2026-11-01T00:00:00Z",
        until="2026-12-01T00:00:00Z",
        currency="USD",
        lines=[],
        total={
            **dict.fromkeys(("impressions", "auctions"), 1000),
            **dict.fromkeys(("clicks", "conversions", "invalid_clicks", "conversion_micros"), 0),
            **dict.fromkeys(("click_rate", "click_rate_low"), 0.0),
            "click_rate_high": 0.0038,
            **dict.fromkeys(("expected_micros", "charged_micros"), 0),
            **dict.fromkeys(("cost_per_click_micros", "cost_per_conversion_micros")),
            "lost": {},
        },
        next=None,
    )

    since: dt.datetime
    until: dt.datetime
    currency: str
    lines: list[ReportLine]
    total: ReportLine
    next: int | None = Field(description="`offset` of the lines behind these; null at the end")


router = APIRouter(prefix="/v1", tags=["reports"], dependencies=web.ONLY_KNOWN)


@router.get(
    "/reports",
    response_model=ReportView,
    responses={
        200: {"content": {"text/csv": {"schema": {"type": "string"}}}},
        **web.errors(400, 401, 403, 404, 422, 503),
    },
)
def get_report(
    behind: web.Behind,
    caller: web.Seat,
    by: By = [],  # noqa: B006
    since: From = "",
    to: To = "",
    advertiser: Id = None,
    campaign: Id = None,
    ad: Id = None,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
    limit: Annotated[int, Query(ge=1, le=_MOST)] = 10_000,
    format: _Form = None,
    accept: Annotated[str, Header()] = "",
) -> Response:
    """What ads were shown, clicked and charged, and what they lost; an advertiser's key sees its own."""
    wanted = Wanted(*_time(since, to), _groups(by), _whose(behind, caller, advertiser), campaign, ad)
    report = behind.store.report(wanted, offset, limit)
    after = offset + limit if report.more else None
    if format == "csv" or (format is None and "text/csv" in accept and "json" not in accept):
        headers = {"Content-Disposition": 'attachment; filename="report.csv"', "Cache-Control": "no-store"}
        if after is not None:
            headers[NEXT_HEADER] = str(after)
        return Response(_csv(wanted.by, report), media_type="text/csv; charset=utf-8", headers=headers)
    view = ReportView(
        since=wanted.since,
        until=wanted.until,
        currency=behind.serving.currency,
        lines=[_line(line) for line in report.lines],
        total=_line(report.total),
        next=after,
    )
    return Response(view.model_dump_json(), media_type="application/json")


def _groups(by: list[Group]) -> tuple[Group, ...]:
    if len(set(by)) < len(by) or {Group.DAY, Group.HOUR} <= set(by):
        raise web.HttpError(422, "invalid_field", "query.by: name a group once, and day or hour, not both")
    return tuple(sorted(by, key=list(Group).index))


def _time(since: str, to: str) -> tuple[dt.datetime, dt.datetime]:
    """Two whole hours, the first before the second."""
    midnight = web.now().replace(hour=0, minute=0, second=0, microsecond=0)
    try:
        until = _hour("to", to) if to else midnight + dt.timedelta(days=1)
        begin = _hour("from", since) if since else until - dt.timedelta(days=DAYS)
    except OverflowError:
        raise web.HttpError(422, "invalid_field", "query.from, query.to: out of the calendar") from None
    if begin >= until:
        raise web.HttpError(422, "invalid_field", f"query.from: {begin:%Y-%m-%dT%HZ} is not before `to`")
    return begin, until


def _hour(name: str, text: str) -> dt.datetime:
    try:
        hour: dt.datetime | None = dt.datetime.fromisoformat(text)
    except ValueError:
        hour = None
    if hour is not None:
        hour = hour.replace(tzinfo=dt.UTC) if hour.tzinfo is None else hour.astimezone(dt.UTC)
    if hour is None or (hour.minute, hour.second, hour.microsecond) != (0, 0, 0):
        said = f"query.{name}: {text[:40]!r} is no day or whole hour; give 2026-11-25 or 2026-11-25T09:00Z"
        raise web.HttpError(422, "invalid_field", said)
    return hour


def _whose(behind: web.Services, caller: Principal, advertiser: str | None) -> str | None:
    if caller.role is Role.ADVERTISER:
        if advertiser not in (None, caller.advertiser_id):
            raise UnknownError(f"advertiser {advertiser!r} does not exist")
        return caller.advertiser_id
    if advertiser is not None:
        behind.store.parties.advertiser(advertiser)
    return advertiser


def _line(line: Line) -> ReportLine:
    counts = line.counts
    shown, clicked = counts["impressions"], counts["clicked"]
    low, high = rates.wilson(clicked, shown) if shown else (None, None)
    lost = {reason: counts[column] for reason, column in LOSSES.items() if counts[column]}
    stood_by = shown + sum(lost.values())
    of: dict[str, Any] = {group.value: value for group, value in line.of.items()}
    if Group.DAY in line.of:
        of["day"] = line.of[Group.DAY].date()
    kept = ("clicks", "invalid_clicks", "expected_micros", "charged_micros", "conversions")
    return ReportLine(
        **of,
        **{name: counts[name] for name in (*kept, "impressions", "conversion_micros")},
        click_rate=clicked / shown if shown else None,
        click_rate_low=low,
        click_rate_high=high,
        cost_per_click_micros=rates.each(counts["charged_micros"], counts["clicks"]),
        cost_per_conversion_micros=rates.each(counts["charged_micros"], counts["conversions"]),
        auctions=stood_by,
        lost={reason.value: Loss(auctions=count, share=count / stood_by) for reason, count in lost.items()},
    )


_PLAIN = [
    name
    for name in ReportLine.model_fields
    if name != "lost" and name not in {group.value for group in Group}
]


def _csv(by: tuple[Group, ...], report: Report) -> str:
    """The lines with a header, each reason's loss in two columns; without groups, the total."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    groups = [group.value for group in by]
    reasons = [reason.value for reason in LOSSES]
    lost = [name for reason in reasons for name in (f"lost_{reason}", f"lost_{reason}_share")]
    writer.writerow([*groups, *_PLAIN, *lost])
    for figures in report.lines if by else [report.total]:
        line = _line(figures)
        cells = [_cell(getattr(line, name)) for name in (*groups, *_PLAIN)]
        for reason in reasons:
            loss = line.lost.get(reason, Loss(auctions=0, share=0))
            cells += [loss.auctions, loss.share if line.auctions else ""]
        writer.writerow(cells)
    return out.getvalue()


def _cell(value: Any) -> Any:
    """A value as tables have it; text that a spreadsheet would take for a formula is marked as text."""
    if isinstance(value, dt.datetime):
        return f"{value:%Y-%m-%dT%H:%MZ}"
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t")):
        return f"'{value}"
    return "" if value is None else value
