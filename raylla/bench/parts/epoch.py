"""Real epochs at pocket scale: wall time ÷ critical path, and how long each actor sat idle."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from raylla.bench.measure import Measured, Row, Spread, ratio
from raylla.bench.run import Bench
from raylla.config import Config, changed
from raylla.irpo.loop import train_run
from raylla.runs.observe import Observer
from raylla.runs.state import Run
from raylla.runs.timeline import Timeline

SMALL = (
    "irpo.queries=160",
    "irpo.reward_answers=6",
    "irpo.preference_answers=8",
    "irpo.delta=8",
    "irpo.max_drop_share=0.2",
    "evaluation.queries=50",
    "penalty.free_ads=1",
    "penalty.per_excess_ad=10",
    "ad_llm.sampling.temperature=0.7",
    "ad_llm.sampling.top_k=10",
    "dpo.lr=3e-4",
    "dpo.passes=3",
    "dpo.micro_groups=4",
    "dpo.winner_nll=0.6",
    "wandb.mode=disabled",
)
"""The pocket config with half its queries and a quarter of its test."""


def rows(bench: Bench) -> list[Row]:
    """One value an epoch; the first, in which everything runs for the first time, is left out."""
    told = run_epochs(bench.config, bench.scratch / "run", bench.repeats + 1, True).epochs[1:]
    wall = Measured("wall", Spread(tuple(timing["wall_seconds"] for timing in told)))
    critical = Measured("critical path", Spread(tuple(timing["critical_seconds"] for timing in told)))
    idle = {
        f"idle, {actor}": round(statistics.median(timing["idle"][actor] for timing in told), 3)
        for actor in told[0]["idle"]
    }
    return [ratio("epoch wall ÷ critical path", wall, critical, "s", idle)]


def run_epochs(
    config: Config, directory: Path, epochs: int, overlap: bool, more: Sequence[str] = ()
) -> Timeline:
    """A run of the small config with ``more`` overrides, and its timeline."""
    sets = [*SMALL, *more, f"irpo.epochs={epochs}", f"irpo.overlap={str(overlap).lower()}"]
    run = Run.create(directory, changed(config, None, sets))
    watch = Observer(run.config, run.path, Console(quiet=True))
    train_run(run, watch)
    return watch.timeline
