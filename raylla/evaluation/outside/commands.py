"""`raylla regret`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from raylla import config as settings
from raylla.terminal import console, loading, told


@told
def regret_outside(
    run: Annotated[str, typer.Argument(help="a run: its test questions, its User-LLM and its users")],
    url: Annotated[str, typer.Option(help="the endpoint")] = "http://127.0.0.1:8000",
    key: Annotated[
        str | None,
        typer.Option(
            envvar="RAYLLA_KEY", help="of role application; none: the admin's that `raylla serve` has made"
        ),
    ] = None,
    advertiser_key: Annotated[
        str | None, typer.Option(envvar="RAYLLA_ADVERTISER_KEY", help="whose ads' bids move")
    ] = None,
    ad: Annotated[
        list[str] | None, typer.Option(help="id of an ad whose bid moves, repeatable; none: any candidate")
    ] = None,
    bid: Annotated[
        list[int] | None,
        typer.Option(min=1, help="bid units, repeatable; none: evaluation.bids of the run, without 0"),
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="test questions of the run")] = 50,
    answers: Annotated[int, typer.Option(min=1, help="of each question at each bid")] = 4,
    clicks: Annotated[
        Literal["judge", "ctr"],
        typer.Option(help="by the run's User-LLM, or the endpoint's own rates"),
    ] = "judge",
    concurrency: Annotated[int, typer.Option(min=1, help="questions at once")] = 8,
    inside: Annotated[
        bool, typer.Option("--inside", help="hold the same auctions with the run's weights here, too")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="write the figures here, too")] = None,
) -> None:
    """Measure from outside what an advertiser of an endpoint gains by not bidding the truth, by test
    auctions, which charge nothing."""
    with loading():
        from raylla.evaluation.outside import auditing
        from raylla.evaluation.page.console import show_regret
        from raylla.runs.observe import Observer
        from raylla.runs.state import Run, write_json
        from raylla.serving.security import keyring

    opened = Run.open(run)
    key = (key or "").strip() or keyring.read_keyring(settings.Serving().database).admin_key
    whole = [int(bid) for bid in opened.config.evaluation.bids if bid >= 1]
    plan = auditing.AuditPlan(
        url,
        key,
        questions,
        answers,
        bid or whole,
        clicks,
        ad or [],
        (advertiser_key or "").strip() or None,
        concurrency,
        inside,
    )
    report = auditing.audit_regret(opened, plan, Observer(opened.config, None, console))
    if out is not None:
        write_json(out, report)
    show_regret(console, report)
