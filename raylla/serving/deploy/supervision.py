"""Background tasks that go on, whatever happens to them, and say so.

A task is something done again and again. Where it fails, by whatever exception, that is logged and counted,
and it is tried again after a pause that grows from one failure in a row to the next. A task that is
failing, or has not been done for long (it hangs, say), is a problem that `/healthz` names.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a failed task is tried again: doubled with each failure in a row."""
LATE = 60.0
"""Seconds beyond its period after which a task that was not done is a problem."""
log = logging.getLogger("raylla.serving")


def _ignore(name: str) -> None:
    """Count nothing."""


@dataclass
class _Job:
    """A task: what it does, how often, and how it went."""

    every: float
    once: Callable[[], Awaitable[object]]
    failures: int = 0
    error: str = ""
    done: float = field(default_factory=time.monotonic)

    def pause(self) -> float:
        """Seconds until it is done again."""
        if not self.failures:
            return self.every
        return max(self.every, min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (self.failures - 1)))


class Supervisor:
    """Keeps tasks going.

    Args:
        failed: told the name of a task each time that it fails.
    """

    def __init__(self, failed: Callable[[str], None] = _ignore) -> None:
        self._failed = failed
        self._jobs: dict[str, _Job] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, every: float, once: Callable[[], Awaitable[object]]) -> None:
        """Do ``once`` every ``every`` seconds, the first time after so many, until `stop`."""
        job = self._jobs[name] = _Job(every, once)
        self._tasks.append(asyncio.create_task(self._keep(name, job), name=name))

    def stop(self) -> None:
        """End all of them."""
        for task in self._tasks:
            task.cancel()

    def age(self, name: str) -> float:
        """Seconds since a task was last done."""
        return time.monotonic() - self._jobs[name].done

    def problems(self) -> list[str]:
        """What is wrong with which task; empty where all is well."""
        found = []
        for name, job in self._jobs.items():
            if job.failures:
                found.append(f"{name}: failed {job.failures} times in a row, the last time by {job.error}")
            elif self.age(name) > job.every + LATE:
                found.append(f"{name}: not done for {self.age(name):.0f} s")
        return found

    async def _keep(self, name: str, job: _Job) -> None:
        while True:
            await asyncio.sleep(job.pause())
            work = asyncio.ensure_future(job.once())
            try:
                await asyncio.wait({work})  # which raises nothing of the work's own
            finally:
                work.cancel()
            self._ended(name, job, work)

    def _ended(self, name: str, job: _Job, work: asyncio.Future[object]) -> None:
        error = asyncio.CancelledError() if work.cancelled() else work.exception()
        if error is None:
            job.failures, job.error, job.done = 0, "", time.monotonic()
            return
        job.failures += 1
        job.error = f"{type(error).__name__}: {error}"
        self._failed(name)
        log.error(
            "task %s has failed and is tried again in %g s: %s",
            *(name, job.pause(), job.error),
            extra={"task": name, "failures": job.failures},
            exc_info=error,
        )
