"""An engine with an asyncio face: one thread steps it, requests come and go while it runs.

    submit ──▶ inbox ──▶ [stepping thread: admit, step, step, ...] ──▶ one call into each event loop a step

A new weight version is taken over between two steps: what runs is finished under the old version,
what comes in meanwhile waits for the new one, and nothing is dropped.  A version that fails leaves
the old one in place.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from raylla.actors.weights import read_weights
from raylla.config import Sampling
from raylla.engines.live import Finish, Live, Step
from raylla.engines.protocol import Probe
from raylla.errors import EndpointError, StorageError, WeightError
from raylla.records import WeightVersion

log = logging.getLogger("raylla.serving")


@dataclass(frozen=True, slots=True)
class Piece:
    """More tokens of an answer; ``version`` is the weight version that all of it is written by."""

    token_ids: tuple[int, ...]
    finish: Finish | None
    version: str


@dataclass(slots=True, eq=False)
class _Asked:
    name: str
    prompt: Sequence[int]
    sampling: Sampling
    stream: bool
    loop: asyncio.AbstractEventLoop
    pieces: asyncio.Queue[Piece | EndpointError]
    version: str = ""


@dataclass(frozen=True, slots=True)
class _Load:
    version: WeightVersion
    probe: Probe | None
    done: Future[float]


@dataclass(frozen=True, slots=True)
class _Abort:
    name: str


@dataclass(slots=True)
class _Inbox:
    """What the event loops put in and the stepping thread takes out."""

    items: deque[_Asked | _Load | _Abort] = field(default_factory=deque)
    ready: threading.Event = field(default_factory=threading.Event)

    def put(self, item: _Asked | _Load | _Abort) -> None:
        self.items.append(item)
        self.ready.set()


class AsyncEngine:
    """A `Live` engine for many callers.

    Args:
        engine: stepped by a thread of this object from now on, and by nobody else.
        version: the weights that it holds.
    """

    def __init__(self, engine: Live, version: WeightVersion) -> None:
        self._engine = engine
        self._held = version
        self._inbox = _Inbox()
        self._running: dict[str, _Asked] = {}
        self._waiting: deque[_Asked | _Load] = deque()
        self._names = itertools.count()
        self._failed: EndpointError | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="stepping", daemon=True)
        self._thread.start()

    @property
    def version(self) -> str:
        """Name of the weights that new requests are answered by."""
        return self._held.name

    @property
    def load_of_work(self) -> int:
        """Requests that run or wait."""
        return len(self._running) + len(self._waiting) + len(self._inbox.items)

    def check(self) -> None:
        """Returns while the engine can answer.

        Raises:
            EndpointError: its stepping thread has failed; start another engine.
        """
        if self._failed or not self._thread.is_alive():
            raise self._failed or EndpointError("the engine's stepping thread has ended")

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, stream: bool
    ) -> AsyncGenerator[Piece, None]:
        """The answer, in pieces as they are sampled or (not ``stream``) as one; closing it aborts.

        Raises:
            EndpointError: the engine refuses the prompt, or has failed.
        """
        self.check()
        name = str(next(self._names))
        loop = asyncio.get_running_loop()
        asked = _Asked(name, prompt, sampling, stream, loop, asyncio.Queue())
        self._inbox.put(asked)
        self.check()  # it may have failed in between, and then nobody reads the inbox
        finished = False
        try:
            while not finished:
                piece = await asked.pieces.get()
                if isinstance(piece, EndpointError):
                    finished = True
                    raise piece
                finished = piece.finish is not None
                yield piece
        finally:
            if not finished:
                self._inbox.put(_Abort(name))

    async def load(self, version: WeightVersion, probe: Probe | None) -> float:
        """Take over ``version`` between two requests; the mean |difference| to the probe (nats).

        Raises:
            WeightError: unreadable weights, another model's, or not the probe's; the old ones stand.
        """
        self.check()
        done: Future[float] = Future()
        self._inbox.put(_Load(version, probe, done))
        return await asyncio.wrap_future(done)

    def close(self) -> None:
        """End the stepping thread; what runs is dropped."""
        self._closed = True
        self._inbox.ready.set()
        self._thread.join()

    def _serve(self) -> None:
        try:
            while not self._closed:
                if not self._running and not self._waiting:
                    self._inbox.ready.wait()
                self._inbox.ready.clear()
                self._take()
                self._admit()
                if self._running:
                    self._deliver(self._engine.step())
        except Exception as error:  # whatever it was, nobody may wait for this engine any longer
            log.exception("the stepping thread failed")
            self._fail(EndpointError(f"the engine has failed: {error}"))

    def _take(self) -> None:
        while self._inbox.items:
            item = self._inbox.items.popleft()
            if not isinstance(item, _Abort):
                self._waiting.append(item)
            elif item.name in self._running:
                del self._running[item.name]
                self._engine.abort([item.name])
            else:
                self._waiting = deque(
                    one for one in self._waiting if isinstance(one, _Load) or one.name != item.name
                )

    def _admit(self) -> None:
        """Begin what waits, in order; a load waits for what runs, and what is behind it for the load."""
        while self._waiting:
            first = self._waiting[0]
            if isinstance(first, _Load):
                if self._running:
                    return
                self._take_over(first)
            else:
                first.version = self._held.name
                try:
                    self._engine.submit(first.name, first.prompt, first.sampling, first.stream)
                except ValueError as error:
                    _hand([(first, EndpointError(str(error)))])
                else:
                    self._running[first.name] = first
            self._waiting.popleft()

    def _take_over(self, wanted: _Load) -> None:
        try:
            difference = self._engine.load(read_weights(wanted.version.path), wanted.probe)
        except WeightError as error:
            log.error("weight version %s is refused: %s", wanted.version.name, error)
            self._engine.load(read_weights(self._held.path), None)
            wanted.done.set_exception(error)
        except StorageError as error:  # nothing was loaded
            wanted.done.set_exception(error)
        else:
            self._held = wanted.version
            wanted.done.set_result(difference)

    def _deliver(self, steps: Sequence[Step]) -> None:
        found: list[tuple[_Asked, Piece | EndpointError]] = []
        for step in steps:
            asked = self._running.get(step.name)
            if asked is None:
                continue
            found.append((asked, Piece(step.token_ids, step.finish, asked.version)))
            if step.finish is not None:
                del self._running[step.name]
        _hand(found)

    def _fail(self, error: EndpointError) -> None:
        self._failed = error
        left = [*self._running.values(), *self._waiting, *self._inbox.items]
        _hand([(one, error) for one in left if isinstance(one, _Asked)])
        for one in left:
            if isinstance(one, _Load):
                one.done.set_exception(error)


def _hand(found: Sequence[tuple[_Asked, Piece | EndpointError]]) -> None:
    """Wake each event loop once for all that is its own."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Asked, Piece | EndpointError]]] = defaultdict(list)
    for asked, piece in found:
        by_loop[asked.loop].append((asked, piece))
    for loop, own in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_put, own)


def _put(own: Sequence[tuple[_Asked, Piece | EndpointError]]) -> None:
    for asked, piece in own:
        asked.pieces.put_nowait(piece)
