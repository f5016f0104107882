"""`raylla prices`: log auctions, learn reserves and prices from a log, hold them on new questions."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from fsspec import available_protocols
from pydantic import TypeAdapter

from raylla import config as settings
from raylla.errors import DataError
from raylla.strictjson import dumps
from raylla.terminal import Overrides, RunPath, console, loading, say, steps, told

app = typer.Typer(help="Reserves and prices learned from logged auctions.", no_args_is_help=True)
if TYPE_CHECKING:
    from raylla.pricing.logs import LoggedAuction

_FORM = "raylla-log-1"
_STORES = "sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME"
_Bidders = Annotated[
    list[int], typer.Option(min=0, help="also with so many of the candidates, repeatable; 0: not")
]
_Settings = Annotated[list[str], typer.Option("--set", help="evaluation.key=value, repeatable")]


@app.command("log")
@told
def log_prices(
    run: RunPath,
    out: Annotated[Path, typer.Option(help="the log to write")],
    bidders: _Bidders = [2, 3],  # noqa: B006
    queries: Annotated[int | None, typer.Option(min=1, help="training questions; default: all")] = None,
    answers: Annotated[int, typer.Option(min=1, help="for each auction")] = 4,
    set_: _Settings = [],  # noqa: B006
) -> None:
    """Hold auctions of training questions under a run's last weights, for `raylla prices learn`."""
    with loading():
        from raylla.evaluation import setup
        from raylla.evaluation.prices.holdout import log_auctions
        from raylla.runs.observe import Observer
        from raylla.runs.state import Run, write_text
        from raylla.stop import heeded, listen

    opened = Run.open(run)
    chosen = settings.changed(opened.config, "evaluation", set_).evaluation
    setup.check_runs([opened], chosen)
    watch = Observer(opened.config, None, console)
    with listen(), heeded("the log, which keeps what it was told"):
        try:
            with setup.engines([opened], chosen, watch) as begun, watch.stage("log auctions"):
                auctions = log_auctions(begun(opened), [None, *filter(None, bidders)], queries, answers)
        finally:
            opened.home.save()
    tree = {
        "form": _FORM,
        "largest": opened.config.world.max_bid,
        "auctions": [asdict(auction) for auction in auctions],
    }
    write_text(out, dumps(tree) + "\n")
    say(f"{out}: {len(auctions)} auctions")


@app.command("learn")
@told
def learn_prices(
    source: Annotated[
        str, typer.Argument(help="a log, a finished run, or the SQLAlchemy URL of an endpoint's store")
    ],
    out: Annotated[Path, typer.Option(help="the price sheet to write")],
    bidders: _Bidders = [2, 3],  # noqa: B006
    folds: Annotated[int, typer.Option(min=2, help="of the questions, for cross-fitting")] = 4,
    least_surplus: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="what advertisers keep at least, as a share of what shading leaves them under first price",
        ),
    ] = 0.8,
    most_regret: Annotated[
        float | None, typer.Option(min=0, help="of the truth, in bid units; default: first price's")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="of a store: weights whose auctions count; default: the last served")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="of a store: the endpoint's config; default: the defaults")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the auctions and bidders that are drawn")] = 0,
    set_: Overrides = [],  # noqa: B006
) -> None:
    """Learn an allocation curve and personalised reserves; write them as a sheet for `serving.prices`."""
    with loading("what fits curves"):
        from raylla.pricing.learn import Bounds, learn_sheet
        from raylla.pricing.logs import as_log
        from raylla.runs.state import write_text

    chosen = (
        settings.load_config(config, set_) if config else settings.changed(settings.Config(), None, set_)
    )
    auctions, largest = _logged(source, version, chosen)
    bounds = Bounds(most_regret, least_surplus)
    about = {"version": auctions[-1].version if auctions else "", "seed": seed}
    thin = [bidder for bidder in bidders if bidder]
    with steps().stage("learn prices"):
        sheet = learn_sheet(as_log(auctions, folds), largest, folds, thin, bounds, seed, about)
    write_text(out, sheet.text)
    _show_learned(sheet.report, sheet.reserves.all, dict(sheet.reserves.by))
    say(f"{out}: digest {sheet.digest}; serve it with serving.price_rule=reserve and serving.prices")


@app.command("evaluate")
@told
def evaluate_prices(
    run: RunPath,
    prices: Annotated[Path, typer.Option(help="the price sheet")],
    out: Annotated[Path | None, typer.Option(help="default: prices.json in the run")] = None,
    bidders: _Bidders = [2, 3],  # noqa: B006
    draws: Annotated[
        int, typer.Option(min=1, help="auctions of each question, with bids of their own")
    ] = 3,
    set_: _Settings = [],  # noqa: B006
) -> None:
    """Hold a sheet against first price, and Myerson's price, on a run's test questions, by its answers."""
    with loading():
        from raylla.evaluation import setup
        from raylla.evaluation.prices.holdout import hold_market, market_figures, test_markets
        from raylla.judging import about
        from raylla.pricing.sheet import read_sheet
        from raylla.runs.observe import Observer
        from raylla.runs.state import Run, write_json
        from raylla.stop import heeded, listen

    opened = Run.open(run)
    sheet = read_sheet(prices, where="--prices")
    sheet.covers(opened.config.world.max_bid, f"--prices={str(prices)!r}")
    config = settings.changed(opened.config, "evaluation", set_)
    chosen = config.evaluation
    setup.check_runs([opened], chosen)
    seed = opened.config.seed
    report: dict[str, Any] = {
        "run": {"name": opened.config.name, "seed": seed, "digest": opened.config.digest()},
        "sheet": {"digest": sheet.digest, "reserves": asdict(sheet.reserves), "report": dict(sheet.report)},
        "clicks": about.sources(opened.config.user_llm),
        "draws": draws,
        "answers": chosen.answers,
        "markets": {},
    }
    watch = Observer(opened.config, None, console)
    with listen(), heeded("the evaluation, which keeps what it was told"):
        try:
            with setup.engines([opened], chosen, watch) as begun:
                backend = begun(opened)
                for count in (None, *filter(None, bidders)):
                    auctions = test_markets(backend, count, draws)
                    name = "all" if count is None else str(count)
                    with watch.stage(f"auctions of {name} bidders"):
                        held = hold_market(backend, sheet, auctions, seed)
                    questions = len({auction.query.id for auction in auctions})
                    market = market_figures(held, chosen.bootstrap, seed)
                    report["markets"][name] = {"questions": questions, "auctions": len(auctions), **market}
            write_json(out or opened.path / "prices.json", report)
        finally:
            opened.home.save()
    _show_held(report)


def _logged(source: str, version: str | None, config: settings.Config) -> tuple[list[LoggedAuction], float]:
    """Logged auctions and the largest bid of a log, a run or a store."""
    from raylla.pricing.logs import check_log

    scheme = source.partition("://")[0] if "://" in source else ""
    if scheme.partition("+")[0] in ("sqlite", "postgresql"):
        from raylla.evaluation.prices.sources import of_store

        auctions = of_store(source, version, config.serving.micros_per_unit)
        largest = float(config.world.max_bid)
        check_log(auctions, largest, "give --config, the endpoint's, if its world.max_bid is another")
    elif Path(source).is_file():
        auctions, largest = _read_log(Path(source))
        check_log(auctions, largest, f"{source} was changed; write it with `raylla prices log`")
    elif scheme and scheme not in available_protocols():  # its words may hold a password
        raise DataError(f"{scheme}:// names neither a run nor a store; a store is {_STORES}")
    else:
        from raylla.evaluation.prices.sources import of_run
        from raylla.runs.state import Run

        auctions, largest = of_run(Run.open(source))
        check_log(auctions, largest, "the run's records were changed; give another run")
    return auctions, largest


def _read_log(path: Path) -> tuple[list[LoggedAuction], float]:
    """A log of `raylla prices log` and its largest bid, as they are written there."""
    from raylla.pricing.logs import LoggedAuction

    try:
        tree = json.loads(path.read_text())
        if tree["form"] != _FORM:
            raise ValueError(f"its form is {tree['form']!r}")
        auctions = TypeAdapter(list[LoggedAuction]).validate_python(tree["auctions"])
        return auctions, float(tree["largest"])
    except (ValueError, KeyError, TypeError, OSError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{path} is no log of `raylla prices log` ({type(error).__name__}: {error}); give one, a run "
            "or a store's URL"
        ) from None


def _show_learned(report: Any, least: float, by: dict[str, float]) -> None:
    from rich.table import Table

    table = Table(title="cross-fitted, bid units per auction; bids are the truth but in the first two rows")
    for heading in ("rule", "revenue", "surplus", "regret"):
        table.add_column(heading, justify="left" if heading == "rule" else "right")
    for name, means in report["cross_fitted"].items():
        table.add_row(name, *(f"{means[what]:.2f}" for what in ("revenue", "surplus", "regret")))
    console.print(table)
    fit = report["calibration"]
    say(
        f"reserves: {report['depth']}: {least:g} for all, {len(by)} of their own; shares off by "
        f"{fit['error']:.3f} on new questions, {fit['log_loss']:.3f} nats an answer "
        f"({fit['log_loss_of_equal_shares']:.3f} where all have one chance)"
    )


def _show_held(report: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(
        title="by the model's own answers, bid units per auction, 95 % intervals over questions",
        caption="gain: of revenue, over first price under the same bidders",
    )
    for heading in ("bidders", "rule", "who", "revenue", "surplus", "gain", "curve", "regret"):
        table.add_column(heading, justify="left" if heading in ("bidders", "rule", "who") else "right")
    for name, market in report["markets"].items():
        for rule, kinds in market["rules"].items():
            for kind, row in kinds.items():
                gain = market["gains"].get(rule, {}).get(kind)
                regret = market["regret"][rule]["regret"].get(kind)
                table.add_row(
                    name,
                    rule,
                    kind,
                    "{mean:.2f} [{low:.2f}, {high:.2f}]".format(**row["revenue"]),
                    f"{row['surplus']['mean']:.2f}",
                    "" if gain is None else _percent(gain["revenue"]),
                    f"{row['on_curve']['mean']:.2f}",
                    "" if regret is None else f"{regret['mean']:.2f}",
                )
    console.print(table)
    for name, market in report["markets"].items():
        gain = market["gains"]["reserve"]["shading"]["revenue"]
        say(
            f"bidders {name}: over first price under bidders who shade to {market['shading']:.0%} of their "
            f"value, {_percent(gain)} of revenue"
        )


def _percent(figure: dict[str, float]) -> str:
    return f"{figure['mean']:+.1%} [{figure['low']:+.1%}, {figure['high']:+.1%}]"
