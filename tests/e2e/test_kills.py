"""Runs that are stopped or killed and go on: SIGTERM, SIGKILL. Lost workers are in `test_jobs`."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.chaos.processes import kill_tree
from tests.e2e.commands import begin, finish, ids, results, training, wait_for_commit

pytestmark = pytest.mark.e2e

STAGES = ("world", "epoch-1/sample", "epoch-1/learn", "epoch-1/test", "epoch-1/align", "epoch-2/test")
ON_RAY = ("epoch-1/sample",)
"""Stages that are interrupted on Ray; the others in one process, which starts in a tenth of the time."""
IN_A_BUCKET = ("epoch-1/align",)
"""Stages of runs behind a URL, of which no process has another's disk."""
ALWAYS = ("world", "epoch-1/align")
"""Stages that every test run interrupts: a stop and a kill in one process. On Ray a job is stopped in
`test_jobs`, and a machine dies with the driver on it in `test_machines`."""


@pytest.mark.chaos
@pytest.mark.parametrize(
    "stage", [pytest.param(one, marks=[] if one in ALWAYS else pytest.mark.soak) for one in STAGES]
)
def test_killed_or_stopped_after_a_stage_and_resumed(
    request: pytest.FixtureRequest, tmp_path: Path, stage: str
) -> None:
    """Stopped by SIGTERM in the first sampling, killed by SIGKILL elsewhere."""
    on_ray = stage in ON_RAY
    uninterrupted: Path = request.getfixturevalue("whole" if on_ray else "alone")
    run, log = tmp_path / "run", tmp_path / "log"
    place = f"file://{run}" if stage in IN_A_BUCKET else str(run)
    process = begin(training(place, ray__in_process=str(not on_ray).lower()), log)
    wait_for_commit(process, run, stage, log)
    if stage == "world":
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 143
        assert "StoppedError: stopped by SIGTERM at: epoch-1/sample" in " ".join(log.read_text().split())
    else:
        kill_tree(process.pid)
        process.wait(timeout=30)
    finish(["resume", place], log)
    assert ids(run) == ids(uninterrupted)
    assert results(run)["epochs"] == results(uninterrupted)["epochs"]
