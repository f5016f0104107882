"""Where a worker lives: one on Ray as an actor, or one in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from raylla.actors.spans import Batch, Stamped, unpacked

START = "start"
"""The one method that is the host's own; no worker's may have this name."""


class Host:
    """Where a worker lives. Made empty, so that what a worker's constructor raises can be read."""

    def __init__(self) -> None:
        self._worker: Any = None

    def start(self, kind: type, args: tuple[object, ...]) -> None:
        """Make the worker; returns when it is ready."""
        self._worker = kind(*args)
        self._worker.ready()

    def run(self, method: str, *args: object) -> Iterator[Stamped]:
        """The items of one call; an argument that is the one item of another call comes bare."""
        began = time.time()
        given = map(unpacked, args)
        work: Callable[..., Any] = self.start if method == START else getattr(self._worker, method)
        found = work(*given)
        for item in found if isinstance(found, Iterator) else (found,):
            yield Stamped(item, began, time.time())

    def stream(self, hold: float, method: str, *args: object) -> Iterator[Batch]:
        """`run`, with items that come within ``hold`` seconds of each other sent together."""
        held: list[Stamped] = []
        sent = 0.0
        try:
            for item in self.run(method, *args):
                held.append(item)
                if item.made - sent >= hold:
                    yield Batch(tuple(held))
                    held, sent = [], item.made
        except Exception:
            if held:
                yield Batch(tuple(held))
            raise
        if held:
            yield Batch(tuple(held))
