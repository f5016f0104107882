"""A run as a job of a cluster: submitted, stopped and submitted again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.commands import begin, finish, ids, results, training, wait_for_commit

pytestmark = pytest.mark.e2e


@pytest.fixture
def dashboard() -> Iterator[str]:
    """A cluster that gives a stopped job the 30 s that `raylla` promises to need at most."""
    import ray

    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "disabled")
    patch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "30")
    context = ray.init("local", num_cpus=2, include_dashboard=True, dashboard_port=0)
    try:
        yield f"http://{context.dashboard_url}"
    finally:
        ray.shutdown()
        patch.undo()


def test_submitted_stopped_and_submitted_again(dashboard: str, whole: Path, tmp_path: Path) -> None:
    from ray.job_submission import JobSubmissionClient

    log = tmp_path / "log"
    cluster = ["--address", dashboard, "--storage", str(tmp_path), "--run-id", "r"]
    cluster += ["--python", sys.executable]
    arguments = ["submit", training(whole)[1], *cluster, *training(whole)[4:]]
    process = begin(arguments, log)
    wait_for_commit(process, tmp_path / "r", "epoch-1/sample", log)
    JobSubmissionClient(dashboard).stop_job("train-r-1")
    assert process.wait(timeout=120) == 143
    assert "stopped by SIGTERM at: epoch-1/" in log.read_text(), log.read_text()[-4000:]
    finish(arguments, log)
    assert "job train-r-2" in log.read_text()
    assert "revenue / query" in log.read_text()
    assert ids(tmp_path / "r") == ids(whole)
    assert results(tmp_path / "r")["epochs"] == results(whole)["epochs"]
