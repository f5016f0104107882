"""Idle shares and the critical path, by hand."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from raylla.actors.spans import ActorSpans, Size, Span
from raylla.runs.timeline import Timeline, critical_seconds, idle, pools


def epoch(judge_from: float = 1.0, wait: float = 0.0) -> list[Span]:
    """Two rollouts of 10 s, phase 1 in the first 4; 6 s of judging; update 2, scores 1, DPO 5, load 0.5."""
    spans = []
    for number, last in ((0, 9.0), (1, 10.0)):
        actor = f"rollout[{number}]"
        spans += [
            Span(actor, "reward", 0, 4),
            Span(actor, "preference", 4, 8),
            Span(actor, "test", 8, last),
            Span(actor, "load", 20 + wait, 20.5 + wait),
        ]
    spans += [Span("judge[0]", "reward", judge_from, judge_from + 4)]
    spans += [Span("judge[0]", "reward", judge_from + 4, judge_from + 6)]
    spans += [
        Span("judge[0]", "test", 10, 11),
        Span("reward-trainer[0]", "take", 3, 4),
        Span("reward-trainer[0]", "update", 8, 10),
        Span("reward-trainer[0]", "predict_intervals", 10, 11),
        Span("policy-trainer[0]", "align", 12 + wait, 17 + wait),
    ]
    return spans


def test_the_critical_path_is_the_longest_chain_of_needs() -> None:
    # Judging takes 6 s, its last batch 2 after the last answer at 4; then encoding the last rows 1,
    # update 2, scores 1, DPO 5 and the new weights 0.5.
    assert critical_seconds(ActorSpans(epoch())) == pytest.approx(6 + 1 + 2 + 1 + 5 + 0.5)


def test_waiting_is_not_on_it() -> None:
    assert critical_seconds(ActorSpans(epoch(judge_from=4.0, wait=3.0))) == critical_seconds(
        ActorSpans(epoch())
    )


def test_a_long_test_is() -> None:
    slow = [*epoch(), Span("rollout[1]", "test", 10, 30)]
    assert critical_seconds(ActorSpans(slow)) == pytest.approx(30 + 0.5)


def test_idle_is_what_is_left() -> None:
    shares = idle(epoch(), 0, 20.5)
    assert shares["judge[0]"] == pytest.approx(1 - 7 / 20.5)
    assert shares["rollout[1]"] == pytest.approx(1 - 10.5 / 20.5)
    assert idle([Span("a", "b", -5, 5)], 0, 10) == {"a": 0.5}


def test_sizes_are_summed_up_and_drawn_as_counters(tmp_path: Path) -> None:
    changes = (("rollout", 0, 1, 2), ("judge", 0, 1, 0), ("rollout", 4, 3, 0), ("rollout", 6, 1, 0))
    sizes = [Size(*change) for change in changes]
    found = pools(sizes, 10)
    assert found == {
        "rollout": {"least": 1, "most": 3, "worker_seconds": 4 + 3 * 2 + 4},
        "judge": {"least": 1, "most": 1, "worker_seconds": 10},
    }
    timeline = Timeline(tmp_path)
    with timeline.epoch(1):
        timeline.resize(sizes[2])
    events = json.loads((tmp_path / "timeline.trace.json").read_text())["traceEvents"]
    assert [(one["name"], one["ph"], one["ts"], one["args"]) for one in events] == [
        ("workers of rollout", "C", 4e6, {"at work": 3, "joining": 0})
    ]


def test_an_epoch_is_written_for_people_and_for_trace_viewers(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path)
    timeline.add(Span("judge[0]", "start", 0, 1))
    with timeline.epoch(1):
        timeline.add(Span("judge[0]", "reward", 5, 7))
    with pytest.raises(ZeroDivisionError), timeline.epoch(2):
        timeline.add(Span("judge[0]", "reward", 8, 9 / 0))
    with timeline.epoch(2):
        timeline.add(Span("rollout[0]", "reward", 9, 9.5))
    lines = [json.loads(line) for line in (tmp_path / "timeline.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 1, 2, 2]
    assert [one["epoch"] for one in timeline.epochs] == [1, 2]
    events = json.loads((tmp_path / "timeline.trace.json").read_text())["traceEvents"]
    drawn = [
        (event["tid"], event["name"], event["ts"], event["dur"]) for event in events if event["ph"] == "X"
    ]
    assert drawn == [(0, "reward", 5e6, 2e6), (1, "reward", 9e6, 0.5e6)]


def test_a_span_more_is_two_numbers_more_in_memory(tmp_path: Path) -> None:
    timeline, many = Timeline(tmp_path), 5000
    with timeline.epoch(1):
        tracemalloc.start()
        for place in range(many):
            timeline.add(Span(f"rollout[{place % 4}]", "reward", place + 0.25, place + 0.5))
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert kept < 20 * many
    lines = [json.loads(line) for line in (tmp_path / "timeline.jsonl").read_text().splitlines()]
    assert sorted(line["began"] for line in lines[:-1]) == [place + 0.25 for place in range(many)]


def test_a_trace_is_written_without_all_of_it_in_memory(tmp_path: Path) -> None:
    timeline, many = Timeline(tmp_path), 5000
    with timeline.epoch(1):
        for place in range(many):
            timeline.add(Span("rollout[0]", "reward", place, place + 0.5))
        tracemalloc.start()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "timeline.trace.json").stat().st_size > 50 * many
    assert peak < 50 * many
