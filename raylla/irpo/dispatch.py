"""Who of a pool is at work, who is free, and how many there should be.

    begun --ready--> loading --live weights--> free --work--> busy --done--> free --no work--> ended
                                               free, busy --its node is to go--> ended, another begun

A pool with room to grow has as many workers as the work that waits can keep busy, between its least
and its most.  A worker for which the cluster has no room yet waits for it, which is what an autoscaler
acts on; what waits longer than ``deadlines.start`` is withdrawn, and the others do the work.  A worker
whose node is announced to go gets no new work; another is begun elsewhere once it is done, or when the
node has no time left.  Nothing of `Dispatch` waits: the driver goes on with what is running.  Where all
that there is to do is known, and a pool is as large as it is, `dealt` deals it out and waits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from raylla.actors.host import START
from raylla.actors.pool import DONE, Call, Pool, next_item
from raylla.errors import DeadlineError, WorkerLostError
from raylla.irpo.shards.squad import Witness

LOOK = 2.0
"""Seconds between two looks for nodes that are announced to go."""
SPARE = 5.0
"""Seconds that such a node may have left when what its workers hold is sent elsewhere."""
Join = Callable[[Pool, int], Call | None]
"""Has a worker that is ready load what the others hold; the call that does, or none."""


class Dispatch:
    """The workers of one pool, for the time of one weight version.

    Args:
        join: what a new worker does before it takes work.
        deadline: seconds that a new worker may take to be ready.
    """

    def __init__(self, pool: Pool, join: Join, watch: Witness, deadline: float) -> None:
        self.calls: dict[Call, list[Any]] = {}
        self._pool = pool
        self._join = join
        self._watch = watch
        self._deadline = deadline
        self._free = dict.fromkeys(pool.members, time.monotonic())
        self._joining: dict[Call, float] = {}
        self._pressed = time.monotonic()
        self._leaving: dict[int, float] = {}
        self._looked = -math.inf
        self._full = False
        self._tell()

    @property
    def free(self) -> list[int]:
        """Workers with nothing to do, who had something last first: so that the others' rest is long."""
        return list(reversed(self._free))

    @property
    def waits(self) -> list[Call]:
        """All calls of which something is to come."""
        return [*self.calls, *self._joining]

    def give(self, worker: int, items: list[Any], method: str, *args: Any) -> None:
        """Have a free worker do ``method(*args)``, which is the work on ``items``."""
        del self._free[worker]
        self.calls[self._pool.call(worker, method, *args)] = items

    def done(self, call: Call) -> list[Any]:
        """A call has ended, or was lost and its worker is there again: the worker is free.

        Returns the call's items.
        """
        if call.index in self._leaving:
            self._move(call.index)
        else:
            self._free[call.index] = time.monotonic()
        return self.calls.pop(call)

    def joined(self, call: Call, item: object) -> bool:
        """Take a new worker's next step, where ``call`` is of one that joins; whether it was."""
        if call not in self._joining:
            return False
        if item is DONE:
            until = self._joining.pop(call)
            load = self._join(self._pool, call.index) if call.method == START else None
            if load is not None:
                self._joining[load] = until
            else:
                self._pool.admit(call.index)
                self._free[call.index] = time.monotonic()
                self._tell()
        return True

    def missed(self, lost: WorkerLostError) -> bool:
        """Drop a worker that was lost before it had joined; whether ``lost`` was one."""
        found = [call for call in self._joining if (call.pool, call.index) == (lost.pool, lost.worker)]
        for call in found:
            self._pool.count(lost)
            self._withdraw(call)
        return bool(found)

    def lost(self) -> list[Any]:
        """The items of calls whose workers were lost, and are there again."""
        calls = [call for call in self.calls if call.done]
        for call in calls:
            self._leaving.pop(call.index, None)
        return [item for call in calls for item in self.done(call)]

    def fit(self, batches: float) -> None:
        """Grow to what ``batches`` more, each enough for one worker, keep busy; end who rests long.

        Raises:
            WorkerLostError: a worker is at work whose node is about to go.
            DeadlineError: the pool's nodes have gone, and no other has had room for a worker in time.
        """
        self._clear_out()
        now, least = time.monotonic(), self._pool.least
        if batches:
            self._pressed = now
        wanted = max(least, min(self._pool.most, len(self.calls) + math.ceil(batches)))
        for _ in range(0 if self._full else wanted - self._pool.size - len(self._joining)):
            self._joining[self._pool.begin()] = now + self._deadline
            self._tell()
        for call, until in list(self._joining.items()):
            if now >= until:
                self._full = True
                late = f"{call.worker}: not ready within deadlines.start={self._deadline:g} s, left out"
                self._watch.say(late, "yellow")
            spared = self._pool.size >= least and now - self._pressed > self._pool.idle_seconds
            if now >= until or spared:
                self._withdraw(call)
        if self._full and not self._pool.size:
            raise DeadlineError(
                f"pool {self._pool.name}: its workers' nodes have gone, and no other had room for a worker "
                f"within deadlines.start={self._deadline:g} s; add nodes, then `raylla resume`"
            )
        self._rest(now - self._pool.idle_seconds)

    def wake(self) -> float:
        """Seconds until `fit` may have something to do, though nothing has come in."""
        now, idle = time.monotonic(), self._pool.idle_seconds
        times = list(self._joining.values())
        if not self._pool.in_process:
            times.append(self._looked + LOOK)
        if self._joining and self._pool.size >= self._pool.least:
            times.append(self._pressed + idle)
        if self._pool.size > self._pool.least:
            times += [since + idle for since in self._free.values()]
        return max(0.0, min(times) - now) if times else math.inf

    def close(self) -> None:
        """Nothing is left to do: go back to the least at once, for what comes next needs the room."""
        for call in list(self._joining):
            self._withdraw(call)
        self._rest(math.inf)

    def _clear_out(self) -> None:
        """Have nobody work where a node is about to go, nor rest where one is announced to."""
        now = time.monotonic()
        if now < self._looked + LOOK:
            return
        self._looked, self._leaving = now, self._pool.leaving()
        for worker in self._leaving.keys() & self._free.keys():
            del self._free[worker]
            self._move(worker)
        for call in self.calls:
            if self._leaving.get(call.index, math.inf) < SPARE:
                call.done = True
                raise WorkerLostError(f"{call}: its node is about to go", call.pool, call.index, True)

    def _move(self, worker: int) -> None:
        """End a worker where it is; `fit` begins another elsewhere."""
        said = f"{self._pool.name}[{worker}]: its node is announced to go; another takes its place"
        self._watch.say(said, "yellow")
        del self._leaving[worker]
        self._pool.end(worker)
        self._tell()

    def _rest(self, since: float) -> None:
        """End workers that have been free since then, down to the least."""
        for worker, idle in list(self._free.items()):
            if self._pool.size > self._pool.least and idle <= since:
                del self._free[worker]
                self._pool.end(worker)
                self._tell()

    def _withdraw(self, call: Call) -> None:
        del self._joining[call]
        self._pool.end(call.index)
        self._tell()

    def _tell(self) -> None:
        self._watch.pool(self._pool.name, self._pool.size, len(self._joining))


def dealt(
    pool: Pool,
    method: str,
    items: Sequence[Any],
    *args: Any,
    restart: Callable[[WorkerLostError], None],
    deadline: float,
) -> Iterator[Any]:
    """What ``method(share, *args)`` of the workers of ``pool`` yields for ``items``, dealt out evenly.

    A lost worker is made anew by ``restart`` and gets its whole share again, so that some things are said
    twice, alike both times.

    Raises:
        WorkerLostError: as ``restart``, or a worker said nothing for ``deadline`` seconds.
    """
    what = f"the next item of {pool.name}.{method}"
    shares: dict[Call, list[Any]] = {}

    def give(worker: int, share: list[Any]) -> None:
        shares[pool.call(worker, method, share, *args)] = share

    for place, worker in enumerate(pool.members[: len(items)]):
        give(worker, list(items[place :: pool.size]))
    while shares:
        try:
            call, item = next_item(list(shares), deadline, what)
        except WorkerLostError as lost:
            restart(lost)
            for call in [call for call in shares if call.done]:
                give(call.index, shares.pop(call))
            continue
        if item is DONE:
            del shares[call]
        else:
            yield item
