"""Progress that is read in a file: dated lines, one at least every so often, none of them blank."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import pytest
from rich.console import Console

from raylla import progress
from raylla.config import parse_config
from raylla.progress import LINE_SECONDS, Clock, Count, Steps, line
from raylla.runs.observe import Observer

DATED = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
BEGAN = datetime(2026, 1, 2, 3, 4, 5)


class Acted(Clock):
    """Time that passes where a stage waits for its next line, and as the acts between them let it pass.

    Each act happens in one such wait; behind the last one time stands still, and `acted` is set.
    """

    def __init__(self, *acts: Callable[[], object]) -> None:
        self._acts = list(acts)
        self.seconds = 0.0
        self.acted = threading.Event()

    def now(self) -> float:
        return self.seconds

    def date(self) -> datetime:
        return BEGAN + timedelta(seconds=self.seconds)

    def wait(self, over: threading.Event, seconds: float) -> bool:
        if not self._acts:
            self.acted.set()
            return over.wait(20)
        self._acts.pop(0)()
        self.seconds += seconds
        return False


def told(acts: Sequence[Callable[[Steps], object]], name: str, **totals: int) -> list[str]:
    """The lines of a stage in which ``acts`` happen, one in each wait."""
    lines = io.StringIO()
    clock = Acted(*[lambda act=act: act(steps) for act in acts])  # type: ignore[misc]
    steps = Steps(Console(file=lines, width=40), clock)
    with steps.stage(name, **totals):
        assert clock.acted.wait(20)
    return lines.getvalue().splitlines()


def test_a_log_has_a_dated_line_every_so_often_though_nothing_moves() -> None:
    assert LINE_SECONDS <= 30
    found = told([lambda _: None] * 3, "start engines")
    assert found == [
        "2026-01-02 03:04:05 start engines: begun",
        "2026-01-02 03:04:35 start engines: 30 s so far",
        "2026-01-02 03:05:05 start engines: 60 s so far",
        "2026-01-02 03:05:35 start engines: 90 s so far",
        "2026-01-02 03:05:35 start engines: 90.0 s",
    ]


def test_a_line_has_done_of_all_tokens_a_second_and_the_time_that_is_left() -> None:
    acts = [
        lambda steps: steps.advance("reward", 4, 600),
        lambda steps: (steps.expect("judgements", 2), steps.advance("judgements", 1)),
        lambda steps: (steps.advance("reward", 6, 900), steps.advance("unasked", 1, 5)),
    ]
    found = told(acts, "epoch 1: sample", reward=10, judgements=0)
    assert [one.partition("sample: ")[2] for one in found] == [
        "begun",
        "reward 4/10, 20 tok/s, ETA 0:00:45; 30 s so far",
        "reward 4/10, 10 tok/s, ETA 0:01:30; judgements 1/2, ETA 0:01:00; 60 s so far",
        "reward 10/10, 17 tok/s; judgements 1/2, ETA 0:01:30; 90 s so far",
        "90.0 s, 1500 tokens",
    ]


def test_work_that_goes_on_from_before_is_paced_by_what_is_new() -> None:
    acts = [
        lambda _: None,
        lambda steps: steps.reach("steps", 60, 100),
        lambda steps: steps.reach("steps", 62, 100),
        lambda steps: steps.reach("steps", 64, 100),
    ]
    found = told(acts, "warm start", steps=0)
    assert [one.partition("start: ")[2] for one in found][1:-1] == [
        "30 s so far",
        "steps 60/100; 60 s so far",
        "steps 62/100, ETA 0:19:00; 90 s so far",
        "steps 64/100, ETA 0:13:30; 120 s so far",
    ]


def test_no_pace_no_end() -> None:
    counts = {"answers": Count(0, 0.0), "rows": Count(5, 0.0), "queries": Count(3, 0.0, done=3)}
    assert line("x", counts, 0, 4) == "x: rows 0/5; queries 3/3; 4 s so far"


def test_a_failed_stage_stops_telling() -> None:
    lines, clock = io.StringIO(), Acted(lambda: None)
    steps = Steps(Console(file=lines), clock)

    def fail() -> None:
        with steps.stage("x", answers=1):
            assert clock.acted.wait(20)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [thread.name for thread in threading.enumerate() if thread.name == "progress"] == []
    assert len(lines.getvalue().splitlines()) == 2
    assert "x" not in steps.wall


def test_a_run_s_lines_are_dated_too_and_whole() -> None:
    lines = io.StringIO()
    observer = Observer(
        parse_config({"wandb": {"mode": "disabled"}}, "test"), None, Console(file=lines, width=30), Acted()
    )
    with observer.stage("epoch 1: sample", reward=10):
        observer.lost("judge")
    observer.say("[bold]epoch 1: 12.0 s, and much more is to be said of it")
    observer.close()
    found = lines.getvalue().splitlines()
    assert len(found) == 4
    assert all(re.match(DATED, one) for one in found), found
    assert found[-1].endswith("05 [bold]epoch 1: 12.0 s, and much more is to be said of it")


def test_a_terminal_has_bars_and_no_dates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHOW_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    lines = io.StringIO()
    steps = Steps(Console(file=lines, width=120, force_terminal=True))
    with steps.stage("epoch 1: sample", answers=10):
        steps.advance("answers", 4, 400)
        steps.expect("answers", 2)
    steps.say("done")
    text = lines.getvalue()
    assert "epoch 1: sample: answers" in text
    assert "4/12" in text
    assert not re.search(DATED, text)
