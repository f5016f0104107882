"""What is being served: a weight version of a run, by name, and how engines come to hold it.

The wanted versions are the Serve application's `user_config`, so that a restarted replica finds them
and a change of them is a change of config that Serve applies in place:

    Ingress  {"stable": TARGET, "canary": TARGET or null, "share": 0.1, "since": time or null}
    Engine   {"version": TARGET}        Canary  {"version": TARGET or null}
    Predictor {"version": TARGET}       TARGET  {"run": directory, "version": name}

Where versions share an engine (`raylla.serving.deploy.policies`) there is no Canary, and an Engine is told
{"version": TARGET, "canary": TARGET or null}.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylla.config import Sampling
from raylla.engines.protocol import Probe
from raylla.errors import RayllaError, RunError
from raylla.records import WeightVersion
from raylla.runs.state import Run
from raylla.runs.versions import committed, named, note_served
from raylla.serving.engine.engine import AsyncEngine
from raylla.serving.engine.wire import Piece, PolicyRole
from raylla.serving.tracing import Carrier

if TYPE_CHECKING:
    from raylla.serving.engine.predictor import Predictor

log = logging.getLogger("raylla.serving")


@dataclass(frozen=True, slots=True)
class Target:
    """A weight version of a run."""

    run: str
    version: str

    @classmethod
    def of(cls, tree: dict[str, Any] | None) -> Target | None:
        """The target that a `user_config` names, if it does."""
        return cls(tree["run"], tree["version"]) if tree else None

    def plain(self) -> dict[str, str]:
        """As `of` reads it."""
        return asdict(self)


def find(run: str | Path, version: str | None) -> Target:
    """The target of a run's version; none: its last.

    Raises:
        RunError: it has no such version, or no trained pCTR model yet; names those that there are.
    """
    opened = Run.open(run)
    name = named(opened, version or committed(opened)[-1][0].name)[0].name
    if newest_pctr(opened) == 0:
        raise RunError(f"{run} has no trained pCTR model yet; train at least one epoch")
    note_served(opened, name)
    return Target(opened.place, name)


def weights(target: Target) -> tuple[WeightVersion, Probe | None]:
    """Where the weights of ``target`` are, and the trainer's probe of them.

    Raises:
        RunError: the run or the version is not there.
    """
    return named(Run.open(target.run), target.version)


def newest_pctr(run: Run) -> int:
    """The last epoch whose pCTR model is there; 0: none."""
    epochs = range(run.config.irpo.epochs, 0, -1)
    return next((one for one in epochs if run.home.holds(f"reward/epoch-{one}")), 0)


def pctr_of(target: Target) -> tuple[str, str]:
    """Where the newest pCTR model of the target's run is, and the name that auctions know it by.

    Raises:
        RunError: the run is not there.
    """
    run = Run.open(target.run)
    epoch = newest_pctr(run)
    return run.reward(epoch), f"{run.path.name}/epoch-{epoch}"


def load_pctr(predictor: Predictor, target: Target) -> None:
    """Predict clicks with the newest pCTR model of the target's run.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    predictor.load(*pctr_of(target))


class Holding:
    """An engine and the version that it should hold; a canary has another."""

    def __init__(self, engine: AsyncEngine, held: Target) -> None:
        self.engine = engine
        self.held = held
        self.canary: Target | None = None
        self.problem: str | None = None

    async def want(self, target: Target, canary: Target | None = None) -> None:
        """Take over ``target``; where that fails the old version goes on, and ``problem`` says why."""
        if target == self.held:
            self.problem = None
            return
        try:
            version, probe = weights(target)
            difference = await self.engine.load(version, probe)
        except (RayllaError, OSError) as error:
            self.problem = f"weight version {target.version} of {target.run}: {error}"
            log.error("refused: %s", self.problem)
            return
        log.info(
            "weight version is live", extra={"weight_version": target.version, "difference": difference}
        )
        self.held, self.problem = target, None

    def generate(
        self, prompt: Sequence[int], sampling: Sampling, stream: bool, trace: Carrier, role: PolicyRole
    ) -> AsyncGenerator[Piece, None]:
        """See `AsyncEngine.generate`; whatever the role, it is the version that is held."""
        return self.engine.generate(prompt, sampling, stream, trace)
