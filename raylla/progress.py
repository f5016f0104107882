"""How far a stage is: bars on a terminal, dated lines in a file or a job's log."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 30.0
"""Between two lines of a stage, where there is no terminal."""


def stamp(console: Console) -> str:
    """What a line of a log begins with: date and time; nothing on a terminal."""
    return "" if console.is_terminal else f"{datetime.now():%Y-%m-%d %H:%M:%S} "


class Shown:
    """What is known of a stage: done, all there is to do, and tokens a second, by kind of work."""

    def __init__(self, console: Console, name: str, totals: Mapping[str, int]) -> None:
        self._console, self._name = console, name
        self._began = time.monotonic()
        self._state = {kind: (0, total, 0.0) for kind, total in totals.items()}

    def __enter__(self) -> Shown:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The stage is over, one way or the other."""

    def update(self, kind: str, done: int, total: int, rate: float) -> None:
        """``done`` of ``total`` of a kind, at ``rate`` tokens a second."""
        self._state[kind] = (done, total, rate)


def shown(console: Console, name: str, totals: Mapping[str, int]) -> Shown:
    """The way that fits the console."""
    return (_Bars if console.is_terminal else _Lines)(console, name, totals)


class _Bars(Shown):
    def __enter__(self) -> Shown:
        columns = (
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._tasks: dict[str, TaskID] = {
            kind: self._progress.add_task(f"{self._name}: {kind}", total=total, rate="")
            for kind, (_, total, _) in self._state.items()
        }
        if not self._tasks:
            self._progress.add_task(self._name, total=None, rate="")
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, kind: str, done: int, total: int, rate: float) -> None:
        told = f"{rate:.0f} tok/s" if rate else ""
        self._progress.update(self._tasks[kind], completed=done, total=total, rate=told)


class _Lines(Shown):
    """A line at once and every `LINE_SECONDS`; from a thread, so that it comes where nothing moves."""

    def __enter__(self) -> Shown:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go, daemon=True)
        self._say("begun")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _go(self) -> None:
        while not self._over.wait(LINE_SECONDS):
            spent = time.monotonic() - self._began
            parts = [self._part(kind, spent) for kind in list(self._state)]
            self._say(", ".join([*parts, f"{spent:.0f} s so far"]))

    def _part(self, kind: str, spent: float) -> str:
        done, total, rate = self._state[kind]
        left = (
            f", ETA {timedelta(seconds=round(spent / done * (total - done)))}" if 0 < done < total else ""
        )
        return f"{kind} {done}/{total}{f', {rate:.0f} tok/s' if rate else ''}{left}"

    def _say(self, text: str) -> None:
        line = f"{stamp(self._console)}{self._name}: {text}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
