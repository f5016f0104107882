"""What is done now and how far it is: bars on a terminal, dated lines in a file or a job's log."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

LINE_SECONDS = 30.0
"""Between two lines of a stage, where there is no terminal."""
SHOW_SECONDS = 0.1
"""Between two updates of the bars, at least."""


class Clock:
    """The time, for tests to replace."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def date(self) -> datetime:
        """Local date and time."""
        return datetime.now()

    def wait(self, over: threading.Event, seconds: float) -> bool:
        """Wait ``seconds`` or until ``over``; whether it is."""
        return over.wait(seconds)


@dataclass(slots=True)
class Count:
    """One kind of work in a stage: ``done`` of ``total``, of which ``before`` were done at ``since``."""

    total: int
    since: float
    done: int = 0
    before: int = 0
    tokens: int = 0

    def rate(self, now: float) -> str:
        """Tokens a second, in words; nothing where none are counted."""
        return f"{self.tokens / max(1e-9, now - self.since):.0f} tok/s" if self.tokens else ""

    def left(self, now: float) -> str:
        """How long the rest takes at the pace so far, in words; nothing where none is known."""
        fresh, rest = self.done - self.before, self.total - self.done
        if fresh <= 0 or rest <= 0:
            return ""
        return f"ETA {timedelta(seconds=round((now - self.since) / fresh * rest))}"


class Steps:
    """Tells whoever reads the console what is done, stage by stage; one stage at a time."""

    def __init__(self, console: Console, clock: Clock | None = None) -> None:
        self.console = console
        self.wall: dict[str, float] = {}
        """Seconds of each stage that is over, by its name."""
        self._clock = clock or Clock()
        self._counts: dict[str, Count] = {}
        self._bars: _Bars | None = None

    def say(self, text: str, style: str = "") -> None:
        """One line, as it is; with date and time where there is no terminal."""
        stamp = "" if self.console.is_terminal else f"{self._clock.date():%Y-%m-%d %H:%M:%S} "
        self.console.print(Text(f"{stamp}{text}", style), soft_wrap=True)

    @contextmanager
    def stage(self, name: str, **totals: int) -> Iterator[None]:
        """Time a stage and show how far it is with each of its totals."""
        began = self._clock.now()
        self._counts = {kind: Count(total, began) for kind, total in totals.items()}
        with self._shown(name, began):
            yield
        self.wall[name] = round(self._clock.now() - began, 3)
        tokens = sum(count.tokens for count in self._counts.values())
        self.say(f"{name}: {self.wall[name]:.1f} s{f', {tokens} tokens' if tokens else ''}", "dim")

    def expect(self, kind: str, more: int) -> None:
        """There are ``more`` of ``kind`` to do than was known, if any were."""
        self._counts.setdefault(kind, Count(0, self._clock.now())).total += more
        self._show()

    def reach(self, kind: str, done: int, total: int) -> None:
        """``done`` of ``total`` of ``kind`` are done; the pace is taken from the first that is heard of."""
        if kind not in self._counts:
            return
        count = self._counts[kind]
        if not count.total:
            count.before, count.since = done, self._clock.now()
        count.done, count.total = done, total
        self._show()

    def advance(self, kind: str, count: int, tokens: int = 0) -> None:
        """``count`` more of ``kind`` are done, worth ``tokens`` generated tokens."""
        if kind in self._counts:
            self._counts[kind].done += count
            self._counts[kind].tokens += tokens
            self._show()

    def _shown(self, name: str, began: float) -> AbstractContextManager[None]:
        return self._drawn(name, began) if self.console.is_terminal else self._told(name, began)

    def _show(self) -> None:
        if self._bars is not None:
            self._bars.update(self._counts, self._clock.now())

    @contextmanager
    def _drawn(self, name: str, began: float) -> Iterator[None]:
        self._bars = _Bars(self.console, name, self._counts, began)
        try:
            with self._bars.progress:
                yield
        finally:
            self._bars = None

    @contextmanager
    def _told(self, name: str, began: float) -> Iterator[None]:
        """A line at once and every `LINE_SECONDS`; from a thread, so that it comes where nothing moves."""
        over = threading.Event()
        counts = self._counts

        def tell() -> None:
            while not self._clock.wait(over, LINE_SECONDS):
                self.say(line(name, counts, began, self._clock.now()))

        self.say(f"{name}: begun")
        thread = threading.Thread(target=tell, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def line(name: str, counts: Mapping[str, Count], began: float, now: float) -> str:
    """How far a stage is that ``began`` at one time and is looked at ``now``."""
    parts = []
    for kind, count in counts.items():
        if count.total:
            told = (f"{kind} {count.done}/{count.total}", count.rate(now), count.left(now))
            parts.append(", ".join(figure for figure in told if figure))
    return f"{name}: {'; '.join([*parts, f'{now - began:.0f} s so far'])}"


class _Bars:
    """A bar for each kind of work, or one that only moves."""

    def __init__(self, console: Console, name: str, counts: Mapping[str, Count], began: float) -> None:
        self.progress = Progress(
            TextColumn("{task.description:<34}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._updated = began
        self._name = name
        self._tasks = {kind: self._task(kind, count) for kind, count in counts.items()}
        self._only = None if counts else self.progress.add_task(name, total=None, rate="")

    def update(self, counts: Mapping[str, Count], now: float) -> None:
        """Bring the bars up to date, which costs too much to be done for every answer."""
        if now - self._updated < SHOW_SECONDS:
            return
        self._updated = now
        if self._only is not None:
            self.progress.remove_task(self._only)
            self._only = None
        for kind, count in counts.items():
            if kind not in self._tasks:
                self._tasks[kind] = self._task(kind, count)
            self.progress.update(
                self._tasks[kind], completed=count.done, total=count.total, rate=count.rate(now)
            )

    def _task(self, kind: str, count: Count) -> TaskID:
        return self.progress.add_task(f"{self._name}: {kind}", total=count.total, rate="")
