"""N workers of one kind, on Ray or in this process, driven by the same code.

A worker is any class with a method ``ready()``. Calling a method gives a `Call`: a stream of
items, several where the method yields them and one where it returns. A worker runs its calls one
at a time, in the order in which they were made. Items of many calls are taken with `next_item`,
as they become ready. Imports neither vllm nor torch: whoever drives a pool stays light.
"""

from __future__ import annotations

import itertools
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import ray
from ray.exceptions import RayError, RayTaskError

from raylla.actors.host import START, Host
from raylla.actors.spans import Span, Stamped
from raylla.config import Actors, Engines
from raylla.errors import RayllaError, RunError, WorkerHungError, WorkerLostError

WORKER = "RAYLLA_WORKER"
"""Environment variable that tells an operator which worker a process is, e.g. ``rollout[0]``."""


class _Done:
    def __repr__(self) -> str:
        return "DONE"


DONE: Final = _Done()
"""What `next_item` gives once for a call that has ended."""

Record = Callable[[Span], None]
"""Takes what a worker did, when a call of it has ended."""


class Call(ABC):
    """One method at work on one worker; its items are taken by `next_item`."""

    def __init__(self, pool: str, index: int, method: str, record: Record | None) -> None:
        self.pool = pool
        self.index = index
        self.method = method
        self.taken = 0
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
    def take(self) -> Any:
        """The next item, or `DONE`."""

    @abstractmethod
    def reference(self) -> Any:
        """The next item in a form that can be given to another `Pool.call`."""

    def was(self, task: str) -> None:
        """Say what the item just taken was work on, where the method's name does not tell."""
        last = self._spans.pop()
        if self._spans and self._spans[-1].task == task:
            last = Span(self.worker, task, self._spans.pop().began, last.ended)
        self._spans.append(Span(self.worker, task, last.began, last.ended))

    def _unwrap(self, stamped: Stamped) -> Any:
        """The item, once the time that it took is noted."""
        self.taken += 1
        began = self._spans[-1].ended if self._spans else stamped.began
        if self._spans and self._spans[-1].task == self.method:
            began = self._spans.pop().began
        self._spans.append(Span(self.worker, self.method, began, stamped.made))
        return stamped.item

    def _end(self) -> _Done:
        self.done = True
        if self._record is not None:
            for span in self._spans:
                self._record(span)
        return DONE


class RayCall(Call):
    """A call whose items come through Ray's object store."""

    def __init__(self, pool: str, index: int, method: str, record: Record | None, stream: Any) -> None:
        super().__init__(pool, index, method, record)
        self.stream = stream
        self.arrived: deque[Stamped] = deque()
        self.there = False
        """Whether something of the stream is known to be there."""

    def take(self) -> Any:
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

    def reference(self) -> Any:
        """An object reference: this process never holds what it refers to."""
        self.taken += 1
        return next(self.stream)

    def _typed(self, error: RayError) -> RayllaError:
        if not isinstance(error, RayTaskError) or isinstance(error.cause, RayError):
            why = f"{self} was lost with its worker ({type(error).__name__}): {error}"
            return WorkerLostError(why, self.pool, self.index)
        if isinstance(error.cause, RayllaError):
            return type(error.cause)(f"{self.worker}: {error.cause}")
        return RunError(f"{self} failed with {type(error.cause).__name__}: {error.cause}\n{error}")


class LocalCall(Call):
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

    def take(self) -> Any:
        item = self._ready.popleft()
        if isinstance(item, RayllaError):
            self.done = True
            raise type(item)(f"{self.worker}: {item}") from item
        return self._end() if item is DONE else self._unwrap(item)

    def reference(self) -> Any:
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


class Pool:
    """Workers made by ``kind(*args)``: ``actors.least`` of them at first, ``actors.workers`` at most.

    Args:
        name: what errors call it.
        kind: the worker's class; its constructor runs where the worker lives.
        args: of the constructor, alike for all workers.
        actors: how many workers, and the CPUs and GPUs that each one reserves; one for which there is
            no room yet waits for it, which is what makes an autoscaler add a node.
        in_process: no Ray, and no deadlines, so that one can sit on a breakpoint; what is not an
            error of raylla's own comes as it was raised.
        record: is told the spans of every call that ends.
    """

    def __init__(
        self,
        name: str,
        kind: type,
        args: tuple[Any, ...],
        actors: Actors,
        in_process: bool = False,
        record: Record | None = None,
    ) -> None:
        self.name = name
        self._kind = kind
        self._args = args
        self._actors = actors
        self._in_process = in_process
        self._record = record
        self._hosts: dict[int, Any] = {}
        self._queues: dict[int, deque[LocalCall]] = {}
        self._starting: dict[int, Call] = {}
        self.restarts = 0

    @property
    def least(self) -> int:
        """Workers that stay where there is nothing to do."""
        return self._actors.least

    @property
    def most(self) -> int:
        """Workers that there may be."""
        return self._actors.workers

    @property
    def idle_seconds(self) -> float:
        """How long a worker above the least may have nothing to do."""
        return self._actors.idle_seconds if isinstance(self._actors, Engines) else math.inf

    @property
    def members(self) -> tuple[int, ...]:
        """The workers that take calls, by number."""
        return tuple(sorted(self._hosts.keys() - self._starting.keys()))

    @property
    def size(self) -> int:
        """Number of workers that take calls."""
        return len(self._hosts) - len(self._starting)

    def create(self, workers: int | None = None) -> None:
        """Begin to make ``workers`` (none: the least), side by side; `wait_ready` waits for them."""
        for _ in range(self.least if workers is None else workers):
            self.begin()

    def begin(self) -> Call:
        """Begin to make one more worker, under the lowest number that is free; does not wait.

        Returns the call whose end says that it is ready. It is a member after `admit`, or `wait_ready`.
        """
        index = next(number for number in itertools.count() if number not in self._hosts)
        self._hosts[index] = Host() if self._in_process else self._actor(index)
        self._queues[index] = deque()
        self._starting[index] = self._submit(index, START, self._kind, self._args)
        return self._starting[index]

    def admit(self, worker: int) -> None:
        """Count a worker that has begun, and is ready, among the members."""
        del self._starting[worker]

    def end(self, worker: int) -> None:
        """End a worker that has nothing to do, or that is not ready yet; what it reserved is free again."""
        host = self._hosts.pop(worker)
        self._starting.pop(worker, None)
        del self._queues[worker]
        if not self._in_process:
            ray.kill(host)

    def wait_ready(self, deadline: float) -> None:
        """Wait until every worker is ready; stops them all where one is not.

        Raises:
            DeadlineError: a worker is not ready within ``deadline`` seconds.
            RunError: a worker's constructor failed or its process died. Errors of raylla's own keep
                their type.
        """
        what = (
            f"pool {self.name}: {len(self._starting)} x {self._kind.__name__} to be ready "
            f"({self._actors.cpus:g} CPUs and {self._actors.gpus:g} GPUs each)"
        )
        try:
            gather(list(self._starting.values()), deadline, what)
            self._starting.clear()
        except RayllaError:
            self.stop()
            raise

    def start(self, deadline: float) -> None:
        """`create`, then `wait_ready`."""
        self.create()
        self.wait_ready(deadline)

    def restart(self, lost: WorkerLostError, deadline: float) -> None:
        """End a lost or hung worker and make it anew, in the state that its constructor gives it.

        Raises:
            WorkerLostError: ``lost`` itself, where the pool has made ``actors.max_restarts`` already.
            WorkerHungError: the new worker is not ready within ``deadline`` seconds.
        """
        self.count(lost)
        ray.kill(self._hosts[lost.worker])
        self._hosts[lost.worker] = self._actor(lost.worker)
        starting = self._submit(lost.worker, START, self._kind, self._args)
        gather([starting], deadline, f"{starting.worker} to be ready again")

    def count(self, lost: WorkerLostError) -> None:
        """Count the loss of a worker that is to be replaced.

        Raises:
            WorkerLostError: ``lost`` itself, where the pool has replaced ``actors.max_restarts`` already.
        """
        if self.restarts >= self._actors.max_restarts:
            raise lost
        self.restarts += 1

    def call(self, worker: int, method: str, *args: Any) -> Call:
        """Ask one worker for ``method(*args)``, without waiting; it gets the values of references."""
        return self._submit(worker, method, *args)

    def broadcast(self, method: str, *args: Any, deadline: float, what: str) -> list[Any]:
        """What ``method(*args)`` returns on each worker, in their order; not for methods that yield.

        Raises:
            WorkerHungError: not all have answered within ``deadline`` seconds; names ``what``.
        """
        return gather([self.call(index, method, *args) for index in self.members], deadline, what)

    def stop(self) -> None:
        """End all workers, whatever they are doing; does nothing where none was started."""
        if not self._in_process:
            for host in self._hosts.values():
                ray.kill(host)
        self._hosts, self._queues, self._starting = {}, {}, {}

    def _submit(self, worker: int, method: str, *args: Any) -> Call:
        host = self._hosts[worker]
        if self._in_process:
            items = host.run(method, *args)
            return LocalCall(self.name, worker, method, self._record, items, self._queues[worker])
        stream = self._stream(worker, method, *args)
        return RayCall(self.name, worker, method, self._record, stream)

    def _stream(self, worker: int, method: str, *args: Any) -> Any:
        """What a worker on Ray gives, as it comes."""
        return self._hosts[worker].stream.options(num_returns="streaming").remote(method, *args)

    def _actor(self, index: int) -> Any:
        environment = {
            WORKER: f"{self.name}[{index}]",
            "OMP_NUM_THREADS": str(max(1, int(self._actors.cpus))),
            "TOKENIZERS_PARALLELISM": "false",
        }
        return (
            ray.remote(Host)
            .options(
                num_cpus=self._actors.cpus,
                num_gpus=self._actors.gpus,
                label_selector=self._actors.labels,
                max_restarts=0,
                runtime_env={"env_vars": environment},
            )
            .remote()
        )


def next_item(calls: Sequence[Call], deadline: float, what: str) -> tuple[Call, Any]:
    """The next item that is ready of any of ``calls`` (none of them ended), or `DONE` for one's end.

    Raises:
        WorkerHungError: nothing came within ``deadline`` seconds; names ``what`` and the workers, and
            blames one of them.
        WorkerLostError: the call's worker is dead.
        RunError: the call failed. Errors of raylla's own keep their type.
    """
    call = _wait(calls, deadline, what)
    return call, call.take()


def soon(calls: Sequence[Call], seconds: float) -> tuple[Call, Any] | None:
    """`next_item`, or none where nothing is ready within ``seconds``."""
    call = _ready(calls, seconds)
    return None if call is None else (call, call.take())


def next_reference(call: Call, deadline: float, what: str) -> Any:
    """The next item of ``call`` as an argument for other calls, without fetching it.

    Raises:
        WorkerHungError: it is not there within ``deadline`` seconds; names ``what``.
    """
    return _wait([call], deadline, what).reference()


def _wait(calls: Sequence[Call], deadline: float, what: str) -> Call:
    if not calls or any(call.done for call in calls):
        raise RuntimeError(f"{what}: waiting for {list(calls)}, of which none is left or one has ended")
    call = _ready(calls, deadline)
    if call is None:
        # The least served; whoever of them hung for a shorter time is found out after the next deadline.
        hung = min(calls, key=lambda call: call.taken)
        hung.done = True
        names = ", ".join(str(call) for call in calls)
        raise WorkerHungError(
            f"{what}: nothing came from {names} in time ({max(deadline, 0):.3g} s were left); look at the "
            "workers' logs and at `ray status` for what they wait for, or raise the deadline",
            hung.pool,
            hung.index,
        )
    return call


def _ready(calls: Sequence[Call], seconds: float) -> Call | None:
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


def gather(calls: Sequence[Call], deadline: float, what: str) -> list[Any]:
    """The one item of each call; ``deadline`` seconds for all of them.

    Raises:
        WorkerHungError: not all came in time; names ``what``.
    """
    end = time.monotonic() + deadline
    found: dict[Call, Any] = {}
    waiting = list(calls)
    while waiting:
        call, item = next_item(waiting, end - time.monotonic(), what)
        if item is DONE:
            waiting.remove(call)
        else:
            found[call] = item
    return [found[call] for call in calls]
