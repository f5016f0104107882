"""`raylla judge`: teach a User-LLM the published decisions of others, and measure it on new questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from raylla import config as settings
from raylla.errors import ConfigError
from raylla.storage import writing
from raylla.terminal import RAY, ConfigPath, Overrides, console, loading, say, steps, told

app = typer.Typer(
    help="A judge that others taught: train it, and hold it against them.", no_args_is_help=True
)
_ADAPTER = "adapter"
FREE = {"data", "encoder", "bootstrap", "threads", "save_every"}
"""Settings of `judging` that decide nothing of the adapter: a training can be gone on with under others."""


@app.command("train")
@told
def teach_judge(
    config: ConfigPath,
    out: Annotated[Path, typer.Option(help="directory for the adapter and the checkpoints")],
    set_: Overrides = [],  # noqa: B006
) -> None:
    """Teach `judging.base` whether the judges of `judging.judges` click; the adapter goes to OUT/adapter.

    An interrupted training goes on from its last checkpoint.
    """
    loaded = settings.load_config(config, set_)
    with loading():
        from raylla.actors.placement import connect, disconnect
        from raylla.judging import about
        from raylla.judging.train import judge_settings, train_judge
        from raylla.models import resolve
        from raylla.stop import heeded, listen

    _claim(out, judge_settings(loaded).model_dump_json(indent=2, exclude=FREE))
    resolve(judge_settings(loaded).base, "judging.base")
    target = out / _ADAPTER
    if about.read_taught(str(target)) is None:
        watch = steps()
        with watch.stage(RAY):
            connect(loaded)
        try:
            with listen(), heeded("the judge's training"):
                train_judge(loaded, target, out, watch)
        finally:
            disconnect(loaded)
    say(f"{target}: set user_llm.path to it, and user_llm.reading to token")


@app.command()
@told
def network(
    config: ConfigPath,
    out: Annotated[Path, typer.Option(help="directory for the pCTR model; one that is there is replaced")],
    set_: Overrides = [],  # noqa: B006
) -> None:
    """Teach a pCTR model over `pctr.encoder` the decisions of `judging.judges`, for runs to start from.

    It learns from the questions that `judge train` learns from, and from no other.
    """
    loaded = settings.load_config(config, set_)
    with loading():
        from raylla.judging import published
        from raylla.judging.network import learn_network
        from raylla.judging.train import judge_settings

    chosen = judge_settings(loaded)
    data = published.read_impressions(chosen.data)
    judges = data.chosen(chosen.judges)
    learned, _ = published.split_impressions(data.impressions, chosen.held_out, chosen.seed)
    say(f"pCTR model over {loaded.pctr.encoder}: {len(learned)} rows, taught by {', '.join(judges)}")
    with steps().stage("teach the pCTR model"), writing(out):
        learn_network(loaded.pctr.encoder, loaded.pctr, learned, judges, chosen.seed).save(out)
    say(f"{out}: set pctr.start to it")


@app.command("evaluate")
@told
def evaluate_judge(
    config: ConfigPath,
    adapter: Annotated[
        str | None, typer.Option(help="the judge, as user_llm.path names it; default: user_llm.path")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="also write the figures as JSON")] = None,
    set_: Overrides = [],  # noqa: B006
) -> None:
    """Hold a judge against those of the data, on questions that it did not learn from; with intervals."""
    loaded = settings.load_config(config, set_)
    with loading():
        from raylla.actors.placement import connect, disconnect
        from raylla.judging.evaluate import measure_judge
        from raylla.judging.train import judge_settings
        from raylla.models import resolve
        from raylla.runs.state import write_json
        from raylla.stop import heeded, listen

    resolve(judge_settings(loaded).encoder, "judging.encoder")
    watch = steps()
    with watch.stage(RAY):
        connect(loaded)
    try:
        with listen(), heeded("the measure of the judge, which commits nothing before its end"):
            report = measure_judge(loaded, adapter or loaded.user_llm.path, watch)
    finally:
        disconnect(loaded)
    if out is not None:
        write_json(out, report)
    show_figures(report)


def show_figures(report: dict[str, Any]) -> None:
    """The figures by judge: what was measured, the network beside it, and the ceiling."""
    taught = f", taught by {', '.join(report['taught_by'])}" if report["taught_by"] else ""
    table = Table(
        title=escape(
            f"{report['model']}{taught}: {report['rows']} rows of {report['questions']} new questions, "
            "95 % bootstrap intervals over questions"
        ),
        caption="calibration error beside the floor that a perfect model of these rows has",
    )
    for heading in ("clicks of", "predicted by", "rate", "AUC", "log loss", "calibration error", "floor"):
        table.add_column(heading, justify="left" if heading.endswith("by") else "right")
    for name, figures in (report["judges"] | report["groups"]).items():
        for what in ("judge", "network", "ceiling"):
            if what in figures:
                table.add_row(escape(name) if what == "judge" else "", what, *_row(figures[what]))
    console.print(table)


def _row(figures: dict[str, Any]) -> list[str]:
    cells = [f"{figures['predicted']:.2f} of {figures['clicked']:.2f}"]
    for key in ("auc", "log_loss", "calibration_error"):
        cells.append(f"{figures[key]['mean']:.3f} [{figures[key]['low']:.3f}, {figures[key]['high']:.3f}]")
    return [*cells, f"{figures['calibration_floor']:.3f}"]


def _claim(out: Path, section: str) -> None:
    """Keep the settings of a training beside it, for what is there already is gone on with.

    Raises:
        ConfigError: the directory is that of a training with other settings.
    """
    kept = out / "judging.json"
    if kept.exists():
        if kept.read_text() != section:
            raise ConfigError(
                f"--out {out}: it holds a judge of other settings of `judging` ({kept.name}); "
                "choose another directory"
            )
        return
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        kept.write_text(section)
