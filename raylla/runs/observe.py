"""What a run shows while it goes: console progress, JSONL metrics, W&B, Prometheus, memory.

Nothing here can stop a run: `tracking` keeps W&B in a thread of its own, behind a queue.
"""

from __future__ import annotations

import resource
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from raylla.actors.spans import Size, Span
from raylla.config import Config
from raylla.progress import Clock, Steps
from raylla.runs.gauges import Gauges
from raylla.runs.timeline import Timeline
from raylla.runs.tracking import Tracker
from raylla.storage import writing
from raylla.strictjson import dumps
from raylla.terminal import plain_console

_PAGE = resource.getpagesize()


class Observer(Steps):
    """Progress and metrics of one run."""

    def __init__(
        self,
        config: Config,
        directory: Path | None,
        console: Console | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(console or plain_console(), clock)
        self.metrics_path = directory / "metrics.jsonl" if directory else None
        self.timeline = Timeline(directory)
        self.restarts: Counter[str] = Counter()
        self._memory = _Memory()
        self._gauges = Gauges(config.name)
        self._tracker = Tracker(config, directory) if directory else None

    @contextmanager
    def stage(self, name: str, **totals: int) -> Iterator[None]:
        """`Steps.stage`, also told to Prometheus."""
        self._gauges.stage(name, True)
        try:
            with super().stage(name, **totals):
                yield
        finally:
            self._gauges.stage(name, False)

    @contextmanager
    def epoch(self, epoch: int) -> Iterator[None]:
        """Time an epoch and say how near it came to its critical path, and which actors were idle."""
        with self.timeline.epoch(epoch):
            yield
        found = self.timeline.epochs[-1]
        wall, critical = found["wall_seconds"], found["critical_seconds"]
        shares = ", ".join(f"{actor} {share:.0%}" for actor, share in found["idle"].items())
        self.say(f"epoch {epoch}: {wall:.1f} s, critical path {critical:.1f} s; idle: {shares}")
        self.metrics(epoch, {f"timeline/{key}": value for key, value in found.items() if key != "epoch"})

    def advance(self, kind: str, count: int, tokens: int = 0) -> None:
        """`Steps.advance`, also told to Prometheus."""
        self._gauges.done(kind, count, tokens)
        super().advance(kind, count, tokens)

    def pool(self, name: str, workers: int, joining: int) -> None:
        """From now on ``workers`` of a pool take calls, and ``joining`` more are to."""
        self.timeline.resize(Size(name, time.time(), workers, joining))
        self._gauges.pool(name, workers, joining)

    def spent(self, span: Span) -> None:
        """What a worker did in one call."""
        self.timeline.add(span)

    def lost(self, group: str) -> None:
        """A worker of ``group`` was lost and is there again."""
        self.restarts[group] += 1
        self.say(f"{group}: a worker was lost and started anew", "yellow")

    def metrics(self, epoch: int, values: dict[str, Any]) -> None:
        """Append one line of metrics; hand it to W&B, with ``epoch`` as the step, and to Prometheus."""
        if self.metrics_path:
            line = {"time": time.time(), "epoch": epoch, **values}
            with writing(self.metrics_path), self.metrics_path.open("a") as file:
                file.write(dumps(line) + "\n")
        self._gauges.epoch(epoch, values)
        if self._tracker:
            self._tracker.log(epoch, values)

    def table(self, epoch: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table of sample answers, for W&B."""
        if self._tracker:
            self._tracker.table(epoch, name, rows)

    def artifact(self, name: str, kind: str, path: Path | str, points: bool = False) -> None:
        """A directory that the run has made, for W&B; where it ``points``, by its place alone, which may
        be a URL."""
        if self._tracker:
            self._tracker.artifact(name, kind, path, points)

    @property
    def peak_memory_bytes(self) -> int:
        """Largest proportional memory of this process and everything it started."""
        return self._memory.peak

    def close(self) -> None:
        """Flush W&B within its timeout and stop the memory watch."""
        self._memory.stop()
        if self._tracker:
            self._tracker.close()


class _Memory:
    """Peak of the proportional set size of this process tree, looked at every few seconds, or less often
    where looking takes long: many processes, and large ones.

    A proportional size takes the kernel a walk through every page of a process. It is asked for again where
    the resident size, which counts a shared page for each that has it, is another than it was then.
    """

    EVERY, SHARE, OTHER = 3.0, 0.002, 0.01

    def __init__(self) -> None:
        self.peak = 0
        self._known: dict[int, tuple[int, int]] = {}
        self._stop = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="memory").start()

    def stop(self) -> None:
        self._stop.set()

    def _watch(self) -> None:
        wait = self.EVERY
        while not self._stop.wait(wait):
            began = time.thread_time()
            found = {process: _resident(process) for process in _tree()}
            self._known = {process: self._sizes(process, held) for process, held in found.items()}
            self.peak = max(self.peak, sum(proportional for _, proportional in self._known.values()))
            wait = max(self.EVERY, (time.thread_time() - began) / self.SHARE)

    def _sizes(self, process: int, held: int) -> tuple[int, int]:
        """Resident and proportional size, as they were last unless another is ``held``."""
        last = self._known.get(process)
        if last is not None and abs(held - last[0]) <= self.OTHER * last[0]:
            return last
        return held, _proportional(process)


def _tree() -> list[int]:
    """Ids of this process and its descendants."""
    me = psutil.Process()
    return [process.pid for process in (me, *me.children(recursive=True))]


def _resident(process: int) -> int:
    """Bytes that a process has in memory; none where it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE
    except OSError:
        return 0


def _proportional(process: int) -> int:
    """`_resident`, with shared pages split among their users."""
    try:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
