"""The warm start as a run's first stage: what `ad_llm.path` learns before the first epoch."""

from __future__ import annotations

from raylla.runs.observe import Observer
from raylla.runs.state import Run
from raylla.stop import heeded
from raylla.warmstart.train import train_warmstart

STAGE = "warmstart"


def warm(run: Run, watch: Observer) -> None:
    """Train the first weight version where `warmstart` is configured, once.

    Raises:
        RayllaError: as `raylla.warmstart.train.train_warmstart`.
    """
    if run.config.warmstart is None or run.committed(STAGE) is not None:
        return
    with heeded(STAGE):
        result = train_warmstart(run.config, run.weights("v0"), run.path / STAGE, watch)
    run.commit(
        STAGE,
        [],
        {
            "weight_version": result.version,
            "wall_seconds": watch.wall["warm start"],
            "steps": result.steps,
            "tokens": result.tokens,
            "losses": result.losses,
        },
    )
