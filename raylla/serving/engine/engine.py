"""An engine with an asyncio face: it is stepped in a process of its own (`raylla.serving.engine.stepping`).

    generate ──▶ pipe ──▶ [process: admit, step, step, ...] ──▶ pipe ──▶ event loop: each request its pieces

Whoever asks is one event loop; it reads the pipe itself, without a thread between.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import multiprocessing
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from multiprocessing.connection import Connection

from raylla.config import Engine as Settings
from raylla.config import Sampling
from raylla.engines.protocol import AdapterRoom, Probe
from raylla.errors import DeadlineError, EndpointError, RequestError
from raylla.records import WeightVersion
from raylla.serving.engine.stepping import work
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
    RequestRefused,
    StepOutput,
)
from raylla.serving.tracing import NO_TRACE, Carrier, traced

END_SECONDS = 10.0
"""How long a process that is told to end may take."""
_AT_ONCE = 8
"""Messages that are taken from the pipe before anybody else on the event loop runs."""
ENDED = "the engine's process has ended"


class AsyncEngine:
    """An engine for many callers of one event loop.

    Args:
        pipe: to a `Stepper` that is ready.
        version: the weights that its engine holds.
        alive: whether it still steps.
        end: ends what steps it, once the pipe is closed.
    """

    def __init__(
        self,
        pipe: Connection,
        version: WeightVersion,
        alive: Callable[[], bool],
        end: Callable[[], None] = lambda: None,
    ) -> None:
        self._pipe = pipe
        self._end = end
        self._held = version
        self._alive = alive
        self._names = itertools.count()
        self._answers: dict[str, asyncio.Queue[Piece | EndpointError]] = {}
        self._loads: dict[str, asyncio.Future[float]] = {}
        self._failed: EndpointError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def version(self) -> str:
        """Name of the weights that new requests are answered by."""
        return self._held.name

    def check(self) -> None:
        """Returns while the engine can answer.

        Raises:
            EndpointError: it has failed; start another.
        """
        if self._failed or not self._alive():
            raise self._failed or EndpointError(ENDED)

    async def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        stream: bool,
        trace: Carrier = NO_TRACE,
        policy: str = "",
    ) -> AsyncGenerator[Piece, None]:
        """The answer, in pieces as they are sampled or (not ``stream``) as one; closing it aborts.

        Args:
            policy: path of a version whose adapter is held and writes it; none: the base, or whole weights.

        Raises:
            EndpointError: the engine refuses the prompt, or has failed.
        """
        written = 0
        with traced("engine", trace) as told:
            async with aclosing(self._pieces(prompt, sampling, stream, policy)) as pieces:
                async for piece in pieces:
                    written += len(piece.token_ids)
                    if piece.finish is not None:
                        told.note(
                            {"raylla.weight_version": piece.version, "gen_ai.usage.output_tokens": written}
                        )
                    yield piece

    async def _pieces(
        self, prompt: Sequence[int], sampling: Sampling, stream: bool, policy: str
    ) -> AsyncGenerator[Piece, None]:
        name = str(next(self._names))
        pieces: asyncio.Queue[Piece | EndpointError] = asyncio.Queue()
        self._answers[name] = pieces
        finished = False
        try:
            self._ask(Ask(name, prompt, sampling, stream, policy))
            while not finished:
                piece = await pieces.get()
                if isinstance(piece, EndpointError):
                    finished = True
                    raise piece
                finished = piece.finish is not None
                yield piece
        finally:
            del self._answers[name]
            if not finished and not self._failed:
                self._ask(Abort(name))

    async def load(self, version: WeightVersion, probe: Probe | None) -> float:
        """Take over ``version`` between two requests; the mean |difference| to the probe (nats).

        Raises:
            WeightError: unreadable weights, another model's, or not the probe's; the old ones stand.
            StorageError: they cannot be brought here; the old ones stand.
            EndpointError: the engine has failed.
        """
        difference = await self._loaded(Load(str(next(self._names)), version, probe))
        self._held = version
        return difference

    async def hold(self, version: WeightVersion, probe: Probe | None) -> float:
        """Take the adapter of ``version`` in beside what answers; mean |difference| to the probe (nats).

        Raises:
            WeightError: an unreadable adapter, another base's, or not the probe's; nothing has changed.
            StorageError: it cannot be brought here.
            EndpointError: the engine has failed.
        """
        return await self._loaded(Hold(str(next(self._names)), version, probe))

    def drop(self, version: WeightVersion) -> None:
        """Let the adapter of ``version`` go, once what it writes is done; nobody may ask for it then."""
        self._ask(Drop(version.path))

    def close(self) -> None:
        """End it; whoever waits for an answer hears of it."""
        self._fail(ENDED)
        self._pipe.close()
        self._end()

    async def _loaded(self, asked: Load | Hold) -> float:
        done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._loads[asked.name] = done
        try:
            self._ask(asked)
            return await done
        finally:
            del self._loads[asked.name]

    def _ask(self, asked: Command) -> None:
        if self._failed:
            raise self._failed
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            loop.add_reader(self._pipe.fileno(), self._read)
            self._loop = loop
        try:
            self._pipe.send(asked)
        except OSError:
            raise self._fail(ENDED) from None

    def _read(self) -> None:
        """Take what is there, but not all that comes meanwhile: the loop has others to run."""
        try:
            for _ in range(_AT_ONCE):
                if not self._pipe.poll():
                    return
                self._hear(self._pipe.recv())
        except (EOFError, OSError):
            self._fail(ENDED)

    def _hear(self, heard: Heard) -> None:
        if isinstance(heard, StepOutput):
            for name, piece in heard.pieces:
                if name in self._answers:
                    self._answers[name].put_nowait(piece)
        elif isinstance(heard, RequestRefused):
            if heard.name in self._answers:
                self._answers[heard.name].put_nowait(RequestError(heard.reason))
        elif isinstance(heard, Loaded):
            done = self._loads.get(heard.name)
            if done is None or done.done():
                return
            if heard.refusal is None:
                done.set_result(heard.difference)
            else:
                done.set_exception(heard.refusal)
        elif isinstance(heard, Failed):
            self._fail(f"the engine has failed: {heard.reason}")

    def _fail(self, reason: str) -> EndpointError:
        """It is everybody's error who waits, and will be everybody's who comes."""
        if self._failed is None:
            self._failed = EndpointError(reason)
            if self._loop and not self._loop.is_closed():
                self._loop.remove_reader(self._pipe.fileno())
            for pieces in self._answers.values():
                pieces.put_nowait(self._failed)
            for done in self._loads.values():
                if not done.done():
                    done.set_exception(self._failed)
        return self._failed


def start_engine(
    model: str,
    settings: Settings,
    seed: int,
    version: WeightVersion,
    seconds: float,
    room: AdapterRoom | None = None,
) -> AsyncEngine:
    """An engine on ``model`` (the files of ``version`` on this machine), in a process that ends with this;
    with ``room``, ``version`` is the base that adapters share.

    Raises:
        DeadlineError: it was not ready within ``seconds``.
        EndpointError: it does not start.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(
        target=_work, args=(theirs, model, settings, seed, version, room), name="engine"
    )
    process.start()
    theirs.close()

    def end() -> None:
        ours.close()  # which ends it
        process.join(END_SECONDS)
        if process.is_alive():
            process.kill()
        atexit.unregister(end)

    atexit.register(end)  # before multiprocessing's own, which waits for the process without end
    try:
        if not ours.poll(seconds):
            raise DeadlineError(f"the engine on {model} was not ready within {seconds:g} s")
        first = ours.recv()
    except EOFError:
        raise EndpointError(f"{ENDED} before it was ready") from None
    if isinstance(first, Failed):
        raise EndpointError(f"the engine on {model}: {first.reason}")
    return AsyncEngine(ours, version, process.is_alive, end)


def _work(
    pipe: Connection,
    model: str,
    settings: Settings,
    seed: int,
    version: WeightVersion,
    room: AdapterRoom | None,
) -> None:
    """`work`, and the end of its process at once: to take vLLM apart costs five seconds of a core."""
    work(pipe, model, settings, seed, version, room)
    if settings.tensor_parallel == 1:  # else it has processes of its own, which it sends home
        os._exit(0)
