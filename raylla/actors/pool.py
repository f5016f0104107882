"""N workers of one kind, on Ray or in this process, driven by the same code.

A worker is any class with a method ``ready()``. Calling a method gives a `Call`: a stream of
items, several where the method yields them and one where it returns. A worker runs its calls one
at a time, in the order in which they were made. Items of many calls are taken with `next_item`,
as they become ready. Imports neither vllm nor torch: whoever drives a pool stays light.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections import deque
from typing import Any

import ray

from raylla.actors.calls import (
    DONE,
    Call,
    LocalCall,
    RayCall,
    Record,
    gather,
    next_item,
    next_reference,
    soon,
    soon_reference,
)
from raylla.actors.draining import draining, node_of
from raylla.actors.host import START, Host
from raylla.config import Actors, Engines
from raylla.errors import RayllaError, WorkerHungError, WorkerLostError

__all__ = [
    "DONE",
    "Call",
    "Pool",
    "Record",
    "gather",
    "next_item",
    "next_reference",
    "soon",
    "soon_reference",
]

HOLD, MESSAGE, SHARE = 0.1, 0.001, 0.1
"""Seconds within which a worker's items travel together, at least; what a message costs the driver; and the
share of the driver's time that the messages of a pool may take, for which a larger pool's wait longer."""

WORKER = "RAYLLA_WORKER"
"""Environment variable that tells an operator which worker a process is, e.g. ``rollout[0]``."""


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
        numbers: the first worker's number and the step to the next: pools of one name share the numbers.
        beside: calls of one worker run beside each other, up to this many, and send each item at once.
    """

    def __init__(
        self,
        name: str,
        kind: type,
        args: tuple[object, ...],
        actors: Actors,
        in_process: bool = False,
        record: Record | None = None,
        numbers: tuple[int, int] = (0, 1),
        beside: int = 1,
    ) -> None:
        self.name = name
        self._kind = kind
        self._args = args
        self._actors = actors
        self._record = record
        self._numbers = numbers
        self._beside = beside
        self._hosts: dict[int, Any] = {}
        self._queues: dict[int, deque[LocalCall]] = {}
        self._starting: dict[int, Call] = {}
        self._nodes: dict[Any, str | None] = {}
        self.in_process = in_process
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

    @property
    def _hold(self) -> float:
        """Seconds within which a worker's items travel together."""
        if self._beside > 1:
            return 0.0
        return max(HOLD, len(self._hosts) * MESSAGE / SHARE)

    def create(self, workers: int | None = None) -> None:
        """Begin to make ``workers`` (none: the least), side by side; `wait_ready` waits for them."""
        for _ in range(self.least if workers is None else workers):
            self.begin()

    def begin(self) -> Call:
        """Begin to make one more worker, under the lowest number that is free; does not wait.

        Returns the call whose end says that it is ready. It is a member after `admit`, or `wait_ready`.
        """
        index = next(number for number in itertools.count(*self._numbers) if number not in self._hosts)
        self._hosts[index] = Host() if self.in_process else self._actor(index)
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
        if not self.in_process:
            ray.kill(host)

    def wait_ready(self, deadline: float) -> None:
        """Wait until every worker is ready, those that die meanwhile made anew; stops all where one is not.

        Raises:
            WorkerHungError: a worker is not ready within ``deadline`` seconds.
            WorkerLostError: one died, and the pool has made ``actors.max_restarts`` anew already.
            RunError: a worker's constructor failed. Errors of raylla's own keep their type.
        """
        what = (
            f"pool {self.name}: {len(self._starting)} x {self._kind.__name__} to be ready "
            f"({self._actors.cpus:g} CPUs and {self._actors.gpus:g} GPUs each)"
        )
        try:
            self._wait(set(self._starting), deadline, what)
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
            WorkerLostError: the pool has made ``actors.max_restarts`` already.
            WorkerHungError: the new worker is not ready within ``deadline`` seconds.
        """
        self._begin_again(lost)
        self._wait({lost.worker}, deadline, f"{self.name}[{lost.worker}] to be ready again")

    def leaving(self) -> dict[int, float]:
        """Members whose node is announced to go, and the seconds that they have left there."""
        going = {} if self.in_process else draining()
        if not going:
            return {}
        hosts = {worker: self._hosts[worker] for worker in self.members}
        self._nodes = {host: self._nodes.get(host) or node_of(host) for host in hosts.values()}
        return {
            worker: going[node] for worker, host in hosts.items() if (node := self._nodes[host]) in going
        }

    def count(self, lost: WorkerLostError) -> None:
        """Count the loss of a worker that is to be replaced, unless its node was announced to go.

        Raises:
            WorkerLostError: ``lost`` itself, where the pool has replaced ``actors.max_restarts`` already.
        """
        if lost.announced:
            return
        if self.restarts >= self._actors.max_restarts:
            raise lost
        self.restarts += 1

    def call(self, worker: int, method: str, *args: object) -> Call:
        """Ask one worker for ``method(*args)``, without waiting; it gets the values of references."""
        return self._submit(worker, method, *args)

    def broadcast(self, method: str, *args: object, deadline: float, what: str) -> list[object]:
        """What ``method(*args)`` returns on each worker, in their order; not for methods that yield.

        Raises:
            WorkerHungError: not all have answered within ``deadline`` seconds; names ``what``.
        """
        return gather([self.call(index, method, *args) for index in self.members], deadline, what)

    def handle(self) -> Pool:
        """The same workers, to be called from another process."""
        found = copy.copy(self)
        found._record, found._queues, found._nodes = None, {}, {}
        return found

    def stop(self) -> None:
        """End all workers, whatever they are doing; does nothing where none was started."""
        if not self.in_process:
            for host in self._hosts.values():
                ray.kill(host)
        self._hosts, self._queues, self._starting = {}, {}, {}

    def _begin_again(self, lost: WorkerLostError) -> None:
        self.count(lost)
        ray.kill(self._hosts[lost.worker])
        self._hosts[lost.worker] = self._actor(lost.worker)
        self._starting[lost.worker] = self._submit(lost.worker, START, self._kind, self._args)

    def _wait(self, workers: set[int], deadline: float, what: str) -> None:
        """Until these of the workers that start are ready, whoever dies meanwhile made anew."""
        end = time.monotonic() + deadline
        while waiting := [call for worker, call in self._starting.items() if worker in workers]:
            try:
                call, item = next_item(waiting, end - time.monotonic(), what)
            except WorkerHungError:
                raise
            except WorkerLostError as lost:
                self._begin_again(lost)
            else:
                if item is DONE:
                    self.admit(call.index)

    def _submit(self, worker: int, method: str, *args: object) -> Call:
        host = self._hosts[worker]
        if self.in_process:
            given = [ray.get(arg) if isinstance(arg, ray.ObjectRef) else arg for arg in args]
            items = host.run(method, *given)
            queue = self._queues[worker] if self._beside == 1 else deque()
            return LocalCall(self.name, worker, method, self._record, items, queue)
        stream = self._stream(worker, method, *args)
        return RayCall(self.name, worker, method, self._record, stream, host)

    def _stream(self, worker: int, method: str, *args: object) -> Any:
        """What a worker on Ray gives, as it comes."""
        stream = self._hosts[worker].stream.options(num_returns="streaming")
        return stream.remote(self._hold, method, *args)

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
                max_concurrency=self._beside,
                runtime_env={"env_vars": environment},
            )
            .remote()
        )
