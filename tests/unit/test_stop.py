"""A stop by signal: heeded at work, held back while a stage is committed, typed."""

from __future__ import annotations

import os
import signal

import pytest

from raylla import stop
from raylla.errors import StoppedError


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_work_ends_at_once_with_a_typed_status(number: signal.Signals, status: int) -> None:
    usual = signal.getsignal(number)
    reached: list[str] = []

    def work() -> None:
        with stop.listen(), stop.heeded("epoch-1/sample"):
            os.kill(os.getpid(), number)
            reached.append("after the signal")

    with pytest.raises(StoppedError, match=rf"stopped by {number.name} at: epoch-1/sample") as caught:
        work()
    assert (caught.value.status, reached) == (status, [])
    assert signal.getsignal(number) is usual


def test_a_commit_is_finished_first() -> None:
    committed: list[str] = []

    def work() -> None:
        with stop.listen():
            with stop.heeded("epoch-1/sample"):
                pass
            os.kill(os.getpid(), signal.SIGTERM)
            committed.append("epoch-1/sample")
            with stop.heeded("epoch-1/learn"):
                committed.append("epoch-1/learn")

    with pytest.raises(StoppedError, match="epoch-1/learn"):
        work()
    assert committed == ["epoch-1/sample"]


def test_without_a_listener_signals_are_as_usual() -> None:
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # none in the background
    try:
        with pytest.raises(KeyboardInterrupt), stop.heeded("anything"):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, usual)
