"""Progress that is read in a file: dated lines, one at least every so often, none of them blank."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from raylla import progress
from raylla.config import parse
from raylla.observe import Observer

DATED = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    return io.StringIO()


def watch(console: Console) -> Observer:
    return Observer(parse({"wandb": {"mode": "disabled"}}, "test"), None, console)


def test_a_log_has_a_dated_line_for_each_step(lines: io.StringIO) -> None:
    observer = watch(Console(file=lines, width=200))
    with observer.stage("epoch 1: sample", reward=10, judgements=4):
        observer.advance("reward", 4, 400)
        time.sleep(0.3)  # nothing moves, and lines come
    with observer.stage("start engines"):
        time.sleep(0.12)
    observer.say("epoch 1: 12.0 s")
    observer.close()
    found = lines.getvalue().splitlines()
    assert all(re.match(DATED, line) for line in found), found
    assert re.fullmatch(DATED + "epoch 1: sample: begun", found[0])
    moving = [line for line in found if "reward 4/10" in line]
    assert len(moving) >= 3
    told = r"sample: reward 4/10, \d+ tok/s, ETA 0:00:0\d, judgements 0/4, \d+ s so far"
    assert re.search(told, moving[0])
    assert any(re.search(r"epoch 1: sample: 0\.\d s, 400 tokens$", line) for line in found)
    assert any(re.search(r"start engines: \d+ s so far", line) for line in found)
    count = len(found)
    time.sleep(0.1)
    assert len(lines.getvalue().splitlines()) == count, "a finished stage goes on telling"


def test_a_failed_stage_stops_telling(lines: io.StringIO) -> None:
    observer = watch(Console(file=lines, width=200))
    with pytest.raises(RuntimeError), observer.stage("x", answers=1):
        raise RuntimeError
    observer.close()
    count = lines.getvalue().count("\n")
    time.sleep(0.15)
    assert lines.getvalue().count("\n") == count == 1


def test_a_terminal_has_bars_and_no_dates(lines: io.StringIO) -> None:
    observer = watch(Console(file=lines, width=120, force_terminal=True))
    with observer.stage("epoch 1: sample", answers=10):
        observer.advance("answers", 4, 400)
        time.sleep(0.15)
        observer.expect("answers", 2)
        time.sleep(0.2)
    observer.close()
    text = lines.getvalue()
    assert "epoch 1: sample: answers" in text
    assert "4/12" in text
    assert not re.search(DATED, text)
