"""A run's metrics for Prometheus, through Ray's own exporter on every node.

The names are those of `metrics.jsonl` with what Prometheus does not take replaced by underscores:
``test/revenue`` with a ``mean`` becomes ``ray_raylla_test_revenue_mean``. Every one carries the run's name
as ``run``. Without a Ray cluster nothing is exported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge


class Gauges:
    """The last value of each metric, and what is going on now."""

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}

    def epoch(self, epoch: int, values: Mapping[str, Any]) -> None:
        """Metrics of an epoch, nested as they are; of a series, its last."""
        self._set("epoch", epoch)
        for name, value in flat(values):
            self._set(name, value)

    def stage(self, name: str, active: bool) -> None:
        """Whether a stage is at work; the epoch in its name is left out."""
        self._set("stage_active", float(active), stage=name.rpartition(": ")[2])

    def pool(self, name: str, workers: int, joining: int) -> None:
        """How many workers of a pool take calls, and how many are to."""
        self._set("pool_workers", workers, pool=name, state="at_work")
        self._set("pool_workers", joining, pool=name, state="joining")

    def done(self, kind: str, count: int, tokens: int) -> None:
        """``count`` more of ``kind`` are done, worth ``tokens`` generated tokens."""
        self._add("done", count, kind)
        self._add("tokens", tokens, kind)

    def _set(self, name: str, value: float, **tags: str) -> None:
        if not ray.is_initialized():
            return
        if name not in self._gauges:
            keys = ("run", *tags)
            self._gauges[name] = Gauge(f"raylla_{name}", f"raylla: {name}", tag_keys=keys)
        self._gauges[name].set(value, tags=self._tags | tags)

    def _add(self, name: str, count: float, kind: str) -> None:
        if count <= 0 or not ray.is_initialized():
            return
        if name not in self._counters:
            self._counters[name] = Counter(f"raylla_{name}", f"raylla: {name}", tag_keys=("run", "kind"))
        self._counters[name].inc(count, tags=self._tags | {"kind": kind})


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Names and numbers of nested metrics: keys joined by underscores, of a list its last number."""
    for key, value in values.items():
        name = prefix + re.sub(r"[^a-zA-Z0-9_]", "_", str(key))
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}_")
            continue
        last = value[-1] if isinstance(value, list | tuple) and value else value
        if isinstance(last, int | float) and not isinstance(last, bool):
            yield name, float(last)
