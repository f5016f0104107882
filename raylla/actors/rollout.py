"""The Ad-LLM at work: samples answers under one weight version, and takes over the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from raylla.config import Engine as Settings
from raylla.config import Sampling
from raylla.engines import (
    Aggregate,
    Aggregated,
    Engine,
    Generated,
    Given,
    Probe,
    Request,
    Scored,
    Weights,
    open_engine,
)
from raylla.errors import WeightError
from raylla.models import Adapter

OpenEngine = Callable[[str, Settings, int], Engine]


class RolloutWorker:
    """A worker of a `Pool`.

    Args:
        model_path: whatever `models.resolve` knows: the weights that it starts with.
        version: name of these weights.
        engine: makes the engine of a path, settings and seed.
    """

    def __init__(
        self,
        model_path: str,
        sampling: Sampling,
        settings: Settings,
        seed: int,
        version: str,
        engine: OpenEngine = open_engine,
    ) -> None:
        self._sampling = sampling
        self._engine = engine(model_path, settings, seed)
        self._version: str | None = version

    def ready(self) -> None:
        """Returns when the engine can answer."""

    def version(self) -> str | None:
        """Name of the weights in the engine; none after a load that failed."""
        return self._version

    def generate(self, requests: list[Request], version: str) -> Iterator[Generated]:
        """Answers under weight version ``version``, each as it finishes.

        Raises:
            WeightError: the engine holds another version.
        """
        self._hold(version)
        yield from self._engine.generate(requests, self._sampling)

    def score(self, given: list[Given], version: str) -> Iterator[Scored]:
        """How probable weight version ``version`` finds the answers, each as it finishes.

        Raises:
            WeightError: the engine holds another version.
        """
        self._hold(version)
        yield from self._engine.score(given)

    def aggregate(self, requests: list[Aggregate], version: str) -> Iterator[Aggregated]:
        """Texts that bidders' models write together, all of weight version ``version``.

        Raises:
            WeightError: the engine holds another version.
        """
        self._hold(version)
        yield from self._engine.aggregate(requests, self._sampling)

    def load(self, weights: Weights | Adapter, probe: Probe | None, version: str) -> float:
        """Take over ``weights`` under the name ``version``; the measured difference (nats).

        Raises:
            WeightError: the engine does not reproduce the probe; it then answers nothing until a
                load succeeds.
        """
        self._version = None
        difference = self._engine.load(weights, probe)
        self._version = version
        return difference

    def _hold(self, version: str) -> None:
        if version != self._version:
            raise WeightError(
                f"asked for weight version {version}, but holds {self._version or 'none'}; "
                "roll the version out to this worker first"
            )
