"""A part of a benchmark that says where it runs; see test_bench."""

from __future__ import annotations

import multiprocessing
import os

from raylla.bench import Bench, Measured, Row, Spread, ratio


def rows(bench: Bench) -> list[Row]:
    assert not list(bench.scratch.iterdir())
    threads = float(os.environ["OMP_NUM_THREADS"])
    elsewhere = "no" if multiprocessing.parent_process() is None else "yes"
    plain = ratio("one", Measured("a", Spread((1.0,))), Measured("b", Spread((1.0,))), "s")
    return [Row("threads", Spread((threads,) * bench.repeats), "", notes={"elsewhere": elsewhere}), plain]
