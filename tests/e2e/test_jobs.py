"""A run as a job of a cluster: submitted, robbed of workers, stopped, and submitted again."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.chaos.processes import hit, workers
from tests.e2e.commands import begin, finish, ids, results, training, wait_for_commit
from tests.e2e.nodes import ENVIRONMENT, Nodes

pytestmark = pytest.mark.e2e

BROKEN = ("rollout", "judge", "reward-trainer")
"""Workers that are killed in the epoch that is stopped."""


@pytest.fixture
def dashboard() -> Iterator[str]:
    """A cluster that gives a stopped job the 30 s that `raylla` promises to need at most.

    Ray sends the driver of a job to any cluster of the machine, but where the job's own was started by
    `ray start` in a directory of its own.
    """
    stopping = {"RAY_JOB_STOP_WAIT_TIME_S": "30"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        with closing(Nodes(os.environ | ENVIRONMENT | stopping, dashboard=True, cpus=2)) as nodes:
            nodes.wait("head")
            yield nodes.dashboard


@pytest.mark.chaos
def test_submitted_stopped_and_submitted_again(dashboard: str, whole: Path, tmp_path: Path) -> None:
    """A worker of each kind is killed at work before the job is stopped."""
    from ray.job_submission import JobSubmissionClient

    log = tmp_path / "log"
    cluster = ["--address", dashboard, "--storage", str(tmp_path), "--run-id", "r"]
    cluster += ["--python", sys.executable]
    arguments = ["submit", training(whole)[1], *cluster, *training(whole)[4:]]
    process = begin(arguments, log)
    wait_for_commit(process, tmp_path / "r", "world", log)
    for kind in BROKEN:
        (worker,) = workers(os.getpid(), kind)
        hit(worker)
    wait_for_commit(process, tmp_path / "r", "epoch-1/learn", log)
    JobSubmissionClient(dashboard).stop_job("train-r-1")
    assert process.wait(timeout=120) == 143
    said = log.read_text()
    assert "stopped by SIGTERM at: epoch-1/" in said, said[-4000:]
    assert all(f"{kind}: a worker was lost and started anew" in said for kind in BROKEN), said[-4000:]
    finish(arguments, log)
    assert "job train-r-2" in log.read_text()
    assert "revenue / query" in log.read_text()
    assert ids(tmp_path / "r") == ids(whole)
    assert results(tmp_path / "r")["epochs"] == results(whole)["epochs"]
