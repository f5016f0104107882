"""The commands around the endpoint: serve, deploy, campaigns, audit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from raylla import config as settings
from raylla.errors import ConfigError, RayllaError
from raylla.network import web_address
from raylla.terminal import ColumnOptions, ConfigPath, Overrides, console, say, steps, tell, told

if TYPE_CHECKING:
    from raylla.serving.deploy.cluster import Dashboard

app = typer.Typer()
campaigns_app = typer.Typer(help="Campaigns of the endpoint's store.", no_args_is_help=True)
app.add_typer(campaigns_app, name="campaigns")
DATABASE = settings.Serving().database
_Database = Annotated[str, typer.Option(help="SQLAlchemy URL of the endpoint's store")]


@app.command()
@told
def serve(
    config: ConfigPath,
    run: Annotated[
        str | None, typer.Option(help="run to serve, a path or URL; default: serving.run")
    ] = None,
    version: Annotated[str | None, typer.Option(help="weight version; default: the run's last")] = None,
    address: Annotated[
        str | None, typer.Option(help="dashboard of a running cluster; none: start Ray here and stay")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="only write the Serve config (serveConfigV2), deploy nothing")
    ] = None,
    set_: Overrides = [],  # noqa: B006
) -> None:
    """Serve a trained run: the auction endpoint, its campaigns, clicks, metrics and playground."""
    from raylla.serving.deploy import app as application
    from raylla.serving.deploy import cluster

    chosen, target = application.effective(settings.load_config(config, set_), run, version)
    manifest = application.manifest(chosen, target)
    if write is not None:
        write.write_text(yaml.safe_dump(manifest, sort_keys=False))
        return
    if address is not None:
        with steps().stage(cluster.ENDPOINT):
            cluster.Dashboard(address).apply(manifest, chosen.deadlines.start)
        return
    cluster.serve_here(chosen, manifest, steps())


@app.command()
@told
def deploy(
    run: Annotated[str | None, typer.Argument(help="run of the version to try")] = None,
    version: Annotated[str | None, typer.Option(help="weight version; default: the run's last")] = None,
    share: Annotated[float, typer.Option(min=0, max=1, help="of requests for the canary")] = 0.1,
    promote: Annotated[
        bool, typer.Option("--promote", help="the engines that serve take the canary's version over")
    ] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="the canary answers none")] = False,
    status: Annotated[bool, typer.Option("--status", help="compare, change nothing")] = False,
    address: Annotated[str, typer.Option(help="the cluster's dashboard")] = "http://127.0.0.1:8265",
    estimate: Annotated[
        bool, typer.Option(help="say first what it will show, from what the stable version has served")
    ] = True,
    estimate_only: Annotated[
        bool, typer.Option("--estimate-only", help="say that, and deploy nothing")
    ] = False,
    auctions: Annotated[
        int, typer.Option(min=20, max=100_000, help="newest auctions that the estimate reads")
    ] = 200,
    seconds: Annotated[
        float, typer.Option(min=1, max=86_400, help="longest time that it reads them")
    ] = 300,
    json_: Annotated[Path | None, typer.Option("--json", help="write the estimate here, too")] = None,
) -> None:
    """Estimate what a weight version will show, bring it in beside the one that serves, compare them, then
    promote or roll back."""
    from raylla.serving.deploy import deploy as deployment
    from raylla.serving.deploy.cluster import Dashboard

    at = Dashboard(web_address("--address", address))
    if sum((run is not None, promote, rollback, status)) != 1:
        raise ConfigError("deploy: give a run directory, or one of --promote, --rollback and --status")
    if run is None and (estimate_only or json_ is not None):
        raise ConfigError("deploy: --estimate-only and --json go with a run directory")
    if run is not None and (estimate or estimate_only):
        _estimate(at, run, version, (auctions, seconds), json_, estimate_only)
    if estimate_only:
        return
    if run is not None:
        with steps().stage("start the canary"):
            deployment.canary(at, run, version, share)
    elif promote:
        deployment.promote(at)
    elif rollback:
        deployment.roll_back(at)
    deployment.show_comparison(console, deployment.status(at))


def _estimate(
    at: Dashboard,
    run: str,
    version: str | None,
    bounds: tuple[int, float],
    file: Path | None,
    alone: bool,
) -> None:
    """Say what a version will show; where that cannot be had, the reason, which is an error if it was asked
    for ``alone``."""
    from raylla.runs.state import write_json
    from raylla.serving.deploy.estimate import estimate, show_estimate

    try:
        estimated = estimate(at, run, version, *bounds, steps())
    except RayllaError as error:
        if alone:
            raise
        estimated = {"absent": str(error)}
    show_estimate(console, estimated)
    if file is not None:
        write_json(file, estimated)


@campaigns_app.command("import")
@told
def campaigns_import(
    source: Annotated[str, typer.Argument(help="a run's or a world's directory or URL, or a table of ads")],
    database: Annotated[
        str | None, typer.Option(help="SQLAlchemy URL of the endpoint's store; default: serving.database")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="the endpoint's config; default: the run's, else the defaults")
    ] = None,
    map_: ColumnOptions = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="bids that are not given follow from it")] = 0,
    daily_budget: Annotated[
        int | None, typer.Option(min=0, max=10**15, help="of each campaign, in micros")
    ] = None,
    set_: Overrides = [],  # noqa: B006
) -> None:
    """List the ads of a run, a world or a table (CSV, TSV, JSON lines, Parquet) with bids and landing
    pages: an advertiser per domain or theme, a campaign per category."""
    from datetime import UTC, datetime

    from raylla.serving.store import importing, open_store
    from raylla.world.imports.importers import mapping
    from raylla.world.imports.tablefiles import is_table

    chosen = settings.load_config(config, set_) if config else settings.changed(_of_run(source), None, set_)
    max_bid = chosen.world.max_bid
    if is_table(Path(source)):
        taken = importing.read_table(Path(source), mapping(map_), max_bid)
        tell(taken.faults)
        name, offers = Path(source).name, taken.bids
        ads = taken.ads if taken.numbered else [replace(ad, id="") for ad in taken.ads]
    else:
        if map_:
            raise ConfigError(f"--map names the columns of a table; {source} is none")
        world = importing.read_world(source)
        name, ads, offers = world.name, list(world.ads), [None] * len(world.ads)
    store = open_store(database, field="--database") if database else open_store(chosen.serving.database)
    done = importing.import_ads(
        store, name, ads, offers, chosen.serving, max_bid, seed, datetime.now(UTC), daily_budget
    )
    say(f"{store.database}: {done.ads} ads in {done.campaigns} campaigns of {done.advertisers} advertisers")


def _of_run(source: str) -> settings.Config:
    """The config of the run at ``source``; the defaults where that is no run."""
    from raylla.runs.state import Run
    from raylla.storage import exists, within

    return Run.open(source).config if exists(within(source, "run.json")) else settings.Config()


@app.command("audit")
@told
def audit_books(
    database: _Database = DATABASE,
    show: Annotated[int, typer.Option(help="discrepancies to name")] = 20,
    sealed: Annotated[
        list[str] | None,
        typer.Option(help="LINE:SEAL as an earlier audit printed it: the ledger must still hold it"),
    ] = None,
) -> None:
    """Recompute every balance, budget and charge from the ledger; status 1 if one does not add up."""
    from raylla.serving.billing.audit import audit as recompute
    from raylla.serving.money.money import decimal
    from raylla.serving.store import open_store

    known = dict(_noted(seal) for seal in sealed or [])
    books = recompute(open_store(database, must_exist=True, field="--database"), known)
    read = ", ".join(f"{number} {name}" for name, number in books.counts.items())
    console.print(f"{read or 'empty'}; billed {decimal(books.billed_micros)}", highlight=False)
    held = ", ".join(f"{name} {decimal(amount)}" for name, amount in books.accounts.items())
    console.print(f"accounts: {held or 'empty'}", highlight=False, soft_wrap=True)
    if books.last:
        console.print(f"sealed {books.last}:{books.seal}", highlight=False, soft_wrap=True)
    for discrepancy in books.discrepancies[:show]:
        console.print(f"{discrepancy}", highlight=False, soft_wrap=True, markup=False)
    if books.discrepancies:
        console.print(f"{len(books.discrepancies)} discrepancies", highlight=False)
        raise typer.Exit(1)
    console.print("everything adds up", highlight=False)


def _noted(text: str) -> tuple[int, str]:
    """A line and its seal.

    Raises:
        ConfigError: it is not of that form.
    """
    line, _, seal = text.partition(":")
    if not (line.isascii() and line.isdigit() and seal):
        raise ConfigError(f"--sealed {text!r}: give LINE:SEAL, as `raylla audit` prints it")
    return int(line), seal
