"""Calls of workers, and what comes of them: on Ray or in this process, taken in the same way."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any, Final, Generic

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from typing_extensions import TypeVar

from raylla.actors.draining import announced
from raylla.actors.spans import Span, Stamped
from raylla.errors import InputLostError, RayllaError, RunError, WorkerHungError, WorkerLostError


class Done(Enum):
    """What stands for the end of a call, where its items are taken."""

    DONE = "DONE"

    def __repr__(self) -> str:
        return self.value


DONE: Final = Done.DONE
"""What `next_item` gives once for a call that has ended."""

_Item = TypeVar("_Item", default=Any)
"""What a worker gives; none knows it but who calls."""

Record = Callable[[Span], None]
"""Takes what a worker did, when a call of it has ended."""


class Call(ABC, Generic[_Item]):
    """One method at work on one worker; its items are taken by `next_item`.

    A pool names the method by a word, which tells no type of its items; whoever takes them may say it.
    """

    def __init__(self, pool: str, index: int, method: str, record: Record | None) -> None:
        self.pool = pool
        self.index = index
        self.method = method
        self.taken = 0
        self.heard = time.monotonic()
        """When it was made, or its last item was taken."""
        self.done = False
        self._record = record
        self._spans: list[Span] = []

    @property
    def worker(self) -> str:
        """What errors call the worker."""
        return f"{self.pool}[{self.index}]"

    def __repr__(self) -> str:
        return f"{self.worker}.{self.method}"

    @abstractmethod
    def take(self) -> _Item | Done:
        """The next item, or `DONE`."""

    @abstractmethod
    def reference(self) -> object:
        """The next item in a form that can be given to another `Pool.call`."""

    def was(self, task: str) -> None:
        """Say what the item just taken was work on, where the method's name does not tell."""
        last = self._spans.pop()
        if self._spans and self._spans[-1].task == task:
            last = Span(self.worker, task, self._spans.pop().began, last.ended)
        self._spans.append(Span(self.worker, task, last.began, last.ended))

    def finish(self) -> None:
        """Nothing more of it is wanted: what it did is told."""
        if not self.done:
            self._end()

    def _unwrap(self, stamped: Stamped) -> _Item:
        """The item, once the time that it took is noted."""
        self.taken += 1
        self.heard = time.monotonic()
        began = self._spans[-1].ended if self._spans else stamped.began
        if self._spans and self._spans[-1].task == self.method:
            began = self._spans.pop().began
        self._spans.append(Span(self.worker, self.method, began, stamped.made))
        item: Any = stamped.item
        return item

    def _end(self) -> Done:
        self.done = True
        if self._record is not None:
            for span in self._spans:
                self._record(span)
        return DONE


class RayCall(Call[_Item]):
    """A call whose items come through Ray's object store."""

    def __init__(
        self,
        pool: str,
        index: int,
        method: str,
        record: Record | None,
        stream: ray.ObjectRefGenerator,
        actor: ActorHandle,
    ) -> None:
        super().__init__(pool, index, method, record)
        self.stream = stream
        self._actor = actor
        self.arrived: deque[Stamped] = deque()
        self.there = False
        """Whether something of the stream is known to be there."""

    def take(self) -> _Item | Done:
        if self.arrived:
            return self._unwrap(self.arrived.popleft())
        try:
            self.there = False
            self.arrived.extend(ray.get(next(self.stream)).items)
        except StopIteration:
            return self._end()
        except RayError as error:
            self.done = True
            raise self._typed(error) from None
        return self._unwrap(self.arrived.popleft())

    def reference(self) -> object:
        """An object reference: this process never holds what it refers to.

        Raises:
            WorkerLostError: the worker died instead of giving it.
            RunError: the call has ended without it.
        """
        self.taken += 1
        try:
            found = next(self.stream)
        except StopIteration:
            raise RunError(f"{self} ended before its item {self.taken}, which others wait for") from None
        if found == self.stream.completed():  # which stands in for what never came
            self.done = True
            try:
                ray.get(found)
            except RayError as error:
                raise self._typed(error) from None
        return found

    def _typed(self, error: RayError) -> RayllaError:
        if not isinstance(error, RayTaskError):
            why = f"{self} was lost with its worker ({type(error).__name__}): {error}"
            return WorkerLostError(why, self.pool, self.index, announced(self._actor))
        if isinstance(error.cause, RayError):
            why = f"{self}: what it was given cannot be had ({type(error.cause).__name__}): {error.cause}"
            return InputLostError(why, self.pool, self.index)
        if isinstance(error.cause, RayllaError):
            return _told_by(self.worker, error.cause)
        return RunError(f"{self} failed with {type(error.cause).__name__}: {error.cause}\n{error}")


class LocalCall(Call[_Item]):
    """A call that runs in this process, while its items are asked for."""

    def __init__(
        self,
        pool: str,
        index: int,
        method: str,
        record: Record | None,
        items: Iterator[Stamped],
        queue: deque[LocalCall],
    ) -> None:
        super().__init__(pool, index, method, record)
        self._items = items
        self._ready: deque[Any] = deque()
        self._queue = queue
        queue.append(self)

    def poll(self) -> bool:
        """Advance the oldest call of this worker by an item; whether this call has one ready."""
        if not self._ready:
            self._queue[0]._advance()
        return bool(self._ready)

    def take(self) -> _Item | Done:
        item = self._ready.popleft()
        if isinstance(item, RayllaError):
            self.done = True
            raise _told_by(self.worker, item) from item
        return self._end() if item is DONE else self._unwrap(item)

    def reference(self) -> object:
        """The item itself: there is no second process to keep it from."""
        return self.take()

    def _advance(self) -> None:
        try:
            self._ready.append(next(self._items))
        except StopIteration:
            self._queue.popleft()
            self._ready.append(DONE)
        except RayllaError as error:
            # Kept for whoever takes this call's items: another's may have been asked for.
            self._queue.popleft()
            self._ready.append(error)


def next_item(calls: Sequence[Call[_Item]], deadline: float, what: str) -> tuple[Call[_Item], _Item | Done]:
    """The next item that is ready of any of ``calls`` (none of them ended), or `DONE` for one's end.

    Raises:
        WorkerHungError: nothing came within ``deadline`` seconds; names ``what`` and the workers, and
            blames the one that has said nothing for longest.
        WorkerLostError: the call's worker is dead.
        RunError: the call failed. Errors of raylla's own keep their type.
    """
    call = _wait(calls, deadline, what)
    return call, call.take()


def soon(calls: Sequence[Call[_Item]], seconds: float) -> tuple[Call[_Item], _Item | Done] | None:
    """`next_item`, or none where nothing is ready within ``seconds``."""
    call = _ready(calls, seconds)
    return None if call is None else (call, call.take())


def soon_reference(call: Call, seconds: float) -> object:
    """`next_reference`, or none where it is not there within ``seconds``."""
    return None if _ready([call], seconds) is None else call.reference()


def next_reference(call: Call, deadline: float, what: str) -> object:
    """The next item of ``call`` as an argument for other calls, without fetching it.

    Raises:
        WorkerHungError: it is not there within ``deadline`` seconds; names ``what``.
    """
    return _wait([call], deadline, what).reference()


def _told_by(worker: str, error: RayllaError) -> RayllaError:
    """A worker's error under its own name; the loss of a worker of its own has that worker's."""
    return error if isinstance(error, WorkerLostError) else type(error)(f"{worker}: {error}")


def _wait(calls: Sequence[Call[_Item]], deadline: float, what: str) -> Call[_Item]:
    if not calls or any(call.done for call in calls):
        raise RuntimeError(f"{what}: waiting for {list(calls)}, of which none is left or one has ended")
    call = _ready(calls, deadline)
    if call is None:
        hung = min(calls, key=lambda call: call.heard)
        hung.done = True
        names = ", ".join(str(call) for call in calls)
        raise WorkerHungError(
            f"{what}: nothing came from {names} in time ({max(deadline, 0):.3g} s were left); look at the "
            "workers' logs and at `ray status` for what they wait for, or raise the deadline",
            hung.pool,
            hung.index,
        )
    return call


def _ready(calls: Sequence[Call[_Item]], seconds: float) -> Call[_Item] | None:
    """One of ``calls`` whose next item is there within ``seconds``."""
    local = [call for call in calls if isinstance(call, LocalCall)]
    if local:
        # The least served first, or else a quick worker could keep a slow one's items from being seen.
        local.sort(key=lambda call: call.taken)
        return next(call for call in itertools.cycle(local) if call.poll())
    remote = [call for call in calls if isinstance(call, RayCall)]
    if not any(call.there or call.arrived for call in remote):
        _look(remote, seconds)
    return next((call for call in remote if call.there or call.arrived), None)


def _look(calls: Sequence[RayCall], seconds: float) -> None:
    """Mark every call of which something is there, if within ``seconds`` it is of any.

    Looking costs about as much for one as for all, and what is marked is taken before the next look: so
    that no worker keeps another's items from being seen, and hundreds of them cost few looks.
    """
    streams = [call.stream for call in calls]
    ready, rest = ray.wait(streams, num_returns=1, timeout=max(seconds, 0), fetch_local=False)
    if ready and rest:
        ready += ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0]
    there = {id(stream) for stream in ready}
    for call in calls:
        call.there = id(call.stream) in there


def gather(calls: Sequence[Call[_Item]], deadline: float, what: str) -> list[_Item]:
    """The one item of each call; ``deadline`` seconds for all of them.

    Raises:
        WorkerHungError: not all came in time; names ``what``.
    """
    end = time.monotonic() + deadline
    items: dict[Call[_Item], _Item] = {}
    waiting = list(calls)
    while waiting:
        call, item = next_item(waiting, end - time.monotonic(), what)
        if item is DONE:
            waiting.remove(call)
        else:
            items[call] = item
    return [items[call] for call in calls]
