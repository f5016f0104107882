"""Who worked when, and who waited for whom: the actors' spans of each epoch, and how many there were.

``timeline.jsonl`` has a line per span, one per change of a pool's size and one per epoch;
``timeline.trace.json`` holds them for a trace viewer (chrome://tracing, Perfetto), sizes as counters.
Times are the actors' own clocks, so that on several machines they are as exact as the machines' clocks
agree.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from raylla.actors.host import START
from raylla.actors.spans import ActorSpans, Size, Span
from raylla.storage import writing
from raylla.strictjson import dumps

ROLLOUT, JUDGE, REWARD, TRAINER = "rollout", "judge", "reward-trainer", "policy-trainer"
LOAD = "load"


class Timeline:
    """Spans of one run; written to ``directory`` after each epoch, kept in memory where there is none."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._spans = ActorSpans()
        self._sizes: list[Size] = []
        self.epochs: list[dict[str, Any]] = []

    def add(self, span: Span) -> None:
        """Take one span."""
        self._spans.add(span)

    def resize(self, size: Size) -> None:
        """Take a change of a pool's size."""
        self._sizes.append(size)

    @contextmanager
    def epoch(self, epoch: int) -> Iterator[None]:
        """The spans that are added meanwhile are this epoch's; an epoch that fails leaves none."""
        self._spans, self._sizes = ActorSpans(), []
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
                    events = chain(map(asdict, self._spans), map(asdict, self._sizes))
                    for line in chain(({"epoch": epoch} | event for event in events), [found]):
                        file.write(dumps(line) + "\n")
                write_trace(self._directory)


def idle(spans: Iterable[Span], began: float, ended: float) -> dict[str, float]:
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


def critical_seconds(spans: ActorSpans) -> float:
    """Seconds that an epoch of these spans takes where nobody waits but for what he needs.

    Rollouts answer without a pause.  The pCTR update needs the last phase-1 judgement: the judge has
    all phase-1 answers to read, and its last batch follows the last answer.  Scores need the update and
    the last phase-2 answer; DPO needs all scores; the new weights need DPO, and engines that are done
    with the test.  The judge must get through the test as well.
    """
    rollouts, judges, rewards, trainers = map(spans.of, (ROLLOUT, JUDGE, REWARD, TRAINER))
    answered = {
        phase: max((_until(rollout, phase) for rollout in rollouts), default=0.0)
        for phase in ("reward", "preference", "test")
    }
    judged = max((judge.seconds("reward") for judge in judges), default=0.0)
    if judged:
        judged = max(judged, answered["reward"] + _last(judges, "reward"))
    every = max((judge.seconds() for judge in judges), default=0.0)
    encoded = sum(reward.seconds("take") for reward in rewards)
    updated = max(judged, answered["reward"], encoded) + _last(rewards, "take")
    updated += sum(reward.seconds("update") for reward in rewards)
    predicting = sum(reward.seconds("predict_intervals") for reward in rewards)
    scored = max(updated + predicting, answered["preference"] + _last(rewards, "predict_intervals"))
    aligned = scored + sum(trainer.seconds() for trainer in trainers)
    return max(aligned, answered["test"], every) + _last(rollouts, LOAD)


def write_trace(directory: Path) -> None:
    """``timeline.jsonl`` in Chrome's trace format: a row per actor, and a counter per pool. Neither file is
    ever in memory."""
    rows = {
        actor: row
        for row, actor in enumerate(sorted({line["actor"] for line in _drawn(directory, "actor")}))
    }
    named = (
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": row, "args": {"name": actor}}
        for actor, row in rows.items()
    )
    worked = (_bar(span, rows) for span in _drawn(directory, "actor"))
    counted = map(_counter, _drawn(directory, "pool"))
    with (directory / "timeline.trace.json").open("w") as file:
        before = '{"traceEvents": ['
        for event in chain(named, worked, counted):
            file.write(before + dumps(event))
            before = ",\n"
        file.write("]}" if before.startswith(",") else before + "]}")


def _drawn(directory: Path, key: str) -> Iterator[dict[str, Any]]:
    """The lines of ``timeline.jsonl`` that have a key, one at a time."""
    with (directory / "timeline.jsonl").open() as file:
        yield from (line for line in map(json.loads, file) if key in line)


def _bar(span: dict[str, Any], rows: dict[str, int]) -> dict[str, Any]:
    return {
        "name": span["task"],
        "cat": f"epoch {span['epoch']}",
        "ph": "X",
        "pid": 1,
        "tid": rows[span["actor"]],
        "ts": span["began"] * 1e6,
        "dur": (span["ended"] - span["began"]) * 1e6,
    }


def _counter(size: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": f"workers of {size['pool']}",
        "ph": "C",
        "pid": 1,
        "ts": size["at"] * 1e6,
        "args": {"at work": size["workers"], "joining": size["joining"]},
    }


def _until(rollout: ActorSpans, phase: str) -> float:
    """Busy seconds of one rollout actor up to the end of its last span of ``phase``."""
    last = max((span.ended for span in rollout if span.task == phase), default=None)
    if last is None:
        return 0.0
    return sum(
        span.ended - span.began for span in rollout if span.task not in (LOAD, START) and span.ended <= last
    )


def _last(group: Sequence[ActorSpans], task: str) -> float:
    """Length of the span of ``task`` that ended last in a group."""
    found = (span for own in group for span in own if span.task == task)
    return max(((span.ended, span.ended - span.began) for span in found), default=(0.0, 0.0))[1]
