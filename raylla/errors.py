"""Errors that a user can act on: each message names the field, the value and the way out.

The command line exits with the error's ``status``: 2, the input or the run is at fault and the same
command fails again; 3, the cluster is at fault and the same command may succeed; 143 or 130, the run
was asked to stop.
"""


class RayllaError(Exception):
    """Base of every error that raylla raises on purpose."""

    status = 2


class ConfigError(RayllaError):
    """A config file, an override or a combination of values is unusable."""


class WorldError(RayllaError):
    """Profiles, ads or queries are missing, malformed or contradictory."""


class DataError(RayllaError):
    """A data set to learn from or to measure with is missing, damaged or malformed."""


class PlacementError(RayllaError):
    """The cluster cannot ever place what the config asks for."""


class RunError(RayllaError):
    """A run directory cannot be used: another config, missing weights, nothing trained."""


class LostError(RunError):
    """A process of the run is gone, with its node or by itself."""

    status = 3


class StorageError(RunError):
    """A disk or bucket that a run is on is full, refuses, or is gone; its last commit stands."""

    status = 3


class WorkerLostError(LostError):
    """A worker's process or node died at work: nobody's fault in the data or the code, so that it may be
    started anew. ``worker`` is its place in the pool named ``pool``; its node was ``announced`` to go."""

    def __init__(self, message: str, pool: str, worker: int, announced: bool = False) -> None:
        super().__init__(message)
        self.pool = pool
        self.worker = worker
        self.announced = announced

    def __reduce__(self) -> tuple[type, tuple[str, str, int, bool]]:
        """With all that it is made of: it travels from a shard to its driver."""
        return type(self), (str(self), self.pool, self.worker, self.announced)


class InputLostError(WorkerLostError):
    """What a worker was given cannot be had, gone with whoever made it; the worker lives, but missed that
    call."""


class DeadlineError(RayllaError):
    """A wait ran past its deadline; the message names what was waited for and who owns it."""

    status = 3


class WorkerHungError(WorkerLostError, DeadlineError):
    """A worker said nothing within the deadline: as good as lost, and handled like that."""


class StoppedError(RayllaError):
    """The run was asked to stop by a signal, and did."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class BudgetError(RayllaError):
    """More samples were dropped in a stage than the config allows."""


class FetchError(RayllaError):
    """A model's package cannot be got, is not what it should be, or does not fit on the disk."""

    status = 3


class WeightError(RayllaError):
    """An engine did not take over the weights that it was given."""


class MoneyError(RayllaError):
    """An amount that nothing may cost: no bid of the grid, negative, or beyond what is counted."""


class StoreError(RayllaError):
    """The endpoint's database cannot be used: unreachable, of a newer version, or a record that clashes."""


class UnknownError(StoreError):
    """Nothing of that id is in the store, or not for whoever asks."""


class TextError(StoreError):
    """Text that not every database takes: a NUL character, or half a surrogate pair."""


class ClashError(StoreError):
    """The store already holds something else under that id or reference."""


class TokenError(RayllaError):
    """A click token or an API key that does not verify, or key material that cannot sign."""


class EndpointError(RayllaError):
    """The endpoint cannot answer a request: its engine failed, or refuses the prompt."""


class RequestError(EndpointError):
    """The engine is well and does not take this request: nothing but another one will be answered."""


class TooLongError(RequestError):
    """What a request to the endpoint holds, or goes on from, is too long."""


class BusyError(RayllaError):
    """The endpoint cannot take a request, or not finish it in time; it is worth trying again."""


class DeployError(RayllaError):
    """A Serve application could not be deployed or changed; what ran before still runs."""
