"""Weights on their way from the trainer's files to the engines.

A store reads a version once; the arrays then go to every engine by reference, through shared
memory on one machine and the object store between machines, and never through the driver.
"""

from __future__ import annotations

from collections.abc import Sequence

from raylla.actors.pool import DONE, Call, Pool, next_item, next_reference
from raylla.engines import Probe, Weights
from raylla.errors import WeightError
from raylla.models import Adapter, read_weights
from raylla.models.adapters import adapter_over
from raylla.records import WeightVersion


class WeightStore:
    """The worker of a pool of one: holds the newest published version.

    Args:
        base: where engines share a base, its place: versions are then adapters over it, or itself, of which
            nothing is to be brought. None: versions are whole weights.
    """

    def __init__(self, base: str | None = None) -> None:
        self._base = base
        self._version: WeightVersion | None = None
        self._weights: Weights | Adapter = {}

    def ready(self) -> None:
        """Nothing to wait for."""

    def publish(self, version: WeightVersion) -> None:
        """Read ``version`` and hold it in place of the one before; a version is read only once.

        Raises:
            WeightError: its directory holds no readable safetensors, or no adapter over the base.
        """
        if version == self._version:
            return
        if self._base is None:
            self._weights = read_weights(version.path)
        else:
            self._weights = {} if version.path == self._base else adapter_over(self._base, version.path)
        self._version = version

    def current(self) -> tuple[str, Weights | Adapter]:
        """Name and arrays of the version held: what a restarted engine must load.

        Raises:
            WeightError: nothing was published yet.
        """
        if self._version is None:
            raise WeightError("no weight version was published yet; start from the base model's files")
        return self._version.name, self._weights

    def weights(self, name: str) -> Weights | Adapter:
        """Arrays of version ``name``.

        Raises:
            WeightError: the store holds another version.
        """
        held, weights = self.current()
        if held != name:
            raise WeightError(f"asked for weight version {name}, but the store holds {held}")
        return weights


def roll_out(
    pool: Pool,
    store: Pool,
    version: WeightVersion,
    probe: Probe | None,
    deadline: float,
    workers: Sequence[int] | None = None,
) -> list[float]:
    """Make ``version`` live on ``workers`` of ``pool``, or on all; no request may be running there.

    Returns each worker's mean absolute difference from the probe (nats), in their order.

    Args:
        store: a pool of one `WeightStore`.
        deadline: seconds for each of reading, and loading on all workers.

    Raises:
        WeightError: the version cannot be read, or a worker does not reproduce the probe; workers
            that failed refuse to answer. Names them all.
        DeadlineError: a worker was not done in time.
    """
    what = f"weight version {version.name} to be live on pool {pool.name}"
    payload = _payload(store, version, deadline)
    chosen = pool.members if workers is None else workers
    calls = [pool.call(index, "load", payload, probe, version.name) for index in chosen]
    differences: dict[Call, float] = {}
    failed: list[str] = []
    waiting = list(calls)
    while waiting:
        try:
            call, item = next_item(waiting, deadline, what)
        except WeightError as error:
            failed.append(str(error))
        else:
            if item is not DONE:
                differences[call] = item
        waiting = [call for call in waiting if not call.done]
    if failed:
        raise WeightError(f"weight version {version.name} is not live: {'; '.join(failed)}")
    return [differences[call] for call in calls]


def begin_load(
    pool: Pool, store: Pool, version: WeightVersion, probe: Probe | None, deadline: float, worker: int
) -> Call:
    """Have one worker load ``version``; waits for the store alone. The call's item is the difference.

    Raises:
        WeightError: the version cannot be read.
        DeadlineError: it is not read within ``deadline`` seconds.
    """
    return pool.call(worker, "load", _payload(store, version, deadline), probe, version.name)


def _payload(store: Pool, version: WeightVersion, deadline: float) -> object:
    """A reference to the arrays of ``version``, once the store holds them."""
    what = f"weight version {version.name} to be read"
    store.broadcast("publish", version, deadline=deadline, what=what)
    return next_reference(store.call(0, "weights", version.name), deadline, what)
