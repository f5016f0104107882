"""The driver's share of an epoch with 16, 64, 256 and 1,024 rollout actors in shards, simulated.

The loop, its pools, Ray and the records are the real ones. Engines and trainers sleep: as long as the
plan of `qwen3-4b-1node.yaml` on H100s has it (`raylla plan`), an answer longer or shorter as the answers
of a real pocket run are; texts and token ids have the paper's sizes. Many rollout actors share a process,
for the machine has no room for so many. Judges are as many as keep up, and the one reward trainer and the
DPO trainer as much quicker as there are more actors than the plan's: it is the driver that is looked at.
Where two cores do not hold what the shards do, all sleeps are `SLOWER` times as long; the driver's share is
that of an epoch at the plan's own times, which is as much shorter. Its work for the answers is the same
then, and what a second at rest costs it, for Ray's timers and its own, it spends in fewer seconds.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from raylla.actors.placement import connect, disconnect
from raylla.bench.measure import Row, Spread
from raylla.bench.parts.epoch import run_epochs
from raylla.bench.run import Bench
from raylla.bench.scripted import Latencies, ScriptedCrew, ScriptedSquad
from raylla.config import Config, parse_config
from raylla.irpo.loop import run_epoch
from raylla.models import resolve
from raylla.plan import Lengths, budget, hardware
from raylla.records import Answer, WeightVersion
from raylla.runs.observe import Observer
from raylla.runs.state import Run, load_records, parts_of
from raylla.world import World, build
from raylla.world.synthetic import grammar

_MODEL = "Qwen/Qwen3-4B-Instruct-2507"
ACTORS = (16, 64, 256, 1024)
SLOWER = {256: 3, 1024: 10}
"""Number of rollout actors -> how much longer they sleep than the plan has it; others sleep as planned."""

MESSAGES = 16
"""Messages that the driver takes of all shards in a second, at most."""

EACH, LEAST = 64, 2
"""Rollout actors of a shard, and shards at least: one alone would be a part of the driver."""

_QUERIES = 4
"""Training queries of an epoch, for each rollout actor; a quarter as many are tested."""

GROWN = (4, 16, 64)
"""Training queries for each of the fewest actors, in epochs of which the driver's memory is told."""

QUICK = 0.25
"""Of the plan's times, how long actors sleep there."""

AT_REST = 5
"""Seconds before an epoch in which the driver has nothing to do; the middle one counts."""

PLANNED = 5
"""Rollout actors of the plan that latencies are of."""

READ = 12
"""Rollout actors that one judge keeps up with."""

FEW = ("irpo.queries=40", "evaluation.queries=10")
"""Of the pocket run whose answers' lengths are taken."""


@dataclass(frozen=True)
class EpochTimes:
    """What one simulated epoch took: seconds of wall, of its critical path and of the driver's CPU, which
    spends ``rest`` of them in a second without work; and the driver's peak memory in bytes."""

    wall: float
    critical: float
    cpu: float
    rest: float
    answers: int
    peak: int
    slower: float = 1.0

    @property
    def work(self) -> float:
        """CPU seconds of the driver for the epoch's answers."""
        return self.cpu - self.rest * self.wall

    @property
    def share(self) -> float:
        """The driver's CPU seconds in the epoch's, had it gone at the plan's times."""
        return self.work * self.slower / self.wall + self.rest


def rows(bench: Bench) -> list[Row]:
    """The driver's share at each number of actors, and its memory at more and more samples."""
    measured = bench.scratch / "measured"
    run_epochs(bench.config, measured, 1, False, FEW)
    spread = shape(measured)
    grown = [_apart(bench, queries, spread) for queries in GROWN]
    connect(bench.config)
    try:
        found = []
        for actors in ACTORS:
            slower = SLOWER.get(actors, 1)
            told = [
                _simulate(bench.scratch / f"{actors}-{repeat}", actors, _QUERIES, spread, slower)
                for repeat in range(bench.repeats)
            ]
            found.append(_row(actors, told))
    finally:
        disconnect(bench.config)
    return [*found, memory(grown)]


def shape(directory: Path) -> tuple[float, ...]:
    """Tokens of a real run's answers ÷ their mean."""
    lengths = [
        len(answer.token_ids)
        for part in parts_of(Run.open(directory).part("records/epoch-1/sample"))
        for answer in load_records(part / "answers.parquet", Answer)
    ]
    mean = statistics.fmean(lengths)
    return tuple(length / mean for length in lengths)


def memory(told: Sequence[EpochTimes]) -> Row:
    """What each further answer adds to the driver's peak: the slope of a line through epochs of one number
    of actors, each in a driver of its own."""
    fitted = statistics.linear_regression([one.answers for one in told], [one.peak for one in told])
    notes = {f"peak at {one.answers} answers (MiB)": one.peak / 2**20 for one in told}
    name = "driver's memory, a further answer of an epoch"
    return Row(name, Spread((fitted.slope,)), "bytes", notes=notes)


def shards_of(actors: int) -> int:
    """Shards for this many rollout actors."""
    return max(LEAST, actors // EACH)


def _row(actors: int, told: Sequence[EpochTimes]) -> Row:
    notes = {
        "epoch wall ÷ critical path": statistics.median(one.wall / one.critical for one in told),
        "answers": told[0].answers,
        "shards": shards_of(actors),
        "sleeps longer by": told[0].slower,
        "answers/s": statistics.median(one.answers / one.wall for one in told),
        "driver's CPU, an answer (ms)": statistics.median(1e3 * one.work / one.answers for one in told),
        "driver's CPU at rest, a second (ms)": statistics.median(1e3 * one.rest for one in told),
    }
    name = f"driver's CPU ÷ epoch, {actors} simulated rollout actors"
    return Row(name, Spread(tuple(one.share for one in told)), "", notes=notes)


def _apart(bench: Bench, queries: int, spread: tuple[float, ...]) -> EpochTimes:
    """One quick epoch of the fewest actors, in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_connected, bench, queries, spread).result()


def _connected(bench: Bench, queries: int, spread: tuple[float, ...]) -> EpochTimes:
    connect(bench.config)
    try:
        return _simulate(bench.scratch / f"grown-{queries}", ACTORS[0], queries, spread, QUICK)
    finally:
        disconnect(bench.config)


def _simulate(
    directory: Path, actors: int, queries: int, spread: tuple[float, ...], slower: float
) -> EpochTimes:
    """One epoch of ``queries`` training queries a rollout actor; all sleep ``slower`` times as long."""
    config, planned = paper_settings(actors, queries)
    news = {"news": max(slower, 1) * max(config.shards.news, config.shards.workers / MESSAGES)}
    config = config.model_copy(update={"shards": config.shards.model_copy(update=news)})
    latencies = Latencies(*(slower * seconds for seconds in astuple(planned)))
    return replace(epoch(directory, config, latencies, spread), slower=slower)


def epoch(directory: Path, config: Config, latencies: Latencies, spread: tuple[float, ...]) -> EpochTimes:
    """One epoch of the loop on sleepers that share processes."""
    world = synthetic_world(config)
    run = Run.create(directory, config)
    watch = Observer(config, run.path, Console(quiet=True))
    version = WeightVersion("v0", 0, resolve("pocket:ad-llm", "the base weights"))
    lengths = Lengths.of(config)
    wordy = (spread, round(lengths.prompt), round(lengths.answer))
    crew = ScriptedCrew(config, version, latencies, watch, partial(ScriptedSquad, latencies, wordy))
    try:
        crew.start()
        rest = statistics.median(_rested() for _ in range(AT_REST))
        before = time.process_time()
        run_epoch(run, crew, watch, world, 1)
        cpu = time.process_time() - before
    finally:
        crew.stop()
        watch.close()
    told = watch.timeline.epochs[-1]
    answers = sum(sum(report.get("samples", {}).values()) for report in run.commits.values())
    answers -= sum(report.get("samples", {}).get("judgement", 0) for report in run.commits.values())
    return EpochTimes(told["wall_seconds"], told["critical_seconds"], cpu, rest, answers, _peak())


def _peak() -> int:
    """Most bytes that this process ever had in memory; `getrusage` would begin at its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _rested() -> float:
    """CPU seconds of a second in which this process has nothing to do."""
    before = time.process_time()
    time.sleep(1)
    return time.process_time() - before


def paper_settings(actors: int, queries: int) -> tuple[Config, Latencies]:
    """The paper's sizes for this many actors, and what each piece of work takes."""
    each = 5
    profiles = actors * queries // each
    tree = {
        "world": {"profiles": profiles * 5 // 4, "ads": 100, "candidates": 100, "test_share": 0.2},
        "ad_llm": {
            "path": _MODEL,
            "prompt": "paper",
            "sampling": {"max_tokens": 512},
        },
        "user_llm": {"path": _MODEL, "prompt": "paper"},
        "engine": {"dtype": "bfloat16", "max_model_len": 8192, "max_num_seqs": 256},
        "rollout": {"workers": PLANNED, "cpus": 0, "gpus": 1},
        "judge": {"workers": 1, "cpus": 0, "gpus": 0.8},
        "reward_trainer": {"gpus": 0.2},
        "pctr": {"encoder": "Qwen/Qwen3-Embedding-0.6B"},
        "irpo": {"epochs": 1, "max_drop_share": 1.0},
        "dpo": {"gpus": 1, "precision": "bfloat16", "gradient_checkpointing": True},
        "wandb": {"mode": "disabled"},
    }
    planned = parse_config(tree, "the simulated config")
    costs = budget(planned, hardware.gpu("h100"), Lengths.of(planned))
    trained, tested = profiles * each, profiles * each // 4
    irpo = planned.irpo
    answers = trained * (irpo.reward_answers + irpo.preference_answers) + tested * 4
    judged = trained * irpo.reward_answers + tested * 4
    quicker = PLANNED / actors
    row = costs.phase("learn").seconds * quicker / (answers + trained * irpo.reward_answers)
    latencies = Latencies(
        answer=costs.phase("rollout").seconds * PLANNED / answers,
        judgement=costs.phase("judge").seconds / judged,
        take=row,
        update=row,
        predict=row,
        group=costs.phase("align").seconds * quicker / trained,
        load=0.1,
    )
    tree["rollout"] = {"workers": actors, "cpus": 0}
    tree["judge"] = {"workers": -(-actors // READ), "cpus": 0}
    tree["shards"] = {"workers": shards_of(actors), "cpus": 0}
    return parse_config(tree, "the simulated config"), latencies


def synthetic_world(config: Config) -> World:
    """A synthetic world with queries from the pocket grammar."""
    drawn = build.synthetic(config.world, config.seed)
    rng = random.Random(config.seed)
    splits = build.split_users(drawn.profiles, config.world.test_share, config.seed)
    queries = [
        build.query_from_text(user, place, grammar.query(rng, user).text, splits[user.id])
        for user in drawn.profiles
        for place in range(config.world.queries_per_profile)
    ]
    return replace(drawn, queries=tuple(one for one in queries if one is not None))
