"""What a run shows while it goes: console progress, JSONL metrics, W&B, Prometheus, memory.

Nothing here can stop a run: `tracking` keeps W&B in a thread of its own, behind a queue.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.text import Text

from raylla.actors.spans import Size
from raylla.config import Config
from raylla.gauges import Gauges
from raylla.progress import Shown, shown, stamp
from raylla.storage import writing
from raylla.strictjson import dumps
from raylla.terminal import plain
from raylla.timeline import Timeline
from raylla.tracking import Tracker

SHOW_SECONDS = 0.1
"""Between two updates of the progress bars, at least."""


class Observer:
    """Progress and metrics of one run."""

    def __init__(self, config: Config, directory: Path | None, console: Console | None = None) -> None:
        self.console = console or plain()
        self.metrics_path = directory / "metrics.jsonl" if directory else None
        self.timeline = Timeline(directory)
        self.wall: dict[str, float] = {}
        self.restarts: Counter[str] = Counter()
        self._progress: Shown | None = None
        self._totals: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._tokens: dict[str, int] = {}
        self._shown = 0.0
        self._since = time.monotonic()
        self._memory = _Memory()
        self._gauges = Gauges(config.name)
        self._tracker = Tracker(config, directory) if directory else None

    def say(self, text: str, style: str = "") -> None:
        """One line for the reader of the console, as it is."""
        self.console.print(Text(f"{stamp(self.console)}{text}", style), soft_wrap=True)

    @contextmanager
    def stage(self, name: str, **totals: int) -> Iterator[None]:
        """Time a stage and show how far it is with each of its totals."""
        started = self._since = time.monotonic()
        self._totals, self._done, self._tokens = dict(totals), dict.fromkeys(totals, 0), {}
        self._gauges.stage(name, True)
        with shown(self.console, name, totals) as self._progress:
            try:
                yield
            finally:
                self._progress = None
                self._gauges.stage(name, False)
        self.wall[name] = round(time.monotonic() - started, 3)
        tokens = sum(self._tokens.values())
        self.say(f"{name}: {self.wall[name]:.1f} s{f', {tokens} tokens' if tokens else ''}", "dim")

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

    def expect(self, kind: str, more: int) -> None:
        """Raise a bar's total."""
        if kind in self._totals:
            self._totals[kind] += more
            self._show()

    def advance(self, kind: str, count: int, tokens: int) -> None:
        """``count`` more of ``kind`` are done, worth ``tokens`` generated tokens."""
        self._tokens[kind] = self._tokens.get(kind, 0) + tokens
        self._gauges.done(kind, count, tokens)
        if kind in self._done:
            self._done[kind] += count
            self._show()

    def _show(self) -> None:
        """Bring the bars up to date, which costs too much to be done for every answer."""
        now = time.monotonic()
        if self._progress is None or now - self._shown < SHOW_SECONDS:
            return
        self._shown = now
        for kind, total in self._totals.items():
            rate = self._tokens.get(kind, 0) / max(1e-9, now - self._since)
            self._progress.update(kind, self._done[kind], total, rate)

    def pool(self, name: str, workers: int, joining: int) -> None:
        """From now on ``workers`` of a pool take calls, and ``joining`` more are to."""
        self.timeline.resize(Size(name, time.time(), workers, joining))
        self._gauges.pool(name, workers, joining)

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
    where looking takes long: large processes, and many."""

    EVERY, SHARE = 3.0, 0.01

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _watch(self) -> None:
        wait = self.EVERY
        while not self._stop.wait(wait):
            began = time.monotonic()
            self.peak = max(self.peak, tree_memory())
            wait = max(self.EVERY, (time.monotonic() - began) / self.SHARE)


def tree_memory() -> int:
    """Bytes that this process and its descendants hold, shared pages split among their users."""
    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
    return total
