"""How much a worker has generated, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from raylla.engines import Generated


@dataclass(frozen=True, slots=True)
class WorkerUsage:
    """Since the worker was made: tokens (a prompt counts once for all its draws) and seconds."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    busy_s: float = 0.0


class Meter:
    """Counts what passes through; the time between two items is the engine's, not the caller's."""

    def __init__(self) -> None:
        self.usage = WorkerUsage()

    def watch(self, items: Iterable[Generated]) -> Iterator[Generated]:
        """``items``, counted."""
        started = time.perf_counter()
        for item in items:
            self._add(item, time.perf_counter() - started)
            yield item
            started = time.perf_counter()

    def _add(self, item: Generated, seconds: float) -> None:
        refused = item.error is not None
        self.usage = WorkerUsage(
            self.usage.prompt_tokens + (0 if refused else len(item.prompt_token_ids)),
            self.usage.generated_tokens + sum(len(draw.token_ids) for draw in item.completions),
            self.usage.busy_s + seconds,
        )
