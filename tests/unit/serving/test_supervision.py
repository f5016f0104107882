"""Background tasks go on after any exception, and say that something is wrong."""

from __future__ import annotations

import asyncio
import itertools
import re
import time

import pytest

from raylla.serving.deploy import supervision
from raylla.serving.deploy.supervision import Supervisor
from raylla.serving.http.reports import Reports


def test_a_task_that_fails_is_tried_again_after_growing_pauses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE", 0.04)
    monkeypatch.setattr(supervision, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(supervision.log, "propagate", True)
    reports = Reports(lambda: 0, lambda: 0)
    times: list[float] = []
    problems: list[list[str]] = []

    async def work() -> None:
        times.append(time.monotonic())
        problems.append(supervisor.problems())
        if len(times) <= 3:
            raise ZeroDivisionError("nobody foresaw this")
        if len(times) == 4:
            raise asyncio.CancelledError

    async def watch() -> None:
        supervisor.start("catalogue", 0.01, work)
        reports.watch("catalogue", lambda: supervisor.age("catalogue"))
        async with asyncio.timeout(30):
            while len(times) < 7:
                await asyncio.sleep(0.005)
        supervisor.stop()

    supervisor = Supervisor(reports.task_failed)
    with caplog.at_level("ERROR", "raylla.serving"):
        asyncio.run(watch())
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses[0] >= 0.04
    assert pauses[1] >= 0.08
    assert min(pauses[2:4]) >= 0.1
    assert problems[0] == problems[5] == problems[6] == []
    assert problems[3] == [
        "catalogue: failed 3 times in a row, the last time by ZeroDivisionError: nobody foresaw this"
    ]
    assert "CancelledError" in problems[4][0]
    assert len([one for one in caplog.records if one.exc_info]) == 4
    text = reports.text().decode()
    assert 'raylla_task_failures_total{task="catalogue"} 4.0' in text
    age = re.search(r'^raylla_task_age_seconds\{task="catalogue"\} (\S+)$', text, re.MULTILINE)
    assert age is not None
    assert 0 <= float(age.group(1)) < 1


def test_a_task_that_hangs_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "LATE", 0.05)
    supervisor = Supervisor()

    async def watch() -> list[str]:
        supervisor.start("notices", 0.01, lambda: asyncio.sleep(60))
        supervisor.start("canary", 0.01, lambda: asyncio.sleep(0))
        await asyncio.sleep(0.2)
        found = supervisor.problems()
        supervisor.stop()
        return found

    (problem,) = asyncio.run(watch())
    assert problem.startswith("notices: not done for")
