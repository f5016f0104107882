"""The command line: `raylla --help`."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from raylla import __version__
from raylla import config as settings
from raylla.errors import ConfigError
from raylla.evaluation.outside.commands import regret_outside
from raylla.evaluation.prices import commands as prices_commands
from raylla.judging import commands as judging_commands
from raylla.models import commands as models_commands
from raylla.models.quiet import quiet_native
from raylla.online.commands import simulate
from raylla.pocket import commands as pocket_commands
from raylla.serving import commands as serving
from raylla.storage import home, within
from raylla.terminal import ConfigPath, Overrides, RunPath, console, loading, told
from raylla.warmstart.commands import warmstart
from raylla.world.imports import commands as world_commands

quiet_native()
app = typer.Typer(
    help="Teach a language model to run an ad auction inside its own answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.add_typer(serving.app)
app.command()(simulate)
app.command("regret")(regret_outside)
app.command()(warmstart)
app.add_typer(world_commands.app, name="world")
app.add_typer(pocket_commands.app, name="pocket")
app.add_typer(models_commands.app, name="models")
app.add_typer(judging_commands.app, name="judge")
app.add_typer(prices_commands.app, name="prices")


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"raylla {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show it and end")
    ] = False,
) -> None:
    """Teach a language model to run an ad auction inside its own answers."""


@app.command()
@told
def train(
    config: ConfigPath,
    run: Annotated[
        str, typer.Option(help="run to make, or to continue: a directory, or a URL such as s3://BUCKET/RUN")
    ] = "runs/latest",
    set_: Overrides = [],  # noqa: B006
) -> None:
    """Run IRPO: answer, judge, learn, align, epoch by epoch; ends with the table of every epoch."""
    chosen = settings.load_config(config, set_)
    with loading():
        from raylla.irpo.loop import train_run
        from raylla.runs.state import Run

    _train(Run.create(run, chosen), train_run)


@app.command()
@told
def resume(run: RunPath) -> None:
    """Continue a run after its last committed stage."""
    with loading():
        from raylla.irpo.loop import train_run
        from raylla.runs.state import Run

    _train(Run.open(run), train_run)


@app.command()
@told
def evaluate(
    what: Annotated[
        list[str],
        typer.Argument(help="a config file, or finished runs: training seeds, then variants"),
    ],
    runs: Annotated[
        str | None,
        typer.Option(help="where a config's runs are or are made; default: runs/NAME-evaluation"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="default: evaluation.json, or SUITE.json, in the first run")
    ] = None,
    suite: Annotated[
        Literal["auctions", "conflict", "day", "offpolicy"],
        typer.Option(
            help="auctions: revenue, reward, curves, prices; conflict: advice against higher bids; "
            "day: bidders with budgets; offpolicy: estimates before a version serves against what it then "
            "shows"
        ),
    ] = "auctions",
    set_: Overrides = [],  # noqa: B006
) -> None:
    """Hold test auctions with every mechanism, each tuned on validation queries; with intervals.

    Given a config, first trains what is missing of evaluation.seeds and evaluation.variants. Given
    runs, --set evaluation.key=value measures with other settings than the first run's.
    """
    with loading():
        from raylla.evaluation import training
        from raylla.runs.observe import Observer
        from raylla.runs.state import Run, write_json
        from raylla.stop import heeded, listen

        measure, name, show = _suite(suite)

    with listen(), heeded("the evaluation, which keeps what it was told"):
        if len(what) == 1 and settings.located(Path(what[0])).is_file():
            chosen = settings.load_config(Path(what[0]), set_)
            directory = runs or f"runs/{chosen.name}-evaluation"
            opened = training.runs(chosen, directory, lambda run, path: Observer(run, path, console))
        elif runs is not None:
            raise ConfigError(f"--runs {runs} goes with one config file; {what[0]} is none")
        else:
            opened = [Run.open(path) for path in what]
            chosen = settings.changed(opened[0].config, "evaluation", set_)
        try:
            evaluation = measure(opened, chosen.evaluation, Observer(chosen, None, console))
            write_json(out or opened[0].path / name, evaluation)
        finally:  # what a run was told stays with it, also where the evaluation was stopped
            for run in opened:
                run.home.save()
    show(console, evaluation)


def _suite(name: str) -> tuple[Callable[..., Any], str, Callable[..., None]]:
    """What measures runs, the file of what it finds, and what shows that."""
    from raylla.evaluation.conflict import conflict_runs
    from raylla.evaluation.day.suite import day_runs
    from raylla.evaluation.evaluate import evaluate_runs
    from raylla.evaluation.offpolicy.console import show_offpolicy
    from raylla.evaluation.offpolicy.suite import offpolicy_runs
    from raylla.evaluation.page.console import show_conflict, show_day, show_evaluation

    return {
        "auctions": (evaluate_runs, "evaluation.json", show_evaluation),
        "conflict": (conflict_runs, "conflict.json", show_conflict),
        "offpolicy": (offpolicy_runs, "offpolicy.json", show_offpolicy),
        "day": (day_runs, "day.json", show_day),
    }[name]


@app.command()
@told
def report(
    run: Annotated[
        str, typer.Argument(help="evaluated run, a directory or URL, or an evaluation's FILE.json")
    ],
    out: Annotated[
        Path | None, typer.Option(help="default: report/ in the run, FILE/ beside a file")
    ] = None,
) -> None:
    """One page, figures and tables of an evaluated run's evaluation.json; reads no model."""
    from raylla.evaluation.page.report import write_report
    from raylla.runs.observe import Observer
    from raylla.runs.state import Run

    if run.endswith(".json"):
        page = write_report(Path(run), out or Path(run).with_suffix(""))
        console.print(f"{page}", highlight=False, soft_wrap=True)
        return
    opened = Run.open(run)
    page = write_report(opened.path / "evaluation.json", out or opened.path / "report")
    watch = Observer(opened.config, opened.path, console)
    watch.artifact("report", "report", page.parent.resolve())
    watch.close()
    opened.home.save()
    shown = page if out else within(opened.place, "report", page.name)
    console.print(f"{shown}", highlight=False, soft_wrap=True)


@app.command()
@told
def submit(
    config: ConfigPath,
    address: Annotated[str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="http://HOST:8265")],
    storage: Annotated[
        str,
        typer.Option(
            envvar="RAYLLA_STORAGE", help="where runs are: a directory that all nodes see, or a URL"
        ),
    ],
    job: Annotated[str, typer.Option(help="train, evaluate, report or serve")] = "train",
    run_id: Annotated[
        str | None,
        typer.Option(help="default: the config's name and digest, so that the same config resumes"),
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, help="times a job that the cluster lost is sent again")
    ] = 2,
    python: Annotated[str, typer.Option(help="interpreter on the cluster")] = "python",
    set_: Overrides = [],  # noqa: B006
) -> None:
    """Run a config as a job of a Ray cluster and follow it; ends with the job's exit status.

    Ctrl-C stops the following and not the job; the same command follows it again.
    """
    from raylla import submit as jobs

    planned = jobs.plan_submission(job, settings.load_config(config, set_), storage, run_id, python)
    cluster = jobs.Cluster(address)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    code = jobs.submit_job(cluster, planned, retries, say)
    if code:
        raise typer.Exit(code)


@app.command()
@told
def check(
    config: ConfigPath,
    run: Annotated[str | None, typer.Option(help="where the run is to be: is it writable?")] = None,
    set_: Overrides = [],  # noqa: B006
) -> None:
    """Dry run: config, models, world, storage, placement, disk and versions; loads no model."""
    from raylla import precision
    from raylla.actors.placement import check_placement, connect, disconnect, needs
    from raylla.evaluation.training import check_planned
    from raylla.models import roles
    from raylla.reward import reader
    from raylla.runs.state import package_versions
    from raylla.serving.money.sheets import served_sheet
    from raylla.world import build, store

    loaded = settings.load_config(config, set_)
    served_sheet(loaded)
    console.print(f"config     {config}: digest {loaded.digest()}")
    places = roles.check_roles(loaded)
    check_planned(loaded)
    for encoder in ("pctr.encoder", "judging.encoder"):
        if encoder in places:
            reader.check_encoder(places[encoder], encoder)
    for field, path in places.items():
        console.print(f"model      {field}: {path}")
    if loaded.world.path is not None:
        count = loaded.world.profiles * loaded.world.queries_per_profile
        world = build.sample_queries(store.load_world(loaded.world.path), count, loaded.seed)
        store.check_world(world)
    else:
        world = build.synthetic(loaded.world, loaded.seed)
    console.print(f"world      {world.name}: {len(world.ads)} ads, {len(world.profiles)} profiles")
    if run is not None:
        place = home(run)
        place.check()
        console.print(f"storage    {place.place}: writable", highlight=False, soft_wrap=True)
    kept = loaded.storage.keep_versions
    console.print(f"weights    {'every version is' if kept is None else f'the last {kept} are'} kept")
    connect(loaded)
    try:
        spare = check_placement(loaded)
    finally:
        disconnect(loaded)
    short = any(left < 0 for left in spare.values())
    for need in needs(loaded):
        where = f" on {dict(need.labels)}" if need.labels else ""
        most = f" to {need.most}" if need.most > need.workers else ""
        size = f"{need.workers}{most} x ({need.cpus:g} CPUs, {need.gpus:g} GPUs){where}"
        console.print(f"placement  {need.group}: {size}", highlight=False)
    console.print(f"spare      {spare}" + (" (below 0: to be added by the autoscaler)" if short else ""))
    console.print(f"disk       {shutil.disk_usage('.').free / 2**30:.0f} GiB free")
    console.print(
        f"precision  engines {precision.explained(loaded.engine.dtype, loaded.rollout.gpus > 0)}; "
        f"trainer {precision.explained(loaded.dpo.precision, loaded.dpo.gpus > 0)}",
        highlight=False,
    )
    console.print(f"adapters   {roles.versions_taken(loaded)}", highlight=False, soft_wrap=True)
    console.print(f"versions   {package_versions()}")


@app.command()
@told
def plan(
    config: Annotated[
        Path | None, typer.Argument(help="YAML overlay over the defaults: a file, or a shipped one's name")
    ] = None,
    gpu: Annotated[str, typer.Option(help="a100, h100, h200, b200 or l40s")] = "h100",
    node_gpus: Annotated[int, typer.Option(min=1, help="GPUs of one more machine")] = 8,
    prompt_tokens: Annotated[int | None, typer.Option(min=1, help="mean of the Ad-LLM's prompts")] = None,
    answer_tokens: Annotated[int | None, typer.Option(min=1, help="mean of its answers")] = None,
    estimate: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE: placing, the share of answers with an ad; groups of queries that make a "
            "preference group; members of their answers in it; uneven, computed tokens of a row's"
        ),
    ] = None,
    cores: Annotated[
        int | None,
        typer.Option(min=1, help="shared where no group has a GPU; none: this machine's"),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="a finished run, in place of CONFIG: its plan beside what it had")
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="write the table of --against here")] = None,
    set_: Overrides = [],  # noqa: B006
) -> None:
    """What a config costs: tokens, FLOPs, memory and time of each phase, from counts; runs nothing.

    With --against RUN, how far the plan of a finished run's config is from what the run had."""
    from raylla.plan import Lengths, Yields, hardware
    from raylla.plan.console import show_plan, show_reckoning

    shared = cores or os.cpu_count() or 1
    if against is not None:
        if config is not None or set_ or estimate or prompt_tokens is not None or answer_tokens is not None:
            raise ConfigError(
                f"--against {against} plans the run's own config; leave out CONFIG, --set, --estimate, "
                "--prompt-tokens and --answer-tokens"
            )
        from raylla.plan.against import reckon
        from raylla.runs.state import Run, write_json

        reckoned = reckon(Run.open(against), hardware.gpu(gpu), shared)
        show_reckoning(console, reckoned)
        if json_ is not None:
            write_json(json_, reckoned.as_json())
        return
    if config is None:
        raise ConfigError("give the CONFIG to plan, or --against RUN")
    if json_ is not None:
        raise ConfigError("--json writes the table of --against RUN; give that, too")
    loaded = settings.load_config(config, set_)
    lengths = Lengths.of(loaded, prompt_tokens, answer_tokens)
    yields = Yields.of(loaded, estimate or ())
    show_plan(console, loaded, hardware.gpu(gpu), lengths, yields, node_gpus, shared)


@app.command()
@told
def bench(
    parts: Annotated[
        list[str] | None,
        typer.Argument(
            help="rollout, dpo, lora, reference, refresh, adapters, retrieval, serve, epoch, overlap, "
            "driver, mechanisms, growth; none: all"
        ),
    ] = None,
    json_: Annotated[
        Path | None, typer.Option("--json", help="write the figures here, too, beside those of other parts")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="interleaved repeats of each comparison")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML overlay; none: the defaults")] = None,
    set_: Overrides = [],  # noqa: B006
) -> None:
    """Measure raylla side by side with what one would otherwise run: ratios, medians and spreads."""
    from raylla.bench import merge, run_parts

    sets = [*set_, *([] if repeats is None else [f"bench.repeats={repeats}"])]
    loaded = (
        settings.load_config(config, sets) if config else settings.changed(settings.Config(), None, sets)
    )
    measured = run_parts(parts or [], loaded, console)
    if json_ is not None:
        merge(json_, measured)


def _train(run: Any, loop: Callable[..., dict[str, Any]]) -> None:
    from raylla.evaluation.page.console import show_results
    from raylla.runs.observe import Observer
    from raylla.stop import listen

    with listen(), run.alone():
        results = loop(run, Observer(run.config, run.path, console))
    show_results(console, results)


def main() -> None:
    """Entry point of `python -m raylla`."""
    sys.exit(app())
