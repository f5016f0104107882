"""A new weight version on a rollout engine: taken over in place ÷ the engine started anew."""

from __future__ import annotations

import time

from raylla.actors import Pool, RolloutWorker, WeightStore, roll_out
from raylla.actors.placement import connect, disconnect
from raylla.bench.measure import Row, Side, compare
from raylla.bench.run import Bench
from raylla.config import Actors
from raylla.models import resolve
from raylla.records import WeightVersion


def rows(bench: Bench) -> list[Row]:
    """Seconds from a version on disk to an engine that holds it, through the object store."""
    config = bench.config
    start = config.deadlines.start
    path = resolve(config.ad_llm.path, "ad_llm.path")
    args = (path, config.ad_llm.sampling, config.engine, config.seed, "v0")
    alone = Actors(workers=1, cpus=config.rollout.cpus, gpus=config.rollout.gpus)
    connect(config)
    try:
        pool = Pool("rollout", RolloutWorker, args, alone)
        store = Pool("weight-store", WeightStore, (), Actors(workers=1, cpus=0))
        for made in (pool, store):
            made.start(start)
        count = 0

        def refresh() -> float:
            nonlocal count
            count += 1
            # Another name each time, or else the store would not read the files again.
            version = WeightVersion(f"v{count}", count, path)
            started = time.perf_counter()
            roll_out(pool, store, version, None, config.deadlines.sync)
            return time.perf_counter() - started

        def restart() -> float:
            another = Pool("restarted", RolloutWorker, args, alone)
            started = time.perf_counter()
            another.start(start)
            seconds = time.perf_counter() - started
            another.stop()
            return seconds

        sides = Side("in place", refresh), Side("restart", restart)
        return [compare("weight refresh ÷ engine restart", *sides, bench.repeats, "s")]
    finally:
        disconnect(config)
