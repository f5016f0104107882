"""`raylla warmstart`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from raylla import config as settings
from raylla.terminal import RAY, ConfigPath, Overrides, console, loading, steps, told


@told
def warmstart(
    config: ConfigPath,
    out: Annotated[Path, typer.Option(help="directory for the weights, the checkpoints and the report")],
    set_: Overrides = [],  # noqa: B006
) -> None:
    """Teach `ad_llm.path` to place ads, from published answers; then report on unseen questions and brands.

    An interrupted training goes on from its last checkpoint. Weights that are there are only reported on.
    """
    loaded = settings.load_config(config, set_)
    with loading():
        from raylla import models
        from raylla.actors.placement import connect, disconnect
        from raylla.runs.state import write_json
        from raylla.stop import heeded, listen
        from raylla.warmstart.report import measure_warmstart
        from raylla.warmstart.train import train_warmstart, warmstart_settings

    warmstart_settings(loaded)
    models.check_places(loaded)
    target, watch = out / "weights", steps()
    with watch.stage(RAY):
        connect(loaded)
    try:
        with listen(), heeded("the warm start"):
            if not any((target / name).exists() for name in models.CONFIGS):
                train_warmstart(loaded, str(target), out, watch)
            report = measure_warmstart(loaded, str(target), watch)
    finally:
        disconnect(loaded)
    write_json(out / "warmstart.json", report)
    _show(report)


def _show(report: dict[str, Any]) -> None:
    """The report, a line for each figure."""
    for name, value in report.items():
        if isinstance(value, dict) and "mean" in value:
            value = f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
        console.print(f"{name:<16}{value}", highlight=False)
