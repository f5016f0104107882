"""Why a DPO run ended: a part of it was lost, or it is at fault itself."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, WorkerCrashedError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError

from raylla.actors.policy import _lost

DIED = WorkerHealthCheckFailedError("a health check failed", ActorDiedError())
PEER = RuntimeError("Connection closed by peer")
BUG = ValueError("no such column")


@pytest.mark.parametrize(
    ("failure", "lost"),
    [
        (WorkerGroupError("rank 1", {0: PEER, 1: DIED}), True),
        (ControllerError(WorkerGroupStartupTimeoutError(2)), True),
        (WorkerCrashedError(), True),
        (WorkerGroupError("both ranks", {0: BUG, 1: BUG}), False),
        (ControllerError(BUG), False),
        (BUG, False),
        (None, False),
    ],
)
def test_a_dead_process_or_node_is_told_from_an_error(failure: Exception | None, lost: bool) -> None:
    assert _lost(failure) is lost
