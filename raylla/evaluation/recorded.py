"""The table of a finished run, rebuilt from its records; no model is loaded."""

from __future__ import annotations

from typing import Any

from raylla.errors import RunError
from raylla.irpo import stages
from raylla.irpo.schedule import auctions
from raylla.irpo.state import Run
from raylla.world import store


def evaluate_run(run: Run) -> dict[str, Any]:
    """Name, table and examples, as in `results.json`.

    Raises:
        RunError: the run is not finished.
    """
    if run.committed("conclude") is None:
        done = list(run.commits)[-1] if run.commits else "nothing"
        raise RunError(f"run {run.path} is not finished (last committed: {done}); `raylla resume` it first")
    world = store.load(run.path / "world")
    sampled = [
        stages.read_sampled(run, f"epoch-{epoch}/sample", auctions(run.config, world, epoch)).tests()
        for epoch in range(1, run.config.irpo.epochs + 2)
    ]
    return {
        "name": run.config.name,
        "epochs": stages.table(run, world, sampled),
        "examples": stages.examples(world, sampled[0], sampled[-1]),
    }
