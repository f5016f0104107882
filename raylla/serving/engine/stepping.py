"""The engine in a process of its own: steps it, and takes what is asked over a pipe between two steps.

    asked ──▶ [reader] ──▶ inbox ──▶ [admit, step, step, ...] ──▶ one message a step ──▶ told

What else an auction needs (vectors, click predictions, the record, HTTP) then never holds up a step, nor
a step them: they share neither an interpreter nor a core.

A new weight version is taken over between two steps: what runs is finished under the old version,
what comes in meanwhile waits for the new one, and nothing is dropped.  A version that fails leaves
the old one in place.

Where versions are adapters over one base, one more is held between two steps, and nothing waits for it.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection

from raylla.config import Engine as Settings
from raylla.engines.live import Live, LiveVllm, Step
from raylla.engines.protocol import AdapterRoom
from raylla.errors import ConfigError, StorageError, WeightError
from raylla.models import read_weights
from raylla.models.found import found
from raylla.records import WeightVersion
from raylla.serving.engine.wire import (
    Abort,
    Ask,
    Command,
    Drop,
    Failed,
    Heard,
    Hold,
    Load,
    Loaded,
    Piece,
    Ready,
    RequestRefused,
    StepOutput,
)
from raylla.serving.logs import log_json

log = logging.getLogger("raylla.serving")


class Stepper:
    """Steps ``engine``, which holds ``version``, for who is at the other end of ``pipe``; ``most`` adapters
    may be held beside it."""

    def __init__(self, engine: Live, version: WeightVersion, pipe: Connection, most: int = 0) -> None:
        self._engine = engine
        self._held = version
        self._pipe = pipe
        self._most = most
        self._adapters: dict[str, str] = {}
        """Path of each version whose adapter is held -> its name."""
        self._leaving: set[str] = set()
        self._holds: deque[Hold] = deque()
        self._inbox: deque[Command] = deque()
        self._news = threading.Event()
        self._gone = False
        self._running: dict[str, tuple[str, str]] = {}
        """Request -> name and policy of the version that writes it."""
        self._waiting: deque[Ask | Load] = deque()

    def run(self) -> None:
        """Until the other end is closed, or the engine fails."""
        # A thread that reads whatever else happens: no end ever waits for one that waits for it.
        threading.Thread(target=self._read, name="asked", daemon=True).start()
        try:
            self._tell(Ready())
            while True:
                if not self._running and not self._waiting and not self._holds:
                    self._news.wait()
                self._news.clear()
                if self._gone:
                    return
                self._take()
                self._change_adapters()
                self._admit()
                if self._running:
                    self._deliver(self._engine.step())
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:  # whatever it was, nobody may wait for this engine any longer
            log.exception("the engine failed")
            self._tell(Failed(str(error)))

    def _read(self) -> None:
        try:
            while True:
                self._inbox.append(self._pipe.recv())
                self._news.set()
        except (EOFError, OSError):
            log.info("nobody asks any more")
        finally:  # whatever it was: an engine that hears nothing must not seem to be alive
            self._gone = True
            self._news.set()

    def _tell(self, heard: Heard) -> None:
        self._pipe.send(heard)

    def _take(self) -> None:
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, Hold):
                self._holds.append(item)
            elif isinstance(item, Drop):
                self._leaving.add(item.policy)
            elif not isinstance(item, Abort):
                self._waiting.append(item)
            elif item.name in self._running:
                del self._running[item.name]
                self._engine.abort([item.name])
            else:
                self._waiting = deque(waiting for waiting in self._waiting if waiting.name != item.name)

    def _admit(self) -> None:
        """Begin what waits, in order; a load waits for what runs, and what is behind it for the load."""
        while self._waiting:
            first = self._waiting[0]
            if isinstance(first, Load):
                if self._running:
                    return
                self._take_over(first)
            else:
                try:
                    self._engine.submit(
                        first.name, first.prompt, first.sampling, first.stream, first.policy
                    )
                except ValueError as error:
                    self._tell(RequestRefused(first.name, str(error)))
                else:
                    written_by = self._adapters.get(first.policy, self._held.name)
                    self._running[first.name] = written_by, first.policy
            self._waiting.popleft()

    def _change_adapters(self) -> None:
        """Let go what leaves and writes nothing more, then hold what there is room for."""
        asked = {waiting.policy for waiting in self._waiting if isinstance(waiting, Ask)}
        busy = asked | {policy for _, policy in self._running.values()}
        for policy in self._leaving - busy:
            self._leaving.discard(policy)
            if self._adapters.pop(policy, None) is not None:
                self._engine.drop(policy)
        while self._holds and (len(self._adapters) < self._most or not self._leaving):
            wanted = self._holds.popleft()
            path, name = wanted.version.path, wanted.version.name
            if path in self._adapters:  # it was to leave, and was asked for again
                self._leaving.discard(path)
                self._tell(Loaded(wanted.name, 0.0))
                continue
            try:
                with found(path) as directory:
                    difference = self._engine.hold(path, directory, wanted.probe)
            except (WeightError, StorageError, ConfigError) as error:
                log.error("weight version %s is refused: %s", name, error)
                self._tell(Loaded(wanted.name, 0.0, error))
            else:
                self._adapters[path] = name
                self._tell(Loaded(wanted.name, difference))

    def _take_over(self, wanted: Load) -> None:
        try:
            weights = read_weights(wanted.version.path)
        except (WeightError, StorageError) as error:  # the engine was not touched
            log.error("weight version %s is refused: %s", wanted.version.name, error)
            self._tell(Loaded(wanted.name, 0.0, error))
            return
        try:
            difference = self._engine.load(weights, wanted.probe)
        except WeightError as error:
            log.error("weight version %s is refused: %s", wanted.version.name, error)
            del weights  # two models at a time is one too many
            self._engine.load(read_weights(self._held.path), None)
            self._tell(Loaded(wanted.name, 0.0, error))
        else:
            self._held = wanted.version
            self._tell(Loaded(wanted.name, difference))

    def _deliver(self, steps: Sequence[Step]) -> None:
        pieces: list[tuple[str, Piece]] = []
        for step in steps:
            if (writer := self._running.get(step.name)) is None:
                continue
            pieces.append((step.name, Piece(step.token_ids, step.finish, writer[0])))
            if step.finish is not None:
                del self._running[step.name]
        if pieces:
            self._tell(StepOutput(tuple(pieces)))


def work(
    pipe: Connection,
    model: str,
    settings: Settings,
    seed: int,
    version: WeightVersion,
    room: AdapterRoom | None,
) -> None:
    """What the process does: an engine on ``model``, stepped until the other end of ``pipe`` is closed."""
    log_json()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks decides when this ends
    try:
        engine = LiveVllm(model, settings, seed, room)
    except Exception as error:  # whatever it was, it is the asker's, who waits for `Ready`
        log.exception("the engine does not start")
        pipe.send(Failed(f"it does not start: {error}"))
        return
    Stepper(engine, version, pipe, room.most if room is not None else 0).run()
