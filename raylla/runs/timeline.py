"""Who worked when, and who waited for whom: the actors' spans of each epoch, and how many there were.

``timeline.jsonl`` has a line per span, one per change of a pool's size and one per epoch;
``timeline.trace.json`` holds them for a trace viewer (chrome://tracing, Perfetto), sizes as counters.
Times are the actors' own clocks, so that on several machines they are as exact as the machines' clocks
agree.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raylla.actors.host import START
from raylla.actors.spans import Size, Span
from raylla.storage import writing
from raylla.strictjson import dumps

ROLLOUT, JUDGE, REWARD, TRAINER = "rollout", "judge", "reward-trainer", "policy-trainer"
LOAD = "load"


class Timeline:
    """Spans of one run; written to ``directory`` after each epoch, kept in memory where there is none."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._spans: list[Span] = []
        self._sizes: list[Size] = []
        self.epochs: list[dict[str, Any]] = []

    def add(self, span: Span) -> None:
        """Take one span."""
        self._spans.append(span)

    def resize(self, size: Size) -> None:
        """Take a change of a pool's size."""
        self._sizes.append(size)

    @contextmanager
    def epoch(self, epoch: int) -> Iterator[None]:
        """The spans that are added meanwhile are this epoch's; an epoch that fails leaves none."""
        self._spans, self._sizes = [], []
        began = time.time()
        yield
        ended = time.time()
        found = {
            "epoch": epoch,
            "wall_seconds": ended - began,
            "critical_seconds": critical_seconds(self._spans),
            "idle": idle(self._spans, began, ended),
            "pools": pools(self._sizes, ended),
        }
        self.epochs.append(found)
        if self._directory is not None:
            with writing(self._directory / "timeline.jsonl"):
                with (self._directory / "timeline.jsonl").open("a") as file:
                    events = [*map(asdict, self._spans), *map(asdict, self._sizes)]
                    for line in (*({"epoch": epoch} | event for event in events), found):
                        file.write(dumps(line) + "\n")
                write_trace(self._directory)


def idle(spans: Sequence[Span], began: float, ended: float) -> dict[str, float]:
    """Share of ``began`` to ``ended`` in which each actor of ``spans`` did nothing, by actor."""
    busy: dict[str, float] = {}
    for span in spans:
        inside = min(span.ended, ended) - max(span.began, began)
        busy[span.actor] = busy.get(span.actor, 0.0) + max(0.0, inside)
    return {actor: 1 - seconds / (ended - began) for actor, seconds in sorted(busy.items())}


def pools(sizes: Sequence[Size], ended: float) -> dict[str, dict[str, float]]:
    """Of each pool the least and most workers, and the seconds of all of them together, up to ``ended``."""
    by_pool: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(size.pool for size in sizes):
        of_it = [size for size in sizes if size.pool == name]
        until = [*(size.at for size in of_it[1:]), ended]
        workers = [size.workers for size in of_it]
        lasted = (size.workers * (end - size.at) for size, end in zip(of_it, until, strict=True))
        by_pool[name] = {"least": min(workers), "most": max(workers), "worker_seconds": sum(lasted)}
    return by_pool


def critical_seconds(spans: Sequence[Span]) -> float:
    """Seconds that an epoch of these spans takes where nobody waits but for what he needs.

    Rollouts answer without a pause.  The pCTR update needs the last phase-1 judgement: the judge has
    all phase-1 answers to read, and its last batch follows the last answer.  Scores need the update and
    the last phase-2 answer; DPO needs all scores; the new weights need DPO, and engines that are done
    with the test.  The judge must get through the test as well.
    """
    answered = {
        phase: max((_until(spans, actor, phase) for actor in _actors(spans, ROLLOUT)), default=0.0)
        for phase in ("reward", "preference", "test")
    }
    judged = max((_busy(spans, actor, "reward") for actor in _actors(spans, JUDGE)), default=0.0)
    if judged:
        judged = max(judged, answered["reward"] + _last(spans, JUDGE, "reward"))
    every = max((_busy(spans, actor, None) for actor in _actors(spans, JUDGE)), default=0.0)
    encoded = sum(_busy(spans, actor, "take") for actor in _actors(spans, REWARD))
    updated = max(judged, answered["reward"], encoded) + _last(spans, REWARD, "take")
    updated += sum(_busy(spans, actor, "update") for actor in _actors(spans, REWARD))
    predicting = sum(_busy(spans, actor, "predict_intervals") for actor in _actors(spans, REWARD))
    scored = max(updated + predicting, answered["preference"] + _last(spans, REWARD, "predict_intervals"))
    aligned = scored + sum(_busy(spans, actor, None) for actor in _actors(spans, TRAINER))
    return max(aligned, answered["test"], every) + _last(spans, ROLLOUT, LOAD)


def write_trace(directory: Path) -> None:
    """``timeline.jsonl`` in Chrome's trace format: a row per actor, and a counter per pool."""
    lines = [json.loads(line) for line in (directory / "timeline.jsonl").read_text().splitlines()]
    spans = [line for line in lines if "actor" in line]
    rows = {actor: row for row, actor in enumerate(sorted({span["actor"] for span in spans}))}
    events: list[dict[str, Any]] = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": row, "args": {"name": actor}}
        for actor, row in rows.items()
    ]
    events += [
        {
            "name": span["task"],
            "cat": f"epoch {span['epoch']}",
            "ph": "X",
            "pid": 1,
            "tid": rows[span["actor"]],
            "ts": span["began"] * 1e6,
            "dur": (span["ended"] - span["began"]) * 1e6,
        }
        for span in spans
    ]
    events += [
        {
            "name": f"workers of {size['pool']}",
            "ph": "C",
            "pid": 1,
            "ts": size["at"] * 1e6,
            "args": {"at work": size["workers"], "joining": size["joining"]},
        }
        for size in lines
        if "pool" in size
    ]
    (directory / "timeline.trace.json").write_text(dumps({"traceEvents": events}))


def _actors(spans: Sequence[Span], group: str) -> set[str]:
    return {span.actor for span in spans if span.actor.rpartition("[")[0] == group}


def _busy(spans: Sequence[Span], actor: str, task: str | None) -> float:
    """Seconds of one actor's spans, of one task or of all."""
    return sum(
        span.ended - span.began for span in spans if span.actor == actor and task in (None, span.task)
    )


def _until(spans: Sequence[Span], actor: str, phase: str) -> float:
    """Busy seconds of one rollout actor up to the end of its last span of ``phase``."""
    ends = [span.ended for span in spans if span.actor == actor and span.task == phase]
    if not ends:
        return 0.0
    return sum(
        span.ended - span.began
        for span in spans
        if span.actor == actor and span.task not in (LOAD, START) and span.ended <= max(ends)
    )


def _last(spans: Sequence[Span], group: str, task: str) -> float:
    """Length of the span of ``task`` that ended last in a group."""
    found = [span for span in spans if span.actor.rpartition("[")[0] == group and span.task == task]
    return max(((span.ended, span.ended - span.began) for span in found), default=(0.0, 0.0))[1]
