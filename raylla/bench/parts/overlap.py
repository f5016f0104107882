"""An epoch whose steps overlap ÷ one after another, with a core for each actor.

Latencies are measured in a real run at pocket scale whose steps do not overlap, so that each actor had
the machine for itself; actors that sleep for as long then run the same epoch in both orders.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from raylla.actors.placement import connect, disconnect
from raylla.actors.spans import Span
from raylla.bench.measure import Row, Side, compare
from raylla.bench.parts.epoch import SMALL, run_epochs
from raylla.bench.run import Bench
from raylla.bench.scripted import Latencies, ScriptedCrew
from raylla.config import Config, changed
from raylla.irpo.loop import run_epoch
from raylla.records import WeightVersion
from raylla.runs.observe import Observer
from raylla.runs.state import Run
from raylla.runs.versions import committed
from raylla.world import World, store

FEWER = ("irpo.queries=80", "evaluation.queries=25")


def rows(bench: Bench) -> list[Row]:
    """Epochs per second in both orders, and how near the overlapped one comes to its critical path."""
    measured = bench.scratch / "measured"
    run_epochs(bench.config, measured, 2, False, FEWER)
    latencies = measure(measured)
    world = store.load_world(measured / "world")
    config = changed(bench.config, None, [*SMALL, *FEWER])
    version = committed(Run.open(measured))[0][0]
    numbers = itertools.count()
    connect(config)
    try:
        told: list[float] = []

        def epoch(overlap: bool) -> float:
            name = f"scripted-{next(numbers)}"
            sets = [f"irpo.overlap={str(overlap).lower()}"]
            scripted = scripted_epoch(
                changed(config, None, sets), bench.scratch / name, world, version, latencies
            )
            if overlap:
                told.append(scripted["wall_seconds"] / scripted["critical_seconds"])
            return 1 / float(scripted["wall_seconds"])

        sides = Side("overlapped", lambda: epoch(True)), Side("sequential", lambda: epoch(False))
        row = compare("overlapped ÷ sequential epoch, scripted", *sides, bench.repeats, "epochs/s")
    finally:
        disconnect(config)
    notes = {f"{name} (s)": value for name, value in asdict(latencies).items()}
    notes |= {"overlapped wall ÷ critical path": sorted(told[1:])[len(told[1:]) // 2]}
    return [Row(row.name, row.value, row.unit, row.sides, row.side_unit, notes)]


def scripted_epoch(
    config: Config, directory: Path | str, world: World, version: WeightVersion, latencies: Latencies
) -> dict[str, float]:
    """One epoch of the loop itself on sleeping actors; what its timeline says."""
    run = Run.create(directory, config)
    watch = Observer(config, run.path, Console(quiet=True))
    crew = ScriptedCrew(config, version, latencies, watch)
    try:
        crew.start()
        run_epoch(run, crew, watch, world, 1)
    finally:
        crew.stop()
        watch.close()
    return watch.timeline.epochs[-1]


def measure(directory: Path) -> Latencies:
    """Seconds of each kind of work in the last epoch of a finished run."""
    lines = [json.loads(line) for line in (directory / "timeline.jsonl").read_text().splitlines()]
    last = max(line["epoch"] for line in lines)
    spans = [
        Span(line["actor"], line["task"], line["began"], line["ended"])
        for line in lines
        if "actor" in line and line["epoch"] == last
    ]
    commits = Run.open(directory).commits
    sampled, tested = commits[f"epoch-{last}/sample"], commits[f"epoch-{last}/test"]
    learned = commits[f"epoch-{last}/learn"]
    answers = sum(
        count
        for report in (sampled, tested)
        for what, count in report["samples"].items()
        if what != "judgement"
    )
    phases = ("reward", "preference", "test")
    judged = sampled["samples"]["judgement"] + tested["samples"]["judgement"]
    taken = learned["fit"]["rows"]
    predicted = taken * sampled["samples"]["preference"] / sampled["samples"]["reward"]
    return Latencies(
        answer=_seconds(spans, "rollout", phases) / answers,
        judgement=_seconds(spans, "judge", phases) / judged,
        take=_seconds(spans, "reward-trainer", ("take",)) / taken,
        update=_seconds(spans, "reward-trainer", ("update",)) / taken,
        predict=_seconds(spans, "reward-trainer", ("predict_intervals",)) / predicted,
        group=_seconds(spans, "policy-trainer", ("align",)) / learned["groups"],
        load=max(
            span.ended - span.began for span in spans if span.task == "load" and "rollout" in span.actor
        ),
    )


def _seconds(spans: list[Span], group: str, tasks: tuple[str, ...]) -> float:
    """Actor seconds of some tasks of a group."""
    return sum(
        span.ended - span.began
        for span in spans
        if span.actor.rpartition("[")[0] == group and span.task in tasks
    )
