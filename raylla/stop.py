"""A clean stop: SIGTERM or Ctrl-C ends the work in hand, and never comes between work and its commit.

Inside `listen` a signal is noted; inside `heeded`, where the long waits are, it ends them at once with
`StoppedError`; anywhere else, as while a finished stage is written, it waits for the next `heeded`. A
second signal has its usual effect.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from raylla.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Stop:
    """Signals belong to a process, and so does this."""

    def __init__(self) -> None:
        self.usual: dict[int, Any] = {}
        self.asked: signal.Signals | None = None
        self.heeding = False

    def take(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.asked = signal.Signals(number)
        if self.heeding:
            # The one exception besides SystemExit that Ray's own waits pass on from a handler.
            raise KeyboardInterrupt


_stop = _Stop()


@contextmanager
def listen() -> Iterator[None]:
    """Take SIGTERM and SIGINT over, in the main thread; the usual handlers come back at the end."""
    _stop.usual = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in _stop.usual.items():
            signal.signal(number, handler)
        _stop.usual, _stop.asked = {}, None


@contextmanager
def heeded(what: str) -> Iterator[None]:
    """Let a signal end what happens in here; without `listen` it does nothing.

    Raises:
        StoppedError: a signal came, in here or since the last such place; names ``what``.
    """
    if not _stop.usual:
        yield
        return
    for number in SIGNALS:
        signal.signal(number, _stop.take)  # Joining a Ray cluster sets a handler of its own.
    try:
        if _stop.asked is None:
            _stop.heeding = True
            yield
    except KeyboardInterrupt:
        if _stop.asked is None:
            raise
    finally:
        _stop.heeding = False
    if _stop.asked is not None:
        raise StoppedError(
            f"stopped by {_stop.asked.name} at: {what}; every stage committed before it stays, and "
            "`raylla resume`, or the same command again, goes on after the last one",
            128 + _stop.asked,
        )
